"""Replays K fused steps as one CUDA graph: a GPU takes less time for a small step than Python for launching it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Run = Callable[[Tensor, Tensor, Sequence[float]], Tensor]  # `FusedSGD.run`
Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]

MAX_GRAPHS = (
    4  # shapes and learning rates that come back: full chunks, those before a log point, before and after a drop
)


def capture(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Record the kernels of `work` without running them. Returns their replay and the tensor that it fills."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph.replay, result


class GraphedSteps:
    """`FusedSGD.run` with the same arguments and results, replayed from a CUDA graph where it can be.

    Learning rates are part of a graph. So a graph pays where they stay the same for long, as in schedules `constant`
    and `step`; a call whose shape and rates have not been seen just before is run as it is, which also
    warms the libraries up. Where capturing fails, everything is run as it is from then on, after one warning.
    """

    def __init__(self, run: Run, capture: Capture = capture) -> None:
        """`capture` is replaced in tests, which have no GPU."""
        self._run, self._capture = run, capture
        self._graphs: dict[tuple[object, ...], tuple[Tensor, Tensor, Callable[[], None], Tensor]] = {}
        self._previous: tuple[object, ...] = ()
        self._failed = False

    def run(self, contexts: Tensor, targets: Tensor, learning_rates: Sequence[float]) -> Tensor:
        """See `FusedSGD.run`."""
        key = (contexts.shape, *learning_rates)
        previous, self._previous = self._previous, key
        if key not in self._graphs and (key != previous or self._failed or not self._record(key, contexts, targets)):
            return self._run(contexts, targets, learning_rates)
        own_contexts, own_targets, replay, losses = self._graphs[key]
        own_contexts.copy_(contexts)
        own_targets.copy_(targets)
        replay()
        return losses.clone()  # the next replay overwrites them

    def _record(self, key: tuple[object, ...], contexts: Tensor, targets: Tensor) -> bool:
        """Capture the steps on tensors of the graph's own, from where each replay reads. False where that fails."""
        own_contexts, own_targets, rates = contexts.clone(), targets.clone(), key[1:]
        try:
            replay, losses = self._capture(lambda: self._run(own_contexts, own_targets, rates))  # type: ignore[arg-type]
        except RuntimeError as error:
            warnings.warn(f"no CUDA graph ({error}); steps are launched one by one", stacklevel=2)
            self._failed = True
            return False
        while len(self._graphs) >= MAX_GRAPHS:
            del self._graphs[next(iter(self._graphs))]  # the oldest
        self._graphs[key] = own_contexts, own_targets, replay, losses
        return True
