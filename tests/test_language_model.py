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
from mlp_lm.models.language_model import CorpusFacts, LanguageModel, Sample, Score, hash_items, total
from mlp_lm.models.metrics import NLL
from mlp_lm.models.sampling import Sampling
from mlp_lm.text.vocab import Vocab

KNOWN = CorpusFacts(3, {"train": hash_items(["a", "aa"]), "dev": hash_items(["ab"]), "test": hash_items(["aa", "ba"])})

# Rows: after the boundary, after a, after b. Columns: end, a, b.
TABLE = torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.125, 0.375], [0.75, 0.25, 0.0]])


def model(log_probs: Callable[[Tensor], Tensor], facts: CorpusFacts = KNOWN) -> LanguageModel:
    return LanguageModel(Vocab.build("ab"), 2, log_probs, facts)


def always(*probs: float) -> LanguageModel:
    """The same probabilities of end, a and b after every context."""
    return model(lambda contexts: torch.tensor(probs).log().expand(len(contexts), -1))


BY_TABLE, ENDS, NEVER_ENDS = model(lambda contexts: TABLE[contexts[:, -1]].log()), always(1, 0, 0), always(0, 1, 0)


def sample(lm: LanguageModel, num: int = 1, **options: Any) -> list[Sample]:
    return lm.sample(num, Sampling(**options))


# -- sampling ----------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_items_and_no_seed_others() -> None:
    assert sample(BY_TABLE, 50, seed=1) == sample(BY_TABLE, 50, seed=1) != sample(BY_TABLE, 50, seed=2)
    assert BY_TABLE.sample(50) != BY_TABLE.sample(50)


@pytest.mark.parametrize(
    ("item", "seen_in"),
    [("a", "train"), ("aa", "train"), ("ab", "dev or test"), ("ba", "dev or test"), ("b", "new"), ("", "new")],
)
def test_every_item_says_where_the_corpus_has_it(item: str, seen_in: str) -> None:
    assert sample(ENDS, prompt=item) == [Sample(item, cut=False, seen_in=seen_in)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("max_length", "text"), [(None, "aaaaaa"), (2, "aa")])
def test_an_item_is_cut_at_twice_the_longest_of_train_or_as_requested(max_length: int | None, text: str) -> None:
    [cut] = sample(NEVER_ENDS, max_length=max_length)
    assert cut == Sample(text, cut=True, seen_in=None) and str(cut) == text + "…"


def test_the_summary_counts_what_is_known_and_what_was_cut() -> None:
    found = [Sample("a", False, "train"), Sample("ab", False, "dev or test"), Sample("aaa", True, None)]
    assert BY_TABLE.summary(found) == "3 items: 1 in train, 1 in dev or test, 0 new, 1 cut at --max_length (…)"
    unknown = model(BY_TABLE.log_probs, CorpusFacts(3, None))
    assert unknown.summary([Sample("a", False, None)]) == "1 item: which of them are new is not known"


def test_only_new_items_come_back_if_requested() -> None:
    assert {s.seen_in for s in sample(BY_TABLE, 200, seed=1)} == {"train", "dev or test", "new"}
    assert [s.seen_in for s in sample(BY_TABLE, 200, seed=1, only_new=True)] == ["new"] * 200


def test_only_new_gives_up_if_nothing_is_new_or_known_to_be() -> None:
    assert sample(ENDS, 3, prompt="a", only_new=True) == []
    assert sample(NEVER_ENDS, 3, only_new=True) == []
    with pytest.raises(DataError, match="only_new: which items are new is not known"):
        sample(model(BY_TABLE.log_probs, CorpusFacts(3, None)), only_new=True)


def test_a_prompt_is_normalised_as_the_corpus_is_and_must_be_known() -> None:
    lm = LanguageModel(
        Vocab.build("\u00e9"), 2, lambda c: torch.tensor([0.0, -math.inf]).expand(len(c), -1), CorpusFacts(3, None)
    )
    assert [s.text for s in sample(lm, prompt="e\u0301")] == ["\u00e9"]
    with pytest.raises(DataError, match=re.escape("unknown characters 'x', '.'; the model knows é")):
        sample(lm, prompt="éx.")


def test_a_prompt_longer_than_max_length_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"^max_length must be at least 3, the length of the prompt \(got 2\)"):
        sample(ENDS, prompt="aba", max_length=2)
    assert [s.text for s in sample(ENDS, prompt="aba", max_length=3)] == ["aba"]
    assert [s.text for s in sample(ENDS, prompt="ababababa")] == ["ababababa"]  # longer than twice the longest


# -- scoring -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "tokens", "prob"),
    [("", 1, 0.25), ("a", 2, 0.5 * 0.5), ("ab", 3, 0.5 * 0.375 * 0.75), ("baa", 4, 0.25 * 0.25 * 0.125 * 0.5)],
)
def test_the_score_of_an_item_is_worked_out_by_hand(item: str, tokens: int, prob: float) -> None:
    [score] = BY_TABLE.score([item])
    assert (score.item, score.tokens) == (item, tokens)
    assert score.log_prob == pytest.approx(math.log(prob))
    assert score.nats_per_token == pytest.approx(-math.log(prob) / tokens)


def test_items_are_scored_each_on_its_own_and_as_the_corpus_would_read_them() -> None:
    items = ["ab", " a\r", "", "baa"] * 1000  # more windows than one batch
    alone = {item: BY_TABLE.score([item.strip()])[0] for item in set(items)}
    assert BY_TABLE.score(items) == [alone[item] for item in items]
    assert BY_TABLE.score([]) == []
    assert BY_TABLE.score(["bb"]) == [Score("bb", 3, -math.inf)]
    assert total(BY_TABLE.score(["", "a"])) == NLL(pytest.approx(-math.log(0.25 * 0.5 * 0.5)), 3)  # type: ignore[arg-type]


def test_items_with_unknown_characters_are_listed_by_their_place() -> None:
    message = "item 2 'axy' has the unknown characters 'x', 'y'; item 4 'a b' has the unknown character ' '; "
    message += "the model knows a b"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        BY_TABLE.score(["a", "axy", "b", "a b"])
