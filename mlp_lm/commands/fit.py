"""`python -m mlp_lm fit`: a run in its folder, from its start or from a checkpoint, and its report."""

from __future__ import annotations

import errno
import json
import math
import os
import shlex
import shutil
import sys
import threading
from argparse import SUPPRESS
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from mlp_lm import runs
from mlp_lm.errors import SettingsError, TrainingError
from mlp_lm.files import absolute, write_json, write_text
from mlp_lm.models import checkpoint
from mlp_lm.parsing import flag_values
from mlp_lm.settings import Range, Settings, refuse
from mlp_lm.terminal import pluralize
from mlp_lm.text.advice import advice
from mlp_lm.text.corpus import SPLITS, CorpusSettings
from mlp_lm.training.callbacks import Checkpoints, StopOnSignal
from mlp_lm.training.cli import CLI, add_fit_flags, build, lightning_session
from mlp_lm.training.datamodule import TextDataModule
from mlp_lm.training.module import MLPModule
from mlp_lm.training.report import build_report, render
from mlp_lm.training.resuming import FIXED_ON_RESUME, changed, has_ended, resume_problems
from mlp_lm.training.tensorboard import TensorBoardExtras
from mlp_lm.training.trainer import Trainer, run_length


def run(args: list[str], description: str) -> None:
    """Run the command; `args` starts with its name, `description` is for the help."""
    if "--print_schema" in args:
        from mlp_lm.training.schema import config_schema

        print(json.dumps(config_schema(), indent=2))
    else:
        fit(args[1:], description)


def fit(args: list[str], description: str = "", callbacks: Sequence[Callback] = ()) -> None:
    """Parse, build, train and report, or resume.

    Args:
        args: The command line, without the command.
        description: For the help.
        callbacks: In addition to those of the config, which does not show them.
    """
    with lightning_session(), ExitStack() as stack:
        resumed = read_checkpoint(args, stack)
        run = prepare(args, resumed, description)
        if resumed is not None and resumed.auto and has_ended(resumed.path, run.cli.settings, run.trained_with):
            report_again(run, runs.run_folder(resumed.path))
            return
        run.trainer.start_processes()
        run.trainer.callbacks += callbacks  # type: ignore[attr-defined]  # public, but not declared
        if run.trainer.fast_dev_run:  # type: ignore[attr-defined]
            run.trainer.fit(run.module, run.data)
            print(f"fast_dev_run: {pluralize(run.trainer.global_step, 'step')} taken, nothing saved")
        else:
            train(run, stack)


# -- what to resume ----------------------------------------------------------------------------------------------------


@dataclass
class Resumed:
    """The checkpoint that a run is resumed from."""

    path: Path
    content: checkpoint.Content
    auto: bool  # --ckpt_path auto: a finished run may have its report once more


def read_checkpoint(args: list[str], stack: ExitStack) -> Resumed | None:
    """Read the checkpoint that --ckpt_path names, once its run is locked; None if a new run is to start.

    Raises SettingsError or CheckpointError: the run is being trained, or there is no such checkpoint.
    """
    given = flag_values(args, "--ckpt_path")
    if not given:
        return None
    if auto := given[-1] == "auto":
        run_dir = flag_values(args, "--run_dir")
        if not run_dir:
            raise SettingsError("ckpt_path: auto resumes the run in --run_dir, which is missing")
        path = runs.last_checkpoint(Path(os.path.expanduser(run_dir[-1])))
        if not path.exists():
            return None
    else:
        last = runs.last_checkpoint(Path(given[-1]))
        path = last if given[-1] and last.exists() else checkpoint.resolve(given[-1])
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # of several processes, one locks the run for all
        stack.callback(runs.lock_run(runs.run_folder(path)).release)
    return Resumed(path, checkpoint.read(path), auto)


# -- from arguments to trainer, module and data ------------------------------------------------------------------------


@dataclass
class Run:
    """A run before its first step."""

    cli: CLI
    trainer: Trainer
    module: MLPModule
    data: TextDataModule
    resumed: Resumed | None

    @property
    def name(self) -> str:
        """The name of the folder in `runs`."""
        configs = flag_values(self.cli.args, "--config")
        return runs.run_name(configs[0] if configs else "", self.cli.config.data.path)

    @property
    def trained_with(self) -> Settings:
        """The settings of the checkpoint that is resumed, by their full names."""
        assert self.resumed is not None
        return self.cli.trained_with(checkpoint.settings(self.resumed.content))

    def config_text(self) -> str:
        """All settings as a config, files by their absolute paths, so that it holds in any folder."""
        config = self.cli.config.clone()
        for name in ("run_dir", "config", "ckpt_path"):  # another run has its own
            config.pop(name, None)
        for name, value in vars(CorpusSettings.of(config["data"].as_dict()).absolute()).items():
            config["data"][name] = value
        config["data"]["teacher"] = self.data.hparams["teacher"]
        for callback in config["trainer"]["callbacks"] or []:  # defaults of Lightning's that no dumper knows
            for name, value in callback.get("init_args", {}).items():
                if isinstance(value, torch.device | Enum):
                    callback["init_args"][name] = value.value if isinstance(value, Enum) else str(value)
        return cast(str, self.cli.parser.dump(config, skip_unset=False, skip_validation=True))


def add_flags(parser: LightningArgumentParser) -> Mapping[str, Range]:
    """Add what to resume, where the run lies, and the report."""
    does = "Resume the run of this checkpoint or run folder; auto resumes the run in run_dir or starts it there"
    parser.add_argument("--ckpt_path", type=str | None, help=f"{does}; a checkpoint's settings are the defaults")
    add_fit_flags(parser)
    schema = "Print a JSON schema of configs, for editors, and exit"
    parser.add_argument("--print_schema", action="store_true", default=SUPPRESS, help=schema)
    return {}


def prepare(args: list[str], resumed: Resumed | None = None, description: str = "") -> Run:
    """Parse and check all settings, read the data, build trainer and module."""
    base = None if resumed is None else checkpoint.settings(resumed.content)
    cli = CLI("fit", args, description=description, add_flags=add_flags, base=base)
    if resumed is not None:
        refuse(problems_of_resuming(resumed, cli))

    def length(data: TextDataModule) -> dict[str, Any]:
        s = cli.config.trainer
        names = ("max_steps", "val_check_interval", "max_epochs", "check_val_every_n_epoch")
        k = data.hparams["steps_per_execution"]
        max_steps, interval = run_length(steps_per_epoch(data, s), **{n: s[n] for n in names}, multiple=k)
        s.max_steps, s.val_check_interval = max_steps, interval  # for config.yaml
        refuse(horizon_problems(cli.settings, steps_per_epoch(data, s)))
        if k > 1:  # Lightning counts calls
            interval = max(1, int(interval) // k)
        return {"max_steps": max_steps, "val_check_interval": interval}

    trainer, module, data = build(cli, length)
    if data.hparams["steps_per_execution"] > 1:
        from mlp_lm.training import fast_lane  # here: most training does without

        refuse(fast_lane.problems(cli.settings, trainer.callbacks, trainer.world_size))  # type: ignore[attr-defined]
        module = fast_lane.FastLane.of(module)
    if resumed is not None:
        # They would start the run again; what they have found is in the checkpoint.
        for finder in [c for c in trainer.callbacks if isinstance(c, BatchSizeFinder | LearningRateFinder)]:  # type: ignore[attr-defined]
            trainer.callbacks.remove(finder)  # type: ignore[attr-defined]
        checkpoint.check_same_data(resumed.path, resumed.content[checkpoint.DATA_KEY], data.corpus)
    data.check_shares(trainer.world_size)
    _ = data.teacher  # the errors of one that cannot be used
    return Run(cli, trainer, module, data, resumed)


def steps_per_epoch(data: TextDataModule, trainer: Mapping[str, Any]) -> float:
    """Optimizer steps in an epoch of Lightning's, with the trainer's limits and accumulation.

    Raises SettingsError if a limit leaves nothing.
    """
    limit = trainer["overfit_batches"] or trainer["limit_train_batches"]
    if limit == 0:
        raise SettingsError("trainer.limit_train_batches: found 0, which leaves nothing to train on")
    batches = data.steps_per_epoch
    if limit is not None:
        batches = min(limit, batches) if isinstance(limit, int) else limit * batches
    return batches / int(trainer["accumulate_grad_batches"])


def problems_of_resuming(resumed: Resumed, cli: CLI) -> Iterator[str]:
    """Describe what a resumed run cannot change, or would lose."""
    trained_with = cli.trained_with(checkpoint.settings(resumed.content))
    settings = cli.settings
    if settings["data.teacher"] is not None:
        settings["data.teacher"] = absolute(settings["data.teacher"])
    yield from changed(settings, trained_with, FIXED_ON_RESUME)
    if settings["run_dir"] is not None and not resumed.auto:
        yield "run_dir: a resumed run stays in its own folder; leave out --run_dir"
    if not resumed.auto or not has_ended(resumed.path, settings, trained_with):
        yield from resume_problems(resumed.path, resumed.content, settings, trained_with)


def horizon_problems(settings: Settings, steps_per_epoch: float) -> Iterator[str]:
    """Describe a run that would train on after its learning rate has reached 0."""
    horizon, epochs = settings["model.lr_decay_steps"], settings["trainer.max_epochs"]
    ends = {"max_steps": settings["trainer.max_steps"], "max_epochs": epochs and epochs * math.ceil(steps_per_epoch)}
    name, steps = min(((n, end) for n, end in ends.items() if end is not None), key=lambda pair: pair[1])
    ends_at_zero = settings["model.lr_schedule"] == "cosine" and settings["model.lr_end_factor"] == 0
    if ends_at_zero and horizon is not None and steps > horizon:
        yield (
            f"trainer.{name}: found {settings[f'trainer.{name}']:,}, but the learning rate is 0 from step {horizon:,} "
            f"on; raise --model.lr_decay_steps to {steps} as well"
        )


# -- the run -----------------------------------------------------------------------------------------------------------


def train(run: Run, stack: ExitStack) -> None:
    """Train in the run's folder, and write and print the report."""
    trainer, module, data, resumed = run.trainer, run.module, run.data, run.resumed
    run_dir = trainer.run_on_rank_zero(lambda: open_run_folder(run, stack))
    checkpoints = Checkpoints(run_dir, yaml.safe_load(run.config_text()))
    command = shlex.join(["python", "-m", "mlp_lm", "fit", "--ckpt_path", str(checkpoints.last)])
    added: list[Callback] = [checkpoints, StopOnSignal(checkpoints, command)]
    if run.cli.config.trainer.logger is True:
        # What a killed run has logged after its last checkpoint comes again; at step 0, all of it.
        step = resumed.content["global_step"] if resumed else None
        trainer.logger = TensorBoardLogger(
            run_dir, name="", version="", default_hp_metric=False, purge_step=step + 1 if step else step
        )
        # First: once a checkpoint is written, nothing of its step may be missing.
        added.insert(0, TensorBoardExtras(checkpoints))
    trainer.callbacks += added  # type: ignore[attr-defined]  # public, but not declared
    trainer.set_threads(data.hparams["batch_size"], module.network.count_weights())
    if trainer.is_global_zero:
        print(summary(run, run_dir), flush=True)
        if line := advice(data.corpus):
            print(f"{data.source}: {line}", file=sys.stderr)
    with report_unwritable(run_dir):
        trainer.fit(module, data, ckpt_path=resumed.path if resumed else None, weights_only=True)
    if trainer.is_global_zero:
        # A checkpoint that was moved away from its run may have nothing left to train; without dev there is no best.
        files = [checkpoints.best, checkpoints.last, *([resumed.path] if resumed else [])]
        file = next(filter(Path.exists, files), checkpoints.best)
        report = build_report(
            file,
            module,
            data,
            seconds=checkpoints.seconds,
            first_step=resumed.content["global_step"] if resumed else 0,
            with_test=run.cli.config.report_test,
            seed=run.cli.config.seed_everything,
        )
        write_json(run_dir / runs.REPORT, report)  # which marks a finished run
        print(render(report, run_dir, file))


def report_again(run: Run, run_dir: Path) -> None:
    """Print the report of a finished run, as when a job is started once too often."""
    report, best = runs.read_report(run_dir), runs.best_checkpoint(run_dir)
    if report is not None and run.trainer.is_global_zero:
        file = best if best.exists() else runs.last_checkpoint(run_dir)
        print(f"run {run_dir} has ended", render(report, run_dir, file), sep="\n")


def open_run_folder(run: Run, stack: ExitStack) -> Path:
    """The folder of the run, locked until `stack` ends, with its config.yaml."""
    if run.resumed is not None:  # locked already
        run_dir = runs.run_folder(run.resumed.path)
    else:
        run_dir = runs.output_folder(run.cli.config.run_dir, run.name, "version", "run_dir")
        lock = runs.lock_run(run_dir)
        stack.callback(lock.release)
        stack.callback(remove_untrained, run_dir)
    (run_dir / runs.CHECKPOINTS).mkdir(exist_ok=True)
    write_text(run_dir / runs.CONFIG, run.config_text())
    return run_dir


def remove_untrained(run_dir: Path) -> None:
    """Remove the folder of a run that ended before its first checkpoint."""
    if not runs.last_checkpoint(run_dir).exists():
        shutil.rmtree(run_dir, ignore_errors=True)


def summary(run: Run, run_dir: Path) -> str:
    """The line before a run: data, length, folder."""
    trainer, data = run.trainer, run.data
    windows = " / ".join(f"{len(getattr(data.corpus, split)):,}" for split in SPLITS)
    length = pluralize(trainer.max_epochs, "epoch") if trainer.max_epochs and trainer.max_epochs > 0 else ""
    if trainer.max_steps > 0:
        epochs = trainer.max_steps / steps_per_epoch(data, run.cli.config.trainer)
        steps = f"{pluralize(trainer.max_steps, 'step')}, {epochs:.3g} epochs"
        length = f"{steps}, at most {length}" if length else steps
    text = f"{data.source}: {windows} windows in {' / '.join(SPLITS)}, {data.vocab_size:,} tokens"
    text += f"; {length}; run {run_dir}"
    if run.resumed:
        text += f", resumed at step {run.resumed.content['global_step']:,}"
    return text + (f"; {trainer.world_size} processes" if trainer.world_size > 1 else "")


@contextmanager
def report_unwritable(run_dir: Path) -> Iterator[None]:
    """Raise TrainingError for a run folder that is deleted, or a disk that is full, while the run is trained."""

    def is_ours(error: BaseException | None) -> bool:
        if not isinstance(error, OSError):
            return False
        if not isinstance(error.filename, str | bytes):  # of a write to an open file
            return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
        return run_dir.absolute() in Path(os.fsdecode(error.filename)).absolute().parents

    shown = threading.excepthook
    # TensorBoard's writer works in a thread, and raises its OSError once more in ours.
    threading.excepthook = lambda args: None if is_ours(args.exc_value) else shown(args)
    try:
        yield
    except OSError as error:
        if not is_ours(error):  # of a user's callback or logger, for one
            raise
        raise TrainingError(f"{run_dir}: cannot be written ({error.strerror}); last.ckpt is unchanged") from error
    finally:
        threading.excepthook = shown
