"""The network of Bengio et al. (2003, section 2), on request with its direct connections from the input to the output.

Shapes: B batch, T context, E embedding, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mlp_lm.models.cross_entropy import linear_cross_entropy

# With V, T and the weights, they fix the function that a network computes.
ARCHITECTURE = ("embedding_dim", "hidden_dim", "num_layers", "residual", "direct", "tied")
# Tokens from which on a vocabulary counts as large: on the CPU, the loss is then computed in parts, which is the faster
# way from about this size on. Initialisation and AdamW's β₂ are those that suit many rare tokens, measured at 16,383.
LARGE_VOCAB = 1024
SATURATED = 0.97  # the |h| beyond which less than 6 % of a gradient passes: tanh' = 1 - h²


class Dropout(nn.Module):
    """Inverted dropout (Srivastava et al. 2014): zero each activation with `rate`, scale the others up.

    On the CPU torch draws one number after the other, which takes it 5.8 ms for 1,024 times 640 units, where drawing
    64 bits for four units takes 0.3 ms; 16 bits are enough, at a rate rounded to 1/65536.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.generator: torch.Generator | None = None  # None: torch's default one of the device

    def forward(self, x: Tensor) -> Tensor:
        """`x` of any shape; unchanged outside training."""
        if not self.training or self.rate == 0:
            return x
        if x.device.type != "cpu":
            return x * torch.empty_like(x).bernoulli_(1 - self.rate, generator=self.generator).div_(1 - self.rate)
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None, generator=self.generator)
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
        residual: bool = False,
        direct: bool = False,
        tied: bool = False,
        dropout: float = 0.0,
        embedding_dropout: float = 0.0,
    ) -> None:
        """The network with random weights.

        Args:
            vocab_size: V.
            context_size: T.
            embedding_dim: E.
            hidden_dim: H; 0 leaves the tanh layers out.
            num_layers: Number of tanh layers.
            residual: Whether each tanh layer but the first adds its output to the sum of those before it (He et al.
                2016).
            direct: Whether the output layer sees the embeddings, too: the direct connections of Bengio et al.
            tied: Whether the embedding table is the weight of the output layer, too, after a projection from H to E
                (Inan et al. 2017, Press and Wolf 2017).
            dropout: The share of what a tanh layer passes on that each training step leaves out.
            embedding_dropout: The share of the numbers in embeddings that each training step leaves out.
        """
        super().__init__()
        self.embedding_dim, self.hidden_dim, self.num_layers = embedding_dim, hidden_dim, num_layers
        self.residual, self.direct, self.tied = residual, direct, tied
        self.large_vocab = vocab_size >= LARGE_VOCAB
        input_dim = context_size * embedding_dim
        self.embedding = nn.Embedding(vocab_size, embedding_dim)  # (V, E)
        fan_in = [input_dim] + [hidden_dim] * (num_layers - 1) if hidden_dim else []
        self.hidden = nn.ModuleList(nn.Linear(n, hidden_dim) for n in fan_in)  # (H, T·E), then (H, H)
        self.projection = nn.Linear(hidden_dim, embedding_dim, bias=False) if tied else None  # (E, H)
        output_dim = embedding_dim if tied else hidden_dim + direct * input_dim
        self.output = nn.Linear(output_dim, vocab_size)  # (V, E), or (V, H + T·E)
        self._tie()
        self.dropout, self.embedding_dropout = Dropout(dropout), Dropout(embedding_dropout)
        self.init_weights()

    def _tie(self) -> None:
        if self.tied:
            self.output.weight = self.embedding.weight

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], vocab_size: int, context_size: int, **sizes: Any) -> MLP:
        """The network that has these `weights`, ready to predict; `sizes`: those in `ARCHITECTURE`.

        Raises RuntimeError if the weights do not fit.
        """
        with torch.device("meta"):  # shapes without numbers
            network = cls(vocab_size, context_size, **sizes)
        if network.tied:
            weights = {**weights, "output.weight": weights["embedding.weight"]}
        network.load_state_dict(weights, strict=True, assign=True)
        network._tie()
        return network.eval()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start with unit-variance pre-activations and a nearly uniform prediction.

        The lecture's first version starts at a loss of 27, with a sharply peaked random prediction and most tanh
        units at ±1, where no gradient passes. Here every pre-activation starts with variance 1, which leaves
        4 % of the units beyond |tanh| 0.97: the table has variance 1, so the first layer's weights are divided by
        √fan-in; tanh of a standard normal has a standard deviation of 0.628, so later layers' weights make up for
        it (a gain of 1.59, the customary 5/3 within 5 %). A residual layer starts at half of that, with little to add.
        Output weights a tenth of that size start the logits near 0, and the loss at ln V: the first steps need not
        squash a random prediction.

        The table of a large vocabulary, or one that is the output weight too, starts with a standard deviation of 0.1,
        and so do the pre-activations of the first layer: a rare token's embedding moves in few steps of one size, so
        that a large random one would stay random. MLP9 of configs/bengio.yaml reached a dev perplexity of 333 after
        one epoch of Brown; with a standard deviation of 1 it was 402, and 347 where a first layer ten times larger
        made up for the smaller table.
        """
        table_std = 0.1 if self.large_vocab or self.tied else 1.0
        nn.init.normal_(self.embedding.weight, std=table_std)
        for i, layer in enumerate(self.hidden):
            assert isinstance(layer, nn.Linear)
            gain = 1 if i == 0 else (0.5 if self.residual else 1) / 0.628
            nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)
        if self.projection is not None:
            # With units and a table of 0.1, logits near 0.01.
            nn.init.normal_(self.projection.weight, std=1 / math.sqrt(self.hidden_dim * self.embedding_dim))
        else:
            nn.init.normal_(self.output.weight, std=0.1 / math.sqrt(self.output.in_features))
        nn.init.zeros_(self.output.bias)

    def seed_dropout(self, seed: int) -> None:
        """Make what dropout drops from here on a function of `seed`, not of torch's default generator."""
        device = self.embedding.weight.device
        generator = self.dropout.generator
        if generator is None or generator.device != device:
            generator = self.dropout.generator = self.embedding_dropout.generator = torch.Generator(device)
        generator.manual_seed(seed)

    def _features(self, contexts: Tensor) -> Tensor:
        """What the output layer sees of `contexts` (B, T): (B, H), with T·E embeddings, or projected to (B, E)."""
        e = self.embedding_dropout(self.embedding(contexts).flatten(1))  # (B, T) -> (B, T, E) -> (B, T·E), a view
        x = h = e
        for i, layer in enumerate(self.hidden):
            z = torch.tanh(layer(x))  # (B, H)
            h = h + z if self.residual and i > 0 else z
            x = self.dropout(h)  # what the next layer sees; with `residual`, it adds to h
        if self.projection is not None:
            x = self.projection(x)  # (B, H) -> (B, E)
        return torch.cat([x, e], 1) if self.direct and len(self.hidden) else x

    def forward(self, contexts: Tensor) -> Tensor:
        """Logits (B, V) of the token that follows each of the `contexts` (B, T), int64."""
        logits: Tensor = self.output(self._features(contexts))  # (B, V)
        return logits

    def loss(self, contexts: Tensor, targets: Tensor) -> Tensor:
        """The mean loss (), nats/token, of `targets` after `contexts` (B, T), int64.

        Targets are ids (B,), int64; or, of a small vocabulary, a teacher's probabilities (B, V).
        """
        if not self.large_vocab or contexts.device.type != "cpu":  # faster with all logits at once
            return nn.functional.cross_entropy(self.forward(contexts), targets)
        return linear_cross_entropy(self._features(contexts), self.output.weight, self.output.bias, targets)

    def log_probs(self, contexts: Tensor) -> Tensor:
        """Log-probabilities (B, V) of the token that follows each of the `contexts` (B, T), int64."""
        return self.forward(contexts).log_softmax(-1)

    def activations(self, contexts: Tensor) -> list[Tensor]:
        """The outputs of each tanh layer, (B, H) each, for the `contexts` (B, T), int64; without dropout."""
        h = self.embedding(contexts).flatten(1)  # (B, T) -> (B, T, E) -> (B, T·E), a view
        outputs: list[Tensor] = []
        for layer in self.hidden:
            z = torch.tanh(layer(h))  # (B, H)
            h = h + z if self.residual and outputs else z
            outputs.append(z)
        return outputs

    def count_weights(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters())
