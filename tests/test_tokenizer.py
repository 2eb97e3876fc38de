"""What a token is: characters, words of raw text, and tokens that white space separates."""

from __future__ import annotations

import numpy as np
import pytest

from mlp_lm.errors import DataError
from mlp_lm.text.tokenizer import Ids, Kind, LineEnds, Tokenizer, choose_words, number_words
from mlp_lm.text.vocab import Vocab

WORDS = Tokenizer("words", "keep")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't well-known U.S. o\u2019clock", "Don't | well-known | U.S | . | o\u2019clock"),
        ("1,000.50 at 10:30, the 3rd", "1,000.50 | at | 10:30 | , | the | 3rd"),
        ('He said: "(no)!"', 'He | said | : | " | ( | no | ) | ! | "'),
        ("snake_case -- a", "snake | _ | case | - | - | a"),
        ("caf\u00e9, na\u00efve", "caf\u00e9 | , | na\u00efve"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u093f\u0928\u094d\u0926\u0940"),  # with vowel signs
        ("e\u0301t\u00e9", "\u00e9t\u00e9"),  # in normal form C
        ("", ""),
    ],
)
def test_the_words_of_raw_text(text: str, words: str) -> None:
    assert WORDS.split(text) == [word for word in words.split(" | ") if word]


@pytest.mark.parametrize(
    "text",
    [
        'He said, "Don\'t go (yet)!" -- 5% of $3... why?',
        "First line,\nsecond line.\n\nNext: [1] {a}; b",
        '"A" and "b"',
        "",
    ],
)
def test_words_are_joined_back_into_the_text_they_came_from(text: str) -> None:
    assert WORDS.join(WORDS.split(text)) == text


def test_pretokenized_text_is_split_and_joined_at_white_space() -> None:
    tokenizer = Tokenizer("pretokenized", "keep")
    assert tokenizer.split("the <unk> 's , \n new") == ["the", "<unk>", "'s", ",", "\n", "new"]
    assert tokenizer.join(["the", "<unk>", ",", "\n", "new"]) == "the <unk> ,\nnew"


@pytest.mark.parametrize(
    ("tokens", "lines", "expected"),
    [
        ("characters", "keep", ["A", "\n", "b"]),
        ("characters", "drop", ["A", " ", "b"]),
        ("words", "keep", ["A", "\n", "b"]),
        ("words", "drop", ["A", "b"]),
        ("pretokenized", "drop", ["A", "b"]),
    ],
)
def test_the_end_of_a_line_is_a_token_or_white_space(tokens: Kind, lines: LineEnds, expected: list[str]) -> None:
    assert Tokenizer(tokens, lines).split("A\nb") == expected
    assert Tokenizer(tokens, lines, lowercase=True).split("A\nb") == ["a", *expected[1:]]


def test_words_are_numbered_as_they_come_wherever_a_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab = Vocab(["", "the", "<unk>", "\n", "end"])
    for block in (1, 3, 100):
        monkeypatch.setattr("mlp_lm.text.tokenizer.BLOCK", block)
        tokens, (numbers,) = number_words([["the odd\nthe end"]], WORDS)
        assert tokens == ["", "the", "odd", "\n", "end"] and numbers.tolist() == [1, 2, 3, 1, 4]
        tokens, (numbers,) = number_words([["the end\n", "odd\n"]], Tokenizer("words"))  # two items
        assert tokens == ["", "the", "end", "odd"] and numbers.tolist() == [1, 2, 0, 3, 0]
    assert WORDS.decode(np.array([1, 2, 4, 0]), vocab) == ["the <unk> end"]
    assert Tokenizer("words").decode(np.array([1, 4, 0, 1, 0]), vocab) == ["the end", "the"]


# -- vocabularies --------------------------------------------------------------------------------------------------


def chosen(text: str, min_count: int = 1, max_vocab_size: int | None = None) -> tuple[Vocab, Ids]:
    """The vocabulary of a text, and the text as its ids."""
    tokens, (stream,) = number_words([[text]], WORDS)
    counts = np.bincount(stream, minlength=len(tokens))
    vocab, ids = choose_words(tokens, counts, counts, min_count, max_vocab_size)
    return vocab, ids[stream]


def test_ids_fall_with_frequency_and_rare_words_share_one() -> None:
    vocab, stream = chosen("b a b c b a d e f", min_count=2)
    assert vocab.tokens == ["", "<unk>", "b", "a"]
    assert vocab.decode(stream) == ["b", "a", "b", "<unk>", "b", "a", "<unk>", "<unk>", "<unk>"]


def test_of_equally_frequent_words_the_first_in_the_alphabet_stay() -> None:
    assert chosen("d c b a", max_vocab_size=4)[0].tokens == ["", "<unk>", "a", "b"]
    assert chosen("b a b c", max_vocab_size=100, min_count=2)[0].tokens == ["", "b", "<unk>"]


def test_a_literal_unk_is_the_unknown_word() -> None:
    tokens, (stream,) = number_words([["a <unk> a b b"]], Tokenizer("pretokenized", "drop"))
    counts = np.bincount(stream, minlength=len(tokens))
    vocab, ids = choose_words(tokens, counts, counts, 1, None)
    assert vocab.tokens == ["", "a", "b", "<unk>"]
    assert vocab.decode(ids[stream]) == ["a", "<unk>", "a", "b", "b"]


@pytest.mark.parametrize(
    ("text", "min_count", "expected"),
    [
        ("a a b b", 2, "has every word of train, so that <unk> would never be learnt; raise data.min_count, or lower"),
        ("a b c", 2, "no word occurs 2 times; lower data.min_count"),
    ],
)
def test_a_vocabulary_that_cannot_be_used(text: str, min_count: int, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        chosen(text, min_count)
