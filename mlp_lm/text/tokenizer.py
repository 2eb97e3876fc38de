"""What a token is: a character, a word of raw text, or what white space separates. The only place that knows."""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mlp_lm.errors import DataError
from mlp_lm.text.vocab import BOUNDARY, UNKNOWN, Vocab

Ids = npt.NDArray[np.integer[Any]]  # of the smallest type that holds V
Kind = Literal["characters", "words", "pretokenized"]
LineEnds = Literal["items", "keep", "drop"]

BLOCK = 1 << 16  # characters that are split or encoded at a time, which bounds the memory needed
# Accents, and the vowel signs of Hebrew, Arabic and the scripts of India.
MARKS = r"\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05c1-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
# A number with its inner marks; letters and digits with inner apostrophes, hyphens and dots, and with accents and vowel
# signs, which \w leaves out; any other character that is no white space.
WORD = rf"\d+(?:[.,:]\d+)+|[^\W_]+(?:[{MARKS}][^\W_]*|['\u2019.\u2010-][^\W_]+)*|\S"
NO_BLANK_BEFORE = frozenset(".,;:!?%)]}»’”…\u3001\u3002")
NO_BLANK_AFTER = frozenset("([{«‘“$£€¿¡#@")


@dataclass(frozen=True)
class Tokenizer:
    """Text to tokens and back.

    Args:
        tokens: characters; words of raw text; or pretokenized, where white space separates them.
        line_ends: What the end of a line is: the end of an item, a token of running text (keep), or nothing (drop).
        lowercase: Whether text is turned into lower case.
    """

    tokens: Kind = "characters"
    line_ends: LineEnds = "items"
    lowercase: bool = False

    def normalize(self, text: str) -> str:
        """`text` in Unicode's normal form C, in lower case and with blanks for line ends if that is asked for."""
        text = unicodedata.normalize("NFC", text)
        text = unicodedata.normalize("NFC", text.lower()) if self.lowercase else text
        return text.replace("\n", " ") if self.line_ends == "drop" else text

    def split(self, text: str) -> list[str]:
        """The tokens of an item, of running text, or of the start of one."""
        return self._split(self.normalize(text))

    def _split(self, text: str) -> list[str]:
        if self.tokens == "characters":
            return list(text)
        return re.findall(rf"\n|{WORD}" if self.tokens == "words" else r"\n|\S+", text)

    def join(self, tokens: Iterable[str]) -> str:
        """The text that consists of `tokens`; of words, with blanks where English has them."""
        if self.tokens == "characters":
            return "".join(tokens)
        if self.tokens == "pretokenized":
            return re.sub(" ?\n ?", "\n", " ".join(tokens))
        return "".join(_with_blanks(tokens))

    def encode(self, text: str, vocab: Vocab) -> Ids:
        """The ids of a normalised text's characters in the smallest type that holds V; of items, a line each, with the
        boundary at the end of a line.

        Characters become code points, and code points become ids by one table look-up.
        """
        assert self.tokens == "characters"  # words are numbered as they come, see below
        dtype = _dtype(len(vocab))
        code_points = [ord(token) for token in vocab.tokens[1:]]
        table: Ids = np.zeros(max([ord("\n"), *code_points]) + 1, dtype)
        table[code_points] = np.arange(1, len(vocab))
        blocks = (text[start : start + BLOCK] for start in range(0, len(text), BLOCK))
        parts = [table[np.frombuffer(block.encode("utf-32-le"), np.uint32)] for block in blocks]
        return np.concatenate([np.zeros(0, dtype), *parts])

    def decode(self, stream: Ids, vocab: Vocab) -> list[str]:
        """The items of a token stream, or its running text as one; the inverse of `encode` but for unknown words."""
        if self.tokens == "characters" and self.line_ends == "items":
            strings = ["\n" if i == BOUNDARY else token for i, token in enumerate(vocab.tokens)]
            return "".join(map(strings.__getitem__, stream.tolist())).split("\n")[:-1]
        ends = np.flatnonzero(stream == BOUNDARY)
        parts = np.split(stream, ends + 1)[: len(ends)]
        return [self.join(vocab.decode(part[:-1].tolist())) for part in parts]


def _with_blanks(tokens: Iterable[str]) -> Iterator[str]:
    """Words and punctuation with the blanks between them. A straight quote opens and closes in turn."""
    glue, previous, quoted = True, "", False
    for token in tokens:
        closes = token == '"' and quoted
        dash = token == previous == "-"
        if not (glue or closes or dash or token == "\n" or token in NO_BLANK_BEFORE):
            yield " "
        yield token
        quoted = token != "\n" and quoted != (token == '"')  # a new line starts without an open quote
        glue = token == "\n" or token in NO_BLANK_AFTER or (token == '"' and quoted)
        previous = token


def _blocks(text: str) -> Iterator[str]:
    """`text` in pieces of about `BLOCK` characters, cut at white space."""
    space, start = re.compile(r"\s"), 0
    while start < len(text):
        gap = space.search(text, start + BLOCK)
        end = gap.start() if gap else len(text)
        yield text[start:end]
        start = end


def _dtype(vocab_size: int) -> type[np.integer[Any]]:
    return np.uint8 if vocab_size <= 1 << 8 else np.int16 if vocab_size <= 1 << 15 else np.int32


# -- vocabularies ------------------------------------------------------------------------------------------------------


class _Numbers(dict[str, int]):
    """Numbers tokens as they come."""

    def __missing__(self, token: str) -> int:
        self[token] = number = len(self)
        return number


def number_words(texts: Iterable[Iterable[str]], tokenizer: Tokenizer) -> tuple[list[str], list[Ids]]:
    """The distinct tokens of normalised texts in order of appearance, the boundary first, and each text as their
    numbers, int32. A text comes in pieces, each but the last of which ends at white space."""
    numbers = _Numbers({"\n" if tokenizer.line_ends == "items" else "": BOUNDARY})
    streams: list[Ids] = []
    for pieces in texts:
        found = array("i")  # grows in place
        for piece in pieces:
            for block in _blocks(piece):
                found.extend(map(numbers.__getitem__, tokenizer._split(block)))
        streams.append(np.frombuffer(found, np.int32))
    return ["", *list(numbers)[1:]], streams


def count_numbers(numbers: Ids, size: int) -> npt.NDArray[np.int64]:
    """How often each number below `size` occurs."""
    counts = np.zeros(size, np.int64)
    block = max(BLOCK, size)  # of which numpy makes int64
    for start in range(0, len(numbers), block):
        counts += np.bincount(numbers[start : start + block], minlength=size)
    return counts


def look_up(table: Ids, numbers: Ids) -> Ids:
    """The entry of `table` for each of the `numbers`."""
    found = np.empty(len(numbers), table.dtype)
    for start in range(0, len(numbers), BLOCK):
        found[start : start + BLOCK] = table[numbers[start : start + BLOCK]]
    return found


def choose_words(
    tokens: Sequence[str],
    counts: npt.NDArray[np.int64],
    train_counts: npt.NDArray[np.int64],
    min_count: int,
    max_vocab_size: int | None,
) -> tuple[Vocab, Ids]:
    """The vocabulary of a corpus of words, the most frequent first, and the id of each of its distinct tokens.

    Args:
        tokens: The distinct tokens, the boundary first.
        counts: How often each occurs where the vocabulary is learnt.
        train_counts: How often each occurs in train.
        min_count: How often a word of the vocabulary occurs at least.
        max_vocab_size: How many tokens the vocabulary has at most, the boundary and `<unk>` among them.

    Raises:
        DataError: No word is left, or `<unk>` stands for nothing in train, so that it would have no probability.
    """
    words = [i for i in range(1, len(tokens)) if counts[i] >= min_count and tokens[i] != UNKNOWN]
    words.sort(key=lambda i: (-counts[i], tokens[i]))
    if max_vocab_size is not None:
        del words[max_vocab_size - 2 :]
    if not words:
        few = f"no word occurs {min_count:,} times; lower data.min_count"
        raise DataError(few if min_count > 1 else f"no words but {UNKNOWN}")
    if train_counts[1:].sum() == train_counts[words].sum():
        raise DataError(
            f"the vocabulary of {len(words):,} words has every word of train, so that {UNKNOWN} would never be learnt; "
            "raise data.min_count, or lower data.max_vocab_size"
        )
    unknown = counts[1:].sum() - counts[words].sum()
    place = sum(1 for i in words if counts[i] >= unknown)
    vocab = Vocab(["", *(tokens[i] for i in words[:place]), UNKNOWN, *(tokens[i] for i in words[place:])])
    table: Ids = np.full(len(tokens), vocab.ids[UNKNOWN], _dtype(len(vocab)))
    table[BOUNDARY] = BOUNDARY
    table[words] = [vocab.ids[tokens[i]] for i in words]
    return vocab, table
