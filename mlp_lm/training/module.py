"""The LightningModule around the network. B batch, K steps per execution, T context, V vocabulary."""

from __future__ import annotations

import random
import sys
import warnings
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from mlp_lm.errors import TrainingError
from mlp_lm.models.checkpoint import FORMAT_VERSION, KEY
from mlp_lm.models.cuda_graph import GraphedSteps
from mlp_lm.models.fused import FusedSGD
from mlp_lm.models.metrics import NLL, token_nll
from mlp_lm.models.network import MLP
from mlp_lm.settings import check_section
from mlp_lm.text.windows import Batch, Chunk
from mlp_lm.training.nll_metric import NLLMetric
from mlp_lm.training.optim import build_optimizer, check_state, learning_rate_at, set_learning_rate
from mlp_lm.training.trainer import Trainer


class MLPModule(LightningModule):
    """Trains an MLP language model: K optimizer steps on each chunk (K, B, T)."""

    def __init__(
        self,
        vocab_size: int,
        context_size: int,
        embedding_dim: int = 32,
        hidden_dim: int = 512,
        num_layers: int = 1,
        dropout: float = 0.25,
        optimizer: Literal["sgd", "adamw"] = "adamw",
        learning_rate: float = 6e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.1,
        decay_all: bool = False,
        lr_schedule: Literal["constant", "step", "cosine"] = "cosine",
        lr_warmup_steps: int = 200,
        lr_decay_steps: int | None = None,
        lr_drop_at: float = 0.5,
        lr_end_factor: float = 0.0,
        fused: bool = True,
        cuda_graph: bool | Literal["auto"] = "auto",
    ) -> None:
        """The network and how it is trained.

        Args:
            vocab_size: V, tokens including the boundary; comes from the data.
            context_size: T, previous tokens that the network sees; comes from the data.
            embedding_dim: E, width of the embedding table.
            hidden_dim: H, width of a tanh layer.
            num_layers: How many tanh layers.
            dropout: Share of the tanh units that each step leaves out.
            optimizer: sgd as in the lecture, or adamw.
            learning_rate: The highest learning rate.
            momentum: Momentum of sgd.
            weight_decay: Weight decay of the weight matrices; under adamw decoupled from the gradient.
            decay_all: Let weight decay shrink biases and the embedding table too.
            lr_schedule: constant; step: multiplied by lr_end_factor once, at lr_drop_at of the horizon; cosine: falls
                to lr_end_factor of learning_rate at the horizon.
            lr_warmup_steps: Steps over which the learning rate grows from 0; at most a tenth of the horizon.
            lr_decay_steps: Horizon of the schedule in steps; null means trainer.max_steps.
            lr_drop_at: Where schedule step drops, as a share of the horizon.
            lr_end_factor: What is left of learning_rate after the drop or at the end of the cosine.
            fused: Take the fused step where it applies: one process, one layer, no dropout, sgd without momentum.
            cuda_graph: Replay the fused steps of a chunk as one CUDA graph; auto: on CUDA where the learning rate does
                not change at every step; true: the same, with a warning where that is not so.

        Raises:
            SettingsError: A setting is out of its range.
        """
        # Every argument by name: what the checkpoint keeps.
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        check_section("model", settings)
        super().__init__()
        self.settings = settings
        self.network = MLP(vocab_size, context_size, embedding_dim, hidden_dim, num_layers, dropout)
        self.dev_nll, self.test_nll = NLLMetric(), NLLMetric()
        self.automatic_optimization = False  # K steps a call: we run backward and the optimizer ourselves
        self._seed = torch.initial_seed()  # of dropout
        self._fused: FusedSGD | GraphedSteps | None = None  # chosen when a fit starts
        self._losses: list[Tensor] = []  # of the steps since the last log point, (K,) for each call

    # -- training ------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Optimizer:
        """See `optim.build_optimizer`. The learning rate is set before every step."""
        names = ("optimizer", "learning_rate", "momentum", "weight_decay", "decay_all")
        return build_optimizer(self.network, **{name: self.settings[name] for name in names})

    def on_fit_start(self) -> None:
        """Store the horizon of the schedule, so that a resumed run keeps it; choose the fused step where it applies."""
        s = self.settings
        if s["lr_decay_steps"] is None:
            s["lr_decay_steps"] = self.trainer.max_steps
        classic = s["optimizer"] == "sgd" and s["momentum"] == s["dropout"] == 0 and s["num_layers"] == 1
        alone = self.trainer.world_size == 1 and self.trainer.precision in ("32-true", "64-true")
        watched = cast(Trainer, self.trainer).detect_anomaly  # which needs autograd
        if s["fused"] and classic and alone and not watched:
            self._fused = FusedSGD(self.network, s["weight_decay"], s["decay_all"])
            if self.device.type == "cuda" and s["cuda_graph"] and s["lr_schedule"] != "cosine":
                self._fused = GraphedSteps(self._fused.run)
            note = "fused SGD step: gradients by hand, no autograd; --model.fused false turns it off"
            print(note, file=sys.stderr)
        if s["cuda_graph"] is True and not isinstance(self._fused, GraphedSteps):
            why = "it takes CUDA, the fused step and a learning rate that does not change at every step"
            warnings.warn(f"model.cuda_graph: not used; {why}", stacklevel=2)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        s = self.settings
        return learning_rate_at(
            step,
            learning_rate=s["learning_rate"],
            lr_schedule=s["lr_schedule"],
            lr_warmup_steps=min(s["lr_warmup_steps"], s["lr_decay_steps"] // 10),
            lr_decay_steps=s["lr_decay_steps"],
            lr_drop_at=s["lr_drop_at"],
            lr_end_factor=s["lr_end_factor"],
        )

    def training_step(self, chunk: Chunk) -> None:
        """K optimizer steps: contexts (K, B, T), targets (K, B); of W processes, each has its B/W rows."""
        contexts, targets = chunk
        steps = range(self.global_step, self.global_step + len(targets))
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        rates = [self.learning_rate(step) for step in steps]
        if self._fused is not None:
            losses = self._fused.run(contexts, targets, rates)
            set_learning_rate(optimizer, rates[-1])  # as if it had taken the steps
        else:
            each = zip(contexts, targets, rates, steps, strict=True)
            losses = torch.stack([self._step(optimizer, *kth) for kth in each])
        self._losses.append(losses)
        self._count_steps(len(steps))
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # not declared
            self._log_training()

    def _step(self, optimizer: Optimizer, contexts: Tensor, targets: Tensor, rate: float, step: int) -> Tensor:
        """One step through autograd: contexts (B, T), targets (B,). Returns the mean loss before it."""
        set_learning_rate(optimizer, rate)
        if self.settings["dropout"]:
            # A function of (seed, step, process), so that a resumed run drops the same units.
            torch.manual_seed(random.Random(f"{self._seed}/{step}/{self.global_rank}").getrandbits(32))
        loss = F.cross_entropy(self.network(contexts), targets)  # (B, T) -> (B, V) -> ()
        optimizer.zero_grad()
        self.manual_backward(loss)  # several processes average their gradients
        optimizer.step()
        return loss.detach()

    def _count_steps(self, num_steps: int) -> None:
        """Tell Lightning how many optimizer steps were taken.

        `trainer.global_step`, and with it `max_steps` and checkpoints, reads this private counter. Lightning's
        own wrapper of the optimizer counts too, at a cost of its own for every step.
        """
        self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.increment_by(num_steps)

    def on_validation_start(self) -> None:
        """A validation ends a stretch of the training curve."""
        if self._losses:
            self._log_training()

    def _log_training(self) -> None:
        """Log the mean loss over the steps since the last log point, and the learning rate.

        Raises TrainingError if one of the losses is NaN or infinite.
        """
        losses = torch.cat(self._losses)  # on the device until here: reading one would wait for it
        self._losses.clear()
        if self.trainer.world_size > 1:
            losses = cast(Tensor, self.trainer.strategy.reduce(losses))
        losses = losses.double().cpu()
        if not losses.isfinite().all():
            step = self.global_step - len(losses) + int(losses.isfinite().logical_not().nonzero()[0])
            raise TrainingError(
                f"train loss is {losses[step - self.global_step]} at step {step + 1:,}, where the learning rate is "
                f"{self.learning_rate(step):g}; try a lower model.learning_rate. The checkpoints are as they were"
            )
        self._log({"train/loss": losses.mean().item(), "lr": self.learning_rate(self.global_step - 1)})

    def _log(self, values: dict[str, float]) -> None:
        if self.logger is not None:  # not self.log, whose x axis counts calls of training_step
            self.logger.log_metrics(values, step=self.global_step)

    # -- evaluation ----------------------------------------------------------------------------------------------

    def _nats(self, batch: Batch) -> Tensor:
        contexts, targets = batch
        return token_nll(self.network.log_probs(contexts), targets)  # (B, T) -> (B, V) -> (B,)

    def validation_step(self, batch: Batch) -> None:
        """Contexts (B, T), targets (B,)."""
        self.dev_nll.update(self._nats(batch))

    def test_step(self, batch: Batch) -> None:
        """Contexts (B, T), targets (B,)."""
        self.test_nll.update(self._nats(batch))

    def predict_step(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of each target (B,), most probable ids (B,) and their probabilities (B,) for a batch of windows."""
        log_probs = self.network.log_probs(batch[0])
        best_log_probs, best = log_probs.max(-1)
        return token_nll(log_probs, batch[1]), best, best_log_probs.exp()

    def on_validation_epoch_end(self) -> None:
        """Log and forget what dev's batches added up to."""
        self._log_split("dev", self.dev_nll)

    def on_test_epoch_end(self) -> None:
        """Log and forget what test's batches added up to."""
        self._log_split("test", self.test_nll)

    def _log_split(self, split: str, metric: NLLMetric) -> None:
        nats, tokens = metric.compute()
        nll = NLL(nats.item(), int(tokens))
        metric.reset()
        values = {
            f"{split}/loss": nll.nats_per_token,
            f"{split}/perplexity": nll.perplexity,
            f"{split}/bits_per_token": nll.bits_per_token,
        }
        self.log_dict(values, logger=False)  # where checkpoints and callbacks look
        self._log(values)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes a checkpoint enough by itself; the datamodule's state holds the rest."""
        checkpoint[KEY] = {
            "format_version": FORMAT_VERSION,
            "model": dict(self.settings),
            "trainer": cast(Trainer, self.trainer).settings,
            "seed": self._seed,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the seed of dropout, which Lightning does not restore.

        Raises ValueError where the optimizer's state is none, or the counter of `_count_steps` is at another step.
        """
        # Lightning turns the network into float64 after it has loaded the weights, which would round them.
        self.network.to(checkpoint["state_dict"]["network.output.bias"].dtype)
        if self.trainer.state.fn != "fit":
            return
        check_state(self.configure_optimizers(), checkpoint["optimizer_states"], checkpoint["global_step"])
        counter = checkpoint["loops"]["fit_loop"]["epoch_loop.manual_optimization.optim_step_progress"]
        if counter["total"]["completed"] != checkpoint["global_step"]:
            raise ValueError(f"{counter['total']['completed']} steps counted, but {checkpoint['global_step']} taken")
        self._seed = checkpoint[KEY]["seed"]
