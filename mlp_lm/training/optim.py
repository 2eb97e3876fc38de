"""Plain scalars to an optimizer, and the learning rate as a function of the step."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from mlp_lm.models.network import MLP


def build_optimizer(
    network: MLP, *, optimizer: str, momentum: float, weight_decay: float, decay_all: bool, fused: bool = True
) -> Optimizer:
    """SGD or AdamW over the weights of `network`, with 1 as the learning rate that a schedule of factors multiplies.

    Weight decay shrinks only the weight matrices, unless `decay_all`: a bias or an embedding is not made
    simpler by being smaller, and a rare token's embedding would fade between its appearances.
    """
    tables = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    decayed = [p for p in network.parameters() if decay_all or (p.ndim >= 2 and id(p) not in tables)]
    others = [p for p in network.parameters() if not decay_all and (p.ndim < 2 or id(p) in tables)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if optimizer == "sgd":
        return SGD(groups, lr=1.0, momentum=momentum, fused=fused)
    # A run of a few thousand steps is over before an average over 1,000 of them has settled. But a word of a large
    # vocabulary is the target once in thousands of tokens, and an average over 100 steps forgets in between how large
    # its gradients are: with V = 16,383, dev perplexity on Brown after one epoch was 424 with 0.99, 347 with 0.999.
    return AdamW(groups, lr=1.0, betas=(0.9, 0.999 if network.large_vocab else 0.99), fused=fused)


def learning_rate_at(
    step: int,
    *,
    learning_rate: float,
    lr_schedule: str,
    lr_warmup_steps: int,
    lr_decay_steps: int,
    lr_drop_at: float,
    lr_end_factor: float,
) -> float:
    """The learning rate of a step, counted from 0.

    The arguments are those of `MLPModule`. `step` is the lecture's schedule, `cosine` that of Loshchilov and Hutter
    (2017) without restarts; after the horizon, `lr_decay_steps`, the rate stays as it is.
    """
    rate = learning_rate * min(1.0, (step + 1) / (lr_warmup_steps + 1))
    if lr_schedule == "step" and step >= round(lr_drop_at * lr_decay_steps):
        return rate * lr_end_factor
    if lr_schedule == "cosine":
        progress = min(step / lr_decay_steps, 1.0)
        return rate * (lr_end_factor + (1 - lr_end_factor) * 0.5 * (1 + math.cos(math.pi * progress)))
    return rate


def total_steps(trainer: Trainer) -> int | None:
    """Optimizer steps of a whole run, by max_steps or max_epochs, whichever ends first; None if neither is set.

    Known once training starts. Lightning's `estimated_stepping_batches` makes a resumed loader lose its position.
    """
    limits = [trainer.max_steps] if trainer.max_steps > 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        limits.append(trainer.max_epochs * math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
    return min(limits, default=None)


def is_log_point(trainer: Trainer, step: int) -> bool:
    """Whether a point of the training curve is due after `step` steps; an interval of 0 means never."""
    interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # public, but not declared
    return interval > 0 and step % interval == 0


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give all parameter groups the learning rate `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate
