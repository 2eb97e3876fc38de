"""The SGD step of the classic network as sixteen tensor operations: gradients by hand, updates in place.

One tanh layer, no dropout, plain SGD. Shapes as in `network`: B batch, T context, E embedding, H hidden, V vocabulary;
C (V, E) is the table, W1 (H, T·E), b1 (H), W2 (V, H), b2 (V) are the layers as nn.Linear keeps them. Forward:

    e = C[x] side by side      (B, T·E)
    h = tanh(e W1ᵀ + b1)       (B, H)
    l = h W2ᵀ + b2             (B, V)
    loss = mean over the batch of -log softmax(l)[y]

Backward, with B times the loss so that 1/B joins the learning rate (a hat marks the derivative of the loss by it):

    l̂ = softmax(l) - onehot(y)                    (B, V)    the output error
    Ŵ2 = l̂ᵀ h,  b̂2 = column sums of l̂             (V, H), (V)
    ĥ = l̂ W2                                      (B, H)
    ẑ = ĥ (1 - h²)                                (B, H)    tanh' = 1 - tanh²
    Ŵ1 = ẑᵀ e,  b̂1 = column sums of ẑ             (H, T·E), (H)
    ê = ẑ W1                                      (B, T·E)
    Ĉ = each row of ê added to the row of C that it came from

SGD with learning rate η and weight decay λ is W ← (1 - ηλ) W - (η/B) Ŵ, which for an outer product is one `addmm_`
with beta = 1 - ηλ and alpha = -η/B; no gradient is ever stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mlp_lm.models.network import MLP


class FusedSGD:
    """Plain SGD steps on an `MLP` with one tanh layer and no dropout, without an autograd graph."""

    def __init__(self, network: MLP, weight_decay: float = 0.0, decay_all: bool = False) -> None:
        """`weight_decay` shrinks W1 and W2, and the table and the biases too where `decay_all` is set."""
        assert len(network.hidden) == 1 and network.dropout.rate == 0
        self.network = network
        self.weight_decay = weight_decay
        self.other_decay = weight_decay if decay_all else 0.0

    @torch.inference_mode()
    def run(self, contexts: Tensor, targets: Tensor, learning_rates: Sequence[float]) -> Tensor:
        """K steps, in place.

        Args:
            contexts: Context ids (K, B, T), int64.
            targets: Target ids (K, B), int64.
            learning_rates: Of each of the K steps.

        Returns:
            The mean loss (K,) of each batch before its step.
        """
        layer, output = self.network.hidden[0], self.network.output
        assert isinstance(layer, nn.Linear)
        table, w1, b1, w2, b2 = (
            p.detach() for p in (self.network.embedding.weight, layer.weight, layer.bias, output.weight, output.bias)
        )
        w1_t, w2_t = w1.t(), w2.t()  # views: they follow the updates
        num_steps, batch_size, _ = contexts.shape
        ones = table.new_ones(batch_size)
        minus_ones = -ones.unsqueeze(1)  # (B, 1)
        minus_one = table.new_full((), -1.0)
        ids = contexts.reshape(num_steps, -1).unbind()  # K times (B·T)
        log_probs = []
        for x, y, rate in zip(ids, targets.unsqueeze(-1).unbind(), learning_rates, strict=True):
            alpha, keep, keep_other = -rate / batch_size, 1 - rate * self.weight_decay, 1 - rate * self.other_decay
            e = table.index_select(0, x).view(batch_size, -1)  # (B·T) -> (B·T, E) -> (B, T·E)
            # tanh z = 2 σ(2z) - 1: on the CPU, torch's sigmoid takes a sixth of the time of its tanh.
            h = torch.addmm(b1, e, w1_t, beta=2, alpha=2).sigmoid_()  # (B, H)
            torch.add(minus_one, h, alpha=2, out=h)
            log_p = torch.addmm(b2, h, w2_t).log_softmax(1)  # (B, V)
            log_probs.append(log_p)
            d_logits = log_p.exp().scatter_add_(1, y, minus_ones)  # (B, V)
            d_z = torch.ops.aten.tanh_backward(torch.mm(d_logits, w2), h)  # (B, H)
            d_e = torch.mm(d_z, w1)  # (B, T·E)
            # From here on weights change; nothing above may be moved below.
            w2.addmm_(d_logits.t(), h, beta=keep, alpha=alpha)
            b2.addmv_(d_logits.t(), ones, beta=keep_other, alpha=alpha)
            w1.addmm_(d_z.t(), e, beta=keep, alpha=alpha)
            b1.addmv_(d_z.t(), ones, beta=keep_other, alpha=alpha)
            if keep_other != 1:
                table.mul_(keep_other)
            table.index_add_(0, x, d_e.view(len(x), -1), alpha=alpha)
        nats = -torch.stack(log_probs).gather(-1, targets.unsqueeze(-1)).squeeze(-1)  # (K, B, V) -> (K, B)
        return torch.stack([row.mean() for row in nats.unbind()])  # row by row: the order of a sum must not depend on K
