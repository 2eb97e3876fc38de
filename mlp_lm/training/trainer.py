"""Lightning's Trainer with our defaults: lengths and intervals in steps, whole checkpoints, few threads."""

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
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from torch.distributed import DistError

from mlp_lm.errors import LostProcessError, MlpLmError, SettingsError
from mlp_lm.settings import COUNT, Range, check_section
from mlp_lm.training.callbacks import AtomicCheckpointIO, Progress

T = TypeVar("T")

MAX_STEPS, EPOCHS = 3000, 20  # of training, by default
SMALL_STEP = 2**22  # multiply-adds of a forward pass, about: batch size times weights
UNSUPPORTED_ARGUMENTS = {  # of Lightning's Trainer, and why
    "enable_checkpointing": "a run always keeps last.ckpt and best.ckpt; fast_dev_run writes no files",
    "barebones": "a run needs the checkpoints and losses that it turns off",
    "use_distributed_sampler": "each process takes its rows of every batch",
}


def run_length(
    steps_per_epoch: float,
    max_steps: int | None,
    val_check_interval: int | float | None,
    max_epochs: int | None = None,
    check_val_every_n_epoch: int | None = None,
    multiple: int = 1,
) -> tuple[int | None, int | float]:
    """`max_steps` and `val_check_interval`, chosen where they are None, for a train split of `steps_per_epoch` steps.

    What is chosen is a multiple of `multiple`.

    A small text is soon memorised: of 5 to 60 epochs with the other settings at their defaults, 20 were best, or within
    0.05 nats of it, for lists of 50, 200, 600, 2,000 and 5,000 items.
    """
    if max_steps is None and max_epochs is None:
        max_steps = max(1, round(min(EPOCHS * steps_per_epoch, MAX_STEPS) / multiple)) * multiple
    if val_check_interval is None and check_val_every_n_epoch is None:
        ends = [max_steps] if max_steps is not None else []
        ends += [max_epochs * math.ceil(steps_per_epoch)] if max_epochs is not None and max_epochs > 0 else []
        val_check_interval = max(1, min(-(-min(ends, default=MAX_STEPS) // 12), 250) // multiple) * multiple
    return max_steps, 1.0 if val_check_interval is None else val_check_interval


class Trainer(LightningTrainer):
    """Lightning's Trainer with other defaults."""

    def __init__(
        self,
        *,
        max_steps: Annotated[int, COUNT] | None = None,
        max_epochs: Annotated[int, COUNT] | None = None,
        val_check_interval: Annotated[int | float, Range(0, 10**9, above=True)] | None = None,
        check_val_every_n_epoch: Annotated[int, COUNT] | None = None,
        log_every_n_steps: Annotated[int, COUNT] = 25,
        accumulate_grad_batches: Annotated[int, COUNT] = 1,
        num_sanity_val_steps: int = 0,
        accelerator: str = "auto",
        devices: list[int] | str | int = 1,
        precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"] = "32-true",
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
            max_steps: Optimizer steps to train for. Without max_epochs, null means 20 epochs, at least one step and at
                most 3,000.
            max_epochs: Epochs to train for, if max_steps does not end the run before.
            val_check_interval: Steps between two validations, after which checkpoints are written; or a share of an
                epoch, such as 0.5. Null means a twelfth of the run, at most 250 steps.
            check_val_every_n_epoch: Validate in every n-th epoch only, at its end or at each val_check_interval of it.
            log_every_n_steps: Steps between two points of the training curve; a point is their mean loss.
            accumulate_grad_batches: Batches whose gradients make up one step.
            num_sanity_val_steps: Batches of dev to evaluate before the first step, to find mistakes early.
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
        if refused := [f"trainer.{n}: {UNSUPPORTED_ARGUMENTS[n]}" for n in kwargs if n in UNSUPPORTED_ARGUMENTS]:
            raise SettingsError("; ".join(refused))
        counts = {"max_steps": max_steps, "log_every_n_steps": log_every_n_steps, "num_threads": num_threads}
        check_section("trainer", counts | {"val_check_interval": val_check_interval}, Trainer)
        self.num_threads = num_threads
        self._omp_num_threads = os.environ.get("OMP_NUM_THREADS")  # before Lightning sets it for several processes
        if accelerator == "auto":  # Lightning would pick MPS on a Mac, which is slower than its CPU here
            accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        if isinstance(val_check_interval, float) and check_val_every_n_epoch is None:
            check_val_every_n_epoch = 1  # a share is one of an epoch
        if isinstance(val_check_interval, int) and check_val_every_n_epoch is None:
            val_check_interval *= accumulate_grad_batches  # Lightning counts batches
        callbacks = [*callbacks] if isinstance(callbacks, list) else [callbacks] if callbacks else []
        if enable_progress_bar and not any(isinstance(callback, ProgressBar) for callback in callbacks):
            callbacks.append(Progress())
        plugins = [AtomicCheckpointIO(), *(plugins if isinstance(plugins, list) else [plugins] if plugins else [])]
        if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
            plugins.append(SLURMEnvironment(auto_requeue=False))  # else it requeues from inside a signal handler
        try:
            super().__init__(
                max_steps=-1 if max_steps is None else max_steps,
                max_epochs=max_epochs,
                val_check_interval=val_check_interval,
                check_val_every_n_epoch=check_val_every_n_epoch,
                log_every_n_steps=log_every_n_steps,
                accumulate_grad_batches=accumulate_grad_batches,
                num_sanity_val_steps=num_sanity_val_steps,
                accelerator=accelerator,
                devices=devices,
                precision=precision,
                logger=logger,
                callbacks=callbacks,
                plugins=plugins,
                enable_progress_bar=enable_progress_bar,
                enable_model_summary=enable_model_summary,
                # Those of a run are added once it has a folder; by default Lightning would add one of its own.
                enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
                use_distributed_sampler=False,
                barebones=False,
                **kwargs,
            )
        except (MisconfigurationException, ImportError, TypeError, ValueError, RuntimeError) as error:
            raise SettingsError(f"trainer: {error}") from error
        wanted = self.num_devices * self.num_nodes
        if TorchElasticEnvironment.detect() and (started := TorchElasticEnvironment().world_size()) != wanted:
            raise SettingsError(
                f"trainer.devices: found {self.num_devices} on each of {self.num_nodes} nodes, but torchrun started "
                f"{started} processes; expected its --nproc_per_node, and its --nnodes as trainer.num_nodes"
            )

    def set_threads(self, batch_size: int, num_weights: int) -> None:
        """Set the number of CPU threads, for steps of `batch_size` windows on a network of `num_weights` weights.

        Measured on two cores: at 32 windows and 12,000 weights a second thread costs more than it brings (and ten
        times as much if another program wants the core), at 1,024 windows it saves a quarter of the time, and
        with 146,000 weights 40 %. A user's own choice stays.
        """
        if self.num_threads is not None:
            torch.set_num_threads(self.num_threads)
        elif self._omp_num_threads is None and batch_size // self.world_size * num_weights < SMALL_STEP:
            torch.set_num_threads(1)

    # -- several processes -----------------------------------------------------------------------------------------

    def start_processes(self) -> None:
        """Start the other processes, unless torchrun or SLURM did, and connect them; a single process needs nothing.

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

    def run_on_rank_zero(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 and broadcast its result, or the MlpLmError that it raised."""
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
