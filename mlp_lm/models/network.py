"""The network of Bengio et al. (2003, section 2) without its direct connections from the input to the output.

Shapes: B batch, T context, E embedding, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

ARCHITECTURE = ("embedding_dim", "hidden_dim", "num_layers")  # with V and T, they fix the shapes of all weights


class Dropout(nn.Module):
    """Inverted dropout (Srivastava et al. 2014): zero each activation with `rate`, scale the others up.

    On the CPU torch draws one number after the other, which takes it 5.8 ms for 1,024 times 640 units, where drawing
    64 bits for four units takes 0.3 ms; 16 bits are enough, at a rate rounded to 1/65536.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """`x` of any shape; unchanged outside training."""
        if not self.training or self.rate == 0:
            return x
        if x.device.type != "cpu":
            return nn.functional.dropout(x, self.rate)
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        draws = draws.view(torch.int16)[: x.numel()].view(x.shape)  # uniform over -32768 … 32767
        dropped = min(round(self.rate * 65536), 65535)  # of 65536 equally probable draws
        return x * ((draws >= dropped - 32768).to(x.dtype) * (65536 / (65536 - dropped)))


class MLP(nn.Module):
    """Embedding table (V, E), `num_layers` tanh layers of H units, output layer: contexts to logits.

    The first layer sees the T embeddings of the context side by side (T·E numbers), so that a position in the
    context has weights of its own.
    """

    def __init__(
        self,
        vocab_size: int,
        context_size: int,
        embedding_dim: int,
        hidden_dim: int,
        num_layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        """`dropout`: the share of tanh units that each training step leaves out."""
        super().__init__()
        self.embedding_dim, self.hidden_dim, self.num_layers = embedding_dim, hidden_dim, num_layers
        self.embedding = nn.Embedding(vocab_size, embedding_dim)  # (V, E)
        fan_in = [context_size * embedding_dim] + [hidden_dim] * (num_layers - 1)
        self.hidden = nn.ModuleList(nn.Linear(n, hidden_dim) for n in fan_in)  # (H, T·E), then (H, H)
        self.output = nn.Linear(hidden_dim, vocab_size)  # (V, H)
        self.dropout = Dropout(dropout)
        self.init_weights()

    @classmethod
    def from_weights(
        cls,
        weights: Mapping[str, Tensor],
        vocab_size: int,
        context_size: int,
        embedding_dim: int,
        hidden_dim: int,
        num_layers: int = 1,
    ) -> MLP:
        """The network that has these `weights`, ready to predict. Raises RuntimeError if they do not fit."""
        with torch.device("meta"):  # shapes without numbers
            network = cls(vocab_size, context_size, embedding_dim, hidden_dim, num_layers)
        network.load_state_dict(weights, strict=True, assign=True)
        return network.eval()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start with unit-variance pre-activations and a nearly uniform prediction.

        The lecture's first version starts at a loss of 27, with a sharply peaked random prediction and most tanh
        units at ±1, where no gradient passes. Here every pre-activation starts with variance 1, which leaves
        4 % of the units beyond |tanh| 0.97: the table has variance 1, so the first layer's weights are divided by
        √fan-in; tanh of a standard normal has a standard deviation of 0.628, so later layers' weights make up for
        it (a gain of 1.59, the customary 5/3 within 5 %). Output weights a tenth of that size start the logits
        near 0, and the loss at ln V: the first steps need not squash a random prediction.
        """
        nn.init.normal_(self.embedding.weight)
        for i, layer in enumerate(self.hidden):
            assert isinstance(layer, nn.Linear)
            gain = 1.0 if i == 0 else 1 / 0.628
            nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.output.weight, std=0.1 / math.sqrt(self.output.in_features))
        nn.init.zeros_(self.output.bias)

    def forward(self, contexts: Tensor) -> Tensor:
        """Logits (B, V) of the token that follows each of the `contexts` (B, T), int64."""
        h = self.embedding(contexts).flatten(1)  # (B, T) -> (B, T, E) -> (B, T·E), a view
        for layer in self.hidden:
            h = self.dropout(torch.tanh(layer(h)))  # (B, H)
        logits: Tensor = self.output(h)  # (B, V)
        return logits

    def log_probs(self, contexts: Tensor) -> Tensor:
        """Log-probabilities (B, V) of the token that follows each of the `contexts` (B, T), int64."""
        return self.forward(contexts).log_softmax(-1)

    def activations(self, contexts: Tensor) -> list[Tensor]:
        """The outputs of each tanh layer, (B, H) each, for the `contexts` (B, T), int64; without dropout."""
        h = self.embedding(contexts).flatten(1)  # (B, T) -> (B, T, E) -> (B, T·E), a view
        outputs = []
        for layer in self.hidden:
            h = torch.tanh(layer(h))  # (B, H)
            outputs.append(h)
        return outputs

    def count_weights(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters())
