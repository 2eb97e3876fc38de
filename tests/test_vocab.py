"""The vocabulary: ids and unknown tokens."""

from __future__ import annotations

import re

import pytest

from mlp_lm.errors import DataError
from mlp_lm.text.vocab import Vocab


def test_ids_are_the_places_of_the_sorted_tokens_after_the_boundary() -> None:
    vocab = Vocab.build("emma")
    assert vocab.tokens == ["", "a", "e", "m"]
    assert vocab.encode("emma") == [2, 3, 3, 1]
    assert vocab.decode([2, 3, 3, 1]) == ["e", "m", "m", "a"]


def test_unknown_tokens_are_named_once_and_the_alphabet_is_listed() -> None:
    with pytest.raises(DataError, match=re.escape("unknown characters 'x', '7'; the model knows a b")):
        Vocab.build("ab").encode("axb7x")
    with pytest.raises(DataError, match=re.escape("unknown characters '', '.';")):  # no text has the boundary
        Vocab.build("ab").encode(["", "."])


def test_a_literal_dot_is_shown_in_another_way_than_the_boundary() -> None:
    vocab = Vocab.build("a.")
    assert [vocab.show(i) for i in range(3)] == [".", "'.'", "a"]


def test_a_long_alphabet_is_cut_after_a_hundred_tokens() -> None:
    tokens = [chr(0x4E00 + i) for i in range(1234)]
    assert Vocab.build(tokens[:100]).describe() == " ".join(tokens[:100])
    assert Vocab.build(tokens).describe() == " ".join(tokens[:100]) + " … (1,234 tokens)"


@pytest.mark.parametrize("tokens", [[], ["a", "b"], ["a", ""], ["", "a", "a"]])
def test_an_invalid_list_of_tokens_is_refused(tokens: list[str]) -> None:
    with pytest.raises(ValueError, match="boundary"):
        Vocab(tokens)
