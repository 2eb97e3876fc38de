"""Advice for a text that may want another layout or other tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlp_lm.text.corpus import Corpus
from mlp_lm.text.vocab import UNKNOWN

PROSE_ADVICE = (
    "looks like running text, but each line is an item by itself; for text that runs on over line ends, set layout to "
    "text, and tokens to words for words instead of characters"
)
NO_SPACES_ADVICE = "in a script without spaces between words; tokens: characters suits it better than words"
# Thai, Lao, Burmese and Khmer; Japanese and Chinese.
NO_SPACES = "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]"


def advice(corpus: Corpus) -> str | None:
    """A line for a user who may want another layout or other tokens."""
    settings, start = corpus.settings, corpus.train[:100_000]
    if settings.tokens == "words":
        words = "".join(token for token in corpus.vocab.tokens[:10_000] if token != UNKNOWN)
        return NO_SPACES_ADVICE if len(re.findall(NO_SPACES, words)) > len(words) / 2 else None
    prose = settings.layout == "items" and looks_like_prose(settings.tokenizer.decode(start, corpus.vocab))
    return PROSE_ADVICE if prose else None


def looks_like_prose(items: Sequence[str]) -> bool:
    """Whether more than half of the first thousand items are long, have four words and a mark that ends a clause."""
    first = items[:1000]
    lines = [item for item in first if len(item) >= 25 and item.count(" ") >= 3 and re.search("[.,;:!?](?= |$)", item)]
    return len(lines) > len(first) / 2
