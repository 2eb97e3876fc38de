"""What an export says of a model beside the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlp_lm.models.language_model import LanguageModel
from mlp_lm.models.metrics import evaluate
from mlp_lm.text.corpus import Corpus
from mlp_lm.text.windows import Windows, eval_batch_size


@dataclass(frozen=True)
class Details:
    """Beside a model.

    Args:
        name: Of its run or its file.
        losses: nats/token by split, as reported by its run.
        corpus: What it was trained on; None if that is not there, or has changed.
        beside: A count model of the same corpus to show beside a network.
    """

    name: str
    losses: Mapping[str, float] = field(default_factory=dict)
    corpus: Corpus | None = None
    beside: LanguageModel | None = None


def dev_loss(model: LanguageModel, corpus: Corpus) -> float:
    """The loss on dev, nats/token."""
    windows = Windows(corpus.dev, model.context_size)
    return evaluate(
        model.nats, windows.batches(eval_batch_size(max(len(model.vocab), model.context_size)))
    ).nats_per_token
