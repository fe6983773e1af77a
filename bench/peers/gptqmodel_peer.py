"""GPTQModel 7.6.0 (transformers 5.24.0, numpy 2.2.6): GPTQ as this library does it.

Methods
    gptq            its default, group-aware activation order; without groups, which that refuses, activation order
    gptq_mse        with its search over clipping ranges (`mse=2.4`, as its documentation suggests)
    gptq_plain      columns in their own order
    gptaq[_mse]     with the asymmetric correction of GPTAQ, alpha 0.25
    foem            with the first-order correction of FOEM, beta 0.2

On fewer than 3 cores it fails ("Virtual pool 'model_loader:cpu' requests 2 workers but parent 'cpu' only has 1") until
GPTQMODEL_CPU_WORKERS asks for two. Calls `GPTQModel.load(folder, QuantizeConfig(...))`, `quantize` and `save`. Its
kernels compute in 16 bits: the saved file is loaded with the torch kernel, whose weights are dequantized in float32 and
put into the float32 model. lm_head and embeddings stay float.
"""

import os
from typing import Any

import job as jobs
import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.quantization.config import FOEMConfig, GPTAQConfig
from gptqmodel.version import __version__
from torch import nn
from transformers import AutoModelForCausalLM

WORKERS = 2  # it takes half the cores and fails on fewer than 2 workers, that is on fewer than 3 cores
ORDERED = {"act_group_aware": False, "desc_act": True}
SETTINGS: dict[str, dict[str, Any]] = {
    "gptq": {},
    "gptq_mse": {"mse": 2.4},
    "gptq_plain": {"act_group_aware": False, "desc_act": False},
    "gptaq": {"gptaq": GPTAQConfig()},
    "gptaq_mse": {"gptaq": GPTAQConfig(), "mse": 2.4},
    "foem": {"foem": FOEMConfig()},
}


def main(job: jobs.Job) -> None:
    os.environ["GPTQMODEL_CPU_WORKERS"] = str(WORKERS)
    settings = QuantizeConfig(
        bits=job.bits,
        group_size=job.group_size or -1,
        sym=job.symmetric,
        device="cpu",
        offload_to_disk=False,
        **(SETTINGS[job.method] if job.group_size else SETTINGS[job.method] | ORDERED),
    )
    model = GPTQModel.load(job.model, settings, dtype=torch.float32)
    shapes = jobs.linears(model.model)
    calibration = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in job.ids("calibration")]
    with jobs.measured() as cost:
        model.quantize(calibration, batch_size=jobs.BATCH)
    model.save(str(job.saved))
    files = jobs.weight_files(job.saved)
    jobs.write(
        job,
        __version__,
        cost,
        jobs.logits(reload(job, list(shapes)), job.ids("evaluation")),
        bytes=jobs.size(files),
        reloaded=True,
        **jobs.stored_bits(files, shapes),
    )


@torch.no_grad()
def reload(job: jobs.Job, names: list[str]) -> nn.Module:
    """The float32 model with the saved file's weights in the layers of `names`."""
    saved = GPTQModel.load(str(job.saved), device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16).model
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    for name in names:
        kernel = saved.get_submodule(name)
        kernel.scales = kernel.scales.float()
        model.get_submodule(name).weight.copy_(kernel.dequantize_weight().T)
    return model


if __name__ == "__main__":
    jobs.run(main)
