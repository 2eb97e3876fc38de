"""Sampling and scoring with small made-up language models."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mlp_lm.errors import DataError, SettingsError
from mlp_lm.models.known_items import KnownItems, hash_items
from mlp_lm.models.language_model import LanguageModel, Score, total
from mlp_lm.text.vocab import Vocab

KNOWN = KnownItems({"train": hash_items(["a", "aa"]), "dev": hash_items(["ab"]), "test": hash_items(["aa", "ba"])})

# Rows: after the boundary, after a, after b. Columns: end, a, b.
TABLE = torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.125, 0.375], [0.75, 0.25, 0.0]])


def by_table(contexts: Tensor) -> Tensor:
    return TABLE[contexts[:, -1]].log()


def always(*probs: float) -> Callable[[Tensor], Tensor]:
    """The same probabilities of end, a and b after every context."""
    return lambda contexts: torch.tensor(probs).log().expand(len(contexts), -1)


def model(log_probs: Callable[[Tensor], Tensor], known_items: KnownItems | None = KNOWN) -> LanguageModel:
    return LanguageModel(Vocab.build("ab"), 2, log_probs, longest_item=3, known_items=known_items)


ENDS, NEVER_ENDS = model(always(1, 0, 0)), model(always(0, 1, 0))


# -- sampling ----------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_items() -> None:
    lm = model(by_table)
    assert lm.sample(50, seed=1) == lm.sample(50, seed=1)
    assert lm.sample(50, seed=1) != lm.sample(50, seed=2)
    assert lm.sample(50) != lm.sample(50)
    assert len(lm.sample(50)) == 50


def test_samples_are_the_texts_of_what_is_generated() -> None:
    lm = model(by_table)
    assert lm.sample(20, seed=1, prompt="a") == [sample.text for sample in lm.generate(20, seed=1, prompt="a")]


@pytest.mark.parametrize(
    ("item", "where"),
    [("a", "train"), ("aa", "train"), ("ab", "dev or test"), ("ba", "dev or test"), ("b", "new"), ("", "new")],
)
def test_every_item_says_where_it_stands(item: str, where: str) -> None:
    [sample] = ENDS.generate(1, prompt=item)
    assert (sample.text, sample.cut, sample.where) == (item, False, where)


def test_an_item_is_cut_at_twice_the_longest_of_train() -> None:
    [sample] = NEVER_ENDS.generate(1)
    assert (sample.text, sample.cut) == ("a" * 6, True)


def test_a_cut_item_stands_nowhere() -> None:
    [sample] = NEVER_ENDS.generate(1, max_length=2)
    assert (sample.text, sample.cut, sample.where) == ("aa", True, None)


def test_without_known_items_nothing_is_said_of_where_an_item_stands() -> None:
    [sample] = model(always(1, 0, 0), known_items=None).generate(1, prompt="a")
    assert sample.where is None


def test_only_new_items_come_back_where_asked_for() -> None:
    lm = model(by_table)
    assert {sample.where for sample in lm.generate(200, seed=1)} == {"train", "dev or test", "new"}
    only_new = lm.generate(200, seed=1, only_new=True)
    assert len(only_new) == 200
    assert {sample.where for sample in only_new} == {"new"}


def test_only_new_gives_up_where_nothing_is_new() -> None:
    assert ENDS.sample(3, prompt="a", only_new=True) == []
    assert NEVER_ENDS.sample(3, only_new=True) == []


def test_only_new_needs_to_know_the_items() -> None:
    with pytest.raises(DataError, match="too big"):
        model(by_table, known_items=None).sample(1, only_new=True)


def test_a_prompt_is_normalised_as_the_corpus_is() -> None:
    lm = LanguageModel(Vocab.build("\u00e9"), 2, lambda c: torch.tensor([0.0, -math.inf]).expand(len(c), -1), 3)
    assert lm.sample(1, prompt="e\u0301") == ["\u00e9"]


@pytest.mark.parametrize("prompt", ["axb", "x", " ", "."])
def test_a_prompt_with_unknown_tokens_names_them(prompt: str) -> None:
    unknown = repr(prompt.strip("ab"))
    with pytest.raises(DataError, match=re.escape(f"unknown token {unknown}; the model knows a b")):
        ENDS.sample(1, prompt=prompt)


def test_all_settings_out_of_range_are_reported_at_once() -> None:
    wrong: dict[str, Any] = {
        "num": 0,
        "temperature": math.nan,
        "top_k": 0,
        "top_p": 1.5,
        "seed": -1,
        "max_length": 0,
    }
    with pytest.raises(SettingsError) as caught:
        ENDS.sample(**wrong)
    problems = str(caught.value).split("; ")
    assert [problem.split(":")[0] for problem in problems] == list(wrong)


def test_a_prompt_longer_than_max_length_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"^max_length: found 2, expected at least the 3 tokens"):
        ENDS.sample(1, prompt="aba", max_length=2)
    assert ENDS.sample(1, prompt="aba", max_length=3) == ["aba"]


# -- scoring -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "tokens", "prob"),
    [("", 1, 0.25), ("a", 2, 0.5 * 0.5), ("ab", 3, 0.5 * 0.375 * 0.75), ("baa", 4, 0.25 * 0.25 * 0.125 * 0.5)],
)
def test_the_score_of_an_item_is_worked_out_by_hand(item: str, tokens: int, prob: float) -> None:
    [score] = model(by_table).score([item])
    assert (score.item, score.tokens) == (item, tokens)
    assert score.log_prob == pytest.approx(math.log(prob))
    assert score.nats_per_token == pytest.approx(-math.log(prob) / tokens)


def test_an_impossible_item_has_probability_0() -> None:
    assert model(by_table).score(["bb"]) == [Score("bb", 3, -math.inf)]


def test_items_are_scored_each_on_its_own() -> None:
    lm = model(by_table)
    items = ["ab", "a", "", "baa"] * 1000  # more windows than one batch
    alone = {item: lm.score([item])[0] for item in set(items)}
    assert lm.score(items) == [alone[item] for item in items]


def test_no_items_have_no_scores() -> None:
    assert model(by_table).score([]) == []


def test_an_item_is_scored_as_the_corpus_would_read_it() -> None:
    assert model(by_table).score([" ab\r"]) == model(by_table).score(["ab"])


def test_items_with_unknown_tokens_are_listed_by_their_place() -> None:
    message = "item 2 'axy' has unknown 'x', 'y'; item 4 'a b' has unknown ' '; the model knows a b"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        model(by_table).score(["a", "axy", "b", "a b"])


def test_the_total_of_scores_is_a_loss_over_all_tokens() -> None:
    nll = total(model(by_table).score(["", "a"]))
    assert nll.tokens == 3
    assert nll.nats_per_token == pytest.approx(-math.log(0.25 * 0.5 * 0.5) / 3)
