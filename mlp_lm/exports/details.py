"""What an export says of a model beside the model itself."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from mlp_lm.errors import MlpLmError
from mlp_lm.models.checkpoint import check_same_corpus
from mlp_lm.models.language_model import LanguageModel
from mlp_lm.models.metrics import evaluate
from mlp_lm.text.corpus import Corpus, CorpusSettings, load_corpus
from mlp_lm.text.windows import Windows, eval_batch_size


@dataclass(frozen=True)
class Details:
    """Beside a model.

    Args:
        name: Of its run or its file.
        source: Its file, and the model in it; None for a page without a model.
        losses: nats/token by split, as its run has reported them.
        beside: A count model of the same corpus to show beside a network.
    """

    name: str
    source: tuple[Path, LanguageModel] | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    beside: LanguageModel | None = None

    @property
    def corpus_name(self) -> str:
        """The name of the text, without its place on this machine."""
        assert self.source is not None
        settings = CorpusSettings.of(self.source[1].facts.settings)
        return Path(settings.paths[0]).name

    @cached_property
    def corpus(self) -> Corpus | None:
        """What the model was trained on; None, and a line to stderr, if it is not there or has changed."""
        if self.source is None:
            return None
        path, model = self.source
        try:
            corpus = load_corpus(CorpusSettings.of(model.facts.settings))
            check_same_corpus(path, model, corpus)
        except MlpLmError as error:
            print(f"without figures of its corpus: {error}", file=sys.stderr)
            return None
        return corpus


def dev_loss(model: LanguageModel, corpus: Corpus) -> float:
    """The loss on dev, nats/token."""
    batch_size = eval_batch_size(max(len(model.vocab), model.context_size))
    return evaluate(model.nats, Windows(corpus.dev, model.context_size).batches(batch_size)).nats_per_token
