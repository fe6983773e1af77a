"""The probe against scikit-learn's logistic regression, and what it reads against one text at a time."""

from typing import Any

import pytest
import torch

from infra.engines.labels import Reader
from tasks.training import probe
from tasks.training.encoder import LENGTH, Classifying
from tasks.training.probe import features, regression
from tests.tasks.training.test_classify import small_encoder, texts


@pytest.mark.parametrize("weighted", [False, True])
def test_the_regression_is_scikit_learn_s(weighted: bool) -> None:
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    read, labels = torch.randn(200, 6, generator=generator), torch.randint(0, 3, (200,), generator=generator)
    weights = 1.0 + torch.arange(200) % 2 if weighted else torch.ones(200)
    weight, bias = regression(read, labels, weights, 3)
    # Its penalty is |w|^2 / (2 C) to the sum of losses.
    peer = LogisticRegression(C=1 / (2 * probe.RIDGE * float(weights.sum())), max_iter=2000, tol=1e-8)
    theirs = torch.tensor(peer.fit(read, labels, weights).predict_proba(read), dtype=torch.float32)
    torch.testing.assert_close((read @ weight.T + bias).softmax(-1), theirs, rtol=0.02, atol=0.01)


def test_features_have_one_length_and_the_order_of_the_texts(labelled: Any) -> None:
    model, rows, reader = Classifying(small_encoder(), 3), texts(9), Reader(labelled(), 16)
    found = features(model, rows, reader)
    torch.testing.assert_close(found.norm(dim=-1), torch.full((9,), LENGTH))
    torch.testing.assert_close(found, torch.cat([features(model, [row], reader) for row in rows]), rtol=1e-3, atol=1e-4)
