"""AutoRound 0.16.1 (transformers 5.23.0): rounding tuned by signed gradient descent, block after block.

Methods
    autoround        the default recipe: 200 steps a block (the job's `iters`), batches of 8 sequences
    autoround_v2     with SignRoundV2's extensions (`enable_alg_ext`), which the library advises for 2 bits
    rtn              no steps and no search
    opt_rtn          no steps, scales searched on the calibration

`amp=False` keeps the model in float32: by default the library turns all of it to bfloat16, embeddings included.
Calls `AutoRound(model, tokenizer, bits=..., group_size=..., sym=..., dataset=[batches])`, `quantize`, and
`save_quantized` in its own format (GPTQ's packing, scales in float16). That loads as float16: its weights, which are
bit-equal to the tuned ones, are put into the float32 model. lm_head and embeddings stay float, and so does
each layer one of whose sides 32 does not divide: `float_layers` counts them.
"""

from typing import Any

import job as jobs
import torch
from auto_round import AutoRound, __version__
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

FORMAT = "auto_round"
SETTINGS: dict[str, dict[str, Any]] = {
    "autoround": {"iters": 200},
    "autoround_v2": {"iters": 200, "enable_alg_ext": True},
    "rtn": {"iters": 0, "disable_opt_rtn": True},
    "opt_rtn": {"iters": 0, "disable_opt_rtn": False},
}


def main(job: jobs.Job) -> None:
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    shapes = jobs.linears(model)
    settings = SETTINGS[job.method] | {key: job.extras[key] for key in ("iters", "lr") if key in job.extras}
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    ids = job.ids("calibration")
    with jobs.measured() as cost:
        rounding = AutoRound(
            model,
            tokenizer,
            bits=job.bits,
            group_size=job.group_size or -1,
            sym=job.symmetric,
            dataset=[{"input_ids": batch} for batch in ids.split(jobs.BATCH)],
            nsamples=len(ids),
            seqlen=ids.shape[1],
            device_map="cpu",
            amp=False,
            **settings,
        )
        rounding.quantize()
    rounding.save_quantized(str(job.saved), format=FORMAT)
    files = jobs.weight_files(job.saved)
    jobs.write(
        job,
        __version__,
        cost,
        jobs.logits(reload(job, shapes), job.ids("evaluation")),
        bytes=jobs.size(files),
        reloaded=True,
        float_layers=len(unpacked(job, shapes)),
        **jobs.stored_bits(files, shapes),
    )


@torch.no_grad()
def reload(job: jobs.Job, shapes: dict[str, tuple[int, int]]) -> nn.Module:
    """The float32 model with the saved file's weights: what each kernel makes of an identity matrix."""
    saved = AutoModelForCausalLM.from_pretrained(job.saved, dtype=torch.float32, device_map="cpu")
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    floats = unpacked(job, shapes)
    for name, (_, inputs) in shapes.items():
        weight = floats[name] if name in floats else saved.get_submodule(name)(torch.eye(inputs)).T
        model.get_submodule(name).weight.copy_(weight)
    return model


def unpacked(job: jobs.Job, shapes: dict[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    """The layers that the library saved as float."""
    stored = {key: part for file in jobs.weight_files(job.saved) for key, part in load_file(file).items()}
    return {name: stored[f"{name}.weight"] for name in shapes if f"{name}.weight" in stored}


if __name__ == "__main__":
    jobs.run(main)
