"""torchao 0.18.0 (transformers 5.23.0): `quantize_` with one configuration a method; none of them calibrates.

Methods
    intx, intx_hqq             integer weights of 1 to 8 bits, scales by minimum and maximum or by half-quadratic search
    int8                       int8 weights per channel
    int8_dynamic_intx[_hqq]    the same as intx, with int8 activations per token at run time
    int8_dynamic_int8          int8 weights per channel, int8 activations per token at run time
    fp8                        FP8 weights per channel
    int4, int4_hqq             the packed int4 kernels: they ask for CUDA, and are here so that this is on record

Its integers of fewer than 8 bits lie in whole bytes on disk: `linear_bits` counts them so, `linear_bits_packed` as if
they were packed. Saved with torch.save, as torchao's own documentation does, since safetensors refuses its tensors.
"""

import job as jobs
import torch
import torchao
from torch import nn
from torchao.core.config import AOBaseConfig
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    MappingType,
    PerAxis,
    PerGroup,
    quantize_,
)
from transformers import AutoModelForCausalLM


def main(job: jobs.Job) -> None:
    model = load(job)
    shapes = jobs.linears(model)
    with jobs.measured() as cost:
        quantize_(model, configuration(job), filter_fn=lambda _, name: name in shapes)
    job.saved.mkdir(exist_ok=True)
    file = job.saved / "model.pt"
    torch.save(model.state_dict(), file)
    again = load(job)
    again.load_state_dict(torch.load(file), assign=True)
    jobs.write(
        job,
        torchao.__version__,
        cost,
        jobs.logits(again, job.ids("evaluation")),
        bytes=jobs.size([file]),
        reloaded=True,
        **stored_bits(model, list(shapes), job.bits),
    )


def load(job: jobs.Job) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)


def configuration(job: jobs.Job) -> AOBaseConfig:
    """What `quantize_` is told."""
    method, hqq = job.method.removesuffix("_hqq"), job.method.endswith("_hqq")
    granularity = PerGroup(job.group_size) if job.group_size else PerAxis(0)
    mapping = MappingType.SYMMETRIC if job.symmetric else MappingType.ASYMMETRIC
    search = {"intx_choose_qparams_algorithm": "hqq_scale_only"} if hqq else {}
    if method == "intx":
        kind = getattr(torch, f"int{job.bits}")
        return IntxWeightOnlyConfig(weight_dtype=kind, granularity=granularity, mapping_type=mapping, **search)
    if method == "int8_dynamic_intx":
        kind = getattr(torch, f"int{job.bits}")
        return Int8DynamicActivationIntxWeightConfig(
            weight_dtype=kind, weight_granularity=granularity, weight_mapping_type=mapping, **search
        )
    if method == "int4":
        packing = {"int4_packing_format": "tile_packed_to_4d", "int4_choose_qparams_algorithm": "hqq"} if hqq else {}
        return Int4WeightOnlyConfig(group_size=job.group_size or 128, **packing)
    simple = {
        "int8": Int8WeightOnlyConfig,
        "int8_dynamic_int8": Int8DynamicActivationInt8WeightConfig,
        "fp8": Float8WeightOnlyConfig,
    }
    return simple[method]()


def stored_bits(model: nn.Module, names: list[str], bits: int | None) -> dict[str, float]:
    """Bits per weight over the tensors inside each quantized weight; codes are the tensor called qdata."""
    weights = exact = codes = 0
    for name in names:
        weight = model.get_submodule(name).weight
        weights += weight.numel()
        for inner in weight.__tensor_flatten__()[0]:
            part = getattr(weight, inner)
            exact += part.numel() * part.element_size() * 8
            codes += part.numel() if inner == "qdata" else 0
    packed = exact - codes * (8 - (bits or 8))
    return {"linear_bits": exact / weights, "linear_bits_packed": packed / weights}


if __name__ == "__main__":
    jobs.run(main)
