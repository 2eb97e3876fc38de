"""Lightning's Trainer with steps as its unit.

The one thing that is unusual: a Lightning epoch is the stretch from one validation to the next, and the loader ends it.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, TypeVar

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Checkpoint,
    DeviceStatsMonitor,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.loggers import Logger
from torch.distributed import DistError

from mlp_lm.errors import LostProcessError, MlpLmError, SettingsError
from mlp_lm.settings import COUNT, Range, check_section
from mlp_lm.training.callbacks import AtomicCheckpointIO, Progress

T = TypeVar("T")

MAX_STEPS, PASSES = 3000, 20  # over train, by default
SMALL_STEP = 2**22  # multiply-adds of a forward pass, about: batch size times weights

# What Lightning's Trainer has and ours has not, and why.
COUNTS_CALLS = "it counts calls of training_step, each of which runs several steps"
NOT_OURS = {
    "max_epochs": "the length of a run is trainer.max_steps",
    "min_epochs": "the length of a run is counted in steps: trainer.min_steps",
    "limit_train_batches": f"{COUNTS_CALLS}; use trainer.max_steps",
    "overfit_batches": f"{COUNTS_CALLS}; use a small file as data.path",
    "check_val_every_n_epoch": "the interval is trainer.val_check_interval, in steps",
    "num_sanity_val_steps": "settings and data are checked before the first step",
    "accumulate_grad_batches": "manual optimization cannot do it; raise data.batch_size",
    "gradient_clip_val": "manual optimization cannot do it; lower model.learning_rate",
    "gradient_clip_algorithm": "manual optimization cannot do it; lower model.learning_rate",
    "enable_checkpointing": "a run always keeps last.ckpt and best.ckpt",
    "use_distributed_sampler": "processes share out each batch by themselves",
    "reload_dataloaders_every_n_epochs": "the data never change during a run",
    "fast_dev_run": f"{COUNTS_CALLS}; use a small trainer.max_steps",
    "barebones": "a run needs the checkpoints and losses that it turns off",
}
CALLBACKS_NOT_OURS: dict[type[Callback], str] = {
    WeightAveraging: COUNTS_CALLS,
    DeviceStatsMonitor: COUNTS_CALLS,
    ThroughputMonitor: COUNTS_CALLS,
    ProgressBar: f"{COUNTS_CALLS}; trainer.enable_progress_bar shows a bar in steps",
    LearningRateMonitor: "the learning rate is logged as lr",
    LearningRateFinder: "use the command lr-find",
    BatchSizeFinder: "set data.batch_size",
    GradientAccumulationScheduler: NOT_OURS["accumulate_grad_batches"],
    StochasticWeightAveraging: "manual optimization cannot do it",
    Timer: "use trainer.max_time",
}


def run_length(
    max_steps: int | None, val_check_interval: int | None, steps_per_pass: float = math.inf
) -> tuple[int, int]:
    """`max_steps` and `val_check_interval`, chosen where they are None, for a train split of `steps_per_pass` steps.

    A small text is soon memorised: of 5 to 60 passes with the other settings at their defaults, 20 were best, or within
    0.05 nats of it, for lists of 50, 200, 600, 2,000 and 5,000 items.
    """
    if max_steps is None:
        max_steps = max(1, round(min(PASSES * steps_per_pass, MAX_STEPS)))
    return max_steps, min(-(-max_steps // 12), 250) if val_check_interval is None else val_check_interval


class Trainer(LightningTrainer):
    """A Trainer that counts optimizer steps; everything else is Lightning's."""

    def __init__(
        self,
        *,
        max_steps: Annotated[int, COUNT] | None = None,
        val_check_interval: Annotated[int, COUNT] | None = None,
        log_every_n_steps: Annotated[int, COUNT] = 25,
        accelerator: str = "auto",
        devices: list[int] | str | int = 1,
        precision: Literal["32-true", "64-true", "bf16-mixed"] = "32-true",
        num_threads: Annotated[int, Range(1, 1024)] | None = None,
        logger: Logger | Iterable[Logger] | bool = True,
        callbacks: list[Callback] | Callback | None = None,
        plugins: Any = None,
        enable_progress_bar: bool = True,
        enable_model_summary: bool = False,
        **kwargs: Any,
    ) -> None:
        """How long to train, on which devices, and what to log.

        Args:
            max_steps: Steps to train for; null means 20 passes over train, at least one step and at most 3,000.
            val_check_interval: Steps between two validations, after which checkpoints are written; null means a twelfth
                of max_steps, at most 250.
            log_every_n_steps: Steps between two points of the training curve; a point is their mean loss.
            accelerator: cpu, cuda, mps or another that Lightning knows; auto takes CUDA if there is one, else the CPU.
            devices: Number of devices on each machine, or their indices; each gets a process, on the CPU too.
            precision: Number format of the network; bf16-mixed multiplies 16-bit numbers, which is fast on GPUs, and on
                CPUs with instructions for it (avx512_bf16 or amx_bf16 among their flags).
            num_threads: CPU threads; null takes OMP_NUM_THREADS if it is set, else one for small steps and all cores
                for larger ones.
            logger: true writes TensorBoard events into the run folder: curves, histograms, samples, embeddings; false
                nothing; or any logger of Lightning.
            callbacks: Callbacks of Lightning, such as EarlyStopping.
            plugins: Plugins of Lightning.
            enable_progress_bar: Show a bar on a terminal or in a notebook, elsewhere a line for each validation.
            enable_model_summary: Show Lightning's table of layers.

        Raises:
            SettingsError: A setting is invalid or asks for a device that is not there.
        """
        if refused := [f"trainer.{name}: {NOT_OURS[name]}" for name in kwargs if name in NOT_OURS]:
            raise SettingsError("; ".join(refused))
        self.num_threads = num_threads
        max_steps, val_check_interval = run_length(max_steps, val_check_interval)
        self.steps_per_validation = val_check_interval
        # What defines a run, and not the machine: kept in its checkpoints.
        self.run_settings = {
            "max_steps": max_steps,
            "val_check_interval": val_check_interval,
            "log_every_n_steps": log_every_n_steps,
            "precision": precision,
        }
        check_section("trainer", {**self.run_settings, "num_threads": num_threads}, Trainer)
        self._omp_num_threads = os.environ.get("OMP_NUM_THREADS")  # before Lightning sets it for several processes
        if accelerator == "auto":  # Lightning would pick MPS on a Mac, which is slower than its CPU here
            accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        callbacks = [*callbacks] if isinstance(callbacks, list) else [callbacks] if callbacks else []
        for callback in callbacks:
            for kind, reason in CALLBACKS_NOT_OURS.items():
                if isinstance(callback, kind):
                    raise SettingsError(f"trainer.callbacks: found {type(callback).__name__}; {reason}")
            if isinstance(callback, ModelCheckpoint) and not callback.every_n_epochs:
                raise SettingsError(f"trainer.callbacks: every_n_train_steps of ModelCheckpoint: {COUNTS_CALLS}")
        if enable_progress_bar:
            callbacks.append(Progress())
        plugins = [AtomicCheckpointIO(), *(plugins if isinstance(plugins, list) else [plugins] if plugins else [])]
        if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
            plugins.append(SLURMEnvironment(auto_requeue=False))  # else it requeues from inside a signal handler
        try:
            super().__init__(
                max_steps=max_steps,
                log_every_n_steps=log_every_n_steps,
                accelerator=accelerator,
                devices=devices,
                precision=precision,
                logger=logger,
                callbacks=callbacks,
                plugins=plugins,
                enable_progress_bar=False,  # Lightning's counts calls
                enable_model_summary=enable_model_summary,
                enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
                # From here on, what is in NOT_OURS.
                max_epochs=-1,
                min_epochs=None,
                limit_train_batches=None,
                overfit_batches=0.0,
                check_val_every_n_epoch=1,
                num_sanity_val_steps=0,
                accumulate_grad_batches=1,
                gradient_clip_val=None,
                gradient_clip_algorithm=None,
                use_distributed_sampler=False,
                reload_dataloaders_every_n_epochs=0,
                fast_dev_run=False,
                barebones=False,
                **kwargs,
            )
        except (MisconfigurationException, ImportError, TypeError, ValueError, RuntimeError) as error:
            raise SettingsError(f"trainer: {error}") from error
        if 0 in (self.limit_val_batches, self.limit_test_batches, self.limit_predict_batches):
            raise SettingsError("trainer.limit_val_batches, limit_test_batches, limit_predict_batches must be above 0")
        wanted = self.num_devices * self.num_nodes
        if TorchElasticEnvironment.detect() and (started := TorchElasticEnvironment().world_size()) != wanted:
            raise SettingsError(
                f"trainer.devices: found {self.num_devices} on each of {self.num_nodes} nodes, but torchrun started "
                f"{started} processes; expected its --nproc_per_node, and its --nnodes as trainer.num_nodes"
            )

    def validates_at(self, step: int) -> bool:
        """Whether a validation follows `step` steps."""
        return step % self.steps_per_validation == 0 or step == self.max_steps

    def set_threads(self, batch_size: int, num_weights: int) -> None:
        """Set the number of CPU threads, for steps of `batch_size` windows on a network of `num_weights` weights.

        Measured on two cores: at 32 windows and 12,000 weights a second thread costs more than it brings (and ten
        times as much if another program wants the core), at 1,024 windows it saves a quarter of the time, and
        with 146,000 weights 40 %. A user's own choice is left alone.
        """
        if self.num_threads is not None:
            torch.set_num_threads(self.num_threads)
        elif self._omp_num_threads is None and batch_size // self.world_size * num_weights < SMALL_STEP:
            torch.set_num_threads(1)

    # -- several processes -----------------------------------------------------------------------------------------

    def start_processes(self) -> None:
        """Start the other processes, unless torchrun or SLURM did, and connect them; one process alone needs nothing.

        Lightning does this within `fit`, too late for what the processes share before; it never starts one twice.
        Raises SettingsError if it fails.
        """
        if self.world_size == 1 or self.strategy.launcher is None:
            return
        if self.num_nodes > 1:
            print(f"waiting for {self.world_size} processes on {self.num_nodes} nodes", file=sys.stderr)
        try:
            self.strategy.launcher.launch(self.strategy.setup_environment)
        except (ValueError, RuntimeError) as error:
            raise SettingsError(f"trainer.devices: the processes could not be started: {error}") from error

    def by_first(self, work: Callable[[], T]) -> T:
        """The result of `work`, done by the first process alone; all get it, or raise the MlpLmError that it raised."""
        results: list[T | MlpLmError] = []
        if self.is_global_zero:
            try:
                results.append(work())
            except MlpLmError as error:
                results.append(error)
        (result,) = self.strategy.broadcast(results)
        if isinstance(result, MlpLmError):
            raise result
        return result


@contextmanager
def report_lost_process() -> Iterator[None]:
    """Turn what torch raises when another process is gone into LostProcessError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        if isinstance(error, DistError) or re.search("gloo|pair closure", reason):  # gloo raises plain RuntimeErrors
            raise LostProcessError(
                f"another process died or stopped responding ({re.sub(r'^.*?] |[.] .*', '', reason)}); its own error, "
                "if any, is printed above. last.ckpt is unchanged"
            ) from error
        raise
