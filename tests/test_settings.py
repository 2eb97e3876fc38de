"""Ranges in signatures."""

from __future__ import annotations

import math
from typing import Annotated

import pytest

from mlp_lm.errors import SettingsError
from mlp_lm.settings import Range, check, check_section, ranges


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
