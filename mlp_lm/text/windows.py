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

from mlp_lm.text.tokenizer import Ids
from mlp_lm.text.vocab import BOUNDARY

Batch = tuple[Tensor, Tensor]  # contexts (…, T) and targets (…), int64
Chunk = tuple[Tensor, Tensor]  # contexts (K, B, T) and targets (K, B) of K steps, int64
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
        ends = np.flatnonzero(stream == BOUNDARY)
        padded_size = len(stream) + context_size * len(ends)
        # Starts rise by 1, and by T + 1 at the first token of each further item; all in place, as N is large.
        starts: npt.NDArray[Any] = np.ones(len(stream), np.int32 if padded_size < 1 << 31 else np.int64)
        starts[ends[:-1] + 1] += context_size
        np.cumsum(starts, dtype=starts.dtype, out=starts)
        starts += context_size - 1  # now where the targets are
        padded = np.zeros(padded_size, stream.dtype)
        padded[starts] = stream
        starts -= context_size
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
    """Which windows each step of training sees: a function of (seed, step) and nothing else.

    Step s takes the positions [sB, (s + 1)B) of one endless sequence: the permutation of epoch 0, then that of epoch 1,
    and so on, each drawn from (seed, epoch). So every batch has B windows, an epoch still sees each window once, and
    resuming needs the step alone.
    """

    def __init__(self, num_windows: int, batch_size: int, seed: int) -> None:
        self.num_windows = num_windows
        self.batch_size = batch_size
        self.seed = seed
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, step: int, num_steps: int) -> Tensor:
        """Indices (K, B) of the windows of K = `num_steps` steps."""
        position, end = step * self.batch_size, (step + num_steps) * self.batch_size
        parts = []
        while position < end:
            epoch, first = divmod(position, self.num_windows)
            parts.append(self._permute(epoch)[first : first + end - position])
            position += len(parts[-1])
        return torch.cat(parts).view(num_steps, self.batch_size)

    def _permute(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            # Torch's generator takes 32 bits of a seed; a string seeds Python's with all of both numbers.
            seed = random.Random(f"{self.seed}/{epoch}").getrandbits(32)
            dtype = torch.int32 if self.num_windows < 1 << 31 else torch.int64  # half the memory
            generator = torch.Generator().manual_seed(seed)
            self._epoch, self._permutation = epoch, torch.randperm(self.num_windows, generator=generator, dtype=dtype)
        return self._permutation
