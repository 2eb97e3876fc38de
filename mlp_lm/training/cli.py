"""`fit`, `validate`, `test` and `predict`: LightningCLI with our parser, run folders and report."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock
from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from mlp_lm.errors import CheckpointError, Interrupted, SettingsError, TrainingError
from mlp_lm.files import write_csv, write_json, write_text
from mlp_lm.models import checkpoint
from mlp_lm.models.metrics import NLL
from mlp_lm.parsing import OneLineErrors, check_config_file, configs_first, flag_values
from mlp_lm.settings import FIXED_BY_WEIGHTS, FIXED_ON_RESUME, SEED, Settings, changed, check, ranges
from mlp_lm.text.corpus import SPLITS, decode
from mlp_lm.text.statistics import PROSE_ADVICE, looks_like_prose
from mlp_lm.text.windows import Batch
from mlp_lm.training import runs
from mlp_lm.training.callbacks import Checkpoints, StopOnSignal
from mlp_lm.training.datamodule import TextDataModule
from mlp_lm.training.module import MLPModule
from mlp_lm.training.report import build_report, render
from mlp_lm.training.schema import SECTIONS, add_fit_flags, add_seed, config_schema
from mlp_lm.training.tensorboard import TensorBoardExtras
from mlp_lm.training.trainer import NOT_OURS, Trainer, report_lost_process, run_length

# Of Trainer's methods that are not flags: the checkpoint's path has a flag of ours, the others are always the same.
METHOD_ARGUMENTS = {"ckpt_path", "weights_only", "verbose", "return_predictions"}
NEEDS_CHECKPOINT = {"validate", "test", "predict"}
OF_EVALUATION = (
    r"help|config|ckpt_path|data\.\w*path|trainer\.(accelerator|devices|enable_progress_bar|limit_\w+_batches|num_nodes|"
    r"num_threads|precision|profiler|strategy)"
)
set_parsing_settings(config_read_mode_fsspec_enabled=False)  # Lightning lets a setting be the URL of more settings


class Parser(OneLineErrors, LightningArgumentParser):
    """LightningCLI's parser with our one-line errors."""

    reasons = NOT_OURS


class CLI(LightningCLI):
    """One command on the triple Trainer, MLPModule, TextDataModule."""

    name = ""  # of a command that is not a method of the Trainer, as typed
    trainer: Trainer
    model: MLPModule
    datamodule: TextDataModule

    def __init__(self, args: list[str], description: str = "") -> None:
        """Parse `args`, the name of a Trainer's method first, and run it; `description` is for the help."""
        self.method = args[0]
        self.name = self.name or self.method
        self.checkpoint = self._find_checkpoint(args)
        self.content = None if self.checkpoint is None else checkpoint.read(self.checkpoint)
        super().__init__(
            MLPModule,
            TextDataModule,
            trainer_class=Trainer,
            parser_class=Parser,
            parser_kwargs={self.method: {"description": description}},
            args=args,
            save_config_callback=None,  # `fit` saves it once the run has a folder
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # our settings are plain: what `__init__` receives is enough
        )

    def _find_checkpoint(self, args: list[str]) -> Path | None:
        given = flag_values(args, "--ckpt_path")
        self.auto = self.method == "fit" and given[-1:] == ["auto"]
        if self.auto:
            run_dir = flag_values(args, "--run_dir")
            if not run_dir:
                raise SettingsError("ckpt_path: auto resumes the run in --run_dir, which is missing")
            last = runs.last_checkpoint(Path(os.path.expanduser(run_dir[-1])))
            return last if last.exists() else None
        if given:
            last = runs.last_checkpoint(Path(given[-1]))
            resumes = self.method == "fit" and given[-1] and last.exists()
            return last if resumes else checkpoint.resolve(given[-1])
        if self.method in NEEDS_CHECKPOINT and not {"-h", "--help"} & {*args}:
            hint = f"; did you mean --ckpt_path {args[1]}?" if args[1:] and not args[1].startswith("-") else ""
            raise CheckpointError(f"--ckpt_path: missing; {self.method} needs the checkpoint of a trained model{hint}")
        return None

    # -- parsing -------------------------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one method that was asked for, and its arguments that are not flags."""
        return {self.method: LightningCLI.subcommands()[self.method] | METHOD_ARGUMENTS}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links, our own flags, and a checkpoint's settings as defaults: config and command line win."""
        assert isinstance(parser, Parser)
        self.subparser = parser
        parser.link_arguments("data.context_size", "model.context_size")
        parser.link_arguments("data.vocab_size", "model.vocab_size", apply_on="instantiate")
        self.allowed = {"seed_everything": SEED}
        self.add_own_flags(parser)
        for section, owner in SECTIONS.items():
            self.allowed |= ranges(owner, section)
        parser.show_ranges(self.allowed)
        parser.hide(lambda name: name in SECTIONS or self.ignores(name.removesuffix(".help")))
        if self.content is not None:
            known = {*parser.get_defaults().keys()}  # a generator, which the first miss would exhaust
            parser.set_defaults({k: v for k, v in checkpoint.settings(self.content).items() if k in known})

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The seed: a number, where LightningCLI would take booleans too."""
        add_seed(parser)

    def add_own_flags(self, parser: LightningArgumentParser) -> None:
        """The flags beside those of trainer, model and data."""
        does = "Checkpoint or run folder"
        if self.method == "fit":
            does = "Resume the run of this checkpoint or run folder; auto resumes the run in run_dir or starts it there"
        parser.add_argument("--ckpt_path", type=str | None, help=f"{does}; a checkpoint's settings are the defaults")
        if self.method == "fit":
            add_fit_flags(parser)
            schema = "Print a JSON schema of configs, for editors, and exit"
            parser.add_argument("--print_schema", action="store_true", default=argparse.SUPPRESS, help=schema)
        else:  # the config.yaml of a run has it
            parser.add_argument("--report_test", type=bool, default=True, help=argparse.SUPPRESS)

    def ignores(self, name: str) -> bool:
        """Whether a setting makes no difference to the command: an evaluation takes nearly all from its checkpoint."""
        return self.method != "fit" and not re.fullmatch(OF_EVALUATION, name)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, then check all settings at once, before anything is seeded or read."""
        self.subparser.prog = f"python -m mlp_lm {self.name}"
        self.subparser.usage = "%(prog)s [options]"
        for section in SECTIONS:
            if flag_values(args, f"--{section}"):  # jsonargparse would read a file of settings, unchecked
                raise SettingsError(
                    f"--{section} does not take a file; set its options one by one or use --config FILE"
                )
        configs = flag_values(args, "--config", "-c")
        for path in configs:
            check_config_file(path)
        try:
            self.config = parser.parse_args(args)
            try:
                parser.validate(self.config, False)  # `parse_args` takes a null in a config for any type
            except (TypeError, ValueError) as error:
                parser.error(str(error))
        except SettingsError as error:
            of_config = re.search("does not accept option|Key must be a string|found null", str(error))
            blame = f" (in {', '.join(configs)})" if configs and of_config else ""
            raise SettingsError(f"{error}{blame}") from error
        self.options = self.config[self.method]
        # Out of LightningCLI's sight, which would let the checkpoint's settings win.
        self.options.pop("ckpt_path", None)
        self.check_settings()

    def check_settings(self) -> None:
        """Raise SettingsError that names all settings which are out of range, at odds, or fixed by the checkpoint."""
        settings = {f"{section}.{name}": v for section in SECTIONS for name, v in self.options[section].items()}
        settings |= {name: self.options[name] for name in self.allowed if name in self.options}
        settings.pop("model.context_size", None)  # the same as that of the data
        if self.method != "fit":
            del settings["trainer.max_steps"]  # which no horizon has to reach
        check(settings, self.allowed)
        self.settings = settings
        if self.content is None or self.checkpoint is None:
            return
        fixed = FIXED_ON_RESUME if self.method == "fit" else FIXED_BY_WEIGHTS
        problems = [*changed(settings, checkpoint.settings(self.content), fixed)]
        if self.method == "fit":
            if self.options["run_dir"] is not None and not self.auto:
                problems.append("run_dir: a resumed run stays in its own folder; leave out --run_dir")
            problems += resume_problems(self.checkpoint, self.content, settings)
        if problems:
            raise SettingsError("; ".join(problems))

    def before_instantiate_classes(self) -> None:
        """An evaluation prints its losses; Lightning would write them to ./lightning_logs, too."""
        if self.method != "fit" and self.options["trainer"]["logger"] is True:
            self.options["trainer"]["logger"] = False

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Choose the length of a run if it is left open, now that the data are there."""
        if self.method == "fit":
            names = ("max_steps", "val_check_interval")
            max_steps, val_check_interval = (self.options["trainer"][name] for name in names)
            length = run_length(max_steps, val_check_interval, self.datamodule.steps_per_pass)
            for name, steps in zip(names, length, strict=True):
                kwargs[name] = self.options["trainer"][name] = steps  # the latter for config.yaml
        trainer = super().instantiate_trainer(**kwargs)
        assert isinstance(trainer, Trainer)
        return trainer

    def after_instantiate_classes(self) -> None:
        """Check the data before Lightning loads weights of perhaps another size; start the other processes, if any."""
        if self.content is not None and self.checkpoint is not None:
            checkpoint.check_same_data(self.checkpoint, self.content[checkpoint.DATA_KEY], self.datamodule.corpus)
        if self.method == "predict" and self.trainer.world_size > 1:
            raise SettingsError("trainer.devices: predict writes one file, in order, and takes one process on one node")
        if self.method == "fit":
            self.datamodule.check_shares(self.trainer.world_size)
        self.trainer.start_processes()

    # -- running -------------------------------------------------------------------------------------------------

    def fit(self, **kwargs: Any) -> None:
        """Make the run folder, train, report. The other commands write no run."""
        trainer, data = self.trainer, self.datamodule
        self.lock: FileLock | None = None
        try:
            run_dir = trainer.by_first(self._open_run_folder)
            checkpoints = Checkpoints(run_dir)
            resume = ["fit", "--config", str(run_dir / runs.CONFIG), "--ckpt_path", str(checkpoints.last)]
            added: list[Callback] = [
                checkpoints,
                StopOnSignal(checkpoints, shlex.join(["python", "-m", "mlp_lm", *resume])),
            ]
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
                if looks_like_prose(decode(data.corpus.train[:100_000], data.corpus.vocab)):
                    print(f"{data.source}: {PROSE_ADVICE}", file=sys.stderr)
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
        config = self.options.clone()
        del config["run_dir"], config["config"]  # another run has a folder of its own
        write_text(run_dir / runs.CONFIG, self.subparser.dump(config, skip_unset=False, skip_validation=True))
        return run_dir

    def run_name(self) -> str:
        """The name of the folder in `runs`."""
        return runs.run_name(str((self.options["config"] or [""])[0]), self.options["data"]["path"])

    def _summary(self, run_dir: Path) -> str:
        data = self.datamodule
        windows = " / ".join(f"{len(getattr(data.corpus, split)):,}" for split in SPLITS)
        several = f"; {self.trainer.world_size} processes" if self.trainer.world_size > 1 else ""
        text = f"{data.source}: {windows} windows in {' / '.join(SPLITS)}, {data.vocab_size} tokens"
        steps = self.trainer.max_steps
        text += f"; {steps:,} steps, {steps / data.steps_per_pass:.3g} passes over train; run {run_dir}"
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

    def validate(self, **kwargs: Any) -> None:
        """Print the dev loss."""
        self.trainer.validate(**kwargs, ckpt_path=self.checkpoint, verbose=False, weights_only=True)
        self._print_loss("dev")

    def test(self, **kwargs: Any) -> None:
        """Print the test loss."""
        self.trainer.test(**kwargs, ckpt_path=self.checkpoint, verbose=False, weights_only=True)
        self._print_loss("test")

    def _print_loss(self, split: str) -> None:
        if not self.trainer.is_global_zero:
            return
        nll = NLL(self.trainer.callback_metrics[f"{split}/loss"].item(), tokens=1)
        (evaluated,) = self.trainer.num_val_batches if split == "dev" else self.trainer.num_test_batches
        batches, tokens = len(self.datamodule.batches(split)), len(self.datamodule.windows(split))
        part = f"{tokens:,} tokens" if evaluated == batches else f"{evaluated:,} of {batches:,} batches"
        print(f"{split}: {nll}, {part}")

    def predict(self, **kwargs: Any) -> None:
        """Write predictions.csv into the run folder: a row for each window of dev."""
        assert self.checkpoint is not None
        predicted = self.trainer.predict(**kwargs, ckpt_path=self.checkpoint, weights_only=True) or []
        path = runs.run_folder(self.checkpoint) / "predictions.csv"
        header = ["context", "target", "nats", "predicted", "probability"]
        batches = zip(predicted, self.datamodule.predict_dataloader(), strict=False)  # fewer if limited
        write_csv(path, chain([header], self._prediction_rows(batches)))
        print(f"predictions for {sum(len(nats) for nats, *_ in predicted):,} windows of dev: {path}")

    def _prediction_rows(self, batches: Iterable[tuple[Any, Batch]]) -> Iterator[list[str]]:
        text = self.datamodule.corpus.vocab.tokens.__getitem__  # the boundary is the empty string
        for predicted, windows in batches:
            columns: Sequence[Tensor] = (*windows, *predicted)
            for context, target, nats, best, probability in zip(*(c.tolist() for c in columns), strict=True):
                yield ["".join(map(text, context)), text(target), f"{nats:.4f}", text(best), f"{probability:.4f}"]


def resume_problems(path: Path, content: checkpoint.Content, settings: Settings) -> Iterator[str]:
    """Why a run cannot be resumed from a checkpoint with these settings, or would lose what it has reached.

    Args:
        path: The checkpoint to resume from.
        content: What it holds.
        settings: Of the run, as in a config.
    """
    step, limit, folder = content["global_step"], settings["trainer.max_steps"], runs.run_folder(path)
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
    if step == limit and (folder / runs.REPORT).exists():
        names = ["trainer.max_steps"] + ["model.lr_decay_steps"] * (settings["model.lr_decay_steps"] is not None)
        longer = [f"--{name}={limit + limit // 2}" for name in names]
        command = shlex.join(["python", "-m", "mlp_lm", "fit", f"--ckpt_path={path}", *longer])
        yield f"trainer.max_steps: found {limit:,}, where this run has ended; to train on: {command}"


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


def silence() -> None:
    """Silence what Lightning prints and our own lines or config.yaml already say."""
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.seed", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.trainer.connectors.signal_connector").setLevel(logging.WARNING)
    # Evaluation writes no checkpoints; Lightning 2.6 calls what torch 2.13 deprecates; our losses are means over all
    # processes before they are logged.
    for message in (
        r".*callbacks used to create the checkpoint need to be provided",
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        r"It is recommended to use `self\.log\(",
    ):
        warnings.filterwarnings("ignore", message=message)


def run(args: list[str], description: str, cli: type[CLI] = CLI) -> None:
    """Run one of LightningCLI's commands; `args` starts with the Trainer's method, `description` is for the help."""
    if "--print_schema" in args:
        return print(json.dumps(config_schema(), indent=2))
    silence()
    try:
        with report_lost_process():
            cli([args[0], *configs_first(args[1:])], description)
    except MisconfigurationException as error:  # of a callback, for one
        raise SettingsError(str(error)) from error
    except ModuleNotFoundError as error:
        if error.name is not None:  # an import that failed; Lightning's own say what to install
            raise
        raise SettingsError(str(error)) from error
    except RuntimeError as error:
        if "which is not available" in str(error):  # what EarlyStopping monitors
            raise SettingsError(f"trainer.callbacks: {error}") from error
        raise
    except SIGTERMException:  # where `StopOnSignal` is not at work
        raise Interrupted("SIGTERM: ended", exit_code=128 + signal.SIGTERM) from None
