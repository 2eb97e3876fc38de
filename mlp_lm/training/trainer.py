"""A Trainer that counts in steps."""

from __future__ import annotations

import os
import sys
from typing import Literal, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import Checkpoint

from mlp_lm.errors import SettingsError
from mlp_lm.settings import check_section
from mlp_lm.training import ranks
from mlp_lm.training.callbacks import AtomicCheckpointIO, StepProgressBar

SMALL_STEP = 2**22  # multiply-adds of a forward pass, about: batch size times weights


class Trainer(LightningTrainer):
    """Lightning's Trainer with steps as its only unit, and without the settings that count anything else.

    Lightning counts calls of `training_step`, each of which may run many steps, and its epochs end where the
    loader does. Here a Lightning epoch is the stretch from one validation to the next: the loader ends it.
    """

    def __init__(
        self,
        *,
        max_steps: int = 3000,
        val_check_interval: int = 250,
        log_every_n_steps: int = 25,
        accelerator: str = "auto",
        devices: int | str = 1,
        num_nodes: int = 1,
        strategy: Literal["auto", "ddp"] = "auto",
        precision: Literal["32-true", "64-true", "bf16-mixed"] = "32-true",
        num_threads: int | None = None,
        logger: bool = True,
        log_layout: bool = True,
        log_config: bool = True,
        log_hparams: bool = True,
        log_histograms: bool = True,
        log_samples: bool = True,
        log_embedding_map: bool = True,
        log_projector: bool = True,
        callbacks: Literal[False] | None = None,  # what a config may say; LightningCLI passes a list of its own
        enable_progress_bar: bool = True,
        deterministic: bool = False,
        detect_anomaly: bool = False,
        profiler: Literal["simple", "advanced", "pytorch"] | None = None,
    ) -> None:
        """How long, where and how closely watched.

        Args:
            max_steps: Steps to train for.
            val_check_interval: Steps between two validations; checkpoints are written then.
            log_every_n_steps: Steps between two points of the training curve; a point is their mean loss.
            accelerator: cpu, cuda, mps or another that Lightning knows; auto takes CUDA where there is one, else the
                CPU.
            devices: How many devices of each machine, or which; each has a process, on a CPU too.
            num_nodes: How many machines.
            strategy: ddp: processes share out each batch and average their gradients; auto: the same where there are
                several devices.
            precision: Number format of the network.
            num_threads: CPU threads; null takes OMP_NUM_THREADS where it is set, else one for small steps and all
                cores for larger ones.
            logger: Write TensorBoard events: losses, learning rate and what the log_ settings ask for.
            log_layout: Show train and dev loss in one chart (Custom Scalars).
            log_config: Show config.yaml (Text).
            log_hparams: Show the settings beside the lowest dev loss (HParams).
            log_histograms: Show weights and tanh activations (Histograms) and the share of saturated units (Scalars) at
                each validation.
            log_samples: Show generated items (Text) at each validation.
            log_embedding_map: Show a map of the embedding table (Images) at the end.
            log_projector: Show the embedding table in space (Projector) at the end.
            callbacks: None: they are code, which a config must not name.
            enable_progress_bar: Show a bar where stderr is a terminal.
            deterministic: Refuse operations that are not deterministic.
            detect_anomaly: Find the operation that made a NaN; slow.
            profiler: Measure where time goes.

        Raises:
            SettingsError: A setting is out of its range, or asks for a device that is not there.
        """
        intervals = {"val_check_interval": val_check_interval, "log_every_n_steps": log_every_n_steps}
        counts = {"max_steps": max_steps, "num_threads": num_threads, "num_nodes": num_nodes}
        is_number = str(devices).isdecimal()  # rather than "auto", "0,1" or -1, which is all
        number = {"devices": int(str(devices)[:9])} if is_number else {}  # of thousands of digits Python makes no int
        check_section("trainer", {**counts, **intervals, **number})
        self.num_threads = num_threads
        self._omp_num_threads = os.environ.get("OMP_NUM_THREADS")  # before Lightning sets it for several processes
        self.detect_anomaly = detect_anomaly
        self.settings = {
            "max_steps": max_steps,
            "val_check_interval": val_check_interval,
            "log_every_n_steps": log_every_n_steps,
            "precision": precision,
        }
        wanted = {
            "layout": log_layout,
            "config": log_config,
            "hparams": log_hparams,
            "histograms": log_histograms,
            "samples": log_samples,
            "embedding_map": log_embedding_map,
            "projector": log_projector,
        }
        self.tensorboard_extras = {name for name, is_wanted in wanted.items() if is_wanted}
        self.steps_per_validation = val_check_interval
        if accelerator == "auto":  # Lightning would pick MPS on a Mac, which is slower than its CPU here
            accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        own = [callback for callback in cast(list[Callback], callbacks or []) if callback]
        if enable_progress_bar and sys.stderr.isatty():
            own.append(StepProgressBar())
        try:
            super().__init__(
                max_steps=max_steps,
                log_every_n_steps=log_every_n_steps,
                max_epochs=-1,  # only steps end a run
                num_sanity_val_steps=0,  # settings and data are checked before; it would read dev for nothing
                use_distributed_sampler=False,  # there is no sampler to replace
                enable_model_summary=False,  # the report says what it would say
                enable_progress_bar=False,  # Lightning's counts calls
                enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in own),
                plugins=[AtomicCheckpointIO(), *ranks.environments()],
                callbacks=own,
                accelerator=accelerator,
                devices=devices,
                num_nodes=num_nodes,
                strategy=strategy,
                precision=precision,
                logger=False,  # `fit` makes it once the run has a folder
                deterministic=deterministic,
                detect_anomaly=detect_anomaly,
                profiler=profiler,
            )
        except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
            raise SettingsError(f"trainer: {' '.join(str(error).split())}") from error
        ranks.check_number(self)

    def set_threads(self, batch_size: int, num_weights: int) -> None:
        """Set the number of CPU threads, for steps of `batch_size` windows on a network of `num_weights` weights.

        Measured on two cores: at 32 windows and 12,000 weights a second thread costs more than it brings (and ten
        times as much where another program wants the core), at 1,024 windows it saves a quarter of the time, and
        with 146,000 weights 40 %. A user's own choice is left alone.
        """
        if self.num_threads is not None:
            torch.set_num_threads(self.num_threads)
        elif self._omp_num_threads is None and batch_size // self.world_size * num_weights < SMALL_STEP:
            torch.set_num_threads(1)

    def validates_at(self, step: int) -> bool:
        """Whether a validation follows `step` steps."""
        return step % self.steps_per_validation == 0 or step == self.max_steps
