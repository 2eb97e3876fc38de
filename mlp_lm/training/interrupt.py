"""SIGTERM and Ctrl-C: noted when they come, acted on between two calls of `training_step`."""

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
from mlp_lm.training.module import MLPModule
from mlp_lm.training.trainer import Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(Callback):
    """Ends a run that gets SIGTERM or Ctrl-C, on one of its processes or on all, with `last.ckpt` as it then stands.

    A second Ctrl-C ends the process at once. Where a validation is due, the run ends after it, so that a continued
    run misses none.
    """

    def __init__(self, checkpoints: Checkpoints, continue_command: str) -> None:
        """`checkpoints` write `last.ckpt`; `continue_command` goes on from it."""
        self.checkpoints, self.continue_command = checkpoints, continue_command
        self.received: int | None = None
        self.stopped = False
        self.previous: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Take over from Lightning, which would end a run in the midst of a chunk, or lose what it learnt."""
        if threading.current_thread() is threading.main_thread():  # the only one that may set handlers
            self.previous = {signum: signal.signal(signum, self._note) for signum in SIGNALS}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if signum == self.received == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        self.received = signum

    def on_train_batch_end(self, trainer: LightningTrainer, pl_module: LightningModule, *_: Any) -> None:
        """Save and stop, unless a validation will do the saving."""
        if self._must_stop(trainer) and not cast(Trainer, trainer).validates_at(trainer.global_step):
            cast(MLPModule, pl_module).check_losses()  # what went wrong must not replace the last good weights
            self.checkpoints.save_last(trainer)
            self._stop(trainer)

    def on_validation_end(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Stop; the checkpoint has just been written."""
        if trainer.state.fn == "fit" and self._must_stop(trainer):
            self._stop(trainer)

    def teardown(self, trainer: LightningTrainer, pl_module: LightningModule, stage: str) -> None:
        """Leave signals to those who had them before."""
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)
        self.previous = {}
        if self.received is not None and not self.stopped:  # too late for us: as if we had never been
            signal.raise_signal(self.received)

    def _must_stop(self, trainer: LightningTrainer) -> bool:
        # All processes must stop at the same step, whichever of them was told to.
        return trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)

    def _stop(self, trainer: LightningTrainer) -> None:
        self.stopped = True
        signum = signal.Signals(self.received or signal.SIGTERM)
        raise Interrupted(
            f"{signum.name} at step {trainer.global_step:,}: saved {self.checkpoints.last}; "
            f"continue with: {self.continue_command}",
            exit_code=128 + signum,
        )


@contextmanager
def sigterm_reported() -> Iterator[None]:
    """Raise Interrupted for what Lightning raises on SIGTERM where `StopOnSignal` is not at work."""
    try:
        yield
    except SIGTERMException:
        raise Interrupted("SIGTERM: ended", exit_code=128 + signal.SIGTERM) from None
