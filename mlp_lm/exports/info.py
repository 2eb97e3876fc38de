"""What an export tells about a model besides the model itself."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlp_lm.errors import MlpLmError
from mlp_lm.models.checkpoint import check_same_corpus
from mlp_lm.models.language_model import LanguageModel
from mlp_lm.models.metrics import evaluate
from mlp_lm.text.corpus import Corpus, CorpusSettings, load_corpus
from mlp_lm.text.windows import Windows, eval_batch_size


@dataclass(frozen=True)
class ExportInfo:
    """What an export tells about a model besides the model itself.

    Args:
        name: The name of its run or its file.
        source: The file that the model was loaded from.
        losses: nats/token by split, as the report of its run has them.
        counts: A count model of the same corpus, shown next to a network.
    """

    name: str
    source: Path = Path()
    losses: Mapping[str, float] = field(default_factory=dict)
    counts: LanguageModel | None = None


def corpus_name(model: LanguageModel) -> str:
    """The name of the text that a model was trained on, without its folder on this machine."""
    return Path(CorpusSettings.of(model.facts.settings).paths[0]).name


def find_corpus(model: LanguageModel, info: ExportInfo) -> Corpus | None:
    """The corpus that a model was trained on; None, with a line on stderr, if it is missing or has changed."""
    try:
        corpus = load_corpus(CorpusSettings.of(model.facts.settings))
        check_same_corpus(info.source, model, corpus)
    except MlpLmError as error:
        print(f"without figures of its corpus: {error}", file=sys.stderr)
        return None
    return corpus


def dev_loss(model: LanguageModel, corpus: Corpus) -> float:
    """The loss on dev, nats/token."""
    batch_size = eval_batch_size(max(len(model.vocab), model.context_size))
    return evaluate(model.nats, Windows(corpus.dev, model.context_size).batches(batch_size)).nats_per_token
