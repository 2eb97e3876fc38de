"""Generation from functions of contexts to log-probabilities whose answers are known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mlp_lm.models.sampling import generate, truncate

LogProbs = Callable[[Tensor], Tensor]


def successor(contexts: Tensor) -> Tensor:
    """After id 0 surely 1, then 2, then 3, then the boundary."""
    return torch.nn.functional.one_hot((contexts[:, -1] + 1) % 4, 4).double().log()


def independent(*probs: float) -> LogProbs:
    """The same probabilities after every context."""
    return lambda contexts: torch.tensor(probs).log().expand(len(contexts), -1)


NEVER_ENDS = independent(0.0, 1.0)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def first_tokens(
    log_probs: LogProbs,
    num: int = 10_000,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Counter[int]:
    """How often each id comes first; the boundary is 0."""
    items = generate(
        log_probs, num, 2, max_length=1, generator=seeded(), temperature=temperature, top_k=top_k, top_p=top_p
    )
    return Counter(ids[0] if ids else 0 for ids, _ in items)


def assert_drawn_from(counts: Counter[int], probs: list[float]) -> None:
    """Each frequency lies within 4 standard deviations of its probability."""
    num = counts.total()
    for i, p in enumerate(probs):
        assert abs(counts[i] - num * p) <= 4 * math.sqrt(num * p * (1 - p))


# -- generate ----------------------------------------------------------------------------------------------------


def test_a_sure_successor_gives_one_item() -> None:
    assert generate(successor, 2, 3, max_length=10, generator=seeded()) == [([1, 2, 3], False)] * 2


def test_the_context_slides_over_boundaries_and_then_the_item() -> None:
    seen: list[list[int]] = []

    def recorded(contexts: Tensor) -> Tensor:
        seen.extend(contexts.tolist())
        return successor(contexts)

    generate(recorded, 1, 2, max_length=10, generator=seeded())
    assert seen == [[0, 0], [0, 1], [1, 2], [2, 3]]


@pytest.mark.parametrize(("prompt", "ids"), [([2], [2, 3]), ([3, 1], [3, 1, 2, 3]), ([1, 1, 3], [1, 1, 3])])
def test_every_item_starts_with_the_prompt(prompt: list[int], ids: list[int]) -> None:
    assert generate(successor, 2, 2, max_length=10, generator=seeded(), prompt=prompt) == [(ids, False)] * 2


@pytest.mark.parametrize(
    ("max_length", "expected"),
    [(1, ([1], True)), (2, ([1, 2], True)), (3, ([1, 2, 3], False)), (4, ([1, 2, 3], False))],
)
def test_an_item_is_cut_at_max_length_unless_it_ends_there(max_length: int, expected: tuple[list[int], bool]) -> None:
    assert generate(successor, 1, 2, max_length=max_length, generator=seeded()) == [expected]


def test_an_item_without_end_is_cut() -> None:
    assert generate(NEVER_ENDS, 1, 2, max_length=5, generator=seeded()) == [([1] * 5, True)]


def test_a_prompt_of_max_length_ends_or_is_cut() -> None:
    assert generate(successor, 1, 2, max_length=1, generator=seeded(), prompt=[3]) == [([3], False)]
    assert generate(successor, 1, 2, max_length=1, generator=seeded(), prompt=[2]) == [([2], True)]


def test_batches_are_no_larger_than_asked_for() -> None:
    sizes: list[int] = []

    def recorded(contexts: Tensor) -> Tensor:
        sizes.append(len(contexts))
        return successor(contexts)

    items = generate(recorded, 10, 2, max_length=5, generator=seeded(), batch_size=4)
    assert items == [([1, 2, 3], False)] * 10
    assert sizes == [4] * 4 + [4] * 4 + [2] * 4


def test_finished_items_are_computed_no_further() -> None:
    sizes: list[int] = []

    def recorded(contexts: Tensor) -> Tensor:
        sizes.append(len(contexts))
        return independent(0.5, 0.5)(contexts)

    items = generate(recorded, 100, 2, max_length=20, generator=seeded())
    lengths = [len(ids) + (not cut) for ids, cut in items]
    assert sum(sizes) == sum(lengths) + sum(cut for _, cut in items)
    assert sizes == [sum(length > place for length in lengths) for place in range(len(sizes))]


def test_the_same_generator_state_gives_the_same_items() -> None:
    def draw(generator: torch.Generator) -> list[tuple[list[int], bool]]:
        return generate(independent(0.2, 0.4, 0.4), 20, 2, max_length=9, generator=generator)

    generator = seeded(1)
    first, second = draw(generator), draw(generator)
    torch.manual_seed(99)
    assert draw(seeded(1)) == first
    assert second != first
    assert draw(seeded(2)) != first


# -- temperature, top-k, top-p -----------------------------------------------------------------------------------


def test_tokens_are_drawn_with_their_probabilities() -> None:
    assert_drawn_from(first_tokens(independent(0.25, 0.75)), [0.25, 0.75])


def test_the_lengths_of_items_follow_the_probability_of_the_end() -> None:
    items = generate(independent(0.25, 0.75), 10_000, 2, max_length=100, generator=seeded())
    lengths = Counter(len(ids) for ids, _ in items)
    assert_drawn_from(lengths, [0.25 * 0.75**n for n in range(5)])


@pytest.mark.parametrize(("temperature", "probs"), [(0.5, [0.1, 0.9]), (2.0, [0.366025, 0.633975]), (1e6, [0.5, 0.5])])
def test_temperature_sharpens_and_flattens(temperature: float, probs: list[float]) -> None:
    assert_drawn_from(first_tokens(independent(0.25, 0.75), temperature=temperature), probs)


@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1e-30, 1e-44, 1e-50, 5e-324])
def test_a_tiny_temperature_draws_the_most_probable_token(temperature: float) -> None:
    probs = independent(0.2, 0.3, 0.5)
    assert first_tokens(probs, num=100, temperature=temperature) == {2: 100}
    assert first_tokens(probs, num=100, temperature=temperature, top_k=2, top_p=0.9) == {2: 100}


def test_top_k_draws_among_the_k_most_probable() -> None:
    assert_drawn_from(first_tokens(independent(0.1, 0.3, 0.2, 0.4), top_k=2), [0, 3 / 7, 0, 4 / 7])


def test_top_p_draws_among_the_fewest_that_reach_p() -> None:
    assert_drawn_from(first_tokens(independent(0.1, 0.3, 0.2, 0.4), top_p=0.6), [0, 3 / 7, 0, 4 / 7])


def kept(probs: list[list[float]], top_k: int | None = None, top_p: float | None = None) -> list[list[int]]:
    """The ids that `truncate` leaves in each row."""
    log_probs = torch.tensor(probs).log()
    left = truncate(log_probs.clone(), top_k, top_p)
    assert torch.equal(left[left > -torch.inf], log_probs[left > -torch.inf])
    return [row.isfinite().nonzero().flatten().tolist() for row in left]


@pytest.mark.parametrize(("k", "ids"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])])
def test_top_k_keeps_exactly_k_of_equally_probable_tokens_the_lower_ids(k: int, ids: list[int]) -> None:
    assert kept([[0.1, 0.3, 0.3, 0.3]], top_k=k) == [ids]


def test_of_many_equally_probable_tokens_the_lower_ids_are_kept() -> None:
    assert kept([[0.001] * 1000] * 2, top_k=300) == [list(range(300))] * 2


def test_each_row_is_truncated_on_its_own() -> None:
    assert kept([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]], top_k=1) == [[2], [0]]
    assert kept([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]], top_p=0.6) == [[2], [0, 1]]


@pytest.mark.parametrize(("p", "ids"), [(1e-9, [1]), (0.4, [1]), (0.6, [1, 3]), (0.85, [1, 2, 3]), (1.0, [0, 1, 2, 3])])
def test_top_p_keeps_the_fewest_tokens_that_reach_p(p: float, ids: list[int]) -> None:
    assert kept([[0.1, 0.45, 0.2, 0.25]], top_p=p) == [ids]


def test_top_p_keeps_exactly_enough_of_equally_probable_tokens() -> None:
    assert kept([[0.25] * 4], top_p=0.5) == [[0, 1]]


def test_top_p_measures_what_top_k_leaves() -> None:
    # 0.4 and 0.3 become 4/7 and 3/7: the first alone reaches 0.5.
    assert kept([[0.4, 0.3, 0.2, 0.1]], top_p=0.5) == [[0, 1]]
    assert kept([[0.4, 0.3, 0.2, 0.1]], top_k=2, top_p=0.5) == [[0]]
