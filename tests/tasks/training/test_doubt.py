"""Planted mistakes are doubted, and what somebody vouched for is not."""

from typing import Any

import pytest
import torch

from infra.engines.labels import Reader
from tasks.training import doubt
from tasks.training.classify import Text
from tasks.training.doubt import doubted, out_of_fold, regression

CLASSES, ROWS = 4, 400


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Text], torch.Tensor]:
    """Rows around a direction for each label, a twentieth of them with another's label, and which those are."""
    generator = torch.Generator().manual_seed(0)
    true = torch.arange(ROWS) % CLASSES
    features = torch.eye(CLASSES, 16)[true] + 0.15 * torch.randn(ROWS, 16, generator=generator)
    wrong = torch.rand(ROWS, generator=generator) < 0.05
    given = torch.where(wrong, (true + 1) % CLASSES, true)
    monkeypatch.setattr(doubt, "means", lambda *_: torch.nn.functional.normalize(features, dim=-1))
    return [Text([0], label) for label in given.tolist()], wrong


def judged(texts: list[Text], vouched: torch.Tensor | None = None, times: float = 5.0) -> torch.Tensor:
    nothing: Any = None
    return doubted(nothing, texts, torch.zeros(len(texts), dtype=torch.bool) if vouched is None else vouched,
                   nothing, times)  # fmt: skip


def test_mistakes_are_found_and_little_else(planted: tuple[list[Text], torch.Tensor]) -> None:
    texts, wrong = planted
    found = judged(texts)
    assert found[wrong].float().mean() > 0.8 and found[~wrong].float().mean() < 0.02
    assert not judged(texts, vouched=wrong)[wrong].any()
    assert not judged(texts, times=0).any()


def test_where_too_much_would_be_doubted_nothing_is(
    planted: tuple[list[Text], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, wrong = planted
    monkeypatch.setattr(doubt, "MOST", 0.9 * wrong.float().mean().item())
    assert not judged(texts).any()


def test_a_label_with_few_rows_is_not_doubted(planted: tuple[list[Text], torch.Tensor]) -> None:
    texts, _ = planted
    few = [text._replace(label=CLASSES) if n < doubt.FEWEST - 1 else text for n, text in enumerate(texts)]
    assert not judged(few)[: doubt.FEWEST - 1].any()


def test_no_row_is_judged_by_a_model_that_has_seen_it() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(40, 8, generator=generator), torch.arange(40) % 2
    before = out_of_fold(features, labels)
    for row in (0, 7, 39):
        other = labels.clone()
        other[row] = 1 - other[row]
        after = out_of_fold(features, other)
        assert torch.equal(after[row], before[row]) and not torch.equal(after, before)


def test_the_regression_is_scikit_learn_s() -> None:
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(200, 6, generator=generator), torch.randint(0, 3, (200,), generator=generator)
    weight, bias = regression(features, labels, 3)
    ours = (doubt.SCALE * features @ weight.T + bias).softmax(-1)
    # Its penalty is |w|^2 / (2 C n) to a mean loss, of weights on features that were not scaled.
    peer = LogisticRegression(C=doubt.SCALE**2 / (2 * doubt.RIDGE * 200), max_iter=2000).fit(features, labels)
    theirs = torch.tensor(peer.predict_proba(features), dtype=torch.float32)
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.01)


def test_means_are_of_length_one_and_in_order(labelled: Any) -> None:
    from tasks.training.encoder import Classifying
    from tests.tasks.training.test_classify import small_encoder, texts

    model, rows = Classifying(small_encoder(), 3), texts(9)
    found = doubt.means(model, rows, Reader(labelled(), 16))
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(9))
    alone = torch.cat([doubt.means(model, [row], Reader(labelled(), 16)) for row in rows])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
