"""optimum-quanto 0.2.7 (transformers 5.23.0): `QuantizedModelForCausalLM.quantize` with qint2, qint4 or qint8 weights.

Methods
    rtn    quanto's default: minimum and maximum, with a zero point for 2 and 4 bits, symmetric per channel for 8
    hqq    scales for 2 and 4 bits by quanto's half-quadratic optimizer

quanto takes no group size: for 2 and 4 bits it tries 128 and goes down in steps of 32 until one divides the layer's
inputs, or takes whole rows if none does. `group_sizes` in the result says which ones it took; the job's are ignored.
Nothing needs calibration. Activations stay float.
"""

from collections import Counter
from importlib.metadata import version

import job as jobs
import torch
from optimum.quanto import HqqOptimizer, QuantizedModelForCausalLM, freeze, qtypes, quantize
from torch import nn
from transformers import AutoModelForCausalLM


def main(job: jobs.Job) -> None:
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    shapes = jobs.linears(model)
    optimizer = {"rtn": None, "hqq": HqqOptimizer()}[job.method]
    with jobs.measured() as cost:
        quantize(model, weights=qtypes[f"qint{job.bits}"], exclude="lm_head", optimizer=optimizer)
        freeze(model)
    groups = Counter(str(model.get_submodule(name).weight_group_size) for name in shapes)
    output = jobs.logits(model, job.ids("evaluation"))
    QuantizedModelForCausalLM(model).save_pretrained(job.saved)
    files = jobs.weight_files(job.saved)
    again, trouble = reload(job)
    jobs.write(
        job,
        version("optimum-quanto"),
        cost,
        output if again is None else again,
        bytes=jobs.size(files),
        reloaded=again is not None,
        reload_trouble=trouble,
        group_sizes=dict(groups),
        **jobs.stored_bits(files, shapes),
    )


def reload(job: jobs.Job) -> tuple[torch.Tensor | None, str | None]:
    """The saved model's logits, or None and why there are none."""
    try:
        model: nn.Module = QuantizedModelForCausalLM.from_pretrained(job.saved)._wrapped
        return jobs.logits(model, job.ids("evaluation")), None
    except Exception as error:  # the library's own failure is what we report
        return None, f"{type(error).__name__}: {error}"[:300]


if __name__ == "__main__":
    jobs.run(main)
