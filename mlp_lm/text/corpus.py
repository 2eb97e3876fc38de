"""From a text file to the token streams of three splits. The one place that knows that a token is a character."""

from __future__ import annotations

import codecs
import hashlib
import random
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlp_lm.errors import DataError
from mlp_lm.text.datasets import DATASETS, resolve_path
from mlp_lm.text.vocab import BOUNDARY, Vocab

SPLITS = ("train", "dev", "test")
MIN_ITEMS = 6  # the fewest with which no split is empty
# Of the settings that say what a corpus is: where they are not given, or an older checkpoint lacks them.
DEFAULTS: Mapping[str, Any] = {
    "path": "names",
    "train_path": None,
    "dev_path": None,
    "test_path": None,
    "unique": True,
    "split_seed": 42,
    "max_item_length": 10_000,
}

Ids = npt.NDArray[np.integer[Any]]  # of the smallest type that holds V


@dataclass(frozen=True)
class Corpus:
    """A corpus as token streams: the ids of one split's items one after the other, each ended by the boundary."""

    vocab: Vocab
    train: Ids
    dev: Ids
    test: Ids
    fingerprint: str  # of the items of all three splits, in order

    def items(self, split: str) -> list[str]:
        """The items of a split, as read from the file."""
        return decode(getattr(self, split), self.vocab)


def item_lengths(stream: Ids) -> Ids:
    """The number of tokens of each item of a token stream, the boundary not counted."""
    return np.diff(np.flatnonzero(stream == BOUNDARY), prepend=-1) - 1


def tokenize(text: str) -> list[str]:
    """The tokens of an item or of the start of one."""
    return list(unicodedata.normalize("NFC", text))


def detokenize(tokens: Iterable[str]) -> str:
    """The item that consists of `tokens`."""
    return "".join(tokens)


def load_corpus(
    path: str, split_paths: Sequence[str] | None, *, unique: bool, split_seed: int, max_item_length: int
) -> Corpus:
    """Read, check, split and encode a corpus.

    Args:
        path: A UTF-8 text file with one item a line, or the name of a known dataset.
        split_paths: Files for train, dev and test. If given, `path` is not read and nothing is shuffled.
        unique: Drop repeated items before the split (in each file of `split_paths`), keeping the first.
        split_seed: Seed of the shuffle before the split.
        max_item_length: Longest item allowed, in characters.

    Raises:
        DataError: A file is missing, unreadable or too small, or has an item that is too long.
    """
    if split_paths is None:
        items = read_items(resolve_path(path), max_item_length)
        splits = split_items(list(dict.fromkeys(items)) if unique else items, split_seed, path)
        del items  # a large corpus should be in memory only once
    else:
        parts = [read_items(resolve_path(p), max_item_length) for p in split_paths]
        splits = [list(dict.fromkeys(part)) if unique else part for part in parts]
    # A closed alphabet: all characters of the corpus, not of train alone.
    vocab = Vocab.build(set().union(*(set().union(*items) for items in splits)))
    digest, streams = hashlib.blake2b(digest_size=16), []
    for items in splits:
        streams.append(encode(items, vocab))
        digest.update("\n".join(items).encode() + b"\n\n")
        items.clear()
    train, dev, test = streams
    return Corpus(vocab, train, dev, test, digest.hexdigest())


def corpus_from_settings(settings: Mapping[str, Any]) -> Corpus:
    """`load_corpus` with the `data` settings of a config; a missing one takes its default, others are ignored."""
    settings = {**DEFAULTS, **settings}
    split_paths = [settings[f"{split}_path"] for split in SPLITS]
    return load_corpus(
        settings["path"],
        None if split_paths[0] is None else split_paths,
        unique=settings["unique"],
        split_seed=settings["split_seed"],
        max_item_length=settings["max_item_length"],
    )


def read_items(path: Path, max_item_length: int | None = None) -> list[str]:
    """The items of a file, see `parse_items`. Raises DataError that names the path and, if possible, the line."""
    return parse_items(read_text(path), path, max_item_length)


def parse_items(text: str, path: Path, max_item_length: int | None = None) -> list[str]:
    """The items of a text: lines without surrounding white space, blank lines skipped. `path` is for errors."""
    items = [item for line in text.split("\n") if (item := line.strip())]
    if not items:
        raise DataError(f"{path}: {'only blank lines' if text else 'an empty file'}; expected one item a line")
    if max_item_length is not None and max(map(len, items)) > max_item_length:
        for number, line in enumerate(text.split("\n"), start=1):
            if (length := len(line.strip())) > max_item_length:
                raise DataError(
                    f"{path}:{number}: an item of {length:,} characters, at most {max_item_length:,} are allowed; "
                    "is this one item a line? If so, raise --data.max_item_length"
                )
    return items


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, see `decode_text`. Raises DataError if it cannot be read."""
    try:
        return decode_text(path.read_bytes(), path)
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; expected a text file with one item a line, or one of: {', '.join(DATASETS)}"
        ) from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder; expected a text file with one item a line") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def decode_text(data: bytes, path: Path) -> str:
    """UTF-8 as text, NFC-normalised, without byte order mark, its line ends as line feeds; `path` is for errors."""
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise DataError(
            f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x} at byte {column} of the line); "
            "convert the file to UTF-8"
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # line ends of Windows and of old Macs
    return unicodedata.normalize("NFC", text)


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


def encode(items: Sequence[str], vocab: Vocab, block: int = 1 << 20) -> Ids:
    """The token stream of `items`: ids in the smallest type that holds V, each item ended by the boundary.

    Text becomes code points, and code points become ids by one table look-up. A line feed, which no item contains,
    is the boundary's code point. `block` items are encoded at a time, which bounds the memory needed.
    """
    code_points = [ord(token) for token in vocab.tokens[1:]]
    dtype = np.uint8 if len(vocab) <= 1 << 8 else np.int16 if len(vocab) <= 1 << 15 else np.int32
    table: Ids = np.zeros(max([ord("\n"), *code_points]) + 1, dtype)
    table[code_points] = np.arange(1, len(vocab))
    parts: list[Ids] = [np.zeros(0, dtype)]
    for start in range(0, len(items), block):
        text = "\n".join(items[start : start + block]) + "\n"
        parts.append(table[np.frombuffer(text.encode("utf-32-le"), np.uint32)])
    return np.concatenate(parts)


def decode(stream: Ids, vocab: Vocab) -> list[str]:
    """The items of a token stream; the inverse of `encode`."""
    strings = ["\n" if i == BOUNDARY else token for i, token in enumerate(vocab.tokens)]
    return "".join(map(strings.__getitem__, stream.tolist())).split("\n")[:-1]
