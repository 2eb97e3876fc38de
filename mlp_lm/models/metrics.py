"""Losses as sums and counts. A mean of batch means depends on the batch size; (sum, count) does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NLL:
    """Negative log-likelihood of some tokens, natural logarithm, the boundary counted as a token.

    Both numbers stay exact beyond 2^24 tokens, where a float32 sum stops growing.
    """

    nats: float  # sum over the tokens, float64
    tokens: int

    @property
    def nats_per_token(self) -> float:
        """The loss: mean negative log-likelihood; NaN without tokens."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def bits_per_token(self) -> float:
        """The loss with the logarithm to base 2."""
        return self.nats_per_token / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp(loss): as uncertain as a fair choice among so many tokens. Infinite where exp overflows."""
        return math.inf if self.nats_per_token > 709 else math.exp(self.nats_per_token)

    def __str__(self) -> str:
        return (
            f"{self.nats_per_token:.4f} nats/token, perplexity {self.perplexity:.3f}, "
            f"{self.bits_per_token:.4f} bits/token"
        )

    def as_dict(self) -> dict[str, float]:
        """The figures by name."""
        names = ("nats_per_token", "perplexity", "bits_per_token", "tokens")
        return {name: getattr(self, name) for name in names}


def token_nll(log_probs: Tensor, targets: Tensor) -> Tensor:
    """The negative log-probability of each target: (…, V) and (…) to (…), in nats."""
    return -log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


@torch.inference_mode()
def evaluate(nats: Callable[[Tensor, Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> NLL:
    """NLL of a function contexts (B, T) and targets (B,) to nats (B,) over batches of (contexts, targets)."""
    total, tokens = 0.0, 0
    for contexts, targets in batches:
        total += nats(contexts, targets).sum(dtype=torch.float64).item()
        tokens += targets.numel()
    return NLL(total, tokens)
