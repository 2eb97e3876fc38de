"""Which runs a sweep has, and what they are called."""

from __future__ import annotations

import re

import pytest

from mlp_lm.errors import SettingsError
from mlp_lm.training.sweep.grid import choose_points, parse_vary, run_name, short_names

GRID = {"a.x": ["1", "2", "3"], "b.y": ["u", "v"]}


def test_values_stay_as_written_and_quotes_keep_a_comma() -> None:
    varied = parse_vary(["data.context-size=2,03", "model.weight_decay=0, 1e-4,null", 'data.path="a,b.txt"'])
    assert varied == {
        "data.context_size": ["2", "03"],
        "model.weight_decay": ["0", "1e-4", "null"],
        "data.path": ["a,b.txt"],
    }


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["data.context_size="], "vary: data.context_size: no values, which makes an empty grid"),
        (["a.b=[1, 2]"], "vary: found 'a.b=[1, 2]', expected KEY=V1,V2,..."),
        (["a.b=2,,3"], "vary: found 'a.b=2,,3', expected KEY=V1,V2,..."),
        (["a.b=1", "a.b=2"], "vary: a.b: found twice"),
        (["seed_everything=1,2"], "vary: seed_everything: found several values; expected the first one"),
        (["a.b=", "=1"], "an empty grid; expected a.b=V1,V2,...; vary: found '=1'"),  # all at once
    ],
)
def test_values_that_make_no_grid(texts: list[str], expected: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(expected)):
        parse_vary(texts)


def test_a_grid_has_every_combination_the_last_setting_fastest() -> None:
    points = choose_points(GRID, None, random_seed=1, seeds=1)
    assert [p["a.x"] + p["b.y"] for p in points] == ["1u", "1v", "2u", "2v", "3u", "3v"]
    assert choose_points({}, None, random_seed=1, seeds=3) == [{}]  # only seeds vary


def test_random_points_are_distinct_points_of_the_grid_from_a_seed() -> None:
    drawn = [choose_points(GRID, 4, random_seed=seed, seeds=1) for seed in (1, 2, 1)]
    assert all(len({(p["a.x"], p["b.y"]) for p in points}) == 4 for points in drawn)
    assert drawn[0] == drawn[2] != drawn[1]


@pytest.mark.parametrize(
    ("number", "seeds", "expected"),
    [
        (7, 1, "random: found 7, but the grid has 6 points"),
        (None, 2_000, "vary: a grid of 12,000 runs, expected at most 10,000; --random N runs a part"),
    ],
)
def test_too_many_points(number: int | None, seeds: int, expected: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(expected)):
        choose_points(GRID, number, random_seed=1, seeds=seeds)


@pytest.mark.parametrize(
    ("values", "taken", "expected"),
    [
        ({"context_size": 3}, [], "context_size=3,seed=1"),
        ({}, [], "seed=1"),
        ({"decay": 1e-4, "decay_all": True, "steps": None}, [], "decay=0.0001,decay_all=true,steps=null,seed=1"),
        ({"path": "/tmp/ä b:*?.txt"}, [], "path=_tmp___b___.txt,seed=1"),
        ({"path": "names"}, ["path=NAMES,seed=1", "path=names,seed=1,2"], "path=names,seed=1,3"),
        ({"path": "x" * 300}, [], "x" * 113 + ",seed=1"),
    ],
)
def test_the_name_of_a_run_is_safe_and_its_own(values: dict[str, object], taken: list[str], expected: str) -> None:
    assert run_name(values, 1, taken) == expected


def test_settings_are_called_by_their_last_part_unless_two_share_it() -> None:
    assert [*short_names(["data.path", "model.a", "trainer.a"]).values()] == ["path", "model.a", "trainer.a"]
