"""A logistic regression on what the encoder makes of texts as it was pretrained: fitted in seconds.

It is where the head begins, so that the encoder is not distorted by a head that knows nothing (Kumar et al. 2022,
Fine-Tuning can Distort Pretrained Features, arXiv 2202.10054: first probe, then tune), and it judges which rows are
mistakes (`doubt.py`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from infra.engines.labels import Reader
from tasks.training.classify import Text, batch_of, ordered
from tasks.training.encoder import Classifying

RIDGE = 1e-3
STEPS = 20


@torch.inference_mode()
def features(model: Classifying, texts: Sequence[Text], reader: Reader) -> Tensor:
    """What the head will read of each text, float32 [n, hidden]."""
    model.eval()
    device = next(model.parameters()).device
    found = torch.empty(len(texts), model.head.in_features)
    for group in ordered(texts):
        found[group] = model.features(**batch_of([texts[i] for i in group], reader, device)).cpu()
    return found


def regression(features: Tensor, labels: Tensor, weights: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression with a ridge penalty, by L-BFGS.

    Args:
        features: float32 [n, d].
        labels: long [n].
        weights: float32 [n].

    Returns:
        Weights float32 [classes, d] and biases float32 [classes].
    """
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = functional.cross_entropy(features @ weight.T + bias, labels, reduction="none")
        loss = (weights * losses).sum() / weights.sum() + RIDGE * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()
