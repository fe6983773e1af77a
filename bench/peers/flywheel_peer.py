"""Our own library, on the same terms as the peers: one job, one folder, one process.

The job's `spec` is the method as JSON, `{"name": "gptq", "bits": 4, ...}`, and `format` what is written: compressed-
tensors, loaded again by transformers, or gguf, read back by our own reader (llama.cpp runs it as a job of its own).
Runs in the project's environment with the repository's root on the path.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

import job as jobs
import torch
from pydantic import TypeAdapter
from transformers import AutoModelForCausalLM

import quant
from quant.linear import QuantLinear
from quant.methods import Method


def main(job: jobs.Job) -> None:
    method = TypeAdapter(Method).validate_python(job.extras["spec"])
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    shapes = jobs.linears(model)
    ids = job.ids("calibration")
    batches = [{"input_ids": b, "attention_mask": torch.ones_like(b)} for b in ids.split(jobs.BATCH)]
    with jobs.measured() as cost:
        quant.quantize(model, method, batches)
    stored = sum(
        module.packed.numel() * 32 + sum(p.numel() * p.element_size() * 8 for p in module.scales if p is not None)
        for name, module in model.named_modules()
        if isinstance(module, QuantLinear) and name in shapes
    )
    weights = sum(n * k for n, k in shapes.values())
    tokenizer = Path(job.model)
    if job.extras.get("format", "compressed_tensors") == "gguf":
        job.saved.mkdir(exist_ok=True)
        files = [quant.export(model, job.saved / "model.gguf", "gguf", tokenizer)]
        reloaded = model
    else:
        files = jobs.weight_files(quant.export(model, job.saved, "compressed_tensors", tokenizer))
        reloaded = AutoModelForCausalLM.from_pretrained(job.saved, dtype=torch.float32)
    jobs.write(
        job, "this", cost, jobs.logits(reloaded, job.ids("evaluation")), stored / weights if stored else 32.0,
        jobs.size(files), reloaded is not model,
    )  # fmt: skip


if __name__ == "__main__":
    jobs.run(main)
