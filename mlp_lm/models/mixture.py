"""Mixtures of language models that share a vocabulary: the weighted mean of their probabilities, as in Bengio et al.
(2003, section 4), and the unigram cache of Kuhn and De Mori (1990).

Shapes: P parts, N windows, B batch, T context, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mlp_lm.models.language_model import CorpusFacts, LanguageModel
from mlp_lm.text.vocab import BOUNDARY, Vocab
from mlp_lm.text.windows import Windows, eval_batch_size

PRECISION = 1e-7  # nats/token by which no other weights can be better: log x ≤ x - 1 for the largest of the gains
MAX_ROUNDS = 100_000


@dataclass(frozen=True)
class Cache:
    """How often a token occurs among the T last ones of a running text: it adapts to what it reads."""

    vocab_size: int

    def nats(self, contexts: Tensor, targets: Tensor) -> Tensor:
        """Negative log-probabilities (B,), float64, infinite for tokens that are not among the last."""
        found = (contexts == targets.unsqueeze(1)) & (contexts != BOUNDARY)  # (B, T)
        return -(found.sum(1).double() / (contexts != BOUNDARY).sum(1).clamp(min=1)).log()

    def log_probs(self, contexts: Tensor) -> Tensor:
        """Log-probabilities (B, V), float64."""
        counts = torch.zeros(len(contexts), self.vocab_size, dtype=torch.float64)
        counts.scatter_add_(1, contexts, (contexts != BOUNDARY).double())
        return (counts / counts.sum(1, keepdim=True).clamp(min=1)).log()


@dataclass(frozen=True)
class Mixture:
    """Σ weight · part, of probabilities; each part sees as many of the last tokens as it needs."""

    parts: Sequence[LanguageModel]
    weights: Sequence[float]  # of each part, together 1

    @property
    def context_size(self) -> int:
        """T, that of the part which looks back furthest."""
        return max(part.context_size for part in self.parts)

    def log_probs(self, contexts: Tensor) -> Tensor:
        """Log-probabilities (B, V), float64, of the token after each of the `contexts` (B, T)."""
        return self._mix([part.log_probs(contexts[:, -part.context_size :]) for part in self.parts])

    def nats(self, contexts: Tensor, targets: Tensor) -> Tensor:
        """Negative log-probabilities (B,), float64, of `targets` (B,) after `contexts` (B, T)."""
        return -self._mix([-part.nats(contexts[:, -part.context_size :], targets) for part in self.parts])

    def _mix(self, log_probs: Sequence[Tensor]) -> Tensor:
        each = (w * log_p.double().exp() for w, log_p in zip(self.weights, log_probs, strict=True))
        return torch.stack([*each]).sum(0).log()


@torch.inference_mode()
def target_probs(model: LanguageModel, windows: Windows) -> Tensor:
    """The probabilities (N,), float64, that a model gives to the targets of all windows."""
    batches = windows.batches(eval_batch_size(max(len(model.vocab), model.context_size)))
    return (-torch.cat([model.nats(contexts, targets).double() for contexts, targets in batches])).exp()


def best_weights(probs: Tensor) -> Tensor:
    """The weights (P,) with which a mixture gives the targets the highest likelihood, by expectation-maximisation.

    Args:
        probs: The probabilities (P, N) that each part gives to the targets. Their likelihood is concave in the weights,
            so that there is one maximum.
    """
    weights = torch.full((len(probs),), 1 / len(probs), dtype=torch.float64)
    probs = probs[:, probs.sum(0) > 0]  # what all parts take for impossible says nothing about the weights
    for _ in range(MAX_ROUNDS if probs.numel() else 0):
        gains = (probs / (weights @ probs)).mean(1)  # (P,), by which EM multiplies the weights
        if gains.max() < 1 + PRECISION:
            break
        weights = weights * gains
    return weights


def mix(parts: Sequence[LanguageModel], weights: Sequence[float]) -> LanguageModel:
    """The language model that is a mixture of `parts`, which share a vocabulary."""
    mixture, first = Mixture(parts, weights), parts[0]
    network = next((part.network for part in parts if part.network is not None), None)
    return LanguageModel(
        first.vocab,
        mixture.context_size,
        mixture.log_probs,
        first.facts,
        mixture.nats,
        network,
        kind="mixture",
        mixed=[*zip(weights, parts, strict=True)],
    )


def cache_model(size: int, vocab: Vocab, facts: CorpusFacts) -> LanguageModel:
    """The language model of a cache of the last `size` tokens."""
    cache = Cache(len(vocab))
    return LanguageModel(vocab, size, cache.log_probs, facts, cache.nats, kind="cache")
