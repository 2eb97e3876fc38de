"""Generation from functions of contexts to log-probabilities whose answers are known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mlp_lm.errors import DataError, SettingsError
from mlp_lm.models.sampling import Sampling, generate, truncate

LogProbs = Callable[[Tensor], Tensor]
Items = list[tuple[list[int], bool]]


def successor(contexts: Tensor) -> Tensor:
    """After id 0 surely 1, then 2, then 3, then the boundary."""
    return torch.nn.functional.one_hot((contexts[:, -1] + 1) % 4, 4).double().log()


def independent(*probs: float) -> LogProbs:
    """The same probabilities after every context."""
    return lambda contexts: torch.tensor(probs).log().expand(len(contexts), -1)


def draw(log_probs: LogProbs, num: int, max_length: int = 10, context_size: int = 2, **options: Any) -> Items:
    """`generate` with a seed; `options`: of Sampling, or prompt and batch_size."""
    others = {name: options.pop(name) for name in ("prompt", "batch_size") if name in options}
    generator = torch.Generator().manual_seed(1)
    sampling = Sampling(**options)
    return generate(log_probs, num, context_size, sampling, max_length=max_length, generator=generator, **others)


def first_tokens(log_probs: LogProbs, num: int = 10_000, **options: Any) -> Counter[int]:
    """How often each id comes first; the boundary is 0."""
    return Counter(ids[0] if ids else 0 for ids, _ in draw(log_probs, num, max_length=1, **options))


def assert_drawn_from(counts: Counter[int], probs: list[float]) -> None:
    """Each frequency lies within 4 standard deviations of its probability."""
    num = counts.total()
    for i, p in enumerate(probs):
        assert abs(counts[i] - num * p) <= 4 * math.sqrt(num * p * (1 - p))


# -- generate ----------------------------------------------------------------------------------------------------


def test_the_context_slides_over_boundaries_and_then_the_item() -> None:
    seen: list[list[int]] = []

    def recorded(contexts: Tensor) -> Tensor:
        seen.extend(contexts.tolist())
        return successor(contexts)

    assert draw(recorded, 1) == [([1, 2, 3], False)]
    assert seen == [[0, 0], [0, 1], [1, 2], [2, 3]]


@pytest.mark.parametrize(("prompt", "ids"), [([2], [2, 3]), ([3, 1], [3, 1, 2, 3]), ([1, 1, 3], [1, 1, 3])])
def test_every_item_starts_with_the_prompt(prompt: list[int], ids: list[int]) -> None:
    assert draw(successor, 2, prompt=prompt) == [(ids, False)] * 2


@pytest.mark.parametrize(
    ("prompt", "max_length", "expected"),
    [([], 2, ([1, 2], True)), ([], 3, ([1, 2, 3], False)), ([3], 1, ([3], False)), ([2], 1, ([2], True))],
)
def test_an_item_is_cut_at_max_length_unless_it_ends_there(
    prompt: list[int], max_length: int, expected: tuple[list[int], bool]
) -> None:
    assert draw(successor, 1, max_length, prompt=prompt) == [expected]


def test_batches_are_no_larger_than_requested_and_finished_items_are_computed_no_further() -> None:
    sizes: list[int] = []

    def recorded(contexts: Tensor) -> Tensor:
        sizes.append(len(contexts))
        return independent(0.5, 0.5)(contexts)

    items = draw(recorded, 100, max_length=20, batch_size=60)
    assert [size for size, before in zip(sizes, [0, *sizes], strict=False) if size > before] == [60, 40]
    assert len(items) == 100
    assert sum(sizes) == sum(len(ids) + 1 for ids, _ in items)  # each token and each end is drawn once


@pytest.mark.parametrize(("probs", "message"), [((0.0, 0.0), "no token can follow"), ((math.nan, 0.5), "are NaN")])
def test_probabilities_that_cannot_be_drawn_from_are_an_error(probs: tuple[float, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        draw(independent(*probs), 1)


# -- temperature, top-k, top-p -----------------------------------------------------------------------------------


def test_the_lengths_of_items_follow_the_probability_of_the_end() -> None:
    lengths = Counter(len(ids) for ids, _ in draw(independent(0.25, 0.75), 10_000, max_length=100))
    assert_drawn_from(lengths, [0.25 * 0.75**n for n in range(5)])


@pytest.mark.parametrize(
    ("options", "probs"),
    [
        ({}, [0.1, 0.3, 0.2, 0.4]),
        ({"temperature": 0.5}, [1 / 30, 9 / 30, 4 / 30, 16 / 30]),  # squares of 1, 3, 2, 4
        ({"temperature": 1e6}, [0.25] * 4),
        ({"top_k": 2}, [0, 3 / 7, 0, 4 / 7]),
        ({"top_p": 0.6}, [0, 3 / 7, 0, 4 / 7]),
    ],
)
def test_tokens_are_drawn_with_their_probabilities(options: dict[str, Any], probs: list[float]) -> None:
    assert_drawn_from(first_tokens(independent(0.1, 0.3, 0.2, 0.4), **options), probs)


@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1e-44, 5e-324])
def test_a_tiny_temperature_draws_the_most_probable_token(temperature: float) -> None:
    probs = independent(0.2, 0.3, 0.5)
    assert first_tokens(probs, num=100, temperature=temperature) == {2: 100}
    assert first_tokens(probs, num=100, temperature=temperature, top_k=2, top_p=0.9) == {2: 100}


@pytest.mark.parametrize(
    ("probs", "top_k", "top_p", "ids"),
    [
        ([0.1, 0.3, 0.3, 0.3], 1, None, [1]),  # of equally probable tokens the lower ids
        ([0.1, 0.3, 0.3, 0.3], 2, None, [1, 2]),
        ([0.1, 0.3, 0.3, 0.3], 9, None, [0, 1, 2, 3]),
        ([0.001] * 1000, 300, None, [*range(300)]),
        ([0.1, 0.45, 0.2, 0.25], None, 1e-9, [1]),
        ([0.1, 0.45, 0.2, 0.25], None, 0.4, [1]),
        ([0.1, 0.45, 0.2, 0.25], None, 0.6, [1, 3]),
        ([0.1, 0.45, 0.2, 0.25], None, 1.0, [0, 1, 2, 3]),
        ([0.25] * 4, None, 0.5, [0, 1]),
        ([0.4, 0.3, 0.2, 0.1], None, 0.5, [0, 1]),
        ([0.4, 0.3, 0.2, 0.1], 2, 0.5, [0]),  # 0.4 and 0.3 become 4/7 and 3/7: the first alone reaches 0.5
    ],
)
def test_truncation_keeps_the_fewest_most_probable_tokens(
    probs: list[float], top_k: int | None, top_p: float | None, ids: list[int]
) -> None:
    log_probs = torch.tensor([probs, probs[::-1]]).log()
    kept, other = truncate(log_probs.clone(), top_k, top_p)
    assert kept.isfinite().nonzero().flatten().tolist() == ids
    assert torch.equal(kept[ids], log_probs[0, ids])
    assert other.isfinite().sum() == len(ids) and other.amax() == kept.amax()  # each row on its own


def test_all_settings_out_of_range_are_reported_at_once() -> None:
    wrong: dict[str, Any] = {"temperature": math.nan, "top_k": 0, "top_p": 1.5, "seed": -1, "max_length": 0}
    with pytest.raises(SettingsError) as caught:
        Sampling(**wrong)
    assert [problem.split()[0] for problem in str(caught.value).split("; ")] == list(wrong)
