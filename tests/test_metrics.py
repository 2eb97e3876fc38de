"""Losses as sums and counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mlp_lm.models.metrics import NLL, evaluate, token_nll
from mlp_lm.training.nll_metric import NLLMetric

FLOAT32_STOPS = 2**24  # adding 1 to it changes nothing in float32


def minus_the_last(contexts: Tensor) -> Tensor:
    """Log-probabilities (B, 1) that are the negative of the last id: any NLL that a test wants."""
    return -contexts[:, -1:].float()


def batches(nats: list[int], batch_size: int) -> list[tuple[Tensor, Tensor]]:
    contexts = torch.tensor(nats).view(-1, 1)
    return [(part, torch.zeros(len(part), dtype=torch.int64)) for part in torch.split(contexts, batch_size)]


def total(metric: NLLMetric) -> NLL:
    nats, tokens = metric.compute()
    return NLL(nats.item(), int(tokens))


def test_nats_bits_and_perplexity_of_a_fair_choice_among_eight() -> None:
    nll = NLL(nats=5 * math.log(8), tokens=5)
    assert nll.nats_per_token == pytest.approx(2.0794415416798357)
    assert nll.bits_per_token == pytest.approx(3)
    assert nll.perplexity == pytest.approx(8)


def test_sums_and_counts_add_up() -> None:
    assert NLL(1.5, 2) + NLL(4.5, 1) == NLL(6.0, 3)
    assert (NLL(1.5, 2) + NLL(4.5, 1)).nats_per_token == 2


def test_without_tokens_there_is_no_loss() -> None:
    nothing = NLL(0.0, 0)
    assert math.isnan(nothing.nats_per_token)
    assert math.isnan(nothing.bits_per_token)
    assert math.isnan(nothing.perplexity)


def test_a_perplexity_too_large_for_a_float_is_infinite() -> None:
    assert NLL(1e6, 1).perplexity == math.inf
    assert NLL(math.inf, 1).perplexity == math.inf
    assert math.isfinite(NLL(700.0, 1).perplexity)


def test_the_nll_of_a_target_is_its_negative_log_probability() -> None:
    log_probs = torch.tensor([[[0.5, 0.25, 0.25], [0.125, 0.875, 0.0]]]).log()  # (1, 2, V)
    nats = token_nll(log_probs, torch.tensor([[1, 0]]))
    assert nats.tolist() == [pytest.approx([math.log(4), math.log(8)])]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 100])
def test_the_loss_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    nats = [1, 2, 3, 4, 5, 6, 7, 8, 9, 100]
    assert evaluate(minus_the_last, batches(nats, batch_size)) == NLL(145.0, 10)
    metric = NLLMetric()
    for contexts, targets in batches(nats, batch_size):
        metric.update(token_nll(minus_the_last(contexts), targets))
    assert total(metric) == NLL(145.0, 10)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_loss_stays_exact_where_a_float32_sum_stops_growing(batch_size: int) -> None:
    nats = [FLOAT32_STOPS, 1, 1, 1]
    assert evaluate(minus_the_last, batches(nats, batch_size)) == NLL(FLOAT32_STOPS + 3, 4)
    metric = NLLMetric()
    for part in torch.split(torch.tensor(nats, dtype=torch.float32), batch_size):
        metric.update(part)
    assert total(metric) == NLL(FLOAT32_STOPS + 3, 4)
    assert NLL(float(FLOAT32_STOPS), FLOAT32_STOPS) + NLL(1.0, 1) == NLL(FLOAT32_STOPS + 1, FLOAT32_STOPS + 1)


def test_tokens_are_counted_exactly_where_a_float32_count_stops_growing() -> None:
    metric = NLLMetric()
    metric.update(torch.zeros(1).expand(FLOAT32_STOPS))
    metric.update(torch.zeros(3))
    assert total(metric).tokens == FLOAT32_STOPS + 3


def test_a_reset_metric_starts_from_nothing() -> None:
    metric = NLLMetric()
    metric.update(torch.ones(5))
    metric.reset()
    metric.update(torch.ones(2))
    assert total(metric) == NLL(2.0, 2)
