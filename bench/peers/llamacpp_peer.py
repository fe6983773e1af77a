"""llama.cpp, through llama-cpp-python 0.3.36 compiled from its source distribution, and gguf 0.19.0.

The job has one more key, `gguf`: the model as an F32 or F16 file, which llama.cpp's own quantizer reads. Further keys:
`imatrix` (false) weights the errors with the mean squared inputs of each layer on the calibration; `pure` (false) gives
every matrix the named type instead of llama.cpp's mixture. `bits` and `group_size` mean nothing here.

Methods
    q2_k, q3_k_s, q3_k_m, q4_k_s, q4_k_m, q5_k_m, q6_k, q4_0, q8_0, iq2_xs, iq3_xxs, iq4_xs: any LLAMA_FTYPE_MOSTLY_*
    as_is    `gguf` itself, whoever wrote it: not quantized, only run

The wheel holds no llama-imatrix: the same sums are taken with torch on the Hugging Face model and handed over in
memory. llama.cpp computes the logits with activations rounded to 8 bits, its cache in float32; weights.safetensors
holds the file's weights as gguf-py dequantizes them, under their GGUF names, rows of q and k in llama.cpp's order.

llama.cpp quantizes the embedding too, which is also the head of a tied model: `embedding` says to what. `linear_bits`
counts the matrices of the blocks, `types` what they became (rows that no super-block of 256 divides get other types).
"""

import ctypes
import shutil
from collections import Counter
from pathlib import Path

import gguf
import job as jobs
import llama_cpp
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

AS_IS = "as_is"
FLOAT32 = 0  # GGML_TYPE_F32


def main(job: jobs.Job) -> None:
    source = Path(job.extras["gguf"])
    weighted, pure = job.extras.get("imatrix", False), job.extras.get("pure", False)
    job.saved.mkdir(exist_ok=True)
    file = job.saved / "model.gguf"
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32) if weighted else None
    with jobs.measured() as cost:
        if job.method == AS_IS:
            shutil.copyfile(source, file)
        else:
            importance = mean_squared_inputs(model, job.ids("calibration")) if model is not None else {}
            quantize(source, file, job.method, importance, pure, job.threads)
    tensors = gguf.GGUFReader(file).tensors
    matrices = [tensor for tensor in tensors if tensor.name.startswith("blk.") and len(tensor.shape) == 2]
    save_file({tensor.name: dequantized(tensor) for tensor in tensors}, job.folder / "weights.safetensors")
    jobs.write(
        job,
        llama_cpp.__version__,
        cost,
        logits(file, job.ids("evaluation"), job.threads),
        bytes=jobs.size([file]),
        reloaded=True,
        linear_bits=8 * sum(int(m.n_bytes) for m in matrices) / sum(int(m.n_elements) for m in matrices),
        types=dict(Counter(m.tensor_type.name for m in matrices)),
        embedding=next(t.tensor_type.name for t in tensors if t.name == "token_embd.weight"),
        imatrix=weighted,
        pure=pure,
    )


@torch.no_grad()
def mean_squared_inputs(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """GGUF name -> float32 [K]: the mean of the squared inputs of every linear layer, as llama-imatrix takes it."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    sums: dict[str, Tensor] = {}

    def watch(key: str, module: nn.Module) -> None:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sums[key] += inputs[0].square().sum((0, 1))

        sums[key] = torch.zeros(module.in_features)
        module.register_forward_pre_hook(add)

    for name in jobs.linears(model):
        watch(f"{names.get_name(name)}.weight", model.get_submodule(name))
    for batch in ids.split(jobs.BATCH):
        model(input_ids=batch, use_cache=False, logits_to_keep=1)
    return {key: total / ids.numel() for key, total in sums.items()}


def quantize(source: Path, target: Path, method: str, importance: dict[str, Tensor], pure: bool, threads: int) -> None:
    """llama_model_quantize; raises RuntimeError when llama.cpp refuses."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{method.upper()}")
    settings.pure = pure
    settings.nthread = threads
    rows = [
        llama_cpp.llama_model_imatrix_data(
            name.encode(), ctypes.cast(row.data_ptr(), ctypes.POINTER(ctypes.c_float)), row.numel()
        )
        for name, row in importance.items()
    ]
    if rows:
        end = llama_cpp.llama_model_imatrix_data(None, None, 0)
        settings.imatrix = (llama_cpp.llama_model_imatrix_data * (len(rows) + 1))(*rows, end)
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings))
    if status:
        raise RuntimeError(f"llama_model_quantize ended with {status} for {method}: see log.txt")


def logits(file: Path, ids: Tensor, threads: int) -> Tensor:
    """float32 [n, t, V], one sequence of ids [n, t] after the other."""
    length = ids.shape[1]
    engine = llama_cpp.Llama(
        str(file),
        n_ctx=length,
        n_batch=length,
        n_ubatch=length,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
        flash_attn=False,
        type_k=FLOAT32,
        type_v=FLOAT32,
        verbose=True,
    )
    rows = []
    for sequence in ids.tolist():
        engine.reset()
        engine.eval(sequence)
        rows.append(torch.from_numpy(np.array(engine.scores[:length], dtype=np.float32)))
    return torch.stack(rows)


def dequantized(tensor: gguf.ReaderTensor) -> Tensor:
    """float32, in the shape that torch would give it."""
    shape = tuple(int(extent) for extent in reversed(tensor.shape))
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).reshape(shape).clone()


if __name__ == "__main__":
    jobs.run(main)
