"""What is in a corpus: items, lengths, characters and odd ones among them, and what dev and test repeat of train."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlp_lm.errors import DataError
from mlp_lm.terminal import format_unknown
from mlp_lm.text.corpus import MIN_ITEMS, CorpusSettings, count_tokens, split_items
from mlp_lm.text.vocab import Vocab

ODD_CATEGORIES = {  # Unicode's general categories
    "Cc": "control",
    "Cf": "zero-width or format",
    "Cn": "unassigned",
    "Co": "private use",
    "Zl": "line separator",
    "Zp": "paragraph separator",
    "Zs": "unusual space",
}
REPLACEMENT = "\ufffd"  # what decoders write for bytes that they cannot read


@dataclass(frozen=True)
class OddCharacter:
    """A character that few corpora contain on purpose."""

    code_point: str  # U+200B
    name: str
    kind: str
    count: int
    first_line: int  # of the file


@dataclass(frozen=True)
class Statistics:
    """What is in a corpus. Lengths are in tokens, without the boundary."""

    items: int  # how many
    distinct_items: int
    first_items: list[str]
    shortest: list[str]  # up to three distinct items
    longest: list[str]
    lengths: dict[int, int]  # number of items by length, shortest first
    characters: dict[str, int]  # counts, the most frequent first
    odd_characters: list[OddCharacter]
    repeats_of_train: dict[str, float]  # see below; empty if there are too few items to split


def statistics(items: Sequence[str], text: str, split_seed: int) -> Statistics:
    """Describe a corpus.

    Args:
        items: Its items, in the order of the file.
        text: The text of the file, for line numbers.
        split_seed: Seed of the split.
    """
    length_by_item = {item: len(item) for item in items}
    lengths = Counter(length_by_item[item] for item in items)
    low, high = min(lengths), max(lengths)
    characters = dict(sorted(Counter("".join(items)).items(), key=lambda entry: (-entry[1], entry[0])))
    return Statistics(
        items=len(items),
        distinct_items=len(length_by_item),
        first_items=list(items[:10]),
        shortest=[item for item, length in length_by_item.items() if length == low][:3],
        longest=[item for item, length in length_by_item.items() if length == high][:3],
        lengths=dict(sorted(lengths.items())),
        characters=characters,
        odd_characters=odd_characters(characters, text),
        repeats_of_train=repeats_of_train(items, split_seed) if len(items) >= MIN_ITEMS else {},
    )


def odd_characters(characters: Mapping[str, int], text: str) -> list[OddCharacter]:
    """The odd characters of `text`, most frequent first; `characters`: counts of all, most frequent first."""
    odd = []
    for character, count in characters.items():
        kind = ODD_CATEGORIES.get(unicodedata.category(character))
        if character == REPLACEMENT:
            kind = "wrong encoding"
        if kind and character != " ":
            name = unicodedata.name(character, repr(character))
            first_line = text.count("\n", 0, text.index(character)) + 1
            odd.append(OddCharacter(f"U+{ord(character):04X}", name, kind, count, first_line))
    return odd


def repeats_of_train(items: Sequence[str], split_seed: int) -> dict[str, float]:
    """The share of the items of dev and of test that occur in train too, if repeated items are kept."""
    train, dev, test = split_items(list(items), split_seed, "items")
    known = set(train)
    return {name: sum(item in known for item in part) / len(part) for name, part in (("dev", dev), ("test", test))}


def histogram(lengths: Mapping[int, int], max_rows: int = 20) -> list[tuple[int, int, int]]:
    """Rows (shortest, longest, items) of a histogram of `lengths`, the number of items by length, shortest first.

    Rows are equally wide up to the 99th percentile. One more row holds longer items.
    """
    every = list(Counter(lengths).elements())
    low, high = every[0], every[-1]
    end = high if high - low < max_rows else every[int(0.99 * (len(every) - 1))]
    width = -(-(end - low + 1) // max_rows)
    num_rows = -(-(end - low + 1) // width)
    rows = Counter(min((length - low) // width, num_rows) for length in every)
    starts = range(low, low + width * (max(rows) + 1), width)
    return [(start, start + width - 1 if i < num_rows else high, rows[i]) for i, start in enumerate(starts)]


def item_windows(item: str, vocab: Vocab, context_size: int) -> list[tuple[list[str], str]]:
    """The windows of an item as visible tokens: (context, target). Raises DataError if it has unknown characters."""
    tokens = list(item)
    if unknown := vocab.unknown(tokens):
        raise DataError(f"item: {item!r} has the {format_unknown(unknown)}; the corpus has {vocab.describe()}")
    windows = vocab.windows(tokens, context_size)
    return [([vocab.show(i) for i in context], vocab.show(target)) for context, target in windows]


# -- words and running text --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frequencies:
    """How often the tokens of a corpus occur."""

    tokens: int  # all of them, boundaries not counted
    counts: dict[str, int]  # of the distinct ones, the most frequent first
    coverage: dict[int, float]  # of words, by V: the share of all tokens that the V most frequent ones make up
    unknown: dict[int, float]  # of words, by data.min_count: the share of dev outside the vocabulary of train


def frequencies(settings: CorpusSettings) -> Frequencies:
    """Count the tokens of a corpus. Raises DataError as `load_corpus` does."""
    distinct, (train, dev, test) = count_tokens(settings)
    total = train + dev + test
    order = sorted(range(1, len(distinct)), key=lambda i: (-total[i], distinct[i]))
    covered = np.cumsum(total[order]) / total[order].sum()
    of_words = settings.tokens != "characters"
    sizes = [size for size in (100, 1000, 5000, 10_000, 20_000, 50_000) if of_words and size < len(order)]
    bounds = (1, 2, 4, 8) if of_words else ()
    return Frequencies(
        tokens=int(total[1:].sum()),
        counts={distinct[i]: int(total[i]) for i in order},
        coverage={size: float(covered[size - 1]) for size in sizes},
        unknown={least: float(dev[1:][train[1:] < least].sum() / dev[1:].sum()) for least in bounds},
    )
