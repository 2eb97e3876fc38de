"""What a checkpoint fixes, and what a run that is resumed from it may change."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlp_lm import runs
from mlp_lm.errors import CheckpointError
from mlp_lm.models import checkpoint
from mlp_lm.settings import Settings

FIXED_BY_WEIGHTS = dict.fromkeys(
    (
        "data.context_size",
        "model.embedding_dim",
        "model.hidden_dim",
        "model.num_layers",
        "model.residual",
        "model.direct",
        "model.tied",
    ),
    "its weights were trained with that",
)
FIXED_ON_RESUME = FIXED_BY_WEIGHTS | {
    "seed_everything": "the order of its examples follows from it",
    "data.batch_size": "its position in the data depends on the batch size",
    "data.steps_per_execution": "its position in the run counts such calls",
    **{
        f"data.{name}": "its tokens follow from it"
        for name in ("layout", "tokens", "newlines", "lowercase", "min_count", "max_vocab_size", "vocab_from")
    },
    "data.unique": "its split follows from it",
    "data.split_seed": "its split follows from it",
    "data.teacher": "its targets follow from it",
    "data.teacher_items": "what it trains on follows from it",
    "model.optimizer": "its optimizer has a state",
    "model.momentum": "its optimizer has a state",
    "model.weight_decay": "a different value would make it a different run",
    "model.decay_all": "a different value would make it a different run",
    "model.dropout": "a different value would make it a different run",
    "model.embedding_dropout": "a different value would make it a different run",
    "trainer.precision": "a different value would make it a different run",
    "trainer.accumulate_grad_batches": "its position in the data depends on it",
}


def flatten(nested: Settings) -> dict[str, Any]:
    """Settings by their full names, `model.dropout`, from the sections of a config."""
    flat: dict[str, Any] = {}
    for section, values in nested.items():
        flat |= {f"{section}.{n}": v for n, v in values.items()} if isinstance(values, dict) else {section: values}
    return flat


def changed(settings: Settings, trained_with: Settings, fixed: Mapping[str, str]) -> Iterator[str]:
    """Describe each setting in `fixed` that differs from the checkpoint's, and why it may not."""
    for name, reason in fixed.items():
        if settings[name] != trained_with[name]:
            yield (
                f"{name}: found {settings[name]!r}, but the checkpoint has {trained_with[name]!r} ({reason}); "
                "leave it out"
            )


LENGTH = ("trainer.max_steps", "trainer.max_epochs", "trainer.max_time")


def has_ended(path: Path, settings: Settings, trained_with: Settings) -> bool:
    """Whether the run of a checkpoint is finished, and nothing makes it longer."""
    unchanged = all(settings[name] == trained_with[name] for name in LENGTH)
    return unchanged and runs.read_report(runs.run_folder(path)) is not None


def resume_problems(
    path: Path, content: checkpoint.Content, settings: Settings, trained_with: Settings
) -> Iterator[str]:
    """Describe why a run cannot be resumed from a checkpoint with these settings, or would lose what it has reached.

    Args:
        path: The checkpoint to resume from.
        content: What it holds.
        settings: Those of the resumed run, by their full names.
        trained_with: Those of the checkpoint.
    """
    step, max_steps, max_epochs = content["global_step"], settings["trainer.max_steps"], settings["trainer.max_epochs"]
    if max_steps is None and max_epochs is None:
        yield "trainer.max_steps: missing; it is not in this checkpoint, which fit did not write; set the total"
    if max_steps is not None and step > max_steps:
        yield f"trainer.max_steps: found {max_steps:,}, but the checkpoint is at step {step:,} already"
    if max_epochs is not None and content["epoch"] >= max_epochs:
        epoch = content["epoch"] + 1
        yield f"trainer.max_epochs: found {max_epochs:,}, but the checkpoint is in epoch {epoch:,} already"
    last = runs.last_checkpoint(runs.run_folder(path))
    if last.exists() and not path.samefile(last):
        try:
            reached = checkpoint.read(last)["global_step"]
        except CheckpointError:  # what is left of a damaged run may be resumed
            reached = -1
        if reached > step:
            yield (
                f"ckpt_path: {path} is at step {step:,}, but its run has reached step {reached:,}, which would be "
                f"lost; resume {last}, or copy the file into a new folder and resume the copy"
            )
    finished = (runs.run_folder(path) / runs.REPORT).exists() and step == max_steps
    if finished or has_ended(path, settings, trained_with):
        name, end = ("max_epochs", max_epochs) if max_steps is None else ("max_steps", max_steps)
        if end is not None:
            names = [f"trainer.{name}"] + ["model.lr_decay_steps"] * (settings["model.lr_decay_steps"] is not None)
            longer = [f"--{n}={end + max(1, end // 2)}" for n in names]
            command = shlex.join(["python", "-m", "mlp_lm", "fit", f"--ckpt_path={path}", *longer])
            yield f"trainer.{name}: found {end:,}, but this run has ended, at step {step:,}; to train on: {command}"
