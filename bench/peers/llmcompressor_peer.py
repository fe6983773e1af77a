"""llm-compressor 0.14.0.1 (with compressed-tensors 0.19.0, transformers 5.17.0): `oneshot` with one recipe a method.

Methods
    rtn, gptq, awq              integer weights in groups (bits, group_size, symmetric); `_mse` after any of them takes
    rtn_imatrix                 the observer that searches the clipping range, `_imatrix` the one that weights the
                                search with the mean squared inputs
    w8a8, w8a8_gptq             int8 weights per channel, int8 activations per token at run time
    smoothquant[_gptq]          the same after SmoothQuant at strength 0.8
    fp8_dynamic, fp8_static, fp8_block, nvfp4a16, nvfp4, mxfp4a16, mxfp4: the library's presets of nearly those names
    sparsegpt, wanda            2:4 sparsity, weights not quantized
    none                        nothing: the cost of the pipeline itself

Embeddings and lm_head stay float. To run without an accelerator AWQ needs one patch: it pins its cache's memory.
The logits come from the model loaded again from disk where that computes in float32 and works; otherwise, FP4 and
asymmetric codes for instance, from the model in memory, which quantizes and dequantizes in float32. Groups that do not
divide a layer's inputs are refused by the library.
"""

from typing import Any

import job as jobs
import torch
from compressed_tensors.quantization import QuantizationScheme
from llmcompressor import __version__, oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

INTEGER = {"rtn", "gptq", "awq"}
W8A8 = {"w8a8", "smoothquant"}
PRESETS = {"fp8_static": "FP8"}  # the other presets have the method's own name in capitals
SPARSE = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}
OBSERVERS = {"mse": "memoryless_mse", "imatrix": "imatrix_mse"}
HEAD = ["lm_head"]
FLOAT4 = ("nvfp4", "mxfp4")  # loaded as bfloat16, dequantized


def main(job: jobs.Job) -> None:
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    shapes = jobs.linears(model)
    calibration = DataLoader([{"input_ids": row} for row in job.ids("calibration")], batch_size=jobs.BATCH)
    steps = recipe(job)
    IntermediatesCache.pin_memory = lambda *_: None  # pinning asks for an accelerator
    with jobs.measured() as cost:
        oneshot(model=model, recipe=steps, dataset=calibration)
    output = jobs.logits(model, job.ids("evaluation"))
    model.save_pretrained(job.saved, save_compressed=job.method not in SPARSE)
    again, trouble = reload(job)
    files = jobs.weight_files(job.saved)
    jobs.write(
        job,
        __version__,
        cost,
        output if again is None else again,
        bytes=jobs.size(files),
        reloaded=again is not None,
        reload_difference=None if again is None else (again - output).abs().max().item(),
        reload_trouble=trouble,
        **jobs.stored_bits(files, shapes),
    )


def reload(job: jobs.Job) -> tuple[torch.Tensor | None, str | None]:
    """The saved model's logits, or None and why there are none."""
    if job.method.startswith(FLOAT4):
        return None, "transformers dequantizes FP4 to bfloat16"
    try:
        model = AutoModelForCausalLM.from_pretrained(job.saved, dtype=torch.float32)
        return jobs.logits(model, job.ids("evaluation")), None
    except Exception as error:  # the library's own failure is what we report
        return None, f"{type(error).__name__}: {error}"[:300]


def recipe(job: jobs.Job) -> list[Any]:
    """The modifiers that `job.method` stands for."""
    base, _, variant = job.method.partition("_")
    if base == "none":
        return []
    if base in SPARSE:
        return [SPARSE[base](sparsity=0.5, mask_structure="2:4", targets=["re:.*layers.[0-9]+$"], ignore=HEAD)]
    if base in INTEGER:
        return integer(job, base, OBSERVERS[variant] if variant else "memoryless_minmax")
    if base in W8A8:
        modifier = GPTQModifier if variant == "gptq" else QuantizationModifier
        smooth = [SmoothQuantModifier(smoothing_strength=0.8)] if base == "smoothquant" else []
        return [*smooth, modifier(targets="Linear", scheme="W8A8", ignore=HEAD)]
    scheme = PRESETS.get(job.method, job.method.upper())
    return [QuantizationModifier(targets="Linear", scheme=scheme, ignore=HEAD)]


def integer(job: jobs.Job, base: str, observer: str) -> list[Any]:
    """Weights alone, as integers of `job.bits`."""
    weights = {
        "num_bits": job.bits,
        "type": "int",
        "symmetric": job.symmetric,
        "strategy": "group" if job.group_size else "channel",
        "group_size": job.group_size,
        "observer": observer,
    }
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    modifier = GPTQModifier if base == "gptq" else QuantizationModifier
    smooth = [AWQModifier()] if base == "awq" else []
    return [*smooth, modifier(config_groups=groups, ignore=HEAD)]


if __name__ == "__main__":
    jobs.run(main)
