"""Losses as sums and counts."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mlp_lm.models.metrics import NLL, evaluate, token_nll
from mlp_lm.training.module import mean_loss

FLOAT32_STOPS = 2**24  # adding 1 to it changes nothing in float32


def evaluated(nats: Tensor, batch_size: int) -> float:
    """The loss by `evaluate`, of a model that has the `nats` as its contexts."""
    parts = torch.split(nats, batch_size)
    batches = [(part.unsqueeze(1), torch.zeros(len(part), dtype=torch.int64)) for part in parts]
    nll = evaluate(lambda contexts, _: contexts.float().squeeze(1), batches)
    assert nll.tokens == len(nats)
    return nll.nats_per_token


def measured(nats: Tensor, batch_size: int) -> float:
    """The loss by the metric of the module."""
    metric = mean_loss()
    for part in torch.split(nats, batch_size):
        metric.update(part.float())
    return float(metric.compute())


BOTH = pytest.mark.parametrize("loss", [evaluated, measured])
Loss = Callable[[Tensor, int], float]


def test_nats_bits_and_perplexity_of_a_fair_choice_among_eight() -> None:
    nll = NLL(nats=5 * math.log(8), tokens=5)
    assert nll.nats_per_token == pytest.approx(2.0794415416798357)
    assert nll.bits_per_token == pytest.approx(3)
    assert nll.perplexity == pytest.approx(8)


def test_without_tokens_there_is_no_loss() -> None:
    nothing = NLL(0.0, 0)
    assert all(map(math.isnan, (nothing.nats_per_token, nothing.bits_per_token, nothing.perplexity)))


@pytest.mark.parametrize(("nats", "infinite"), [(700.0, False), (1e6, True), (math.inf, True)])
def test_a_perplexity_too_large_for_a_float_is_infinite(nats: float, infinite: bool) -> None:
    assert (NLL(nats, 1).perplexity == math.inf) is infinite


def test_the_nll_of_a_target_is_its_negative_log_probability() -> None:
    log_probs = torch.tensor([[[0.5, 0.25, 0.25], [0.125, 0.875, 0.0]]]).log()  # (1, 2, V)
    nats = token_nll(log_probs, torch.tensor([[1, 0]]))
    assert nats.tolist() == [pytest.approx([math.log(4), math.log(8)])]


@BOTH
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_loss_does_not_depend_on_the_batch_size(loss: Loss, batch_size: int) -> None:
    assert loss(torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9, 100]), batch_size) == 14.5


@BOTH
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_loss_stays_exact_at_sums_where_float32_stops_growing(loss: Loss, batch_size: int) -> None:
    assert loss(torch.tensor([FLOAT32_STOPS, 1, 1, 1]), batch_size) == (FLOAT32_STOPS + 3) / 4


@BOTH
def test_one_loss_that_is_nan_makes_their_mean_nan(loss: Loss) -> None:
    assert math.isnan(loss(torch.tensor([1.0, math.nan]), 2))


def test_the_loss_stays_exact_at_counts_where_float32_stops_growing() -> None:
    metric = mean_loss()
    metric.update(torch.ones(1).expand(FLOAT32_STOPS))
    for _ in range(3):
        metric.update(torch.zeros(1))
    assert metric.compute() == FLOAT32_STOPS / (FLOAT32_STOPS + 3)
