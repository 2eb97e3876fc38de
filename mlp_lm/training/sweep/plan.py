"""From the points of a grid to runs: checked, before the first starts, by a process that knows the settings of fit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlp_lm.errors import SettingsError
from mlp_lm.settings import SEED, as_written, check
from mlp_lm.training.runs import last_checkpoint
from mlp_lm.training.sweep.folder import SweepFolder
from mlp_lm.training.sweep.grid import Point, short_names
from mlp_lm.training.sweep.processes import OF_THEIR_OWN

Described = Sequence[Mapping[str, Any]]  # of each point, `settings` and `identity`; see `points.describe`


@dataclass(frozen=True)
class Run:
    """One run of a sweep: a point with one seed."""

    values: Mapping[str, Any]  # of the varied settings, as fit reads them
    seed: int
    folder: Path
    flags: Sequence[str]  # of fit, beside its config and its folder


def config_flags(config: str | Path | None) -> list[str]:
    """The flags that name the config of all runs."""
    return [] if config is None else ["--config", str(config)]


def check_points(
    config: str | None, points: Sequence[Point], seeds: int, half_finished: Sequence[Path]
) -> tuple[Described, set[Path]]:
    """What `points.describe` says of each point, and those of the half-finished runs whose `last.ckpt` loads.

    Raises SettingsError with all that is wrong with any point.
    """
    request = {
        "varied": [*points[0]],
        "lines": [[*config_flags(config), *_flags(point)] for point in points],
        "checkpoints": [str(last_checkpoint(folder)) for folder in half_finished],
    }
    answer = _ask(request)
    if "error" in answer:
        raise SettingsError(answer["error"])
    described = answer["points"]
    last_seed = max(each["settings"]["seed_everything"] for each in described) + seeds - 1
    check({"seed_everything": last_seed}, {"seed_everything": SEED})
    seen: dict[str, Point] = {}
    for point, each in zip(points, described, strict=True):
        if (same := seen.setdefault(json.dumps(each["identity"]), point)) is not point:
            raise SettingsError(f"vary: {' '.join(_flags(same))} and {' '.join(_flags(point))} are the same settings")
    return described, {folder for folder in half_finished if str(last_checkpoint(folder)) in answer["checkpoints"]}


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    """The `points.answer` to a request, from a process of its own: it takes Lightning."""
    command = [sys.executable, "-m", "mlp_lm.training.sweep.points"]
    done = subprocess.run(
        command,
        input=json.dumps(request),
        capture_output=True,
        text=True,
        encoding="utf-8",
        start_new_session=OF_THEIR_OWN,  # Ctrl-C is for us, who note it
    )
    if done.returncode:
        raise SettingsError(f"the settings could not be checked: {last_line(done.stderr)}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def plan_runs(folder: SweepFolder, points: Sequence[Point], described: Described, seeds: int) -> list[Run]:
    """The runs of all points with their folders: all points with one seed, then with the next."""
    names = short_names([name for name in points[0] if len({point[name] for point in points}) > 1])
    runs = []
    for i in range(seeds):
        for point, each in zip(points, described, strict=True):
            values = {name: _scalar(each["settings"][name]) for name in point}
            seed = each["settings"]["seed_everything"] + i
            identity = {**each["identity"], "seed_everything": seed}
            path = folder.assign({short: values[name] for name, short in names.items()}, identity)
            runs.append(Run(values, seed, path, [*_flags(point), f"--seed_everything={seed}", "--report_test=false"]))
    return runs


def _flags(point: Point) -> list[str]:
    return [f"--{name}={value}" for name, value in point.items()]


def _scalar(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else as_written(value)


def last_line(stderr: str) -> str:
    """What a process said in the end."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1].removeprefix("mlp_lm fit: error: ") if lines else "it ended without a message"
