"""Ranges of settings, what they ask of each other, and how problems are reported."""

from __future__ import annotations

import math
import re

import pytest

from mlp_lm.errors import SettingsError
from mlp_lm.ranges import Choice, Range
from mlp_lm.settings import CROSS_CHECKS, RANGES, SHAPE, check, check_section, check_unchanged

TRAINED = {"data.context_size": 3, "model.embedding_dim": 10, "model.hidden_dim": 200, "model.num_layers": 1}


def problems(settings: dict[str, object]) -> list[str]:
    """What `check` finds wrong, one string a problem."""
    with pytest.raises(SettingsError) as caught:
        check(settings)
    return str(caught.value).split("; ")


# -- ranges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("range_", "inside", "outside"),
    [
        (Range(0, 1), [0, 0.5, 1, 1.0], [-1e-9, 1.1]),
        (Range(0, 1, above=True), [1e-9, 1], [0, 0.0]),
        (Range(0, 1, below=True), [0, 0.999], [1, 1.0]),
        (Range(0), [0, 1e300], [-1]),
        (Range(1, 10, whole=True), [1, 10], [0, 11, 1.0, 5.5]),
        (Range(1, optional=True), [None, 1], [0]),
    ],
)
def test_a_range_holds_what_lies_inside(range_: Range, inside: list[object], outside: list[object]) -> None:
    assert [value for value in inside if value not in range_] == []
    assert [value for value in [*outside, *([] if range_.optional else [None])] if value in range_] == []


NO_NUMBERS = [math.nan, math.inf, -math.inf, True, False, "1", [1], 10**400, -(10**400)]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: str(value)[:5])
@pytest.mark.parametrize("whole", [False, True])
def test_no_range_holds_what_is_no_finite_number(value: object, whole: bool) -> None:
    assert value not in Range(-1e9, 1e9, whole=whole, optional=True)


@pytest.mark.parametrize(
    ("range_", "text"),
    [
        (Range(0, 1), "a number from 0 to 1"),
        (Range(0, 1, above=True, below=True), "a number above 0 to below 1"),
        (Range(1, whole=True), "a whole number from 1"),
        (Range(1, 1000, whole=True, optional=True), "a whole number from 1 to 1,000, or null"),
        (Choice(("sgd", "adamw")), "one of sgd, adamw"),
    ],
)
def test_a_range_says_what_it_holds(range_: Range | Choice, text: str) -> None:
    assert str(range_) == text


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("seed_everything", [0, 2**32 - 1], [-1, 2**32]),
        ("data.context_size", [1, 1024], [0, 1025, 3.0]),
        ("data.batch_size", [1], [0]),
        ("data.steps_per_execution", [1], [0]),
        ("data.max_item_length", [1], [0]),
        ("model.vocab_size", [2], [1]),
        ("model.embedding_dim", [1], [0]),
        ("model.hidden_dim", [1], [0]),
        ("model.num_layers", [1], [0]),
        ("min", [1e-9, 30], [0, -1, math.inf]),
        ("max", [1e-9, 30], [0, -1, math.nan]),
        ("steps", [100, 100_000], [99, 100_001, 200.0]),
        ("model.dropout", [0, 0.99], [-0.1, 1, math.nan]),
        ("model.optimizer", ["sgd", "adamw"], ["adam", None]),
        ("model.learning_rate", [1e-9, 30], [0, -1, math.inf, math.nan]),
        ("model.momentum", [0, 0.9], [1, -0.1]),
        ("model.weight_decay", [0, 5], [-1e-9]),
        ("model.lr_schedule", ["constant", "step", "cosine"], ["linear", None]),
        ("model.lr_warmup_steps", [0], [-1, 0.5]),
        ("model.lr_decay_steps", [None, 1], [0]),
        ("model.lr_drop_at", [0, 1], [-0.1, 1.1]),
        ("model.lr_end_factor", [0, 1], [-0.1, 1.1]),
        ("trainer.max_steps", [1], [0, -1]),
        ("num", [1], [0, True]),
        ("temperature", [0, 1.0], [-0.1, math.inf]),
        ("top_k", [None, 1], [0, 1.5]),
        ("top_p", [None, 0.1, 1], [0, 1.1]),
        ("seed", [None, 0, 2**63 - 1], [-1, 2**63]),
        ("max_length", [1], [0]),
    ],
)
def test_the_range_of_a_setting(name: str, good: list[object], bad: list[object]) -> None:
    optimizer = {"model.optimizer": "sgd"} if name == "model.momentum" else {}
    for value in good:
        check({name: value, **optimizer})
    for value in bad:
        assert problems({name: value}) == [f"{name}: found {value!r}, expected {RANGES[name]}"]


def test_settings_without_a_range_are_left_alone() -> None:
    check({"data.path": "names", "data.unique": False})


# -- cross-checks ------------------------------------------------------------------------------------------------

BEYOND_THE_COSINE: dict[str, object] = {
    "model.lr_schedule": "cosine",
    "model.lr_end_factor": 0.0,
    "model.lr_decay_steps": 10,
    "trainer.max_steps": 11,
}
BEYOND_ANY_MEMORY: dict[str, object] = {
    "model.context_size": 1,
    "model.embedding_dim": 1,
    "model.hidden_dim": 2**16,
    "model.num_layers": 1000,
}
CROSSED: list[tuple[dict[str, object], str]] = [
    ({"data.train_path": "a", "data.dev_path": None}, "data.dev_path, data.test_path: missing"),
    ({"data.train_path": "a", "data.dev_path": "b"}, "data.test_path: missing, expected all of data.train_path, "),
    (
        {"data.path": "a", "data.train_path": "a", "data.dev_path": "b", "data.test_path": "c"},
        "data.path: found beside",
    ),
    ({"model.momentum": 0.9, "model.optimizer": "adamw"}, "model.momentum: found 0.9"),
    (
        BEYOND_THE_COSINE,
        "trainer.max_steps: found 11, but the learning rate is 0 from step 10 on",
    ),
    ({"min": 1.0, "max": 1.0}, "min: found 1, expected a learning rate below --max, 1"),
    ({"prompt_length": 4, "max_length": 3}, "max_length: found 3, expected at least the 4 tokens"),
    (BEYOND_ANY_MEMORY, "model.hidden_dim: a network of 4,290,6"),
]


@pytest.mark.parametrize(("settings", "problem"), CROSSED)
def test_settings_at_odds_with_each_other(settings: dict[str, object], problem: str) -> None:
    assert [found.startswith(problem) for found in problems(settings)] == [True]


@pytest.mark.parametrize(
    "settings",
    [
        {"data.train_path": "a", "data.dev_path": "b", "data.test_path": "c"},
        {"data.train_path": None, "data.dev_path": None, "data.test_path": None},
        {"model.momentum": 0.9, "model.optimizer": "sgd"},
        {"model.momentum": 0.0, "model.optimizer": "adamw"},
        BEYOND_THE_COSINE | {"model.lr_decay_steps": 11},
        BEYOND_THE_COSINE | {"model.lr_decay_steps": None},
        BEYOND_THE_COSINE | {"model.lr_end_factor": 0.1},
        BEYOND_THE_COSINE | {"model.lr_schedule": "step"},
        {"min": 0.1, "max": 1.0},
        {"prompt_length": 3, "max_length": 3},
    ],
)
def test_settings_that_go_together(settings: dict[str, object]) -> None:
    check(settings)


# -- reports -----------------------------------------------------------------------------------------------------


def test_all_values_out_of_range_are_reported_at_once() -> None:
    settings: dict[str, object] = {"data.batch_size": 0, "num": 5, "model.dropout": math.nan, "top_p": "x"}
    assert [problem.split(":")[0] for problem in problems(settings)] == ["data.batch_size", "model.dropout", "top_p"]


def test_all_settings_at_odds_are_reported_at_once() -> None:
    together = {name: value for settings, _ in reversed(CROSSED) for name, value in settings.items()}
    assert len(problems(together)) == len(CROSS_CHECKS) == 7


def test_a_section_is_checked_under_its_name() -> None:
    check_section("model", {"dropout": 0.5, "num_layers": 1})
    with pytest.raises(SettingsError, match=r"^model\.dropout: found 2, expected a number from 0 to below 1$"):
        check_section("model", {"dropout": 2, "num_layers": 1})


def test_a_network_keeps_its_shape() -> None:
    check_unchanged(TRAINED | {"model.dropout": 0.5}, TRAINED | {"model.dropout": 0.1}, SHAPE)


@pytest.mark.parametrize("names", [[name] for name in TRAINED] + [list(TRAINED)])
def test_a_changed_shape_is_refused_by_name(names: list[str]) -> None:
    changed = TRAINED | dict.fromkeys(names, 77)
    why = "its weights have that shape"
    problems = [f"{name}: found 77, but the checkpoint has {TRAINED[name]} ({why}); leave it out" for name in names]
    expected = "; ".join(problems)
    with pytest.raises(SettingsError, match=f"^{re.escape(expected)}$"):
        check_unchanged(changed, TRAINED, SHAPE)
