"""Planted mistakes are doubted, and what somebody vouched for is not."""

import pytest
import torch

from tasks.training import doubt
from tasks.training.doubt import doubted, out_of_fold

CLASSES, ROWS = 4, 400


@pytest.fixture(scope="module")
def planted() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features around a direction for each label; labels, a twentieth of them another's; and which those are."""
    generator = torch.Generator().manual_seed(0)
    true = torch.arange(ROWS) % CLASSES
    features = 10 * torch.eye(CLASSES, 16)[true] + 1.5 * torch.randn(ROWS, 16, generator=generator)
    wrong = torch.rand(ROWS, generator=generator) < 0.05
    return features, torch.where(wrong, (true + 1) % CLASSES, true), wrong


NOBODY = torch.zeros(ROWS, dtype=torch.bool)
Planted = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def test_mistakes_are_found_and_little_else(planted: Planted) -> None:
    features, labels, wrong = planted
    found = doubted(features, labels, NOBODY, 5.0)
    assert found[wrong].float().mean() > 0.8 and found[~wrong].float().mean() < 0.02
    assert not doubted(features, labels, wrong, 5.0)[wrong].any()
    assert not doubted(features, labels, NOBODY, 0.0).any()


def test_where_too_much_would_be_doubted_nothing_is(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels, wrong = planted
    monkeypatch.setattr(doubt, "MOST", 0.8 * wrong.float().mean().item())
    assert not doubted(features, labels, NOBODY, 5.0).any()


def test_a_label_with_few_rows_is_not_doubted(planted: Planted) -> None:
    features, labels, _ = planted
    few = torch.cat([torch.full((doubt.FEWEST - 1,), CLASSES), labels[doubt.FEWEST - 1 :]])
    assert not doubted(features, few, NOBODY, 5.0)[: doubt.FEWEST - 1].any()


def test_no_row_is_judged_by_a_model_that_has_seen_it() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(40, 8, generator=generator), torch.arange(40) % 2
    before = out_of_fold(features, labels)
    for row in (0, 7, 39):
        other = labels.clone()
        other[row] = 1 - other[row]
        after = out_of_fold(features, other)
        assert torch.equal(after[row], before[row]) and not torch.equal(after, before)
