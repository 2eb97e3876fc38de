"""K steps in one call of `training_step`, for networks so small that a call takes longer than a step.

The recipe of the lecture takes 0.08 ms a step, a call of Lightning's loop 0.4 ms more. So its gradients are written by
hand (`models.fused`), and K steps share a call, under Lightning's manual optimization. What else counts calls, or needs
autograd, cannot be combined with it. K changes no bit of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
    ThroughputMonitor,
    WeightAveraging,
)
from torch.optim import Optimizer

from mlp_lm.models.fused import FusedSGD
from mlp_lm.settings import Settings
from mlp_lm.text.windows import Chunk
from mlp_lm.training.module import MLPModule
from mlp_lm.training.optim import is_log_point, set_learning_rate

SUPPORTED: dict[str, tuple[object, ...]] = {  # settings that cannot have any other value here
    "model.optimizer": ("sgd",),
    "model.momentum": (0.0,),
    "model.num_layers": (1,),
    "model.dropout": (0.0,),
    "model.embedding_dropout": (0.0,),
    "model.direct": (False,),
    "model.tied": (False,),
    "data.teacher": (None,),
    "trainer.precision": ("32-true", "64-true"),
    "trainer.detect_anomaly": (False,),
    "trainer.accumulate_grad_batches": (1,),
    "trainer.gradient_clip_val": (None, 0.0),
    "trainer.check_val_every_n_epoch": (None,),
    "trainer.max_epochs": (None, -1),
    "trainer.limit_train_batches": (None, 1.0),
    "trainer.overfit_batches": (0.0,),
    "trainer.fast_dev_run": (False,),
}
COUNT_CALLS = (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
    ThroughputMonitor,
    WeightAveraging,
)
MULTIPLES = ("trainer.max_steps", "trainer.val_check_interval", "trainer.log_every_n_steps")
REMEDY = "set --data.steps_per_execution 1"


class FastLane(MLPModule):
    """An `MLPModule` of one layer without dropout that takes K steps of plain SGD a call."""

    @classmethod
    def of(cls, module: MLPModule) -> FastLane:
        """A module with the settings and the network of another."""
        lane = cls(**module.hparams)
        lane.network = module.network
        return lane

    @property  # type: ignore[misc]  # Lightning's can be set
    def automatic_optimization(self) -> bool:
        """Lightning leaves gradients and optimizer to `training_step`."""
        return False

    def training_step(self, batch: Chunk) -> None:  # type: ignore[override]
        """K optimizer steps: contexts (K, B, T), targets (K, B)."""
        contexts, targets = batch
        rates = [self.learning_rate_at(step) for step in range(self.global_step, self.global_step + len(targets))]
        sgd = FusedSGD(self.network, self.hparams["weight_decay"], self.hparams["decay_all"])
        self._losses.append(sgd.run(contexts, targets, rates))
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        self._rate = rates[-1]
        set_learning_rate(optimizer, self._rate)  # as if it had taken the steps
        # `trainer.global_step`, and with it `max_steps` and checkpoints, reads this private counter of Lightning's.
        self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.increment_by(len(rates))
        if is_log_point(self.trainer, self.global_step):
            self._log_training(self.global_step)


def problems(settings: Settings, callbacks: Iterable[Callback], world_size: int) -> Iterator[str]:
    """Describe what of a run cannot be combined with `data.steps_per_execution`, where that is above 1."""
    k = settings["data.steps_per_execution"]
    name = f"data.steps_per_execution: found {k:,}"
    wrong = [f"{n} {settings[n]}" for n, values in SUPPORTED.items() if n in settings and settings[n] not in values]
    if world_size > 1:
        wrong.append(f"{world_size} processes")
    for callback in callbacks:
        by_step = isinstance(callback, ModelCheckpoint) and not callback.every_n_epochs
        if by_step or isinstance(callback, COUNT_CALLS):
            wrong.append(type(callback).__name__)
    if not isinstance(settings["trainer.val_check_interval"], int):
        wrong.append(f"trainer.val_check_interval {settings['trainer.val_check_interval']}")
    if wrong:
        yield f"{name}, which cannot be combined with {', '.join(wrong)}; {REMEDY}"
        return
    counts = {n: settings[n] for n in MULTIPLES}
    if odd := [f"{n} {count:,}" for n, count in counts.items() if count % k]:
        common = math.gcd(*counts.values())
        nearest = min((n for n in range(1, common + 1) if common % n == 0), key=lambda n: abs(n - k))
        yield f"{name}, expected a divisor of {', '.join(odd)}; the nearest that divides all intervals is {nearest:,}"
