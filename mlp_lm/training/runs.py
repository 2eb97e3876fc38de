"""Where a run lives: `runs/<config name>/version_N/` with config.yaml, events, checkpoints and report.json."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mlp_lm.errors import SettingsError
from mlp_lm.files import write_json

ROOT = Path("runs")
CHECKPOINTS, REPORT = "checkpoints", "report.json"


def run_name(config: str, data_path: str) -> str:
    """The name of a run: of its config file, of the run or sweep that saved that as config.yaml, or of its data."""
    folder = Path(config).absolute().parent
    is_saved = Path(config).name == "config.yaml" and folder.name.startswith(("version_", "sweep_"))
    name = folder.parent.name if is_saved else Path(config or data_path).stem
    return name.strip(".") or "run"  # never the folder ".."


def new_run_dir(name: str) -> Path:
    """Make the next free `runs/<name>/version_N`."""
    return claim(new_folder(name, "version", "run_dir"))


def new_folder(name: str, kind: str, flag: str) -> Path:
    """Make the next free `runs/<name>/<kind>_N`; processes that start together get different ones.

    Raises SettingsError that names `flag`, the way to choose a folder, where none can be made.
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


def chosen_run_dir(name: str) -> Path:
    """Make the folder of `--run_dir`. Raises SettingsError where it is no folder, not empty or not ours to write."""
    path = Path(os.path.expanduser(name))  # unlike Path.expanduser, leaves the ~ of an unknown user alone
    last = last_checkpoint(path)
    if last.exists():
        raise SettingsError(
            f"run_dir: {path} holds a run already; name another folder, or continue that run with --ckpt_path {last}"
        )
    if last.parent.exists():
        raise SettingsError(
            f"run_dir: {path} holds a run that is just starting, or ended before its first checkpoint; "
            "if it ended, remove the folder, else name another"
        )
    return claim(empty_folder(name, "run_dir"))


def empty_folder(name: str, flag: str) -> Path:
    """Make a folder that a user has named. Raises SettingsError where it is no folder or not empty."""
    path = Path(os.path.expanduser(name))
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not name or any(path.iterdir()):
            raise SettingsError(f"{flag}: {name or 'the working folder'} is not empty; name a new folder")
        return path
    except OSError as error:
        raise SettingsError(f"{flag}: {path} cannot be used ({error.strerror}); name a new folder") from error


def claim(run_dir: Path) -> Path:
    """Make the folder of the checkpoints, which only one of two processes can."""
    try:
        (run_dir / CHECKPOINTS).mkdir()
    except OSError as error:
        raise SettingsError(f"run_dir: {run_dir} cannot be used ({error.strerror}); name a new folder") from error
    return run_dir


def run_dir_of(checkpoint: Path) -> Path:
    """The run folder that a checkpoint lies in; its own folder where that is not called `checkpoints`."""
    folder = checkpoint.absolute().parent
    return folder.parent if folder.name == CHECKPOINTS else folder


def starred(text: str, where: str | None) -> str:
    """A generated item as reports show it: with a star where it stands in train."""
    return f"{text}*" if where == "train" else text


def last_checkpoint(run_dir: Path) -> Path:
    """`last.ckpt` of a run."""
    return run_dir / CHECKPOINTS / "last.ckpt"


def write_report(run_dir: Path, report: dict[str, Any]) -> None:
    """Write report.json, which marks a finished run; whole or not at all."""
    write_json(run_dir / REPORT, report)
