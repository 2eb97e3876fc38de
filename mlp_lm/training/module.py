"""The LightningModule around the network. B batch, K steps per execution, T context, V vocabulary, W processes."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from tqdm import tqdm

from mlp_lm.errors import SettingsError, TrainingError
from mlp_lm.models.checkpoint import FORMAT_VERSION, KEY
from mlp_lm.models.fused import FusedSGD
from mlp_lm.models.metrics import NLL, token_nll
from mlp_lm.models.network import MLP
from mlp_lm.settings import COUNT, Range, check, check_section
from mlp_lm.text.windows import Batch, Chunk
from mlp_lm.training.optim import build_optimizer, learning_rate_at, set_learning_rate


def mean_loss() -> MeanMetric:
    """The exact mean over the tokens of all batches and processes: float64, and NaN if one of them is."""
    metric = MeanMetric(nan_strategy="disable")
    metric.set_dtype(torch.float64)
    return metric


class MLPModule(LightningModule):
    """Trains an MLP language model: K optimizer steps on each chunk (K, B, T)."""

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
        handwritten_step: bool = True,
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
            lr_decay_steps: Horizon of the schedule in steps; null means trainer.max_steps, also when that is raised to
                train on.
            lr_drop_at: Where schedule step drops, as a share of the horizon.
            lr_end_factor: What is left of learning_rate after the drop or at the end of the cosine.
            handwritten_step: Take the step with gradients written by hand where it applies: one process, one layer, no
                dropout, neither direct nor tied, sgd without momentum, no teacher. Otherwise steps go through autograd.

        Raises:
            SettingsError: A setting is out of its range.
        """
        super().__init__()
        self.save_hyperparameters()
        check_section("model", self.hparams, MLPModule)
        shape = (embedding_dim, hidden_dim, num_layers, residual, direct, tied)
        self.network = MLP(vocab_size, context_size, *shape, dropout, embedding_dropout)
        self.dev_loss, self.test_loss = mean_loss(), mean_loss()
        self.automatic_optimization = False  # K steps a call: we run backward and the optimizer ourselves
        self.rates: Sequence[float] | None = None  # of all steps, where a range test takes the schedule's place
        # Chosen when a fit starts; the step that has the rate is counted from 0.
        self.learning_rate_at: Callable[[int], float] | None = None
        self._fused: FusedSGD | None = None
        self._dropout_seed = torch.initial_seed() % 2**32
        self._losses: list[Tensor] = []  # of the steps since the last log point, (K,) for each call

    def forward(self, contexts: Tensor) -> Tensor:
        """Logits (B, V) for contexts (B, T)."""
        logits: Tensor = self.network(contexts)
        return logits

    # -- training ------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Optimizer:
        """See `optim.build_optimizer`. The learning rate is set before every step."""
        names = ("optimizer", "learning_rate", "momentum", "weight_decay", "decay_all")
        return build_optimizer(self.network, **{name: self.hparams[name] for name in names})

    def on_fit_start(self) -> None:
        """Choose the schedule."""
        s = self.hparams
        check({"trainer.max_steps": self.trainer.max_steps, **{f"model.{name}": s[name] for name in s}}, {})
        horizon = s["lr_decay_steps"] or self.trainer.max_steps
        if horizon < 1:
            raise SettingsError("model.lr_decay_steps: missing; a trainer without max_steps leaves no horizon")
        names = ("learning_rate", "lr_schedule", "lr_drop_at", "lr_end_factor")
        schedule = {name: s[name] for name in names}
        schedule |= {"lr_decay_steps": horizon, "lr_warmup_steps": min(s["lr_warmup_steps"], horizon // 10)}
        self.learning_rate_at = partial(learning_rate_at, **schedule) if self.rates is None else self.rates.__getitem__
        self._losses.clear()  # an earlier fit may have ended between two log points

    def on_train_start(self) -> None:
        """Choose the kind of step."""
        self._fused = None
        s = self.hparams
        extras = ("momentum", "dropout", "embedding_dropout", "direct", "tied")
        classic = s["optimizer"] == "sgd" and s["num_layers"] == 1 and not any(s[name] for name in extras)
        alone = self.trainer.world_size == 1 and self.trainer.precision in ("32-true", "64-true")
        # A teacher's targets are probabilities. A plain Lightning Trainer may have no datamodule, or another one.
        taught = getattr(getattr(self.trainer, "datamodule", None), "teacher", None) is not None
        if s["handwritten_step"] and classic and alone and not taught and not torch.is_anomaly_enabled():
            self._fused = FusedSGD(self.network, s["weight_decay"], s["decay_all"])
            note = "SGD steps with gradients written by hand, no autograd; --model.handwritten_step false turns it off"
            tqdm.write(note, file=sys.stderr)  # above a bar

    def training_step(self, chunk: Chunk) -> None:
        """K optimizer steps: contexts (K, B, T), targets (K, B); of W processes, each has its B/W rows."""
        contexts, targets = chunk
        steps = range(self.global_step, self.global_step + len(targets))
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer) and self.learning_rate_at is not None
        rates = [self.learning_rate_at(step) for step in steps]
        if self._fused is not None:
            losses = self._fused.run(contexts, targets, rates)
            set_learning_rate(optimizer, rates[-1])  # as if it had taken the steps
        else:
            each = zip(contexts, targets, rates, steps, strict=True)
            losses = torch.stack([self._step(optimizer, *kth) for kth in each])
        self._losses.append(losses)
        # `trainer.global_step`, and with it `max_steps` and checkpoints, reads this private counter of Lightning's. Its
        # own wrapper of the optimizer counts too, at a cost of its own for every step.
        self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.increment_by(len(steps))
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # not declared
            self._log_training()

    def _step(self, optimizer: Optimizer, contexts: Tensor, targets: Tensor, rate: float, step: int) -> Tensor:
        """One step through autograd: contexts (B, T), targets (B,) or (B, V). Returns the mean loss before it."""
        set_learning_rate(optimizer, rate)
        if self.hparams["dropout"] or self.hparams["embedding_dropout"]:
            # A function of (seed, step, process), so that a resumed run drops the same units. The generator of this
            # device alone: torch.manual_seed visits those of all kinds, which takes longer than a small step.
            device = contexts.device
            generator = torch.default_generator if device.type == "cpu" else torch.get_device_module(device)
            generator.manual_seed(random.Random(f"{self._dropout_seed}/{step}/{self.global_rank}").getrandbits(32))
        loss = self.network.loss(contexts, targets)
        optimizer.zero_grad()
        self.manual_backward(loss)  # several processes average their gradients
        optimizer.step()
        return loss.detach()

    def on_validation_start(self) -> None:
        """A validation is a log point."""
        if self._losses:
            self._log_training()

    def _log_training(self) -> None:
        """Log the mean loss over the steps since the last log point, and the learning rate.

        Raises TrainingError if one of the losses is NaN or infinite.
        """
        assert self.learning_rate_at is not None
        losses = torch.cat(self._losses)  # on the device until here: reading one would wait for it
        self._losses.clear()
        if self.trainer.world_size > 1:
            losses = cast(Tensor, self.trainer.strategy.reduce(losses))
        losses = losses.double().cpu()
        if not losses.isfinite().all():
            step = self.global_step - len(losses) + int(losses.isfinite().logical_not().nonzero()[0])
            raise TrainingError(
                f"train loss is {losses[step - self.global_step]} at step {step + 1:,}, where the learning rate is "
                f"{self.learning_rate_at(step):g}; try a lower model.learning_rate. The checkpoints are unchanged"
            )
        self.trainer.callback_metrics["train/loss"] = losses.mean()
        self._log({"train/loss": losses.mean().item(), "lr": self.learning_rate_at(self.global_step - 1)})

    def _log(self, values: dict[str, float]) -> None:
        if self.trainer.sanity_checking:  # a plain Lightning Trainer's, on two batches
            return
        for logger in self.loggers:  # not self.log, whose x axis counts calls of training_step
            logger.log_metrics(values, step=self.global_step)

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
        # Where checkpoints and callbacks look; as tensors, since Lightning would round floats to float32.
        self.log_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}, logger=False)
        self._log(values)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what tells a checkpoint of ours from others; Lightning adds `hyper_parameters`."""
        # A plain Lightning Trainer has no settings of ours.
        checkpoint[KEY] = {
            "format_version": FORMAT_VERSION[".ckpt"],
            "trainer": getattr(self.trainer, "run_settings", {}),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning turns the network into float64 after it has loaded the weights, which would round them."""
        self.network.to(checkpoint["state_dict"]["network.output.bias"].dtype)
