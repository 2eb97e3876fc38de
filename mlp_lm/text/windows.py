"""Windows over a token stream, and the order in which training sees them. N windows, T context, B batch, K steps."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlp_lm.text.corpus import Ids
from mlp_lm.text.vocab import BOUNDARY

Batch = tuple[Tensor, Tensor]  # contexts (…, T) and targets (…), int64
Chunk = tuple[Tensor, Tensor, int]  # contexts (K, b, T) and targets (K, b), b rows of batches of B; and B
EVAL_BATCH_SIZE = 8192  # windows; more makes nothing faster


def eval_batch_size(vocab_size: int) -> int:
    """How many windows to evaluate at once, so that their probabilities (B, V) stay below half a gigabyte."""
    return max(1, min(EVAL_BATCH_SIZE, 2**26 // vocab_size))


class Windows:
    """The N windows of one split: every token of its stream is the target of one, boundaries included.

    T boundaries are put in front of every item, so that a window never reaches into another item. A window is
    then T + 1 ids in a row of that padded stream: the view that shows all of them copies nothing, and `starts`
    (N,) lists those that are real examples. One id takes a byte where V allows it, one start four.
    """

    def __init__(self, stream: Ids, context_size: int) -> None:
        """`stream` (N,): items one after the other, each ended by the boundary."""
        ends = stream == BOUNDARY
        num_items = int(np.count_nonzero(ends))
        padded_size = len(stream) + context_size * num_items
        # The window of a target starts i * T after the target's place in the stream, where i items end before it.
        starts: npt.NDArray[Any] = np.cumsum(ends, dtype=np.int32 if padded_size < 1 << 31 else np.int64)
        starts -= ends
        starts *= context_size
        starts += np.arange(len(stream), dtype=starts.dtype)
        padded = np.zeros(padded_size, stream.dtype)
        padded[starts + context_size] = stream
        self.context_size = context_size
        self.starts = torch.from_numpy(starts)  # (N,)
        self._padded = torch.from_numpy(padded)

    def to(self, device: torch.device) -> Windows:
        """These windows with their data on `device`, where batches are then made."""
        moved = copy.copy(self)
        moved.starts, moved._padded = self.starts.to(device), self._padded.to(device)
        return moved

    def share(self, rank: int, num_ranks: int) -> Windows:
        """Every `num_ranks`-th of these windows, from number `rank` on: all shares together have each window once."""
        share = copy.copy(self)
        share.starts = self.starts[rank::num_ranks]
        return share

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Tensor | slice) -> Batch:
        """Contexts (…, T) and targets (…) as int64, for an index tensor of any shape (…) or a slice."""
        view = self._padded.unfold(0, self.context_size + 1, 1)  # (padded size - T, T + 1)
        rows = view[self.starts[index]].long()  # (…, T + 1)
        return rows[..., :-1], rows[..., -1]

    def batches(self, batch_size: int = EVAL_BATCH_SIZE) -> Iterator[Batch]:
        """All windows in their order, as contexts (B, T) and targets (B,); for evaluation, where B changes nothing.

        No windows are one empty batch: a process whose share is empty still takes part in what the processes do
        together.
        """
        for first in range(0, max(len(self), 1), batch_size):
            yield self[first : first + batch_size]


class Order:
    """Which examples each step of training sees: a function of (seed, step) and nothing else.

    Epoch e goes through all N examples once, in a permutation drawn from (seed, e); its last batch is smaller
    where B does not divide N. So resuming needs the step alone, and no K changes what a step sees.
    """

    def __init__(self, num_examples: int, batch_size: int, seed: int) -> None:
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = -(-num_examples // batch_size)
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def steps_of_one_shape(self, step: int) -> int:
        """How many steps from `step` on have batches of the same size and lie in the same epoch; at least 1."""
        full_left = self.num_examples // self.batch_size - step % self.steps_per_epoch
        return max(full_left, 1)

    def indices(self, step: int, num_steps: int) -> Tensor:
        """Indices (K, B) of the examples of `num_steps` steps, at most `steps_of_one_shape(step)` of them."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, self._permute(epoch)
        first = place * self.batch_size
        return self._permutation[first : first + num_steps * self.batch_size].view(num_steps, -1)

    def _permute(self, epoch: int) -> Tensor:
        # Torch's generator takes 32 bits of a seed; a string seeds Python's with all of both numbers.
        seed = random.Random(f"{self.seed}/{epoch}").getrandbits(32)
        dtype = torch.int32 if self.num_examples < 1 << 31 else torch.int64  # half the memory where it will do
        return torch.randperm(self.num_examples, generator=torch.Generator().manual_seed(seed), dtype=dtype)
