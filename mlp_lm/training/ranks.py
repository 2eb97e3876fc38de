"""Several processes that train as one: how they start, what the first does for all, how they end when one is lost."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Trainer
from torch.distributed import DistError, distributed_c10d

from mlp_lm.errors import LostProcessError, MlpLmError, SettingsError

T = TypeVar("T")
PATIENCE = timedelta(seconds=50)  # with a process that does not answer; more than drawing or saving takes


def environments() -> list[ClusterEnvironment]:
    """SLURM where it started this process, without Lightning's requeueing from inside a signal handler."""
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        return [SLURMEnvironment(auto_requeue=False)]
    return []


def check_number(trainer: Trainer) -> None:
    """Raise SettingsError where torchrun started another number of processes than the settings ask for."""
    wanted = trainer.num_devices * trainer.num_nodes
    if TorchElasticEnvironment.detect() and (started := TorchElasticEnvironment().world_size()) != wanted:
        raise SettingsError(
            f"trainer.devices: found {trainer.num_devices} on each of {trainer.num_nodes} nodes, but torchrun started "
            f"{started} processes; expected its --nproc_per_node, and its --nnodes as trainer.num_nodes"
        )


def start(trainer: Trainer) -> None:
    """Start the other processes, unless torchrun or SLURM did, and connect them; one process alone needs nothing.

    Lightning does this within `fit`, too late for what the processes share before; it never starts one twice.
    Raises SettingsError where it fails.
    """
    if trainer.world_size == 1 or trainer.strategy.launcher is None:
        return
    if trainer.num_nodes > 1:
        print(f"waiting for {trainer.world_size} processes on {trainer.num_nodes} nodes", file=sys.stderr)
    try:
        trainer.strategy.launcher.launch(trainer.strategy.setup_environment)
    except (ValueError, RuntimeError) as error:
        raise SettingsError(f"trainer.devices: the processes could not be started: {error}") from error
    # Until now one may have had to wait for another that read a big corpus; from here on all do the same at the same
    # time. Torch has no public way to change this. NCCL would wait half an hour for a process that was killed.
    distributed_c10d._set_pg_timeout(PATIENCE)


def by_first(trainer: Trainer, work: Callable[[], T]) -> T:
    """The result of `work`, done by the first process alone; all get it, or raise the MlpLmError that it raised."""
    results: list[T | MlpLmError] = []
    if trainer.is_global_zero:
        try:
            results.append(work())
        except MlpLmError as error:
            results.append(error)
    (result,) = trainer.strategy.broadcast(results)
    if isinstance(result, MlpLmError):
        raise result
    return result


@contextmanager
def losses_reported() -> Iterator[None]:
    """Raise LostProcessError for what torch raises where another process is gone."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        if isinstance(error, DistError) or re.search("gloo|pair closure", reason):  # gloo raises plain RuntimeErrors
            raise LostProcessError(
                f"another process ended, or does not answer ({re.sub(r'^.*?] |[.] .*', '', reason)}); if it said why, "
                "that stands above. last.ckpt is as it was"
            ) from error
        raise
