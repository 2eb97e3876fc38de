"""The losses between two points of the training curve."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mlp_lm.training.recent_losses import RecentLosses


def losses_of(*chunks: tuple[list[float], int]) -> RecentLosses:
    recent = RecentLosses()
    for losses, batch_size in chunks:
        recent.add(torch.tensor(losses), batch_size)
    return recent


def as_lists(recent: RecentLosses) -> list[list[float]]:
    return [part.tolist() for part in recent.tensors()]


def test_the_mean_is_over_windows_not_over_steps() -> None:
    assert losses_of(([1.0, 2.0], 3), ([4.0], 1)).mean() == pytest.approx((3 * 1 + 3 * 2 + 4) / 7)


def test_what_was_averaged_over_the_processes_is_not_averaged_again() -> None:
    seen = []

    def reduce(losses: Tensor) -> Tensor:
        seen.append(losses.tolist())
        return losses + 1

    recent = losses_of(([1.0, 2.0], 3))
    recent.average(reduce)
    recent.average(reduce)
    recent.add(torch.tensor([5.0]), 1)
    recent.average(reduce)
    assert seen == [[1.0, 2.0], [5.0]]
    assert as_lists(recent) == [[2.0, 3.0, 6.0], [3.0, 3.0, 1.0]]


def test_a_continued_run_takes_them_up_as_they_were() -> None:
    before, after = losses_of(([1.0, 2.0], 2**24 + 1)), RecentLosses()
    after.restore(*before.tensors())
    for recent in (before, after):
        recent.add(torch.tensor([5.0]), 1)
    assert as_lists(after) == as_lists(before) == [[1.0, 2.0, 5.0], [2**24 + 1, 2**24 + 1, 1]]


def test_the_first_loss_that_is_no_number_is_found_by_its_distance_from_the_end() -> None:
    assert losses_of(([1.0], 2), ([math.inf, math.nan], 2)).first_no_number() == (2, math.inf)
    assert losses_of(([1.0], 2)).first_no_number() is None
    assert RecentLosses().first_no_number() is None
