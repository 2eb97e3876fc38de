"""`python -m mlp_lm fit`: a run in its folder, from its start or from a checkpoint, and its report."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import TensorBoardLogger

from mlp_lm import runs
from mlp_lm.errors import CheckpointError, SettingsError, TrainingError
from mlp_lm.files import write_json, write_text
from mlp_lm.models import checkpoint
from mlp_lm.parsing import flag_values
from mlp_lm.settings import FIXED_ON_RESUME, Settings, changed, check
from mlp_lm.text.corpus import SPLITS, CorpusSettings
from mlp_lm.text.statistics import advice
from mlp_lm.text.vocab import counted
from mlp_lm.training import cli
from mlp_lm.training.callbacks import Checkpoints, StopOnSignal
from mlp_lm.training.report import build_report, render
from mlp_lm.training.schema import add_fit_flags, config_schema
from mlp_lm.training.teacher import absolute
from mlp_lm.training.tensorboard import TensorBoardExtras
from mlp_lm.training.trainer import Trainer, run_length

LENGTH = ("max_steps", "val_check_interval")


class Fit(cli.CLI):
    """Trains a run, or resumes it."""

    auto = False  # --ckpt_path auto: the run folder tells whether there is a run to resume

    def find_checkpoint(self, args: list[str]) -> Path | None:
        """`last.ckpt` of a run folder, or the checkpoint that was named."""
        given = flag_values(args, "--ckpt_path")
        if not given:
            return None
        if given[-1] == "auto":
            self.auto = True
            run_dir = flag_values(args, "--run_dir")
            if not run_dir:
                raise SettingsError("ckpt_path: auto resumes the run in --run_dir, which is missing")
            last = runs.last_checkpoint(Path(os.path.expanduser(run_dir[-1])))
            return last if last.exists() else None
        last = runs.last_checkpoint(Path(given[-1]))
        return last if given[-1] and last.exists() else checkpoint.resolve(given[-1])

    def add_own_flags(self, parser: LightningArgumentParser) -> None:
        """What to resume, where the run lies, and the report."""
        does = "Resume the run of this checkpoint or run folder; auto resumes the run in run_dir or starts it there"
        parser.add_argument("--ckpt_path", type=str | None, help=f"{does}; a checkpoint's settings are the defaults")
        add_fit_flags(parser)
        schema = "Print a JSON schema of configs, for editors, and exit"
        parser.add_argument("--print_schema", action="store_true", default=argparse.SUPPRESS, help=schema)

    def complete(self, args: list[str]) -> list[str]:
        """A resumed run goes by its own config.yaml, which has what checkpoints lack: devices, callbacks, loggers."""
        if self.checkpoint is None or flag_values(args, "--config", "-c"):
            return args
        config = runs.run_folder(self.checkpoint) / runs.CONFIG
        return [args[0], f"--config={config}", *args[1:]] if config.exists() else args

    def check_settings(self) -> None:
        """A resumed run keeps a length that is left open."""
        if self.content is not None:
            trainer = self.options["trainer"]
            for name in LENGTH:
                if trainer[name] is None:
                    trainer[name] = self.content[checkpoint.KEY]["trainer"].get(name)
        super().check_settings()

    def problems_with_checkpoint(self) -> Iterator[str]:
        """What a resumed run cannot change, or would lose."""
        assert self.checkpoint is not None and self.content is not None
        teacher = {"data.teacher": absolute(self.settings["data.teacher"])}
        yield from changed({**self.settings, **teacher}, self.trained_with, FIXED_ON_RESUME)
        if self.options["run_dir"] is not None and not self.auto:
            yield "run_dir: a resumed run stays in its own folder; leave out --run_dir"
        yield from resume_problems(self.checkpoint, self.content, self.settings, self.auto)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Choose the length of a run if it is left open, now that the data are there."""
        max_steps, val_check_interval = (self.options["trainer"][name] for name in LENGTH)
        length = run_length(max_steps, val_check_interval, self.datamodule.steps_per_pass)
        for name, steps in zip(LENGTH, length, strict=True):
            kwargs[name] = self.options["trainer"][name] = steps  # the latter for config.yaml
        check({**self.settings, "trainer.max_steps": kwargs["max_steps"]}, {})
        trainer = super().instantiate_trainer(**kwargs)
        assert isinstance(trainer, Trainer)
        return trainer

    def after_instantiate_classes(self) -> None:
        """Check that the processes can share a batch, and that there is a teacher if one is named."""
        self.datamodule.check_shares(self.trainer.world_size)
        _ = self.datamodule.teacher
        super().after_instantiate_classes()

    def fit(self, **kwargs: Any) -> None:
        """Make the run folder, train, report."""
        trainer, data = self.trainer, self.datamodule
        self.lock: FileLock | None = None
        try:
            run_dir = trainer.by_first(self._open_run_folder)
            checkpoints = Checkpoints(run_dir)
            resume = shlex.join(["python", "-m", "mlp_lm", "fit", "--ckpt_path", str(checkpoints.last)])
            added: list[Callback] = [checkpoints, StopOnSignal(checkpoints, resume)]
            if self.options["trainer"]["logger"] is True:
                # What a killed run has logged after its last checkpoint comes again; at step 0, all of it.
                step = self.content["global_step"] if self.content else None
                trainer.logger = TensorBoardLogger(
                    run_dir, name="", version="", default_hp_metric=False, purge_step=step + 1 if step else step
                )
                # First: once a checkpoint is written, nothing of its step may be missing.
                added.insert(0, TensorBoardExtras(checkpoints))
            trainer.callbacks += added  # type: ignore[attr-defined]  # public, but not declared
            trainer.set_threads(data.hparams["batch_size"], self.model.network.count_weights())
            if trainer.is_global_zero:
                print(self._summary(run_dir), flush=True)
                if line := advice(data.corpus):
                    print(f"{data.source}: {line}", file=sys.stderr)
            with report_unwritable(run_dir):
                trainer.fit(**kwargs, ckpt_path=self.checkpoint, weights_only=True)
            if trainer.is_global_zero:
                self._report(run_dir, checkpoints)
        finally:
            if self.lock is not None:
                folder = Path(self.lock.lock_file).parent
                if self.content is None and not runs.last_checkpoint(folder).exists():
                    shutil.rmtree(folder, ignore_errors=True)  # nothing was trained
                self.lock.release()

    def _open_run_folder(self) -> Path:
        """The folder of the run, locked, with its config.yaml."""
        if self.checkpoint is not None:
            run_dir = runs.run_folder(self.checkpoint)
        else:
            run_dir = runs.output_folder(self.options["run_dir"], self.run_name(), "version", "run_dir")
        self.lock = runs.lock_run(run_dir)
        (run_dir / runs.CHECKPOINTS).mkdir(exist_ok=True)
        write_text(run_dir / runs.CONFIG, self.config_text())
        return run_dir

    def config_text(self) -> str:
        """All settings as a config, files by their absolute paths, so that it holds in any folder."""
        config = self.options.clone()
        del config["run_dir"], config["config"]  # another run has a folder of its own
        for name, value in vars(CorpusSettings.of(config["data"].as_dict()).absolute()).items():
            config["data"][name] = value
        config["data"]["teacher"] = absolute(config["data"]["teacher"])
        text: str = self.subparser.dump(config, skip_unset=False, skip_validation=True)
        return text

    def _summary(self, run_dir: Path) -> str:
        data = self.datamodule
        windows = " / ".join(f"{len(getattr(data.corpus, split)):,}" for split in SPLITS)
        several = f"; {self.trainer.world_size} processes" if self.trainer.world_size > 1 else ""
        text = f"{data.source}: {windows} windows in {' / '.join(SPLITS)}, {data.vocab_size:,} tokens"
        steps = self.trainer.max_steps
        text += f"; {counted(steps, 'step')}, {steps / data.steps_per_pass:.3g} passes over train; run {run_dir}"
        if self.content:
            text += f", resumed at step {self.content['global_step']:,}"
        return text + several

    def _report(self, run_dir: Path, checkpoints: Checkpoints) -> None:
        # A checkpoint that was moved away from its run may have nothing left to train.
        best = self.checkpoint if self.checkpoint and not checkpoints.best.exists() else checkpoints.best
        report = build_report(
            best,
            self.model,
            self.datamodule,
            seconds=checkpoints.seconds,
            first_step=self.content["global_step"] if self.content else 0,
            steps=self.trainer.global_step,
            max_steps=self.trainer.max_steps,
            with_test=self.options["report_test"],
            seed=self.options["seed_everything"],
        )
        write_json(run_dir / runs.REPORT, report)  # which marks a finished run
        print(render(report, run_dir, best))


def resume_problems(path: Path, content: checkpoint.Content, settings: Settings, auto: bool) -> Iterator[str]:
    """Why a run cannot be resumed from a checkpoint with these settings, or would lose what it has reached.

    Args:
        path: The checkpoint to resume from.
        content: What it holds.
        settings: Of the run, as in a config.
        auto: Whether a run that has ended may have its report once more, as when a job is started again.
    """
    step, limit, folder = content["global_step"], settings["trainer.max_steps"], runs.run_folder(path)
    if limit is None:
        yield "trainer.max_steps: missing; it is not in this checkpoint, which fit did not write; set the total"
        return
    if step > limit:
        yield f"trainer.max_steps: found {limit:,}, but the checkpoint is at step {step:,} already"
    last = runs.last_checkpoint(folder)
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
    if step == limit and (folder / runs.REPORT).exists() and not auto:
        names = ["trainer.max_steps"] + ["model.lr_decay_steps"] * (settings["model.lr_decay_steps"] is not None)
        longer = [f"--{name}={limit + max(1, limit // 2)}" for name in names]
        command = shlex.join(["python", "-m", "mlp_lm", "fit", f"--ckpt_path={path}", *longer])
        yield f"trainer.max_steps: found {limit:,}, at which this run has ended; to train on: {command}"


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


def run(args: list[str], description: str) -> None:
    """Run the command; `args` starts with its name, `description` is for the help."""
    if "--print_schema" in args:
        print(json.dumps(config_schema(), indent=2))
    else:
        cli.run(Fit, args, description)
