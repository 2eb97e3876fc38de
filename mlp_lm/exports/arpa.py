"""The ARPA back-off format of count models, which kenlm, SRILM and speech recognisers read.

A line has log10 p(w | h), the k-gram hw and, below the last level, log10 of the backoff of hw as a context.
Interpolated weights are folded in: p(w | h) is the number of hw where that is listed, and else p(w | h without its
first token) times the backoff of h, which is 1 if h is not listed.

The boundary is `<s>` where it begins a k-gram and `</s>` where it ends one, and the logarithm of 0 is -99. Unigrams
stand in the order of their ids, `</s>` first. Before it stands what is no target: `<s>`, and `<unk>` if the vocabulary
has none.

Blanks separate tokens. So white space in a token is written as its code point, `<U+0020>`, and so is the `<` of a token
that would be read as such an escape, or as a special word that it is not: the token `<s>` is `<U+003C>s>`.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mlp_lm.exports.details import Details
from mlp_lm.models.language_model import CorpusFacts, LanguageModel
from mlp_lm.models.ngram import Floats, Ints, NGramModel
from mlp_lm.text.vocab import BOUNDARY, UNKNOWN, Vocab

TOLERANCE = 1e-4  # between log-probabilities: seven digits are written
BEGIN, END = "<s>", "</s>"
LOG_OF_ZERO = -99.0
BLOCK = 1 << 16  # k-grams that are written at a time, which bounds the memory needed
# A NUL is white space to kenlm, and <UNK> is <unk>.
ESCAPED = re.compile(r"[\s\0]|<(?=U\+)|^<(?=(?:/?s|unk)>\Z)", re.IGNORECASE)


def write(path: Path, model: LanguageModel, details: Details) -> None:
    """Write the file `path`; `details` have no place in it."""
    assert model.counts is not None  # of which kind alone `export` passes models on
    levels, size = model.counts.levels, len(model.vocab)
    words = [*words_of(model.vocab), BEGIN, UNKNOWN]
    added = [size] if UNKNOWN in model.vocab else [size + 1, size]
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(f"\\data\\\nngram 1={size + len(added)}\n")
        file.writelines(f"ngram {k}={len(level.keys)}\n" for k, level in enumerate(levels[1:], start=2))
        for k, (grams, probs, backoff) in enumerate(_sections(model.counts, added), start=1):
            file.write(f"\n\\{k}-grams:\n")
            for first in range(0, len(grams), BLOCK):
                block = slice(first, first + BLOCK)
                texts = [" ".join(map(words.__getitem__, gram)) for gram in grams[block].tolist()]
                ends = [f"\t{number:.7g}" for number in backoff[block].tolist()] or [""] * len(texts)
                file.writelines(
                    f"{prob:.7g}\t{text}{end}\n"
                    for prob, text, end in zip(probs[block].tolist(), texts, ends, strict=True)
                )
        file.write("\n\\end\\\n")


def read(path: Path) -> LanguageModel:
    """The language model of the file, which is read anew at each call of its `log_probs`."""
    words, gram = [], ""
    for _, gram, *_ in _lines(path):
        if " " not in gram:
            words.append(gram)
    order = gram.count(" ") + 1
    vocab = Vocab(["", *map(unescape, words[words.index(END) + 1 :])])
    facts = CorpusFacts(longest_item=0, item_hashes=None)
    return LanguageModel(vocab, max(order - 1, 1), partial(_log_probs, path, vocab), facts, kind="counts")


def usage(path: Path) -> str:
    """How to use the file."""
    return (
        f"kenlm.Model({str(path)!r}).score(text) in Python, where blanks separate tokens, characters too, and a blank "
        "itself is <U+0020>; kenlm reads orders from 2 to 6"
    )


def words_of(vocab: Vocab) -> list[str]:
    """The words of the file that are the tokens of `vocab`, by id; of the boundary, the word as a target."""
    return [END, *map(escape, vocab.tokens[1:])]


def escape(token: str) -> str:
    """The word of a token."""
    return token if token == UNKNOWN else ESCAPED.sub(lambda found: f"<U+{ord(found[0]):04X}>", token)


def unescape(word: str) -> str:
    """The token of a word."""
    return re.sub("<U\\+([0-9A-F]+)>", lambda found: chr(int(found[1], 16)), word)


def _sections(counts: NGramModel, added: list[int]) -> Iterator[tuple[Ints, Floats, Floats]]:
    """Of each level, the words (G, k) of its k-grams, and log10 of their probabilities (G,) and backoffs (G,).

    `added`: unigrams that are no targets, the last of which is `<s>`. The last level has no backoffs, (0,).
    """
    *_, begin = added
    for k, (grams, probs) in enumerate(counts.grams(), start=1):
        log_probs = _log10(probs)
        backoff = _log10(counts.levels[k].backoff) if k < counts.order else np.zeros(0)
        if k == 1:
            grams = np.concatenate([np.array(added)[:, None], grams])
            log_probs = np.concatenate([np.full(len(added), LOG_OF_ZERO), log_probs])
            if len(backoff):  # of <unk> if it is added, of <s>, of </s>, of all others
                backoff = np.concatenate([np.zeros(len(added) - 1), backoff[:1], [0.0], backoff[1:]])
        else:
            firsts = np.where(grams[:, 0] == BOUNDARY, begin, grams[:, 0])
            grams = np.column_stack([firsts, grams[:, 1:]])
        yield grams, log_probs, backoff


def _log10(probs: Floats) -> Floats:
    """Logarithms as they are written; at most 0, as rounding can make a probability larger than 1."""
    logs = np.log10(probs, out=np.full(len(probs), LOG_OF_ZERO), where=probs > 0)
    return np.minimum(logs, 0.0)


def _lines(path: Path) -> Iterator[list[str]]:
    """Of each k-gram in the file, log10 of its probability, its words and log10 of its backoff, if it has one."""
    with open(path, encoding="utf-8", newline="\n") as file:
        for line in file:
            if "\t" in line:
                yield line[:-1].split("\t")


def _log_probs(path: Path, vocab: Vocab, contexts: Tensor) -> Tensor:
    """Log-probabilities (B, V), float64, of the token after each of the `contexts` (B, T)."""
    words = words_of(vocab)
    ids = {word: i for i, word in enumerate(words)}
    words[BOUNDARY] = BEGIN
    # Of each context, its last token, its last two, and so on.
    suffixes = [
        [" ".join(map(words.__getitem__, row[-k:])) for k in range(1, len(row) + 1)] for row in contexts.tolist()
    ]
    wanted = {"", *(suffix for row in suffixes for suffix in row)}
    backoffs: dict[str, float] = {}
    followers: dict[str, dict[int, float]] = defaultdict(dict)  # log10 of probabilities by target
    for prob, gram, *backoff in _lines(path):
        context, _, target = gram.rpartition(" ")
        if context in wanted and target in ids:
            followers[context][ids[target]] = _read_log10(prob)
        if gram in wanted and backoff:
            backoffs[gram] = _read_log10(backoff[0])
    logs = np.full((len(contexts), len(vocab)), -math.inf)
    for row, parts in zip(logs, suffixes, strict=True):
        for context in ["", *parts]:
            row += backoffs.get(context, 0.0)
            row[list(followers[context])] = list(followers[context].values())
    return torch.from_numpy(logs) * math.log(10)


def _read_log10(number: str) -> float:
    log = float(number)
    return log if log > LOG_OF_ZERO else -math.inf
