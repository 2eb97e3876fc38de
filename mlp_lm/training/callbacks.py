"""What happens beside training: checkpoints and the progress bar."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from tqdm import tqdm

from mlp_lm.errors import TrainingError
from mlp_lm.models import checkpoint
from mlp_lm.training.runs import CHECKPOINTS, REPORT, last_checkpoint


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint whole or not at all, and reads one without running code that it may contain."""

    def save_checkpoint(
        self, checkpoint_content: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """See `checkpoint.write`."""
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

    def __init__(self, run_dir: Path) -> None:
        """`run_dir`: the files go into its folder `checkpoints`, made when the first is written."""
        self.run_dir = run_dir
        self.last, self.best = last_checkpoint(run_dir), run_dir / CHECKPOINTS / "best.ckpt"
        self.best_dev_loss = float("inf")
        self._seconds_before = 0.0  # of training, before a run was continued
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall time of training until now, that before a run was continued included."""
        return self._seconds_before + time.perf_counter() - self._start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `last.ckpt` before the first step of a new run; clear what an ended one has left."""
        self._start = time.perf_counter()
        if trainer.is_global_zero:
            for part in (*self.last.parent.glob(".*.part"), self.run_dir / REPORT):  # which marks a finished run
                part.unlink(missing_ok=True)
        if trainer.global_step == 0:
            self.save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `last.ckpt`, and `best.ckpt` where dev loss is lower than ever."""
        if trainer.state.fn != "fit":
            return
        dev_loss = trainer.callback_metrics["dev/loss"].item()
        # Such weights must not replace the last good ones; infinite ones may still have a finite loss, as tanh is 1.
        if not math.isfinite(dev_loss) or not all(weight.isfinite().all() for weight in pl_module.parameters()):
            raise TrainingError(
                f"dev loss is {dev_loss}, or a weight no number, at step {trainer.global_step:,}; try a lower "
                f"model.learning_rate. {self.last} is as it was"
            )
        # All processes must save or none; without a shared disk, only the first has seen the files of the run so far.
        is_best: bool = trainer.strategy.broadcast(dev_loss < self.best_dev_loss)
        if is_best:
            self.best_dev_loss = dev_loss
            trainer.save_checkpoint(self.best, weights_only=False)
        self.save_last(trainer)

    def save_last(self, trainer: Trainer) -> None:
        """Write `last.ckpt`, and first what was logged until now, so that a continued run's curves have no gap."""
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(self.last, weights_only=False)

    def state_dict(self) -> dict[str, Any]:
        """The lowest dev loss so far, and the seconds of training."""
        return {"best_dev_loss": self.best_dev_loss, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the lowest dev loss of the run that goes on, unless its best.ckpt was left behind elsewhere.

        Raises ValueError for what is none.
        """
        seconds, best_dev_loss = float(state_dict.get("seconds", 0.0)), float(state_dict["best_dev_loss"])
        if not (0 <= seconds < math.inf and best_dev_loss >= 0):
            raise ValueError("its lowest dev loss, or its time, is less than nothing or no number")
        self._seconds_before = seconds
        if self.best.exists():
            self.best_dev_loss = best_dev_loss


class StepProgressBar(Callback):
    """A bar in steps, whatever number of them one call of `training_step` runs."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar where the run stands."""
        total, done = trainer.max_steps, trainer.global_step
        hidden = not trainer.is_global_zero
        self.bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True, disable=hidden)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Move on by the steps of one call; tqdm itself keeps from drawing too often."""
        self.bar.update(trainer.global_step - self.bar.n)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the latest dev loss."""
        if trainer.state.fn == "fit":
            self.bar.set_postfix_str(f"dev loss {trainer.callback_metrics['dev/loss']:.4f}", refresh=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar as it is."""
        self.bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the line to the error message."""
        if hasattr(self, "bar"):
            self.bar.close()
