"""Quantization of causal language models: tensors in, tensors out, nothing of the house around it.

    quantize(model, GPTQ(bits=4), batches)                      # nn.Linear -> QuantLinear, in place
    export(model, Path("student.gguf"), "gguf", tokenizer_dir)  # the same integers, in a runtime's own layout

The path of a weight: a method (`methods/`) chooses an integer for it on a number grid (`grid/`, the only folder that
rounds), `pack.py` turns the integers into bytes, `linear.py` keeps them where the `nn.Linear` was, and `exports/`
writes them out. No stage re-quantizes: scales are fp16 before any integer is chosen, so what is measured here is
what a runtime computes, up to the runtime's own activation rounding.

A model can be made smaller first: `quant.pruning.prune` returns one with fewer blocks, heads, neurons or channels, of
the same class, which is to be trained again before it is quantized like any other.

This file imports nothing heavy, so that a command line can read the specs in `quant.methods` without loading torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from quant.errors import QuantError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from quant.calibrate import Batch
    from quant.exports import Format
    from quant.methods import Method

__all__ = ["Progress", "QuantError", "export", "quantize"]

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, what) after each unit of work."""


def quantize(
    model: nn.Module, method: Method, batches: Sequence[Batch] = (), *, progress: Progress | None = None
) -> nn.Module:
    """Quantize `model` in place and return it.

    Every `nn.Linear` inside the blocks becomes a `QuantLinear`. The token embedding goes on a grid of
    `method.embedding_bits`, and so does the output head where it is tied to it; ties stay ties. A head of its own,
    norms and biases keep their type unless `method.head_bits` says otherwise.

    Args:
        model: a decoder or encoder in the Hugging Face shape (a `ModuleList` of blocks, `get_input_embeddings`).
        method: what to do, one of `quant.methods`.
        batches: calibration data, each `input_ids` Long[b, t], `attention_mask` Long[b, t] and optionally
            `loss_mask` Bool[b, t], True where a token is (part of) an answer. Padding is masked out. RTN needs none.
        progress: called with (done, total, what).

    Raises:
        QuantError: the model is already quantized; a weight or a calibration activation is NaN or infinite; the
            group size does not divide a layer's inputs; a method that needs data got none. All but the activations
            are checked before the model is touched.
    """
    from quant.anatomy import check

    check(model, method.grids(model))
    method.apply(model, batches, progress or (lambda done, total, what: None))
    return model


def export(model: nn.Module, path: Path, format: Format, tokenizer_dir: Path) -> Path:
    """Write `model`, quantized or not, to `path` and return it.

    Everything is written under a temporary name beside `path` and renamed when complete, so a killed export leaves
    nothing that looks like a model. An existing file is replaced; in an existing folder the files of the export are,
    `config.json` last, and others (a tokenizer's, a manifest) stay.

    Args:
        model: what `quantize` returned, or a model that was never quantized.
        path: for "gguf" a file; for "compressed_tensors" a folder that `from_pretrained` loads; for "onnx" a folder.
        format: one of `quant.exports.EXPORTS`.
        tokenizer_dir: folder with `tokenizer.json` and `tokenizer_config.json`.

    Raises:
        QuantError: the format cannot hold this model, grid or tokenizer without changing it.
    """
    from quant.exports import writer

    return writer(format)(model, path, tokenizer_dir)
