"""From texts to the token streams of three splits."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from mlp_lm.errors import DataError
from mlp_lm.settings import COUNT, SEED, Range
from mlp_lm.text.datasets import DATASETS, RemoteFile, resolve_path
from mlp_lm.text.reading import parse_items, read_running_text, read_text
from mlp_lm.text.tokenizer import BLOCK, Ids, Kind, Tokenizer, choose_words, count_numbers, look_up, number_words
from mlp_lm.text.vocab import BOUNDARY, Vocab

SPLITS = ("train", "dev", "test")
MIN_ITEMS = 6  # the fewest with which no split is empty


@dataclass(frozen=True)
class CorpusSettings:
    """Which text, what its tokens are, and how it is split.

    Args:
        path: UTF-8 text file, or a known dataset: names (bundled); makemore (the lecture's names.txt), shakespeare or
            brown, each fetched once.
        train_path: File of the train split, together with dev_path and test_path; path is then ignored.
        dev_path: File of the dev split.
        test_path: File of the test split.
        layout: items, one to a line, which are shuffled; or text, which continues across line ends and is cut in order.
        tokens: characters; words of raw text; or pretokenized, where white space separates the tokens and <unk> is the
            unknown word.
        newlines: What a line end of running text becomes: keep makes it a token, drop makes it white space.
        lowercase: Turn the text into lower case.
        min_count: How often a word must occur to be in the vocabulary; <unk> stands for the others.
        max_vocab_size: Maximum number of tokens in a vocabulary of words, including the boundary and <unk>; null means
            no limit.
        vocab_from: Where words are counted; all, as in Bengio et al. (2003), lets dev and test choose the vocabulary.
        unique: Drop repeated items before the split, so that no item is in two splits; with three files, drop those
            repeated within a file.
        split_seed: Seed of the shuffle before items are split.
        max_item_length: Maximum length of an item, in characters.
    """

    path: str = "names"
    train_path: str | None = None
    dev_path: str | None = None
    test_path: str | None = None
    layout: Literal["items", "text"] = "items"
    tokens: Kind = "characters"
    newlines: Literal["keep", "drop"] = "keep"
    lowercase: bool = False
    min_count: Annotated[int, COUNT] = 2
    max_vocab_size: Annotated[int, Range(3, 10**9)] | None = None
    vocab_from: Literal["train", "all"] = "train"
    unique: bool = True
    split_seed: Annotated[int, SEED] = 42
    max_item_length: Annotated[int, COUNT] = 10_000

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> CorpusSettings:
        """Take them from the `data` section of a config; missing ones keep their defaults, unknown ones are ignored."""
        return cls(**{field.name: settings[field.name] for field in fields(cls) if field.name in settings})

    def absolute(self) -> CorpusSettings:
        """Return a copy with absolute paths, which are valid in any folder; names of datasets stay as they are."""
        names = [f"{kind}path" for kind in ("", "train_", "dev_", "test_")]
        files = {name: vars(self)[name] for name in names if vars(self)[name] not in (None, *DATASETS)}
        absolute: dict[str, Any] = {name: str(resolve_path(file).absolute()) for name, file in files.items()}
        return replace(self, **absolute)

    def conflicts(self) -> Iterator[str]:
        """Describe settings that are each in range but do not go together."""
        paths = {f"data.{name}": vars(self)[name] for name in ("train_path", "dev_path", "test_path")}
        missing = [name for name, path in paths.items() if path is None]
        if 0 < len(missing) < len(paths):
            yield f"{', '.join(missing)}: missing, expected all of {', '.join(paths)} or none of them"
        if self.train_path is not None and self.path != CorpusSettings.path:
            yield "data.path: found together with data.train_path; expected one file to split or three splits"
        if self.tokens == "characters":
            for name in ("max_vocab_size", "min_count", "vocab_from"):
                if (value := vars(self)[name]) != getattr(CorpusSettings, name):
                    yield f"data.{name}: applies only to words (got {value!r}); all characters are in the vocabulary"
        if self.layout == "items" and self.newlines == "drop":
            yield "data.newlines: applies only to data.layout text; of items, each has a line of its own"

    @property
    def paths(self) -> list[str]:
        """The files of train, dev and test, or the one file to split."""
        if self.train_path is None or self.dev_path is None or self.test_path is None:
            return [self.path]
        return [self.train_path, self.dev_path, self.test_path]

    @property
    def published_cuts(self) -> tuple[int, int] | None:
        """The numbers of tokens after which a dataset's published split ends train and dev, if it applies."""
        dataset = DATASETS.get(self.path)
        as_published = (self.layout, self.tokens, self.newlines) == ("text", "pretokenized", "drop")
        return dataset.cuts if as_published and isinstance(dataset, RemoteFile) else None

    @property
    def tokenizer(self) -> Tokenizer:
        """What a token is."""
        return Tokenizer(self.tokens, "items" if self.layout == "items" else self.newlines, self.lowercase)


@dataclass(frozen=True)
class Corpus:
    """A corpus as one token stream per split: the ids of its items in a row, each ended by the boundary.

    A split of running text is one long item.
    """

    settings: CorpusSettings
    vocab: Vocab
    train: Ids
    dev: Ids
    test: Ids
    fingerprint: str  # of text, split and vocabulary

    def items(self, split: str) -> list[str]:
        """Return the items of a split as in the file, except for unknown words; running text is one item."""
        return self.settings.tokenizer.decode(getattr(self, split), self.vocab)


def item_lengths(stream: Ids) -> Ids:
    """Count the tokens of each item of a token stream, without its boundary."""
    return np.diff(np.flatnonzero(stream == BOUNDARY), prepend=-1) - 1


def load_corpus(settings: CorpusSettings) -> Corpus:
    """Read, check, split and encode a corpus.

    Raises DataError if a file is missing, unreadable or too small, if an item is too long, or if no vocabulary can be
    built.
    """
    s, digest = settings, hashlib.blake2b(digest_size=16)
    pieces = [_hashed(text, digest) for text in _texts(s)]
    if s.tokens == "characters":
        texts = ["".join(text) for text in pieces]
        # A closed alphabet: the characters of all splits, not only of train.
        vocab = Vocab.build(set().union(*map(set, texts)) - ({"\n"} if s.layout == "items" else set()))
        streams = _cut([s.tokenizer.encode(texts.pop(0), vocab) for _ in range(len(texts))], s)
    else:
        distinct, numbers = number_words(pieces, s.tokenizer)
        numbers = _cut(numbers, s)
        counts = [count_numbers(part, len(distinct)) for part in numbers]
        chosen = counts[0] if s.vocab_from == "train" else np.sum(counts, axis=0)
        vocab, ids = choose_words(distinct, chosen, counts[0], s.min_count, s.max_vocab_size)
        streams = [look_up(ids, part) for part in numbers]
        del numbers  # four bytes each, no longer needed
    if s.layout == "text":  # one long item
        streams = [np.append(stream, stream.dtype.type(BOUNDARY)) for stream in streams]
    if s.layout == "text" or s.tokens != "characters":  # for character items the text and its splits determine the rest
        digest.update("\n".join([*map(str, map(len, streams)), *vocab.tokens]).encode())
    train, dev, test = streams
    return Corpus(s, vocab, train, dev, test, digest.hexdigest())


def _hashed(pieces: Iterable[str], digest: hashlib.blake2b) -> Iterator[str]:
    """Yield the pieces of a text, each after adding it to `digest`."""
    for piece in pieces:
        for start in range(0, len(piece), BLOCK):
            digest.update(piece[start : start + BLOCK].encode())
        yield piece
    digest.update(b"\n")


def count_tokens(settings: CorpusSettings) -> tuple[list[str], list[npt.NDArray[np.int64]]]:
    """Return the distinct tokens of a corpus, the boundary first, and their counts in train, dev and test."""
    distinct, numbers = number_words(_texts(settings), settings.tokenizer)
    return distinct, [count_numbers(part, len(distinct)) for part in _cut(numbers, settings)]


def _texts(settings: CorpusSettings) -> list[Iterator[str]]:
    """Read the normalised texts of train, dev and test, or one running text still to be cut, each in pieces.

    Items come one to a line.
    """
    if settings.layout == "items":
        return [iter([text]) for text in _items_as_texts(settings)]
    normalize = settings.tokenizer.normalize
    return [map(normalize, read_running_text(resolve_path(path))) for path in settings.paths]


def _items_as_texts(settings: CorpusSettings) -> list[str]:
    """Read the items of train, dev and test, one to a line."""
    s = settings
    parts = []
    for path in s.paths:
        file = resolve_path(path)
        items = parse_items(s.tokenizer.normalize(read_text(file)), file, s.max_item_length)
        parts.append(list(dict.fromkeys(items)) if s.unique else items)
    splits = parts if len(parts) > 1 else split_items(parts[0], s.split_seed, s.path)
    texts = []
    for items in splits:
        texts.append("\n".join(items) + "\n")
        items.clear()  # a large corpus should be in memory only once
    return texts


def _cut(streams: list[Ids], settings: CorpusSettings) -> list[Ids]:
    """Return the tokens of train, dev and test.

    One running text is cut at 80 % and 90 % of its tokens, or where its published split is. Raises DataError if a split
    would be empty.
    """
    if len(streams) == 1:
        n = len(streams[0])
        streams = np.split(streams[0], settings.published_cuts or [int(0.8 * n), int(0.9 * n)])
    for split, stream in zip(SPLITS, streams, strict=True):
        if not len(stream):
            raise DataError(f"{', '.join(settings.paths)}: the {split} split would be empty")
    return streams


def split_items(items: list[str], split_seed: int, source: str) -> list[list[str]]:
    """Shuffle `items` in place and cut them at 80 % and 90 % into train, dev and test, as the lecture does.

    Raises DataError that names `source` if a split would be empty.
    """
    n = len(items)
    if n < MIN_ITEMS:
        raise DataError(
            f"{source}: {n} {'item' if n == 1 else 'items'}, too few for train, dev and test; "
            f"at least {MIN_ITEMS} are needed (repeated items count once unless `unique` is false)"
        )
    random.Random(split_seed).shuffle(items)
    return [items[: int(0.8 * n)], items[int(0.8 * n) : int(0.9 * n)], items[int(0.9 * n) :]]
