"""Where a run lives: `runs/<config name>/version_N/` with config.yaml, events, checkpoints and report.json."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mlp_lm.errors import SettingsError
from mlp_lm.models.files import write_atomically

ROOT = Path("runs")
CHECKPOINTS, REPORT = "checkpoints", "report.json"


def run_name(config: str, data_path: str) -> str:
    """The name of a run: that of its config file, or of the run whose saved config.yaml that is, or of its data."""
    folder = Path(config).absolute().parent
    is_saved = Path(config).name == "config.yaml" and folder.name.startswith("version_")
    name = folder.parent.name if is_saved else Path(config or data_path).stem
    return name.strip(".") or "run"  # never the folder ".."


def new_run_dir(name: str) -> Path:
    """Make the next free `runs/<name>/version_N`; processes that start together get different ones."""
    parent = ROOT / name
    number = 0
    while True:
        try:
            (parent / f"version_{number}").mkdir(parents=True)
            return claim(parent / f"version_{number}")
        except FileExistsError:
            number += 1
        except OSError as error:
            raise SettingsError(f"{parent}: cannot be made ({error.strerror}); name a folder with --run_dir") from error


def chosen_run_dir(name: str) -> Path:
    """Make the folder of `--run_dir`. Raises SettingsError where it is no folder, not empty or not ours to write."""
    path = Path(os.path.expanduser(name))  # unlike Path.expanduser, leaves the ~ of an unknown user alone
    last = path / CHECKPOINTS / "last.ckpt"
    if last.exists():
        raise SettingsError(
            f"run_dir: {path} holds a run already; name another folder, or continue that run with --ckpt_path {last}"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not name or any(path.iterdir()):
            raise SettingsError(f"run_dir: {name or 'the working folder'} is not empty; name a new folder")
        return claim(path)
    except OSError as error:
        raise SettingsError(f"run_dir: {path} cannot be used ({error.strerror}); name a new folder") from error


def claim(run_dir: Path) -> Path:
    """Make the folder of the checkpoints, which only one of two processes can."""
    (run_dir / CHECKPOINTS).mkdir()
    return run_dir


def run_dir_of(checkpoint: Path) -> Path:
    """The run folder that a checkpoint lies in; its own folder where that is not called `checkpoints`."""
    folder = checkpoint.absolute().parent
    return folder.parent if folder.name == CHECKPOINTS else folder


def write_report(run_dir: Path, report: dict[str, Any]) -> None:
    """Write report.json, which marks a finished run; whole or not at all."""
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    write_atomically(run_dir / REPORT, lambda file: file.write(text.encode()))
