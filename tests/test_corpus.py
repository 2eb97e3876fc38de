"""From a file to items, splits and token streams, and the errors of a file that cannot be used."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlp_lm.errors import DataError
from mlp_lm.text.corpus import SPLITS, Corpus, CorpusSettings, load_corpus
from mlp_lm.text.reading import parse_items, read_text
from mlp_lm.text.tokenizer import Tokenizer
from mlp_lm.text.vocab import Vocab

Write = Callable[[str | bytes], Path]

LETTERS = list(string.ascii_lowercase)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes text or bytes to a new file."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.txt"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def load(*paths: Path, **settings: Any) -> Corpus:
    """The corpus in one file, or in three."""
    names = ["path"] if len(paths) == 1 else ["train_path", "dev_path", "test_path"]
    files: dict[str, Any] = {name: str(path) for name, path in zip(names, paths, strict=True)}
    return load_corpus(CorpusSettings(**files, **settings))


def split(corpus: Corpus) -> list[list[str]]:
    """The items of train, dev and test."""
    return [corpus.items(name) for name in SPLITS]


# -- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "items"),
    [
        (b"\xef\xbb\xbfemma\nava\n", ["emma", "ava"]),
        ("emma\r\nava\r\n", ["emma", "ava"]),
        ("emma\rolivia\r\nava", ["emma", "olivia", "ava"]),
        ("\n\nemma\n \t\nava\n\n", ["emma", "ava"]),
        ("  emma\t\n\u3000anna lena\u00a0\n", ["emma", "anna lena"]),
        ("rene\u0301\n\u212bsa\n", ["ren\u00e9", "\u00c5sa"]),
        ("ava\nemma\nava\n", ["ava", "emma", "ava"]),
    ],
    ids=["BOM", "CRLF", "lone CR", "blank lines", "white space", "NFC", "repeated"],
)
def test_the_items_of_a_file(write: Write, content: str | bytes, items: list[str]) -> None:
    assert parse_items(read_text(path := write(content)), path) == items


# -- splitting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split_seed", [42, 7])
@pytest.mark.parametrize("n", [6, 7, 26])
def test_items_are_shuffled_by_the_seed_and_cut_at_80_and_90_percent(write: Write, n: int, split_seed: int) -> None:
    shuffled = LETTERS[:n]
    random.Random(split_seed).shuffle(shuffled)
    cuts = int(0.8 * n), int(0.9 * n)
    expected = [shuffled[: cuts[0]], shuffled[cuts[0] : cuts[1]], shuffled[cuts[1] :]]
    assert split(load(write("\n".join(LETTERS[:n])), split_seed=split_seed)) == expected
    assert all(expected)


def test_repeated_items_are_dropped_before_the_split_unless_asked_for(write: Write) -> None:
    once, repeated = write("\n".join("cabfde")), write("\n".join("cabcfaade"))
    assert split(load(repeated)) == split(load(once)) != split(load(write("\n".join("abcdef"))))
    train, dev, test = map(set, split(load(write("\n".join(LETTERS * 4)), unique=False)))
    assert train & dev and train & test


def test_three_files_are_taken_as_they_are(write: Write) -> None:
    train, dev, test = write("b\na\nb\n"), write("c\n"), write("a\nd\n")
    corpus = load(train, dev, test)
    assert split(corpus) == [["b", "a"], ["c"], ["a", "d"]]
    assert corpus.vocab.tokens == ["", "a", "b", "c", "d"]
    assert split(load(train, dev, test, unique=False)) == [["b", "a", "b"], ["c"], ["a", "d"]]


def test_the_fingerprint_tells_items_and_splits_apart(write: Write) -> None:
    path = write("\n".join(LETTERS))
    assert load(path).fingerprint == load(write("\r\n".join(LETTERS))).fingerprint
    others = [load(path, split_seed=1), load(write("\n".join(LETTERS[1:])))]
    assert len({load(path).fingerprint, *(other.fingerprint for other in others)}) == 3


# -- token streams -----------------------------------------------------------------------------------------------


def test_a_token_stream_is_the_ids_of_each_item_and_a_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    for block in (1, 2, 100):
        monkeypatch.setattr("mlp_lm.text.tokenizer.BLOCK", block)
        assert Tokenizer().encode("ab\n\nc\n", Vocab.build("abc")).tolist() == [1, 2, 0, 0, 3, 0]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(256, "uint8"), (257, "int16"), (32_769, "int32")])
def test_ids_have_the_smallest_type_that_holds_the_vocabulary(vocab_size: int, dtype: str) -> None:
    characters = [chr(0x10000 + i) for i in range(vocab_size - 1)]
    vocab = Vocab.build(characters)
    stream = Tokenizer().encode(f"{characters[-1]}\n", vocab)
    assert stream.dtype == np.dtype(dtype)
    assert stream.tolist() == [vocab_size - 1, 0]
    assert Tokenizer().decode(stream, vocab) == characters[-1:]


# -- files that cannot be used -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ": an empty file"),
        ("\n \n\t\r\n", ": only blank lines"),
        ("emma\nren\u00e9\n".encode("latin-1"), ":2: not UTF-8 (byte 0xe9 at byte 4 of the line)"),
        (b"\xef\xbb\xbfemma\nab\xffc\n", ":2: not UTF-8 (byte 0xff at byte 3 of the line)"),
        ("a\nb\nc\nd\ne\n", ": 5 items, too few for train, dev and test; at least 6 are needed"),
        ("a\n" * 100, ": 1 item, too few"),
        ("abc\n\n  abcdefgh  \n", ":3: an item of 8 characters, at most 7 are allowed"),
    ],
)
def test_an_error_names_file_line_and_reason(write: Write, content: str | bytes, expected: str) -> None:
    path = write(content)
    with pytest.raises(DataError, match=f"^{re.escape(str(path) + expected)}"):
        load(path, max_item_length=7)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("nmaes.txt", "no such file; .* or one of: names, makemore"), ("", "a folder"), ("a\0b", "cannot be read")],
)
def test_a_path_that_is_no_file(tmp_path: Path, write: Write, name: str, expected: str) -> None:
    good = write("a\n")
    for paths in ([tmp_path / name], [good, good, tmp_path / name]):
        with pytest.raises(DataError, match=expected):
            load(*paths)
