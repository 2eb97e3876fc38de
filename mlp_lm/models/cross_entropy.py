"""Output layer and cross-entropy in one function that never stores all logits. B batch, D inputs, V vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = 256  # of the batch at a time, whose logits stay in the cache of a processor


def linear_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy () of the logits x Wᵀ + b.

    Args:
        x: Inputs (B, D).
        weight: W (V, D).
        bias: b (V,).
        targets: Ids (B,), int64.
    """
    loss: Tensor = _LinearCrossEntropy.apply(x, weight, bias, targets)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """The forward pass of some rows is followed by their backward pass, while their logits are at hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        w = weight.to(dtype)  # of the products; sums stay in the type of the weights
        d_x, d_weight, d_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
        loss = bias.new_zeros(())
        for first in range(0, len(x), ROWS):
            part = slice(first, first + ROWS)
            rows, y = x[part].to(dtype), targets[part].unsqueeze(1)
            logits = torch.mm(rows, w.t()).to(bias.dtype).add_(bias)  # (ROWS, D) -> (ROWS, V)
            log_sum = logits.logsumexp(1, keepdim=True)
            loss += (log_sum - logits.gather(1, y)).sum()
            d_logits = logits.sub_(log_sum).exp_()  # softmax - onehot
            d_logits.scatter_add_(1, y, d_logits.new_full((len(y), 1), -1.0))
            d_bias += d_logits.sum(0)
            d_logits = d_logits.to(dtype)
            d_x[part] = torch.mm(d_logits, w)
            if dtype == weight.dtype:
                d_weight.addmm_(d_logits.t(), rows)
            else:
                d_weight += torch.mm(d_logits.t(), rows)
        ctx.save_for_backward(d_x, d_weight, d_bias)
        ctx.num_rows = len(x)
        return loss / len(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale = grads[0] / ctx.num_rows
        return *(gradient * scale for gradient in ctx.saved_tensors), None
