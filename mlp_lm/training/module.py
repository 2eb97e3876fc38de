"""The LightningModule around the network. B batch, T context, V vocabulary, W processes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from mlp_lm.errors import SettingsError, TrainingError
from mlp_lm.models.checkpoint import FORMAT_VERSION, KEY
from mlp_lm.models.metrics import NLL, token_nll
from mlp_lm.models.network import MLP
from mlp_lm.settings import COUNT, Range, check_section, refuse
from mlp_lm.text.windows import Batch
from mlp_lm.training.optim import build_optimizer, is_log_point, learning_rate_at, set_learning_rate, total_steps


def conflicts(model: Mapping[str, Any]) -> Iterator[str]:
    """Describe settings of the model that are each in range but do not go together."""
    if model["momentum"] and model["optimizer"] != "sgd":
        yield f"model.momentum: applies only to model.optimizer sgd (got {model['momentum']!r})"
    if model["residual"] and model["num_layers"] == 1:
        yield "model.residual: applies only to model.num_layers above 1"
    if model["tied"] and model["direct"]:
        yield "model.direct: does not go with model.tied, whose output layer sees E numbers; choose one"
    if model["hidden_dim"] == 0 and not model["direct"]:
        yield "model.hidden_dim: found 0, which needs --model.direct true"
    if model["hidden_dim"] == 0 and model["num_layers"] > 1:
        yield f"model.num_layers: found {model['num_layers']}, but model.hidden_dim 0 leaves no tanh layer"


def mean_loss() -> MeanMetric:
    """The exact mean over the tokens of all batches and processes: float64, and NaN if one of them is."""
    metric = MeanMetric(nan_strategy="disable")
    metric.set_dtype(torch.float64)
    return metric


class MLPModule(LightningModule):
    """Trains an MLP language model on windows, one optimizer step a batch."""

    def __init__(
        self,
        vocab_size: Annotated[int, Range(2)],
        context_size: Annotated[int, Range(1, 1024)],
        embedding_dim: Annotated[int, Range(1, 65_536)] = 32,
        hidden_dim: Annotated[int, Range(0, 65_536)] = 512,
        num_layers: Annotated[int, Range(1, 1000)] = 1,
        residual: bool = False,
        direct: bool = False,
        tied: bool = False,
        dropout: Annotated[float, Range(0, 1, below=True)] = 0.25,
        embedding_dropout: Annotated[float, Range(0, 1, below=True)] = 0.0,
        optimizer: Literal["sgd", "adamw"] = "adamw",
        learning_rate: Annotated[float, Range(0, 1e35, above=True)] = 6e-3,
        momentum: Annotated[float, Range(0, 1, below=True)] = 0.0,
        weight_decay: Annotated[float, Range(0, 1000)] = 0.1,
        decay_all: bool = False,
        lr_schedule: Literal["constant", "step", "cosine"] = "cosine",
        lr_warmup_steps: Annotated[int, Range(0)] = 200,
        lr_decay_steps: Annotated[int, COUNT] | None = None,
        lr_drop_at: Annotated[float, Range(0, 1)] = 0.5,
        lr_end_factor: Annotated[float, Range(0, 1)] = 0.0,
    ) -> None:
        """The network and how it is trained.

        Args:
            vocab_size: V, tokens including the boundary; comes from the data.
            context_size: T, previous tokens that the network sees; comes from the data.
            embedding_dim: E, width of the embedding table.
            hidden_dim: H, width of a tanh layer; 0, with direct, leaves the tanh layers out.
            num_layers: Number of tanh layers.
            residual: Let each tanh layer but the first add its output to the sum of those before it.
            direct: Let the output layer see the embeddings too, by the direct connections of Bengio et al. (2003).
            tied: Use the embedding table as the weight of the output layer too, after a projection from H to E.
            dropout: Fraction of what a tanh layer passes on that is dropped at each step.
            embedding_dropout: Fraction of the embeddings' numbers dropped at each step.
            optimizer: sgd as in the lecture, or adamw (β₂ 0.99; 0.999 from 1,024 tokens on).
            learning_rate: The highest learning rate.
            momentum: Momentum of sgd.
            weight_decay: Weight decay of the weight matrices; under adamw decoupled from the gradient.
            decay_all: Let weight decay shrink biases and the embedding table too.
            lr_schedule: constant; step: multiplied by lr_end_factor once, at lr_drop_at of the horizon; cosine: falls
                to lr_end_factor of learning_rate at the horizon.
            lr_warmup_steps: Steps over which the learning rate grows from 0; at most a tenth of the horizon.
            lr_decay_steps: Horizon of the schedule in steps; null means the length of the run, also when that is raised
                to train on.
            lr_drop_at: Where schedule step drops, as a share of the horizon.
            lr_end_factor: What is left of learning_rate after the drop or at the end of the cosine.

        Raises:
            SettingsError: A setting is out of its range.
        """
        super().__init__()
        self.save_hyperparameters()
        check_section("model", self.hparams, MLPModule)
        refuse(conflicts(self.hparams))
        shape = (embedding_dim, hidden_dim, num_layers, residual, direct, tied)
        self.network = MLP(vocab_size, context_size, *shape, dropout, embedding_dropout)
        self.dev_loss, self.test_loss = mean_loss(), mean_loss()
        # The learning rate of a step, counted from 0; chosen when training starts. A range test overrides it.
        self.learning_rate_at: Callable[[int], float] = lambda step: learning_rate
        self.lr_override: Callable[[int], float] | None = None
        self._dropout_seed = torch.initial_seed() % 2**32
        self._losses: list[Tensor] = []  # since the last log point
        self._rate = math.nan  # learning rate of the last step

    def forward(self, contexts: Tensor) -> Tensor:
        """Logits (B, V) for contexts (B, T)."""
        logits: Tensor = self.network(contexts)
        return logits

    # -- training ------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """See `optim.build_optimizer`; the learning rate changes at every step."""
        names = ("optimizer", "momentum", "weight_decay", "decay_all")
        # With 16-bit products, Lightning refuses to clip where the optimizer can unscale gradients, as fused ones can.
        fused = not (self.trainer.gradient_clip_val and self.trainer.precision.endswith("mixed"))
        optimizer = build_optimizer(self.network, **{name: self.hparams[name] for name in names}, fused=fused)
        scheduler = LambdaLR(optimizer, lambda step: self.learning_rate_at(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Choose the schedule, now that the length of the run is known."""
        self._losses.clear()  # an earlier fit may have ended between two log points
        s = self.hparams
        horizon = s["lr_decay_steps"] or total_steps(self.trainer)
        if horizon is None and s["lr_schedule"] != "constant":
            raise SettingsError("model.lr_decay_steps: missing; neither max_steps nor max_epochs sets a horizon")
        names = ("learning_rate", "lr_schedule", "lr_drop_at", "lr_end_factor")
        schedule: Callable[[int], float] = partial(
            learning_rate_at,
            lr_decay_steps=horizon or 1,  # of which a constant schedule makes no use
            lr_warmup_steps=min(s["lr_warmup_steps"], horizon // 10) if horizon else s["lr_warmup_steps"],
            **{name: s[name] for name in names},
        )
        self.learning_rate_at = self.lr_override or schedule
        # The state of optimizer or scheduler may be that of a run with other settings, which was resumed.
        set_learning_rate(self.trainer.optimizers[0], self.learning_rate_at(self.global_step))

    def training_step(self, batch: Batch) -> Tensor:
        """The mean loss () of a batch: contexts (B/W, T) and targets (B/W,), or a teacher's probabilities (B/W, V)."""
        if self.hparams["dropout"] or self.hparams["embedding_dropout"]:
            # A function of (seed, step, process), so that a resumed run drops the same units. With accumulation, a step
            # has several batches: their number counts, which is that of the step otherwise.
            number = self.trainer.fit_loop.total_batch_idx
            seed = f"{self._dropout_seed}/{number}/{self.global_rank}"
            self.network.seed_dropout(random.Random(seed).getrandbits(32))
        loss = self.network.loss(*batch)
        self._losses.append(loss.detach())
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Note the learning rate, and log at every multiple of `log_every_n_steps`."""
        self._rate = optimizer.param_groups[0]["lr"]
        step = self.global_step + 1  # the one that the optimizer is about to take
        if is_log_point(self.trainer, step):
            self._log_training(step)

    def on_validation_start(self) -> None:
        """Log what is left: every validation is a log point too, so that a checkpoint need not keep losses."""
        if self._losses:
            self._log_training(self.global_step)

    def _log_training(self, step: int) -> None:
        """Log the mean loss since the last log point, and the learning rate of the last step.

        Raises TrainingError if one of the losses is NaN or infinite.
        """
        losses = torch.hstack(self._losses)  # on the device until here: reading one would wait for it
        self._losses.clear()
        if self.trainer.world_size > 1:
            losses = cast(Tensor, self.trainer.strategy.reduce(losses))
        losses = losses.double().cpu()
        if not losses.isfinite().all():
            first = int(losses.isfinite().logical_not().nonzero()[0])
            at = step - (len(losses) - 1 - first) // self.trainer.accumulate_grad_batches
            raise TrainingError(
                f"train loss is {losses[first]} at step {at:,}, where the learning rate is "
                f"{self.learning_rate_at(at - 1):g}; try a lower model.learning_rate. The checkpoints are unchanged"
            )
        # For callbacks and bars; `sync_dist` changes nothing, and keeps Lightning from advising it.
        self.log("train/loss", losses.mean(), logger=False, prog_bar=True, sync_dist=True)
        self._write({"train/loss": losses.mean().item(), "lr": self._rate}, step)

    def _write(self, values: dict[str, float], step: int) -> None:
        """Write values to the loggers, at the number of steps taken.

        Not by `self.log`: with Lightning, the first step is 0, and the values of a step are written only after the
        checkpoints of that step, so that a run that was killed in between would lack them.
        """
        if not self.trainer.sanity_checking:
            for logger in self.loggers:
                logger.log_metrics(values, step=step)

    # -- evaluation ----------------------------------------------------------------------------------------------

    def _nats(self, batch: Batch) -> Tensor:
        contexts, targets = batch
        return token_nll(self.network.log_probs(contexts), targets)  # (B, T) -> (B, V) -> (B,)

    def validation_step(self, batch: Batch) -> None:
        """Contexts (B, T), targets (B,)."""
        self.dev_loss.update(self._nats(batch))

    def test_step(self, batch: Batch) -> None:
        """Contexts (B, T), targets (B,)."""
        self.test_loss.update(self._nats(batch))

    def predict_step(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of each target (B,), most probable ids (B,) and their probabilities (B,) for a batch of windows."""
        log_probs = self.network.log_probs(batch[0])
        best_log_probs, best = log_probs.max(-1)
        return token_nll(log_probs, batch[1]), best, best_log_probs.exp()

    def on_validation_epoch_end(self) -> None:
        """Log the dev loss and reset the metric."""
        self._log_split("dev", self.dev_loss)

    def on_test_epoch_end(self) -> None:
        """Log the test loss and reset the metric."""
        self._log_split("test", self.test_loss)

    def _log_split(self, split: str, metric: MeanMetric) -> None:
        nll = NLL(metric.compute().item(), tokens=1)
        metric.reset()
        values = {
            f"{split}/loss": nll.nats_per_token,
            f"{split}/perplexity": nll.perplexity,
            f"{split}/bits_per_token": nll.bits_per_token,
        }
        fitting = self.trainer.state.fn == "fit"
        for name, value in values.items():
            # As tensors, since Lightning would round floats to float32. All processes have the same value already.
            exact = torch.tensor(value, dtype=torch.float64, device=self.device)
            self.log(name, exact, logger=not fitting, prog_bar=name.endswith("/loss"), sync_dist=True)
        if fitting:
            self._write(values, self.global_step)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what tells a checkpoint of ours from others; Lightning adds `hyper_parameters`."""
        checkpoint.setdefault(KEY, {})["format_version"] = FORMAT_VERSION

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning turns the network into float64 after it has loaded the weights, which would round them."""
        self.network.to(checkpoint["state_dict"]["network.output.bias"].dtype)
