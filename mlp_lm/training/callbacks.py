"""Callbacks of every run: checkpoints, the progress bar, the end on a signal."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, GradientAccumulationScheduler, ProgressBar
from tqdm.auto import tqdm

from mlp_lm.errors import CheckpointError, Interrupted, TrainingError
from mlp_lm.models import checkpoint
from mlp_lm.runs import REPORT, best_checkpoint, last_checkpoint
from mlp_lm.training.optim import is_log_point, total_steps


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint whole or not at all, and reads one without running code that it may contain."""

    def save_checkpoint(
        self, checkpoint_content: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """See `checkpoint.write`; the folder is made, which a user's ModelCheckpoint may need."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write(checkpoint_content, path)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """See `checkpoint.read`; Lightning moves the tensors to where they belong."""
        return checkpoint.read(path)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt`, from step 0 on, and `best.ckpt`, that of the lowest dev loss, after each validation.

    Lightning's ModelCheckpoint stores absolute paths in the checkpoint, and forgets the best one when a run
    folder is moved.
    """

    def __init__(self, run_dir: Path, settings: dict[str, Any]) -> None:
        """`run_dir`: the files go into its folder `checkpoints`; `settings`: the run's config, which they keep."""
        self.run_dir, self.settings = run_dir, settings
        self.last, self.best = last_checkpoint(run_dir), best_checkpoint(run_dir)
        self.best_dev_loss = math.inf
        self._metrics: dict[str, float] = {}  # of the latest validation
        self._seconds_before = 0.0  # of training, before the run was resumed
        self._start = time.perf_counter()
        self._saved_step = -1  # that of last.ckpt

    @property
    def seconds(self) -> float:
        """Wall time of training so far, from before the run was resumed included."""
        return self._seconds_before + time.perf_counter() - self._start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `last.ckpt` before the first step of a new run; clear what an ended one has left."""
        self._start = time.perf_counter()
        if trainer.is_global_zero:
            for leftover in (*self.last.parent.glob(".*.part"), self.run_dir / REPORT):  # the mark of a finished run
                leftover.unlink(missing_ok=True)
        # A checkpoint is written before a validation's epoch ends: when a run is resumed, Lightning ends it, and
        # EarlyStopping looks for them.
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self._metrics.items()})
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # public, but not declared
            if isinstance(callback, GradientAccumulationScheduler):  # it begins with an epoch, not within a resumed one
                trainer.accumulate_grad_batches = callback.get_accumulate_grad_batches(trainer.current_epoch)
        if trainer.global_step == 0:
            self.save(trainer, self.last)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Let Lightning validate after the last step, whatever the interval is."""
        if trainer.global_step == trainer.max_steps or (
            trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        ):
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `last.ckpt`, and `best.ckpt` if dev loss is lower than ever."""
        if not in_training(trainer):
            return
        self._metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        dev_loss = self._metrics["dev/loss"]
        # Such weights must not replace the last good ones; infinite ones may still have a finite loss, as tanh is 1.
        if not (math.isfinite(dev_loss) and all(p.isfinite().all() for p in pl_module.parameters())):
            raise TrainingError(
                f"dev loss is {dev_loss}, or a weight is NaN or infinite, at step {trainer.global_step:,}; try a lower "
                f"model.learning_rate. {self.last} is unchanged"
            )
        # All processes must agree; without a shared disk, only the first has seen the files of the run so far.
        is_best: bool = trainer.strategy.broadcast(dev_loss < self.best_dev_loss)
        if is_best:
            self.best_dev_loss = dev_loss
            self.save(trainer, self.best)
        if not ends_with_its_epoch(trainer):
            self.save(trainer, self.last)

    def save(self, trainer: Trainer, path: Path) -> None:
        """Write a checkpoint, and first what was logged until now, so that a resumed run's curves have no gap."""
        if trainer.is_global_zero and not path.parent.is_dir():
            raise CheckpointError(f"{path}: cannot be written, its run folder is gone")
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(path, weights_only=False)
        if path == self.last:
            self._saved_step = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `last.ckpt` where no validation has: at the end of a run, and after each epoch without dev."""
        if self._saved_step != trainer.global_step and (trainer.should_stop or not trainer.enable_validation):
            self.save(trainer, self.last)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, content: dict[str, Any]) -> None:
        """Add the settings of the run, from which it is resumed."""
        content.setdefault(checkpoint.KEY, {})["settings"] = self.settings

    def state_dict(self) -> dict[str, Any]:
        """The lowest dev loss so far, the latest metrics, and the seconds of training."""
        return {"best_dev_loss": self.best_dev_loss, "metrics": self._metrics, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the lowest dev loss of the run that is resumed, unless its best.ckpt was left behind elsewhere."""
        self._seconds_before, self._metrics = state_dict["seconds"], state_dict["metrics"]
        if self.best.exists():
            self.best_dev_loss = state_dict["best_dev_loss"]


def in_training(trainer: Trainer) -> bool:
    """Whether a validation is one of a fit, and not the sanity check before it or a validation of its own."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def ends_with_its_epoch(trainer: Trainer) -> bool:
    """Whether a run is at its end and at that of an epoch.

    A checkpoint written in the validation there would be one from within the epoch: were the run to train on, Lightning
    would take one more step in it.
    """
    return trainer.should_stop and trainer.is_last_batch


class StopOnSignal(Callback):
    """Ends a run that gets SIGTERM or Ctrl-C, in any of its processes, at the next log point, with `last.ckpt` saved.

    A second Ctrl-C ends the process at once.
    """

    def __init__(self, checkpoints: Checkpoints, resume_command: str) -> None:
        """`checkpoints` write `last.ckpt`; `resume_command` resumes from it."""
        self.checkpoints, self.resume_command = checkpoints, resume_command
        self.received: signal.Signals | None = None
        self.step = 0  # the last one that has ended

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over from Lightning, which would end a run between two log points; it restores all handlers itself."""
        self.step = trainer.global_step
        if threading.current_thread() is threading.main_thread():  # the only one that may set handlers
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, self._handle_signal)

    def _handle_signal(self, signum: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(signum)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save and stop at a log point; if a validation follows, after that."""
        step, before = trainer.global_step, self.step
        self.step = step  # with accumulation, a batch may end without a step
        if step == before or not is_log_point(trainer, step):
            return
        if not trainer.should_stop and not self._validation_follows(trainer):
            self._stop_if_asked(trainer, save=True)

    @staticmethod
    def _validation_follows(trainer: Trainer) -> bool:
        # Private names of Lightning's: of a run that was saved before a validation of the same step, it would skip it.
        loop = trainer.fit_loop
        return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop; the checkpoint has just been written."""
        if in_training(trainer) and not ends_with_its_epoch(trainer):
            self._stop_if_asked(trainer, save=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop where the checkpoint is written now."""
        if ends_with_its_epoch(trainer):
            self._stop_if_asked(trainer, save=False)

    def _stop_if_asked(self, trainer: Trainer, save: bool) -> None:
        # All processes must stop at the same step, whichever of them was told to.
        if not trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            return
        if save:
            self.checkpoints.save(trainer, self.checkpoints.last)
        signum = self.received or signal.SIGTERM
        raise Interrupted(
            f"{signum.name} at step {trainer.global_step:,}: saved {self.checkpoints.last}; "
            f"resume with: {self.resume_command}",
            exit_code=128 + signum,
        )


class Progress(ProgressBar):
    """Shows how far a run is, in steps: by a bar on a terminal or in a notebook, elsewhere by a line a validation.

    Lightning's own bars show one epoch each, and not when the run will end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm[Any] | None = None
        self.enabled = True

    def disable(self) -> None:
        """Show nothing; Lightning calls this on all processes but the first, and while it searches a rate."""
        self.enabled = False

    def enable(self) -> None:
        """Show progress again."""
        self.enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar where the run stands."""
        self.first_step, self.start = trainer.global_step, time.perf_counter()
        shows_bars = sys.stderr.isatty() or "ipykernel" in sys.modules
        if shows_bars and self.enabled:
            total = total_steps(trainer)
            self.bar = tqdm(total=total, initial=self.first_step, unit="step", dynamic_ncols=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Advance to the step; tqdm itself keeps from drawing too often."""
        if self.bar is not None:
            step = trainer.global_step
            if is_log_point(trainer, step):
                self.bar.set_postfix_str(_losses(trainer), refresh=False)
            self.bar.update(step - self.bar.n)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the losses."""
        if not in_training(trainer) or not self.enabled:
            return
        if self.bar is not None:
            self.bar.set_postfix_str(_losses(trainer), refresh=False)
            return
        step, end = trainer.global_step, total_steps(trainer)
        speed = (step - self.first_step) / (time.perf_counter() - self.start)
        left = f", {tqdm.format_interval((end - step) / speed)} left" if end and speed else ""
        position = f"step {step:,} of {end:,}" if end else f"step {step:,}"
        with suppress(OSError):  # nobody reads it, or the disk of a log is full: no reason to end a run
            print(f"{position}: {_losses(trainer)}, {speed:,.1f} steps/s{left}", file=sys.stderr)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar as it is."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the line to the error message."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _losses(trainer: Trainer) -> str:
    """The latest train and dev loss, nats/token."""
    latest = trainer.callback_metrics
    return ", ".join(f"{name} {latest[f'{name}/loss']:.4f}" for name in ("train", "dev") if f"{name}/loss" in latest)
