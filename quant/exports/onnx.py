"""ONNX: a folder that ONNX Runtime runs, with our integers in its own quantized operators.

    model.onnx     int64 [b, t] input_ids, attention_mask, and token_type_ids where the model knows segments, to float32
                   output: logits, or the last hidden state of a model without a head; b and t as they come
    model.onnx.sha256, config.json, tokenizer files

Encoders, and decoders that read a whole sequence at once: there is no cache of keys and values, as an encoder needs
none, and generating is what gguf is for.

A copy of the model goes through torch's exporter, with stand-ins where quantized layers were (`onnx_layers.py`): their
forward is the runtime's operator, their buffers are our integers as that operator wants them. So nothing is looked for
in a graph, and nothing is rounded a second time. Everything else is float32.

**What the runtime makes of it.** ONNX Runtime rounds the inputs of weight-only layers to int8 in blocks, as llama.cpp
does: that is what `accuracy_level` 4 asks for, and its default for a `DequantizeLinear` that it fuses with a `MatMul`.
`Session(folder, exact=True)` has it compute in float32 instead, which is how files are checked against torch.

On the shop's teacher (7.3 M, embedding in int8), one thread of a busy machine, KL on holdout conversations; exactly,
the first four are within 2e-5 of torch's largest logit:

| weights             | MB   | KL from the float model | 1 token, 128 tokens: speed of float32 | KL from torch |
|---------------------|------|-------------------------|---------------------------------------|---------------|
| float32             | 29.4 | 0                       | 1, 1                                  | 0             |
| int4 in 32, RTN     | 5.4  | 0.119, exactly 0.120    | 2.2, 1.05; exactly 1.6, 1.0           | 0.0011        |
| int8 in 32          | 8.5  | 0.0019, exactly 0.0009  | 1.8, 1.2; exactly 1.1, 1.2            | 0.0011        |
| int8 by row         | 7.8  | 0.0026, exactly 0.0013  | 2.0, 1.4; exactly 1.2, 1.1            | 0.0012        |
| int8, int8 by token | 10.7 | 0.0049                  | 1.5, 1.9                              | 0.0012        |

The last line's distance from torch is what rounding makes of the last bit of a float: noise of 2e-7 in the embedding,
in torch alone, gives 0.0006. Its embedding is float32.

Refused: 3, 5 and 6 bits, for which the runtime has no operator, and grids of floats. Above 2 GB the weights would have
to lie in a second file. Needs the packages of the extra `onnx`.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quant.anatomy import embedding, head, tied
from quant.calibrate import Batch
from quant.errors import QuantError
from quant.exports import files
from quant.exports.onnx_layers import OPSET, STORED, Table, dequantize, stand_in
from quant.linear import QuantEmbedding, QuantLinear

MODEL = "model.onnx"
LARGEST = 2**31 - 2**20  # bytes of a protobuf message, less some for the graph
EXACT = 1  # accuracy_level of MatMulNBits: inputs stay float32


def write(model: nn.Module, path: Path, tokenizer_dir: Path) -> Path:
    """Write the folder; see `quant.export`."""
    for package in ("onnx", "onnxscript"):
        _package(package)
    graph = _Graph(model)
    size = sum(tensor.nbytes for tensor in {t.data_ptr(): t for t in graph.state_dict().values()}.values())
    if size > LARGEST:
        name = type(model).__name__
        raise QuantError(f"{name} is {size / 2**30:.1f} GB, and an onnx file holds 2; export compressed_tensors")
    with files.folder(path, "onnx", tokenizer_dir, last=MODEL) as partial:
        (partial / MODEL).write_bytes(_exported(graph))
        files.seal(partial / MODEL)
        model.config.save_pretrained(partial)  # type: ignore[union-attr, operator]
        for pattern in ("*token*.json", "vocab.*", "merges.txt", "chat_template.jinja"):
            for file in tokenizer_dir.glob(pattern):
                shutil.copyfile(file, partial / file.name)
    return path


def read(folder: Path) -> dict[str, Tensor]:
    """The weights a runtime computes with, float32, under the names of the model before it was quantized."""
    onnx = _package("onnx")
    graph = _loaded(folder).graph
    held = {i.name: torch.from_numpy(onnx.numpy_helper.to_array(i).copy()) for i in graph.initializer}
    state = {}
    for full, tensor in held.items():
        name, _, part = full.removeprefix("model.").rpartition(".")
        if part in STORED:
            columns = [a.i for n in graph.node if full in n.input for a in n.attribute if a.name == "K"]
            scale, low = held[f"model.{name}.scale"], held.get(f"model.{name}.low")
            state[f"{name}.weight"] = dequantize(part, tensor, scale, low, *columns)
        elif full.startswith("model.") and part in ("weight", "bias"):
            state[f"{name}.{part}"] = tensor
    return state


class Session:
    """A folder in ONNX Runtime, on the CPU.

    Args:
        folder: what `write` wrote.
        threads: for one operator; None leaves it to the runtime.
        exact: compute in float32 where the runtime would round inputs to int8. Slower.

    Raises QuantError where the file is damaged or missing.
    """

    def __init__(self, folder: Path, threads: int | None = None, exact: bool = False) -> None:
        runtime, model = _package("onnxruntime"), _loaded(folder)
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        if exact:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            levels = (a for n in model.graph.node for a in n.attribute if a.name == "accuracy_level")
            for level in levels:
                level.i = EXACT
        self._session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._inputs = [i.name for i in self._session.get_inputs()]

    def __call__(self, batch: Batch) -> Tensor:
        """The output, float32, for int64 [b, t] input_ids, attention_mask and, 0 if not given, token_type_ids."""
        zeros = torch.zeros_like(batch["input_ids"])
        (output,) = self._session.run(None, {name: batch.get(name, zeros).numpy() for name in self._inputs})
        return torch.from_numpy(output)


class _Graph(nn.Module):
    """A copy of the model in float32 that consists of the runtime's operators."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        copy: Any = deepcopy(model).cpu().float().eval()
        config = copy.config
        config.use_cache = False
        segments = getattr(config, "type_vocab_size", 0) > 1
        self.inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if segments else [])]
        table, top = embedding(copy), head(copy) if tied(copy) else None
        shared: Table | None = None
        for name, module in list(copy.named_modules()):
            if isinstance(module, QuantEmbedding):
                made = Table(name, module)
                shared = made if module is table else shared
                copy.set_submodule(name, made)
        for name, module in list(copy.named_modules()):
            if isinstance(module, QuantLinear):
                copy.set_submodule(name, stand_in(name, module, shared if module is top else None))
        self.model = copy

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, **segments)
        return out["logits"] if "logits" in out else out["last_hidden_state"]


def _exported(graph: _Graph) -> bytes:
    """`graph` as a serialized ONNX model. Raises QuantError where torch cannot trace it."""
    # A size of 1 would be taken for a constant, and one tensor in two places for one input.
    example = tuple(torch.ones(2, 4, dtype=torch.long) for _ in graph.inputs)
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph, example, dynamo=True, opset_version=OPSET, verbose=False,
                dynamic_shapes=dict.fromkeys(graph.inputs, sizes), input_names=graph.inputs, output_names=["output"],
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as problem:
        name, why = type(graph.model).__name__, str(problem.__cause__ or problem).splitlines()[0]
        raise QuantError(f"{name}: torch cannot trace it ({why}); export compressed_tensors or gguf") from problem
    assert program is not None
    model = program.model_proto
    parts = (*model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.graph.input)
    for part in (model, model.graph, *parts, *model.graph.output):
        part.ClearField("metadata_props")  # the exporter's notes, with stack traces and paths of this machine
    return model.SerializeToString()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on torch's own deprecations and on packages it does without."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _loaded(folder: Path) -> Any:
    """The file as a protobuf message. Raises QuantError."""
    onnx, file = _package("onnx"), folder / MODEL
    files.check(file)
    try:
        return onnx.load(file)
    except FileNotFoundError as problem:
        raise QuantError(f"there is no {file}; copy or export it again") from problem
    except Exception as problem:  # protobuf's own, which depends on its implementation
        raise QuantError(f"{file} is damaged ({problem}); copy or export it again") from problem


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as problem:
        raise QuantError(f"onnx files need the package {name!r}; pip install 'flywheel[onnx]'") from problem
