"""What TensorBoard shows in addition to the curves. V vocabulary, E embedding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from mlp_lm.models.language_model import LanguageModel
from mlp_lm.models.network import SATURATED
from mlp_lm.models.sampling import Sampling
from mlp_lm.runs import CONFIG, starred
from mlp_lm.training.callbacks import Checkpoints, in_training
from mlp_lm.training.datamodule import TextDataModule
from mlp_lm.training.module import MLPModule
from mlp_lm.training.optim import total_steps

LOWEST = "dev/lowest_loss"  # of a run, one point at its end
NUM_SAMPLES = 20
# In a histogram. For more, numpy wakes a thread that spins on long after, next to those of training.
MAX_VALUES = 10_000
NUM_WINDOWS = 256  # of dev, whose tanh activations are counted


class TensorBoardExtras(Callback):
    """Writes config and settings at the start, histograms and samples at each validation, embeddings at the end."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        """`checkpoints` know the lowest dev loss so far and the run's folder."""
        self.checkpoints = checkpoints
        self.ended = False  # whether the end of the run is written
        self.model: LanguageModel | None = None  # follows the network while that is trained

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What does not change during training."""
        if not trainer.is_global_zero:
            return
        writer, data, module = _parts(trainer, pl_module)
        self.model = LanguageModel(
            data.corpus.vocab,
            data.hparams["context_size"],
            log_probs=lambda contexts: module.network.log_probs(contexts.to(module.device)).cpu(),
            facts=data.facts,
        )
        writer.add_custom_scalars({"loss": {"train and dev": ["Multiline", ["train/loss", "dev/loss"]]}})
        config = (self.checkpoints.run_dir / CONFIG).read_text(encoding="utf-8")
        writer.add_text("config", _verbatim(config.splitlines()), trainer.global_step)
        if trainer.global_step == 0:  # a second time, they would be another run's
            settings = {f"data.{name}": value for name, value in data.hparams.items()}
            settings |= {f"model.{name}": value for name, value in module.hparams.items()}
            settings["trainer.max_steps"] = total_steps(trainer)
            settings = {name: value for name, value in settings.items() if value is not None}
            # Lightning's own way, and SummaryWriter's, would begin the curves of the metrics with a made-up point.
            experiment, session, _ = hparams(settings, dict.fromkeys(["dev/loss", LOWEST]))  # type: ignore[no-untyped-call]
            _write_summaries(writer, [experiment, session], 0)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What changes during training; Lightning has put the network into evaluation mode."""
        if not in_training(trainer) or not trainer.is_global_zero:
            return
        step, dev_loss = trainer.global_step, trainer.callback_metrics["dev/loss"].item()
        if not math.isfinite(dev_loss):  # `Checkpoints` ends the run; TensorBoard has no histogram of NaN
            return
        writer, data, module = _parts(trainer, pl_module)
        with _one_thread():
            if trainer.should_stop:  # before the last checkpoint: no run that is killed after it lacks its end
                self.ended = True
                _write_end(writer, min(dev_loss, self.checkpoints.best_dev_loss), step)
            for name, weights in module.network.named_parameters():
                writer.add_histogram(f"weights/{name}", _thinned(weights), step)
            contexts, _ = data.windows("dev")[:NUM_WINDOWS]
            for i, h in enumerate(module.network.activations(contexts.to(module.device))):
                writer.add_histogram(f"activations/hidden.{i}", _thinned(h), step)
                writer.add_scalar(f"saturated/hidden.{i}", (h.abs() > SATURATED).float().mean(), step)
            assert self.model is not None
            samples = self.model.sample(1 if self.model.is_of_text else NUM_SAMPLES, Sampling(seed=0))
            lines = _verbatim([line for s in samples for line in starred(str(s), s.seen_in).split("\n")])
            writer.add_text("samples", f"{self.model.summary(samples)} (* = in the training set)\n\n{lines}", step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is drawn only once, at the end."""
        if not trainer.is_global_zero:
            return
        from mlp_lm.figures import networks  # here: most of a run does without
        from mlp_lm.models.views import embedding_table

        step = trainer.global_step
        writer, data, module = _parts(trainer, pl_module)
        if not self.ended:
            _write_end(writer, self.checkpoints.best_dev_loss, step)
        table, labels = embedding_table(module.network, data.corpus.vocab)
        writer.add_figure("embedding map", networks.draw_embeddings(table, labels), step, close=False)
        writer.add_embedding(table, labels, tag="embedding", global_step=step)


def _write_end(writer: SummaryWriter, lowest_dev_loss: float, step: int) -> None:
    """What the HParams tab shows of a run that has ended; of one that has not, it shows only the latest dev loss."""
    *_, end = hparams({}, {})  # type: ignore[no-untyped-call]
    _write_summaries(writer, [end], step)
    writer.add_scalar(LOWEST, lowest_dev_loss, step)


def _write_summaries(writer: SummaryWriter, summaries: list[Any], step: int) -> None:
    file_writer: Any = writer.file_writer  # public, but declared as None
    for summary in summaries:
        file_writer.add_summary(summary, step)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small operations, which wait longer for a second thread than it saves: thirty times as long to draw samples."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _parts(trainer: Trainer, pl_module: LightningModule) -> tuple[SummaryWriter, TextDataModule, MLPModule]:
    """TensorBoard's writer, the data and the module, under their own types."""
    data: TextDataModule = trainer.datamodule  # type: ignore[attr-defined]  # public, but not declared
    return cast(SummaryWriter, cast(TensorBoardLogger, trainer.logger).experiment), data, cast(MLPModule, pl_module)


def _thinned(values: Tensor) -> Tensor:
    """At most `MAX_VALUES` of all values, evenly chosen, and within a histogram's bins, which end at 1e20."""
    return values.flatten()[:: -(-values.numel() // MAX_VALUES)].clamp(-1e19, 1e19)


def _verbatim(lines: list[str]) -> str:
    """Lines that Markdown leaves as they are."""
    return "\n".join(f"    {line}" for line in lines)
