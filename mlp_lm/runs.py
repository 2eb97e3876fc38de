"""A run's folder, `runs/<config name>/version_N/` with config.yaml, events, checkpoints and report.json; its curves,
read back. No torch: commands read runs too."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mlp_lm.errors import SettingsError

ROOT = Path("runs")
CHECKPOINTS, REPORT, CONFIG, LOCK = "checkpoints", "report.json", "config.yaml", ".lock"
Curve = list[tuple[int, float]]  # (step, value), steps ascending


def starred(text: str, seen_in: str | None) -> str:
    """A generated item as reports show it: with a star if it is in the training set."""
    return f"{text}*" if seen_in == "train" else text


def last_checkpoint(run_dir: Path) -> Path:
    """`last.ckpt` of a run, from which it is resumed."""
    return run_dir / CHECKPOINTS / "last.ckpt"


def best_checkpoint(run_dir: Path) -> Path:
    """`best.ckpt` of a run, that of the lowest dev loss."""
    return run_dir / CHECKPOINTS / "best.ckpt"


def run_folder(checkpoint: Path) -> Path:
    """The run folder that a checkpoint lies in; its own folder if that is not called `checkpoints`."""
    folder = checkpoint.absolute().parent
    return folder.parent if folder.name == CHECKPOINTS else folder


def run_name(config: str, data_path: str) -> str:
    """The name of a run: of its config file, of the folder above the run or sweep that saved it, or of its data."""
    folder = Path(config).absolute().parent
    is_saved = Path(config).name == CONFIG and folder.name.startswith(("version_", "sweep_"))
    name = folder.parent.name if is_saved else Path(config or data_path).stem
    return name.strip(".") or "run"  # never the folder ".."


def output_folder(chosen: str | None, name: str, kind: str, flag: str) -> Path:
    """Make the folder that a user has chosen with `flag`, or else the next free `runs/<name>/<kind>_N`."""
    return new_folder(name, kind, flag) if chosen is None else empty_folder(chosen, flag)


def new_folder(name: str, kind: str, flag: str) -> Path:
    """Make the next free `runs/<name>/<kind>_N`; processes that start together get different ones.

    Raises SettingsError that names `flag`, the way to choose a folder, if none can be made.
    """
    parent = ROOT / name
    number = 0
    while True:
        try:
            (parent / f"{kind}_{number}").mkdir(parents=True)
            return parent / f"{kind}_{number}"
        except FileExistsError:
            number += 1
        except OSError as error:
            raise SettingsError(f"{parent}: cannot be made ({error.strerror}); name a folder with --{flag}") from error


def empty_folder(name: str, flag: str) -> Path:
    """Make a folder that a user has named. Raises SettingsError unless it is new or empty."""
    path = Path(os.path.expanduser(name))  # unlike Path.expanduser, leaves the ~ of an unknown user alone
    if "://" in name:
        raise SettingsError(f"{flag}: found {name!r}, expected a folder on this machine")
    try:
        if last_checkpoint(path).exists():
            raise SettingsError(
                f"{flag}: {path} holds a run already; name another folder, or resume that run with "
                f"--ckpt_path {last_checkpoint(path)}"
            )
        path.mkdir(parents=True, exist_ok=True)
        if not name or (any(path.iterdir()) and not _was_killed_at_once(path)):
            raise SettingsError(f"{flag}: {name or 'the working folder'} is not empty; name a new folder")
        return path
    except OSError as error:
        raise SettingsError(f"{flag}: {path} cannot be used ({error.strerror}); name a new folder") from error


def _was_killed_at_once(run_dir: Path) -> bool:
    """Whether a folder holds nothing but what a run leaves that was killed before its first checkpoint."""
    names = {entry.name for entry in run_dir.iterdir() if not entry.name.startswith("events.out.tfevents")}
    written = [path.name for path in (run_dir / CHECKPOINTS).glob("*") if path.suffix != ".part"]
    return LOCK in names and names <= {LOCK, CONFIG, CHECKPOINTS, "hparams.yaml"} and not written


def lock_run(run_dir: Path) -> FileLock:
    """Lock a run folder while its run is trained. Raises SettingsError if another process trains it."""
    lock = FileLock(run_dir / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise SettingsError(f"run_dir: {run_dir} is being trained by another process; wait for it") from None
    except NotImplementedError:  # some network disks have no locks
        pass
    except OSError as error:
        raise SettingsError(f"run_dir: {run_dir} cannot be used ({error.strerror}); name a new folder") from error
    return lock


def read_report(run_dir: Path) -> dict[str, Any] | None:
    """The report of a finished run, None of another."""
    try:
        report = json.loads((run_dir / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) else None


def read_curves(run_dir: Path) -> dict[str, Curve]:
    """The scalars of a run by name, from its TensorBoard events; empty if it has none.

    A run that was resumed has several event files. Where they overlap, the later one wins: from its first step
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
