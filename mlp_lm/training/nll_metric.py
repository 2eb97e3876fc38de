"""Exact losses over several processes. B batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class NLLMetric(Metric):
    """`NLL` over batches and processes: a float64 sum and an integer count, added up over all ranks."""

    nats: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nats: Tensor) -> None:
        """Add the negative log-likelihoods `nats` (B,) of B tokens."""
        self.nats += nats.sum(dtype=torch.float64)
        self.tokens += nats.numel()

    def compute(self) -> tuple[Tensor, Tensor]:
        """The sum and the count over everything since the last reset, on all ranks."""
        return self.nats, self.tokens
