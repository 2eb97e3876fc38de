"""`python -m mlp_lm validate`, `test` and `predict`: the losses and predictions of a checkpoint."""

from __future__ import annotations

import re
from argparse import SUPPRESS
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from mlp_lm import runs
from mlp_lm.errors import CheckpointError, SettingsError
from mlp_lm.files import write_csv
from mlp_lm.models import checkpoint
from mlp_lm.models.metrics import NLL
from mlp_lm.parsing import flag_values
from mlp_lm.settings import Range, Settings, refuse
from mlp_lm.text.windows import Batch
from mlp_lm.training.cli import CLI, build, lightning_session
from mlp_lm.training.datamodule import TextDataModule
from mlp_lm.training.resuming import FIXED_BY_WEIGHTS, changed
from mlp_lm.training.trainer import Trainer

RELEVANT_SETTINGS = (
    r"help|config|ckpt_path|data\.\w*path|trainer\.(accelerator|devices|enable_progress_bar|limit_{}_batches|num_nodes|"
    r"num_threads|precision|profiler|strategy|callbacks|logger|plugins)(\..*)?"
)


def run(args: list[str], description: str) -> None:
    """Run one of the commands; `args` starts with its name, `description` is for the help."""
    command, *args = args
    with lightning_session():
        if {"-h", "--help"} & {*args}:  # which needs no checkpoint
            parse(command, args, description)
        path = find_checkpoint(command, args)
        trainer, module, data = prepare(command, args, path, description)
        if command == "predict":
            predict(trainer, module, data, path)
        else:
            evaluate(command, trainer, module, data, path)


def find_checkpoint(command: str, args: list[str]) -> Path:
    """The checkpoint that was named, `best.ckpt` of a run folder. Raises CheckpointError."""
    if given := flag_values(args, "--ckpt_path"):
        return checkpoint.resolve(given[-1])
    hint = f"; did you mean --ckpt_path {args[0]}?" if args and not args[0].startswith("-") else ""
    raise CheckpointError(f"--ckpt_path: missing; {command} needs the checkpoint of a trained model{hint}")


def add_flags(parser: LightningArgumentParser) -> Mapping[str, Range]:
    """Add the checkpoint, and what else the config.yaml of a run has."""
    does = "Checkpoint or run folder; a checkpoint's settings are the defaults"
    parser.add_argument("--ckpt_path", type=str | None, help=does)
    parser.add_argument("--report_test", type=bool, default=True, help=SUPPRESS)
    return {}


def parse(command: str, args: list[str], description: str = "", base: Settings | None = None) -> CLI:
    """Parse the arguments of a command, nearly all of whose settings come from the checkpoint."""

    def has_effect(name: str) -> bool:
        split = {"validate": "val"}.get(command, command)  # Lightning's name
        return re.fullmatch(RELEVANT_SETTINGS.format(split), name) is not None

    return CLI(command, args, description=description, add_flags=add_flags, has_effect=has_effect, base=base)


def prepare(
    command: str, args: list[str], path: Path, description: str
) -> tuple[Trainer, LightningModule, TextDataModule]:
    """Build trainer, module and data as in a checkpoint, with what the arguments change."""
    content = checkpoint.read(path)
    trained_with = checkpoint.settings(content)
    precision = trained_with.get("trainer", {}).get("precision")
    base = {name: trained_with[name] for name in ("seed_everything", "data", "model")}
    cli = parse(command, args, description, {**base, "trainer": {"precision": precision} if precision else {}})
    refuse(changed(cli.settings, cli.trained_with(trained_with), FIXED_BY_WEIGHTS))
    cli.config.trainer.max_steps = None
    if cli.config.trainer.logger is True:  # losses are printed; Lightning would write them to ./lightning_logs, too
        cli.config.trainer.logger = False
    trainer, module, data = build(cli)
    limit = f"limit_{ {'validate': 'val'}.get(command, command) }_batches"
    if getattr(trainer, limit) == 0:
        raise SettingsError(f"trainer.{limit}: found 0, which leaves nothing to evaluate")
    checkpoint.check_same_data(path, content[checkpoint.DATA_KEY], data.corpus)
    if command == "predict" and trainer.world_size > 1:
        raise SettingsError("trainer.devices: predict writes one file, in order, and takes one process on one node")
    trainer.start_processes()
    return trainer, module, data


def evaluate(command: str, trainer: Trainer, module: LightningModule, data: TextDataModule, path: Path) -> None:
    """Print the dev loss (`validate`) or the test loss (`test`)."""
    evaluate_split = trainer.validate if command == "validate" else trainer.test
    evaluate_split(module, datamodule=data, ckpt_path=path, verbose=False, weights_only=True)
    if not trainer.is_global_zero:
        return
    split = "dev" if command == "validate" else "test"
    nll = NLL(trainer.callback_metrics[f"{split}/loss"].item(), tokens=1)
    (evaluated,) = trainer.num_val_batches if split == "dev" else trainer.num_test_batches
    batches, tokens = len(data.batches(split)), len(data.windows(split))
    part = f"{tokens:,} tokens" if evaluated == batches else f"{evaluated:,} of {batches:,} batches"
    print(f"{split}: {nll}, {part}")


def predict(trainer: Trainer, module: LightningModule, data: TextDataModule, path: Path) -> None:
    """Write predictions.csv into the run folder: a row for each window of dev."""
    predicted = trainer.predict(module, datamodule=data, ckpt_path=path, weights_only=True) or []
    file = runs.run_folder(path) / "predictions.csv"
    header = ["context", "target", "nats", "predicted", "probability"]
    batches = zip(predicted, data.predict_dataloader(), strict=False)  # fewer if limited
    write_csv(file, chain([header], prediction_rows(data, batches)))
    print(f"predictions for {sum(len(nats) for nats, *_ in predicted):,} windows of dev: {file}")


def prediction_rows(data: TextDataModule, batches: Iterable[tuple[Any, Batch]]) -> Iterator[list[str]]:
    """The rows of predictions.csv: the losses, ids and probabilities of `predict_step` next to their windows."""
    text = data.corpus.vocab.tokens.__getitem__  # the boundary is the empty string
    join = data.settings.tokenizer.join
    for predicted, windows in batches:
        columns: Sequence[Tensor] = (*windows, *predicted)
        for context, target, nats, best, probability in zip(*(c.tolist() for c in columns), strict=True):
            yield [
                join(filter(None, map(text, context))),
                text(target),
                f"{nats:.4f}",
                text(best),
                f"{probability:.4f}",
            ]
