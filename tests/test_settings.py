"""Ranges in signatures, what settings ask of each other, and what a checkpoint fixes."""

from __future__ import annotations

import math
from typing import Annotated

import pytest

from mlp_lm.errors import SettingsError
from mlp_lm.settings import FIXED_BY_WEIGHTS, Range, as_written, changed, check, check_section, ranges

Settings = dict[str, object]


def draw(share: Annotated[float, Range(0, 1)], num: Annotated[int, Range(1)] | None = None, name: str = "") -> None:
    """A command whose settings have ranges."""


class Layer:
    """An owner of settings, as modules are."""

    def __init__(self, width: Annotated[int, Range(1, 8)] = 4) -> None: ...


@pytest.mark.parametrize(
    ("limits", "inside", "outside", "text"),
    [
        (Range(0, 1), [0, 0.5, 1.0], [-1e-9, 1.1], "between 0 and 1"),
        (Range(0, 1, above=True), [1e-9, 1], [0, 0.0], "above 0 and at most 1"),
        (Range(0, 1, below=True), [0, 0.999], [1, 1.0], "at least 0 and below 1"),
        (Range(2), [2, 1e300], [1], "at least 2"),
        (Range(1, 10_000), [1, 10_000], [0, 10_001], "between 1 and 10,000"),
    ],
)
def test_a_range_holds_what_it_says(limits: Range, inside: list[float], outside: list[float], text: str) -> None:
    assert [value for value in inside if value not in limits] == []
    assert [value for value in outside if value in limits] == []
    assert str(limits) == text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", [1], None])
def test_no_range_holds_what_is_not_a_finite_number(value: object) -> None:
    assert value not in Range(-1e9) and value not in Range(0, 1)


def test_a_range_as_keywords_of_a_json_schema() -> None:
    assert Range(0, 1, below=True).as_schema() == {"minimum": 0, "exclusiveMaximum": 1}
    assert Range(0, 5, above=True).as_schema() == {"exclusiveMinimum": 0, "maximum": 5}
    assert Range(1).as_schema() == {"minimum": 1}


def test_ranges_are_read_from_a_signature() -> None:
    assert ranges(draw) == {"share": Range(0, 1), "num": Range(1)}
    assert ranges(Layer, "model") == {"model.width": Range(1, 8)}


def test_all_values_out_of_range_are_reported_at_once() -> None:
    check({"share": 0.5, "num": None, "name": "x"}, ranges(draw))
    with pytest.raises(SettingsError) as caught:
        check({"share": 2.0, "num": 0, "name": "x"}, ranges(draw))
    assert str(caught.value) == "share must be between 0 and 1 (got 2.0); num must be at least 1 (got 0)"
    with pytest.raises(SettingsError, match=r"^model\.width must be between 1 and 8 \(got 9\)$"):
        check_section("model", {"width": 9}, Layer)


COSINE: Settings = {"model.lr_schedule": "cosine", "model.lr_end_factor": 0.0}
TOO_LONG = {**COSINE, "model.lr_decay_steps": 10, "trainer.max_steps": 11}
SPLIT: Settings = {"data.train_path": "a", "data.dev_path": "b", "data.test_path": "c"}
AT_ODDS: list[tuple[Settings, str]] = [
    ({"data.train_path": "a"}, "data.dev_path, data.test_path: missing, expected all of data.train_path, "),
    ({**SPLIT, "data.path": "a"}, "data.path: found beside data.train_path"),
    ({"model.momentum": 0.9, "model.optimizer": "adamw"}, "model.momentum: applies only to model.optimizer sgd"),
    (TOO_LONG, "trainer.max_steps: found 11, but the learning rate is 0 from step 10 on; raise --model.lr_decay_steps"),
]


@pytest.mark.parametrize(("settings", "problem"), AT_ODDS)
def test_settings_at_odds_with_each_other(settings: Settings, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check(settings, {})
    assert str(caught.value).startswith(problem) and "; model" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        SPLIT,
        {"model.momentum": 0.9, "model.optimizer": "sgd"},
        {"model.momentum": 0.0, "model.optimizer": "adamw"},
        {**TOO_LONG, "model.lr_decay_steps": 11},
        {**TOO_LONG, "model.lr_decay_steps": None},
        {**TOO_LONG, "model.lr_end_factor": 0.1},
        {**TOO_LONG, "model.lr_schedule": "step"},
    ],
)
def test_settings_that_go_together(settings: Settings) -> None:
    check(settings, {})


def test_all_settings_at_odds_are_reported_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        check({name: value for settings, _ in reversed(AT_ODDS) for name, value in settings.items()}, {})
    assert [problem in str(caught.value) for _, problem in AT_ODDS[1:]] == [True] * 3


def test_a_network_keeps_its_shape() -> None:
    trained: Settings = {name: False for name in FIXED_BY_WEIGHTS}
    trained |= {"model.hidden_dim": 200, "model.num_layers": 1, "model.dropout": 0.1}
    assert [*changed({**trained, "model.dropout": 0.5}, trained, FIXED_BY_WEIGHTS)] == []
    assert [*changed({**trained, "model.hidden_dim": 77, "model.num_layers": 2}, trained, FIXED_BY_WEIGHTS)] == [
        "model.hidden_dim: found 77, but the checkpoint has 200 (its weights were trained with that); leave it out",
        "model.num_layers: found 2, but the checkpoint has 1 (its weights were trained with that); leave it out",
    ]


def test_values_as_one_would_write_them_in_a_config() -> None:
    assert [as_written(v) for v in (None, True, 0.001, 12, "a")] == ["null", "true", "0.001", "12", "a"]
