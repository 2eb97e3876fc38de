"""What a run can be continued with, from where, and how."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from mlp_lm.errors import CheckpointError, SettingsError
from mlp_lm.files import is_one_of
from mlp_lm.models import checkpoint
from mlp_lm.settings import RUN, STORED, Settings, as_written, check_unchanged
from mlp_lm.training.runs import REPORT, last_checkpoint, run_dir_of


def check_continues(path: Path, content: dict[str, Any], settings: Settings) -> None:
    """Raise SettingsError where a run cannot go on with these settings, or would lose what it has reached.

    Args:
        path: The checkpoint to continue.
        content: What it holds.
        settings: Of the run, as in a config.
    """
    check_unchanged(settings, checkpoint.settings(content), RUN)
    if settings["run_dir"] is not None:
        raise SettingsError("run_dir: a continued run stays in its own folder; leave out --run_dir")
    step, limit, run_dir = content["global_step"], settings["trainer.max_steps"], run_dir_of(path)
    if step > limit:
        raise SettingsError(f"trainer.max_steps: found {limit:,}, but the checkpoint is at step {step:,} already")
    last = last_checkpoint(run_dir)
    if not is_one_of(path, [last]) and (reached := _step_of(last)) > step:
        raise SettingsError(
            f"ckpt_path: {path} is at step {step:,}, but its run has reached step {reached:,}, which would be lost; "
            f"continue {last}, or copy the file into a new folder and continue the copy"
        )
    if step == limit and (run_dir / REPORT).exists():
        raise SettingsError(
            f"trainer.max_steps: found {limit:,}, where this run has ended; to train on, raise it, "
            "and model.lr_decay_steps with it"
        )


def continue_command(last: Path, settings: Settings, usual: Settings) -> str:
    """What goes on with a run: its checkpoint `last` says what it is, flags where and how it runs, if not `usual`."""
    own = [name for name in settings if name not in STORED and name != "run_dir"]
    flags = [f"--{name}={as_written(settings[name])}" for name in own if settings[name] != usual[name]]
    return shlex.join(["python", "-m", "mlp_lm", "fit", f"--ckpt_path={last}", *flags])


def _step_of(path: Path) -> int:
    """The step of a checkpoint; -1 where there is none that could be continued."""
    try:
        return int(checkpoint.read(path)["global_step"])
    except CheckpointError:
        return -1
