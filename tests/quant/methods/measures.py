"""How far a quantized model is from the one it was."""

import torch
from torch import nn

from quant.calibrate import Batch
from quant.distillation import HELD


@torch.no_grad()
def divergence(original: nn.Module, quantized: nn.Module, batches: list[Batch], held: bool | None = None) -> float:
    """KL(original || quantized) in nats per answer token: over held sequences, the others, or all."""
    sums, seen = [], 0
    for batch in batches:
        is_held = torch.arange(seen, seen + len(batch["input_ids"])) % HELD == 0
        seen += len(is_held)
        rows = torch.ones_like(is_held) if held is None else is_held if held else ~is_held
        part = {key: tensor[rows] for key, tensor in batch.items()}
        p, q = (m(part["input_ids"], part["attention_mask"]).logits.log_softmax(-1) for m in (original, quantized))
        sums.append((p.exp() * (p - q)).sum(-1)[:, :-1][part["loss_mask"][:, 1:]])
    return float(torch.cat(sums).mean())
