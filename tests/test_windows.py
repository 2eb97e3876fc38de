"""Windows over a token stream, and the order of examples."""

from __future__ import annotations

import random

import pytest
import torch

from mlp_lm.text.corpus import encode
from mlp_lm.text.vocab import Vocab
from mlp_lm.text.windows import Order, Windows

ABC = Vocab.build("abc")


def windows(items: list[str], context_size: int, vocab: Vocab = ABC) -> Windows:
    return Windows(encode(items, vocab), context_size)


def rows(windows: Windows) -> list[tuple[list[int], int]]:
    """All windows, in the form of `Vocab.windows`."""
    contexts, targets = windows[:]
    return list(zip(contexts.tolist(), targets.tolist(), strict=True))


def test_windows_of_two_items() -> None:
    two = windows(["ab", "cca"], 3)
    contexts, targets = two[:]
    assert contexts.tolist() == [
        [0, 0, 0],
        [0, 0, 1],
        [0, 1, 2],
        [0, 0, 0],
        [0, 0, 3],
        [0, 3, 3],
        [3, 3, 1],
    ]
    assert targets.tolist() == [1, 2, 0, 3, 3, 1, 0]
    assert contexts.dtype == targets.dtype == torch.int64
    assert len(two) == 7


@pytest.mark.parametrize("context_size", [1, 2, 5, 20])
def test_a_window_never_reaches_into_another_item(context_size: int) -> None:
    contexts, targets = windows(["aaaa", "bbb", "c", "bb"], context_size)[:]
    for context, target in zip(contexts.tolist(), targets.tolist(), strict=True):
        assert len({*context, target} - {0}) <= 1


@pytest.mark.parametrize("context_size", [1, 3, 8])
@pytest.mark.parametrize("num_characters", [3, 300])
def test_windows_are_those_of_each_item_on_its_own(num_characters: int, context_size: int) -> None:
    rng = random.Random(context_size)
    characters = [chr(0x4E00 + i) for i in range(num_characters)]
    vocab = Vocab.build(characters)
    items = ["".join(rng.choices(characters, k=rng.randint(0, 12))) for _ in range(100)]
    expected = [row for item in items for row in vocab.windows(item, context_size)]
    assert rows(windows(items, context_size, vocab)) == expected


def test_a_slice_is_that_stretch_of_windows() -> None:
    two = windows(["ab", "cca"], 2)
    contexts, targets = two[2:4]
    assert contexts.tolist() == [[1, 2], [0, 0]]
    assert targets.tolist() == [0, 3]


def test_an_index_tensor_gives_windows_of_its_own_shape() -> None:
    two = windows(["ab", "cca"], 2)
    contexts, targets = two[torch.tensor([[6, 0, 1], [0, 3, 3]], dtype=torch.int32)]  # (K, B) = (2, 3)
    assert contexts.tolist() == [[[3, 1], [0, 0], [0, 1]], [[0, 0], [0, 0], [0, 0]]]
    assert targets.tolist() == [[0, 1, 2], [1, 3, 3]]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 8])
def test_batches_are_all_windows_in_their_order(batch_size: int) -> None:
    two = windows(["ab", "cca"], 2)
    batches = list(two.batches(batch_size))
    assert [len(targets) for _, targets in batches[:-1]] == [batch_size] * ((len(two) - 1) // batch_size)
    for part, whole in zip(zip(*batches, strict=True), two[:], strict=True):
        assert torch.equal(torch.cat(part), whole)


# -- order -------------------------------------------------------------------------------------------------------

SIZES = pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 3), (12, 4), (5, 8), (7, 7), (1, 1)])


def epoch(order: Order, number: int) -> list[list[int]]:
    """The batches of one epoch, one step at a time."""
    first = number * order.steps_per_epoch
    return [order.indices(step, 1)[0].tolist() for step in range(first, first + order.steps_per_epoch)]


@SIZES
def test_an_epoch_has_every_example_once(num_examples: int, batch_size: int) -> None:
    order = Order(num_examples, batch_size, seed=1)
    for number in range(3):
        batches = epoch(order, number)
        assert sorted(example for batch in batches for example in batch) == list(range(num_examples))
        assert all(len(batch) == batch_size for batch in batches[:-1])


def test_the_last_batch_of_an_epoch_takes_what_is_left() -> None:
    assert [len(batch) for batch in epoch(Order(10, 3, seed=1), 5)] == [3, 3, 3, 1]


def test_what_a_step_sees_depends_on_seed_and_step_alone() -> None:
    order = Order(10, 3, seed=1)
    in_turn = [order.indices(step, 1).tolist() for step in range(12)]
    torch.manual_seed(5)
    random.seed(5)
    assert [Order(10, 3, seed=1).indices(step, 1).tolist() for step in reversed(range(12))] == in_turn[::-1]


def test_steps_taken_together_see_what_each_alone_sees() -> None:
    order = Order(10, 2, seed=1)
    together = order.indices(6, 4)  # steps 6 to 9: all but the first of epoch 1
    assert together.shape == (4, 2)
    assert together.tolist() == [order.indices(step, 1)[0].tolist() for step in range(6, 10)]


def test_every_epoch_and_every_seed_has_a_permutation_of_its_own() -> None:
    seen = {str(epoch(Order(20, 4, seed), number)) for seed in (0, 1, 2**32 - 1) for number in range(4)}
    assert len(seen) == 12


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [(3, [3, 2, 1, 1, 3, 2, 1, 1]), (5, [2, 1, 2, 1]), (10, [1, 1, 1]), (20, [1, 1, 1])],
)
def test_steps_of_one_shape_end_with_the_epoch_or_before_its_smaller_batch(
    batch_size: int, expected: list[int]
) -> None:
    order = Order(10, batch_size, seed=1)
    assert [order.steps_of_one_shape(step) for step in range(len(expected))] == expected


@SIZES
def test_steps_of_one_shape_never_cross_an_epoch(num_examples: int, batch_size: int) -> None:
    order = Order(num_examples, batch_size, seed=1)
    for step in range(3 * order.steps_per_epoch):
        num_steps = order.steps_of_one_shape(step)
        assert (step + num_steps - 1) // order.steps_per_epoch == step // order.steps_per_epoch
        assert order.indices(step, num_steps).tolist() == [
            order.indices(s, 1)[0].tolist() for s in range(step, step + num_steps)
        ]
