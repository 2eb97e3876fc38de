"""SIGTERM and Ctrl-C: noted when they come, acted on at the next log point."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mlp_lm.errors import Interrupted
from mlp_lm.training.callbacks import Checkpoints
from mlp_lm.training.trainer import Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(Callback):
    """Ends a run that gets SIGTERM or Ctrl-C, in any of its processes, at the next log point, with `last.ckpt` saved.

    A second Ctrl-C ends the process at once.
    """

    def __init__(self, checkpoints: Checkpoints, resume_command: str) -> None:
        """`checkpoints` write `last.ckpt`; `resume_command` resumes from it."""
        self.checkpoints, self.resume_command = checkpoints, resume_command
        self.received: signal.Signals | None = None
        self.previous: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Take over from Lightning, which would end a run between two log points."""
        if threading.current_thread() is threading.main_thread():  # the only one that may set handlers
            self.previous = {signum: signal.signal(signum, self._note) for signum in SIGNALS}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(signum)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def on_train_batch_end(self, trainer: LightningTrainer, pl_module: LightningModule, *_: Any) -> None:
        """Save and stop at a log point; if a validation is due there, it will."""
        step = trainer.global_step
        log_point = step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]  # not declared
        if log_point and not cast(Trainer, trainer).validates_at(step):
            self._stop_if_asked(trainer, save=True)

    def on_validation_end(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Stop; the checkpoint has just been written."""
        if trainer.state.fn == "fit":
            self._stop_if_asked(trainer, save=False)

    def teardown(self, trainer: LightningTrainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back to those who handled them before."""
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)
        self.previous = {}

    def _stop_if_asked(self, trainer: LightningTrainer, save: bool) -> None:
        # All processes must stop at the same step, whichever of them was told to.
        if not trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            return
        if save:
            self.checkpoints.save_last(trainer)
        signum = self.received or signal.SIGTERM
        raise Interrupted(
            f"{signum.name} at step {trainer.global_step:,}: saved {self.checkpoints.last}; "
            f"resume with: {self.resume_command}",
            exit_code=128 + signum,
        )


@contextmanager
def sigterm_reported() -> Iterator[None]:
    """Raise Interrupted for what Lightning raises on SIGTERM where `StopOnSignal` is not at work."""
    try:
        yield
    except SIGTERMException:
        raise Interrupted("SIGTERM: ended", exit_code=128 + signal.SIGTERM) from None
