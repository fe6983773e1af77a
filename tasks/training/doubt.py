"""Which logged answers are likely mistakes: those that a simple model, which has not seen them, finds very unlikely.

Confident learning (Northcutt et al. 2021, arXiv 1911.00068, section 3): rows are judged by a model that was trained on
the others. That model is the probe (`probe.py`), fitted in `FOLDS` parts. A row is doubted where another label is
`times` times as likely as its own; one that a person vouched for never is.

On banking77, whose telemetry has 7 % wrong answers, tried on 117 answers of which a person said that they are wrong,
and on those that somebody praised:

| rule                             | wrong ones found | praised ones doubted |
|----------------------------------|------------------|----------------------|
| 3 times                          | 84 %             | 4.9 %                |
| 5 times                          | 80 %             | 3.4 %                |
| 10 times                         | 70 %             | 2.0 %                |
| the paper's, by mean confidence  | 56 %             | 1.7 %                |

The probe itself is right on 89.2 % of the (noisy) validation rows when it is fitted without the doubted ones, and on
88.6 % with them. Where more than `MOST` of the rows would be doubted, the encoder does not know the task well enough to
judge, and none is.
"""

import torch
from torch import Tensor

from tasks.training.probe import regression

FOLDS = 4
MOST = 0.15
FEWEST = 8  # rows of a label of which each can be judged by the rest


def doubted(features: Tensor, labels: Tensor, vouched: Tensor, times: float) -> Tensor:
    """Which rows are likely mistaken, bool [n].

    Args:
        features: What the probe reads of each, float32 [n, d].
        labels: Their logged ones, long [n].
        vouched: Which a person vouched for, bool [n].
        times: How much likelier another label must be; 0 doubts nothing.
    """
    none = torch.zeros(len(labels), dtype=torch.bool)
    if not times or len(labels) < FOLDS:
        return none
    likely = out_of_fold(features, labels)
    ratio = likely.amax(-1) / likely.gather(-1, labels[:, None]).squeeze(-1)
    common = labels.bincount()[labels] >= FEWEST
    found = (ratio > times) & common & ~vouched
    return found if found.float().mean() <= MOST else none


def out_of_fold(features: Tensor, labels: Tensor) -> Tensor:
    """Probabilities [n, labels], those of each fold by a probe on the other folds."""
    fold = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)) % FOLDS
    likely = torch.empty(len(labels), int(labels.max()) + 1)
    for number in range(FOLDS):
        out = fold == number
        weight, bias = regression(features[~out], labels[~out], torch.ones(int((~out).sum())), likely.shape[1])
        likely[out] = (features[out] @ weight.T + bias).softmax(-1)
    return likely
