"""The curves of a run, read back from its TensorBoard events. No torch: commands read them too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Curve = list[tuple[int, float]]  # (step, value), steps ascending


def read_curves(run_dir: Path) -> dict[str, Curve]:
    """The scalars of a run by name; none where it has no events.

    A run that was continued has several event files. Where they overlap, the later one wins: from its first step
    on, it replaces what an earlier one says.
    """
    from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

    # Files of one second have no order by their names: we sort by time instead of letting TensorBoard guess.
    everything = {event_accumulator.SCALARS: 0}
    events = event_accumulator.EventAccumulator(str(run_dir), everything, purge_orphaned_data=False)
    events.Reload()
    return {name: _latest(events.Scalars(name)) for name in events.Tags()["scalars"]}


def _latest(events: list[Any]) -> Curve:
    curve: Curve = []
    for event in sorted(events, key=lambda event: event.wall_time):
        while curve and curve[-1][0] >= event.step:
            curve.pop()
        curve.append((event.step, event.value))
    return curve
