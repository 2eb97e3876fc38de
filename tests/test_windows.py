"""Windows over a token stream, and the order of examples."""

from __future__ import annotations

import random

import pytest
import torch

from mlp_lm.text.tokenizer import Tokenizer
from mlp_lm.text.vocab import Vocab
from mlp_lm.text.windows import Order, Windows

ABC = Vocab.build("abc")


def windows(items: list[str], context_size: int, vocab: Vocab = ABC) -> Windows:
    return Windows(Tokenizer().encode("".join(f"{item}\n" for item in items), vocab), context_size)


def rows(windows: Windows) -> list[tuple[list[int], int]]:
    """All windows, in the form of `Vocab.windows`."""
    contexts, targets = windows[:]
    return list(zip(contexts.tolist(), targets.tolist(), strict=True))


@pytest.mark.parametrize("context_size", [1, 3, 8])
@pytest.mark.parametrize("num_characters", [3, 300])
def test_windows_are_those_of_each_item_on_its_own(num_characters: int, context_size: int) -> None:
    rng = random.Random(context_size)
    characters = [chr(0x4E00 + i) for i in range(num_characters)]
    vocab = Vocab.build(characters)
    items = ["".join(rng.choices(characters, k=rng.randint(0, 12))) for _ in range(100)]
    expected = [row for item in items for row in vocab.windows(item, context_size)]
    assert rows(windows(items, context_size, vocab)) == expected


def test_windows_of_two_items_by_slice_and_by_index() -> None:
    two = windows(["ab", "cca"], 2)
    contexts, targets = two[:]
    assert contexts.tolist() == [[0, 0], [0, 1], [1, 2], [0, 0], [0, 3], [3, 3], [3, 1]]
    assert targets.tolist() == [1, 2, 0, 3, 3, 1, 0]
    assert contexts.dtype == targets.dtype == torch.int64
    contexts, targets = two[2:4]
    assert (contexts.tolist(), targets.tolist()) == ([[1, 2], [0, 0]], [0, 3])
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

SIZES = pytest.mark.parametrize(("num_windows", "batch_size"), [(10, 3), (12, 4), (5, 8), (7, 7), (1, 3)])


@SIZES
def test_every_epoch_has_every_window_once(num_windows: int, batch_size: int) -> None:
    seen = Order(num_windows, batch_size, seed=1).indices(0, num_windows)  # B epochs
    epochs = seen.view(batch_size, num_windows).tolist()
    assert [sorted(epoch) for epoch in epochs] == [list(range(num_windows))] * batch_size


@SIZES
def test_every_batch_has_b_windows_whether_taken_alone_or_together(num_windows: int, batch_size: int) -> None:
    order = Order(num_windows, batch_size, seed=1)
    together = order.indices(2, 9)
    assert together.shape == (9, batch_size)
    assert together.tolist() == [order.indices(step, 1)[0].tolist() for step in range(2, 11)]


def test_what_a_step_sees_depends_on_seed_and_step_alone() -> None:
    order = Order(10, 3, seed=1)
    in_turn = [order.indices(step, 1).tolist() for step in range(12)]
    torch.manual_seed(5)
    random.seed(5)
    assert [Order(10, 3, seed=1).indices(step, 1).tolist() for step in reversed(range(12))] == in_turn[::-1]


def test_every_epoch_and_every_seed_has_a_permutation_of_its_own() -> None:
    orders = [Order(20, 20, seed) for seed in (0, 1, 2**32 - 1)]
    assert len({str(order.indices(epoch, 1)) for order in orders for epoch in range(4)}) == 12
