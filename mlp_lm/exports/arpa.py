"""The ARPA back-off format of count models, which kenlm, SRILM and speech recognisers read.

A line has log10 p(w | h), the k-gram hw and, below the last level, log10 of the backoff of hw as a context.
Interpolated weights are folded in: p(w | h) is the number of hw where that is listed, and else p(w | h without its
first token) times the backoff of h, which is 1 if h is not listed.

The boundary is `<s>` where it begins a k-gram and `</s>` where it ends one, and the logarithm of 0 is -99. Unigrams are
in the order of their ids, `</s>` first, after those that are never predicted: `<s>`, and `<unk>` if the vocabulary has
none.

Spaces separate tokens. So white space in a token is written as its code point, `<U+0020>`, and so is the `<` of a token
that would otherwise be read as such an escape, or as a special word: the token `<s>` is `<U+003C>s>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mlp_lm.exports.info import ExportInfo
from mlp_lm.files import write_lines
from mlp_lm.models.language_model import LanguageModel
from mlp_lm.models.ngram import Floats, Ints, NGramModel
from mlp_lm.text.vocab import BOUNDARY, UNKNOWN, Vocab

BEGIN, END = "<s>", "</s>"
LOG_OF_ZERO = -99.0
BLOCK = 1 << 16  # k-grams that are written at a time, which bounds the memory needed
# A NUL is white space to kenlm, and <UNK> is <unk>.
ESCAPED = re.compile(r"[\s\0]|<(?=U\+)|^<(?=(?:/?s|unk)>\Z)", re.IGNORECASE)


def write(model: LanguageModel, info: ExportInfo, path: Path) -> list[str]:
    """Write the file. Returns lines for the user. The file has no place for `info`."""
    assert model.counts is not None  # export() passes only count models
    write_lines(path, _lines(model.counts, model.vocab))
    return [
        f"next: kenlm.Model({str(path)!r}).score(text) in Python, where spaces separate tokens, characters too, and a "
        "space itself is <U+0020>; kenlm reads orders from 2 to 6"
    ]


def words_of(vocab: Vocab) -> list[str]:
    """The words of the file for the tokens of `vocab`, by id; for the boundary, the word that ends an item."""
    return [END, *map(escape, vocab.tokens[1:])]


def escape(token: str) -> str:
    """The word of a token."""
    return token if token == UNKNOWN else ESCAPED.sub(lambda found: f"<U+{ord(found[0]):04X}>", token)


def _lines(counts: NGramModel, vocab: Vocab) -> Iterator[str]:
    """The lines of the file."""
    size, words = len(vocab), [*words_of(vocab), BEGIN, UNKNOWN]
    added = [size] if UNKNOWN in vocab else [size + 1, size]
    yield f"\\data\\\nngram 1={size + len(added)}\n"
    for k, level in enumerate(counts.levels[1:], start=2):
        yield f"ngram {k}={len(level.keys)}\n"
    for k, (grams, probs, backoff) in enumerate(_sections(counts, added), start=1):
        yield f"\n\\{k}-grams:\n"
        for first in range(0, len(grams), BLOCK):
            block = slice(first, first + BLOCK)
            texts = [" ".join(map(words.__getitem__, gram)) for gram in grams[block].tolist()]
            ends = [f"\t{number:.7g}" for number in backoff[block].tolist()] or [""] * len(texts)
            for prob, text, end in zip(probs[block].tolist(), texts, ends, strict=True):
                yield f"{prob:.7g}\t{text}{end}\n"
    yield "\n\\end\\\n"


def _sections(counts: NGramModel, added: list[int]) -> Iterator[tuple[Ints, Floats, Floats]]:
    """For each level, the words (G, k) of its k-grams, and log10 of their probabilities (G,) and backoffs (G,).

    `added`: unigrams that are never predicted, `<s>` last. The last level has no backoffs, (0,).
    """
    *_, begin = added
    for k, (grams, probs) in enumerate(counts.grams(), start=1):
        log_probs = _log10(probs)
        backoff = _log10(counts.levels[k].backoff) if k < counts.order else np.zeros(0)
        if k == 1:
            grams = np.concatenate([np.array(added)[:, None], grams])
            log_probs = np.concatenate([np.full(len(added), LOG_OF_ZERO), log_probs])
            if len(backoff):  # <unk> if it is added, <s>, </s>, all others
                backoff = np.concatenate([np.zeros(len(added) - 1), backoff[:1], [0.0], backoff[1:]])
        else:
            firsts = np.where(grams[:, 0] == BOUNDARY, begin, grams[:, 0])
            grams = np.column_stack([firsts, grams[:, 1:]])
        yield grams, log_probs, backoff


def _log10(probs: Floats) -> Floats:
    """Logarithms as they are written; at most 0, as rounding can make a probability larger than 1."""
    logs = np.log10(probs, out=np.full(len(probs), LOG_OF_ZERO), where=probs > 0)
    return np.minimum(logs, 0.0)
