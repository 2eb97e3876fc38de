"""The folder of a sweep: a run folder for each point and seed, and sweep.json, which says what settings each has.

Runs are recognised by these settings, not by their names: so a sweep can be continued, widened or changed in one
folder, and no run is taken for another.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mlp_lm.errors import SettingsError
from mlp_lm.files import write_json
from mlp_lm.training.runs import REPORT, last_checkpoint
from mlp_lm.training.sweep.grid import run_name

INDEX, LOCK = "sweep.json", ".lock"


def read_report(run_dir: Path) -> dict[str, Any] | None:
    """The report of a finished run, None of another."""
    try:
        report = json.loads((run_dir / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) else None


class SweepFolder:
    """Knows which of its folders is whose run."""

    def __init__(self, path: Path) -> None:
        """Raises SettingsError where `path` is something else than a sweep or a new folder."""
        self.path = path
        self.index = self._read_index()  # folder to settings

    def _read_index(self) -> dict[str, dict[str, Any]]:
        path = self.path
        try:
            names = {child.name for child in path.iterdir()} if path.exists() else set()
            if names <= {LOCK}:
                return {}
            index = json.loads((path / INDEX).read_text(encoding="utf-8"))
            if not isinstance(index, dict) or not all(re.fullmatch(r"[\w+=-][\w.+=,-]*", name) for name in index):
                raise ValueError("not what write_index writes")
            return index
        except FileNotFoundError:
            raise SettingsError(
                f"sweep_dir: {path} is not empty and holds no sweep; name a new folder, or one of a sweep"
            ) from None
        except OSError as error:
            raise SettingsError(f"sweep_dir: {path} cannot be used ({error.strerror}); name another folder") from error
        except ValueError as error:
            raise SettingsError(f"{path / INDEX}: damaged; name a new folder with --sweep_dir") from error

    @contextmanager
    def alone(self) -> Iterator[SweepFolder]:
        """Make the folder, keep other sweeps out of it, and read it again. Raises SettingsError where one is in it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path / LOCK, timeout=0):
                self.index = self._read_index()
                yield self
        except Timeout:
            raise SettingsError(f"sweep_dir: another sweep is at work in {self.path}; wait for it") from None

    def half_finished(self) -> list[Path]:
        """The folders of runs that have a checkpoint but no report."""
        folders = [self.path / name for name in self.index]
        return [f for f in folders if last_checkpoint(f).exists() and read_report(f) is None]

    def assign(self, values: Mapping[str, Any], settings: dict[str, Any]) -> Path:
        """The folder of the run with these `settings`: its own where it has one, else a new one named by `values`."""
        for name, known in self.index.items():
            if known == settings:
                return self.path / name
        taken = {*self.index, *(child.name for child in self.path.glob("*"))}
        name = run_name(values, settings["seed_everything"], taken)
        self.index[name] = settings
        return self.path / name

    def write_index(self) -> None:
        """Write sweep.json, before the first run has a folder."""
        write_json(self.path / INDEX, self.index)


def make_way(run_dir: Path) -> None:
    """Remove a run that ended before its first checkpoint; rename one whose checkpoint does not load."""
    if not last_checkpoint(run_dir).exists():
        shutil.rmtree(run_dir, ignore_errors=True)
    number = 0
    while run_dir.exists():
        number += 1
        aside = run_dir.with_name(f"{run_dir.name},aside_{number}")
        if not aside.exists():
            run_dir.rename(aside)
