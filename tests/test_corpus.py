"""From a file to items, splits and token streams, and what is said of a file that will not do."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlp_lm.errors import DataError
from mlp_lm.text.corpus import MIN_ITEMS, SPLITS, Corpus, decode, encode, load_corpus, read_items, tokenize
from mlp_lm.text.datasets import resolve_path
from mlp_lm.text.vocab import Vocab

Write = Callable[[str | bytes], Path]

LETTERS = list(string.ascii_lowercase)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Puts text or bytes into a file of its own."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.txt"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def load(*paths: Path, unique: bool = True, split_seed: int = 42, max_item_length: int = 100) -> Corpus:
    """The corpus in one file, or in three."""
    split_paths = [str(path) for path in paths] if len(paths) > 1 else None
    return load_corpus(
        str(paths[0]), split_paths, unique=unique, split_seed=split_seed, max_item_length=max_item_length
    )


def split(corpus: Corpus) -> list[list[str]]:
    """The items of train, dev and test."""
    return [corpus.items(name) for name in SPLITS]


# -- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "items"),
    [
        ("emma\nava\n", ["emma", "ava"]),
        ("emma\nava", ["emma", "ava"]),
        (b"\xef\xbb\xbfemma\nava\n", ["emma", "ava"]),
        ("emma\r\nava\r\n", ["emma", "ava"]),
        ("\n\nemma\n \t\nava\n\n", ["emma", "ava"]),
        ("  emma\t\n\u3000anna lena\u00a0\n", ["emma", "anna lena"]),
        ("rene\u0301\n\u212bsa\n", ["ren\u00e9", "\u00c5sa"]),
        ("ava\nemma\nava\n", ["ava", "emma", "ava"]),
    ],
    ids=["plain", "no last line feed", "BOM", "CRLF", "blank lines", "white space", "NFC", "repeated"],
)
def test_items_of_a_file(write: Write, content: str | bytes, items: list[str]) -> None:
    assert read_items(write(content)) == items


def test_a_lone_carriage_return_ends_a_line_too(write: Write) -> None:
    assert read_items(write("emma\rolivia\r\nava")) == ["emma", "olivia", "ava"]


def test_an_item_typed_by_a_user_has_the_tokens_of_the_item_in_a_file(write: Write) -> None:
    typed = "rene\u0301"
    assert tokenize(typed) == list(read_items(write(typed))[0]) == ["r", "e", "n", "\u00e9"]


def test_the_bundled_names_are_a_file_of_lower_case_names() -> None:
    items = read_items(resolve_path("names"))
    assert len(items) > 10_000
    assert set("".join(items)) == set(LETTERS)


# -- splitting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split_seed", [42, 7])
@pytest.mark.parametrize("n", [6, 7, 20, 26])
def test_items_are_shuffled_by_the_seed_and_cut_at_80_and_90_percent(write: Write, n: int, split_seed: int) -> None:
    shuffled = LETTERS[:n]
    random.Random(split_seed).shuffle(shuffled)
    cuts = int(0.8 * n), int(0.9 * n)
    expected = [shuffled[: cuts[0]], shuffled[cuts[0] : cuts[1]], shuffled[cuts[1] :]]
    assert split(load(write("\n".join(LETTERS[:n])), split_seed=split_seed)) == expected


def test_the_split_of_ten_items_at_the_default_seed(write: Write) -> None:
    assert split(load(write("\n".join("abcdefghij")))) == [list("hdcifgje"), ["a"], ["b"]]


def test_without_repeated_items_the_splits_are_disjoint(write: Write) -> None:
    repeated = write("\n".join(LETTERS * 4))
    train, dev, test = map(set, split(load(repeated)))
    assert not train & dev | train & test | dev & test
    train, dev, test = map(set, split(load(repeated, unique=False)))
    assert train & dev and train & test


def test_of_repeated_items_the_first_is_kept(write: Write) -> None:
    once, repeated = write("\n".join("cabfde")), write("\n".join("cabcfaade"))
    assert split(load(repeated)) == split(load(once)) != split(load(write("\n".join("abcdef"))))


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


def test_a_token_stream_is_the_ids_of_each_item_and_a_boundary() -> None:
    stream = encode(["ab", "", "c"], Vocab.build("abc"))
    assert stream.tolist() == [1, 2, 0, 0, 3, 0]


@pytest.mark.parametrize(
    "items",
    [
        ["ab", "a.", "b b", "ab"],
        ["😀a", "𝒜b😀", "é"],
        [chr(0x4E00 + i) + chr(0x4E00 + 299 - i) for i in range(300)],
        [chr(0x10000 + i) for i in range(40_000)],
        ["a\x00b"],
    ],
    ids=["ASCII", "beyond 16 bits", "300 characters", "40,000 characters", "NUL"],
)
def test_encode_and_decode_are_inverse(items: list[str]) -> None:
    vocab = Vocab.build("".join(items))
    stream = encode(items, vocab)
    assert decode(stream, vocab) == items
    assert stream.tolist() == [i for item in items for i in [*vocab.encode(item), 0]]


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(256, "uint8"), (257, "int16"), (32_768, "int16"), (32_769, "int32")]
)
def test_ids_have_the_smallest_type_that_holds_the_vocabulary(vocab_size: int, dtype: str) -> None:
    characters = [chr(0x10000 + i) for i in range(vocab_size - 1)]
    stream = encode(characters[-1:], Vocab.build(characters))
    assert stream.dtype == np.dtype(dtype)
    assert stream.tolist() == [vocab_size - 1, 0]


def test_encoding_in_blocks_changes_nothing() -> None:
    vocab = Vocab.build("abc")
    assert encode(["ab", "c", "ba"], vocab, block=2).tolist() == encode(["ab", "c", "ba"], vocab).tolist()


# -- files that will not do --------------------------------------------------------------------------------------


def error(path: Path, max_item_length: int = 100) -> str:
    """What is said of `path`, which it names first."""
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}") as caught:
        load(path, max_item_length=max_item_length)
    return str(caught.value).removeprefix(str(path))


def test_a_missing_file(tmp_path: Path) -> None:
    message = error(tmp_path / "nmaes.txt")
    assert "no such file" in message
    assert "names, makemore" in message


def test_a_folder(tmp_path: Path) -> None:
    assert "a folder" in error(tmp_path)


@pytest.mark.parametrize("content", ["", b"\xef\xbb\xbf"], ids=["nothing", "BOM"])
def test_an_empty_file(write: Write, content: str | bytes) -> None:
    assert "an empty file" in error(write(content))


def test_a_file_of_blank_lines(write: Write) -> None:
    assert "only blank lines" in error(write("\n \n\t\r\n"))


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"\xff\n", ":1: not UTF-8 (byte 0xff at byte 1 of the line)"),
        ("emma\nren\u00e9\n".encode("latin-1"), ":2: not UTF-8 (byte 0xe9 at byte 4 of the line)"),
        (b"\xef\xbb\xbfemma\nab\xffc\n", ":2: not UTF-8 (byte 0xff at byte 3 of the line)"),
    ],
    ids=["first byte", "Latin-1", "after a BOM"],
)
def test_a_file_that_is_not_utf_8(write: Write, content: bytes, where: str) -> None:
    assert error(write(content)).startswith(where)


def test_too_few_items_for_three_splits(write: Write) -> None:
    message = error(write("\n".join(LETTERS[: MIN_ITEMS - 1])))
    assert message.startswith(": 5 items,")
    assert "it takes 6" in message
    assert error(write("a\n" * 100)).startswith(": 1 item,")


def test_the_fewest_items_leave_no_split_empty(write: Write) -> None:
    assert [len(items) for items in split(load(write("\n".join(LETTERS[:MIN_ITEMS]))))] == [4, 1, 1]


def test_an_item_that_is_too_long(write: Write) -> None:
    path = write("abc\n\n  abcd  \nabcdef\n")
    message = error(path, max_item_length=3)
    assert message.startswith(":3: an item of 4 characters, at most 3 ")
    assert "--data.max_item_length" in message
    assert read_items(path, 6) == ["abc", "abcd", "abcdef"]


def test_each_of_three_files_is_checked(write: Write) -> None:
    good, bad = write("a\n"), write("a\n\xff".encode("latin-1"))
    with pytest.raises(DataError, match=f"^{re.escape(str(bad))}:2"):
        load(good, good, bad)
