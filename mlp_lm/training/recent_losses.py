"""The losses between two points of the training curve. K steps per execution, B batch, S steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


class RecentLosses:
    """The mean loss of each step since the last point of the curve, on the device: reading one would wait for it."""

    def __init__(self) -> None:
        self._chunks: list[tuple[Tensor, Tensor]] = []  # mean losses (K,) and batch sizes (K,) of each call
        self._averaged = 0  # how many chunks, from the first, are means over all processes already

    def add(self, losses: Tensor, batch_size: int) -> None:
        """Add the mean losses (K,) of steps with B = `batch_size` windows."""
        self._chunks.append((losses, torch.full((len(losses),), batch_size, dtype=torch.float64)))

    def average(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Replace the losses by their means over several processes, which `reduce` finds: those of whole batches.

        Never twice, which could round them again: when a run is saved must not change its curve.
        """
        if own := self._chunks[self._averaged :]:
            losses, sizes = _joined(own)
            self._chunks[self._averaged :] = [(reduce(losses), sizes)]
            self._averaged = len(self._chunks)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Mean losses (S,) and batch sizes (S,), float64, one step after the other; both on the CPU."""
        losses, sizes = _joined(self._chunks)
        return losses.cpu(), sizes

    def restore(self, losses: Tensor, sizes: Tensor) -> None:
        """Take up what `tensors` gave, on the device of training."""
        self._chunks, self._averaged = [(losses, sizes.double().cpu())], 1

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
        self._averaged = 0


def _joined(chunks: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if not chunks:
        return torch.zeros(0), torch.zeros(0, dtype=torch.float64)
    losses, sizes = zip(*chunks, strict=True)
    return torch.cat(losses), torch.cat(sizes)
