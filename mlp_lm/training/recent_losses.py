"""The losses between two points of the training curve. K steps per execution, B batch, S steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


class RecentLosses:
    """The mean loss of each step since the last point of the curve, on the device: reading one would wait for it."""

    def __init__(self) -> None:
        self._chunks: list[tuple[Tensor, int]] = []  # mean losses (K,) and B of each call

    def add(self, losses: Tensor, batch_size: int) -> None:
        """Add the mean losses (K,) of steps with B = `batch_size` windows."""
        self._chunks.append((losses, batch_size))

    def average(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Replace the losses by their means over several processes, which `reduce` finds: those of whole batches."""
        if self._chunks:
            chunks, sizes = zip(*self._chunks, strict=True)
            losses = torch.split(reduce(torch.cat(chunks)), [len(chunk) for chunk in chunks])
            self._chunks = list(zip(losses, sizes, strict=True))

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Mean losses (S,) and batch sizes (S,), one step after the other."""
        if not self._chunks:
            return torch.zeros(0), torch.zeros(0)
        losses, sizes = zip(*((chunk, torch.full_like(chunk, size)) for chunk, size in self._chunks), strict=True)
        return torch.cat(losses), torch.cat(sizes)

    def restore(self, losses: Tensor, sizes: Tensor) -> None:
        """Take up what `tensors` gave."""
        self._chunks = [(loss, int(size)) for loss, size in zip(losses.unsqueeze(1), sizes, strict=True)]

    def mean(self) -> float:
        """Mean loss over all windows of all steps. Summed step by step, so that it does not depend on K."""
        losses, sizes = self.tensors()
        return float((losses.double() * sizes).sum() / sizes.sum())

    def first_no_number(self) -> tuple[int, float] | None:
        """The first loss that is no finite number, and how many steps before the end it stands; None where all are."""
        losses = self.tensors()[0].tolist()
        bad = ((len(losses) - i, loss) for i, loss in enumerate(losses) if not math.isfinite(loss))
        return next(bad, None)

    def clear(self) -> None:
        """Forget all: they are in the curve."""
        self._chunks.clear()
