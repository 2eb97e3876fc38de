"""Rows, table and pictures of a sweep, from literal rows."""

from __future__ import annotations

import pytest

from mlp_lm.figures.curves import draw_varied
from mlp_lm.training.sweep.table import Row, series, table_text


def row(values: dict[str, object], seed: int, loss: float | None, problem: str = "", finished: bool = True) -> Row:
    report = {
        "losses": {"dev": {"nats_per_token": loss}},
        "weights": 12345,
        "seconds": 10.0 * seed,
        "samples": [{"text": "anna", "seen_in": "train"}, {"text": "mira", "seen_in": "new"}],
    }
    folder = ",".join(f"{name}={value}" for name, value in values.items())
    return Row(values, seed, f"{folder},seed={seed}", report if finished else None, problem)


T, W = "data.context_size", "model.weight_decay"
ROWS = [
    row({T: 2, W: 0.0}, 1, 2.5),
    row({T: 3, W: 0.0}, 1, 2.1),
    row({T: 2, W: 1e-4}, 1, 2.2),
    row({T: 3, W: 1e-4}, 1, None, problem="diverged", finished=False),
    row({T: 2, W: 0.0}, 2, 2.3),
    row({T: 3, W: 0.0}, 2, 2.5),
    row({T: 2, W: 1e-4}, 2, 2.0),
    row({T: 3, W: 1e-4}, 2, None, finished=False),
]


def test_the_table_has_a_line_for_each_point_the_lowest_mean_first() -> None:
    assert table_text(ROWS).splitlines() == [
        "context_size  weight_decay  dev loss         weights  seconds  runs    samples",
        "2             0.0001        2.1000 ± 0.1414  12,345   15.0     2       anna*, mira",
        "3             0             2.3000 ± 0.2828  12,345   15.0     2       anna*, mira",
        "2             0             2.4000 ± 0.1414  12,345   15.0     2       anna*, mira",
        "3             0.0001        failed                             0 of 2",
        "(* = in the training set)",
        "failed: data.context_size=3,model.weight_decay=0.0001,seed=1: diverged",
    ]


def test_a_point_with_one_run_has_no_deviation_and_settings_with_one_value_no_column() -> None:
    rows = [row({T: 3, W: 0.0}, 1, 2.5), row({T: 4, W: 0.0}, 1, None)]  # an infinite loss, for which JSON has no number
    assert table_text(rows).splitlines()[:3] == [
        "context_size  dev loss  weights  seconds  runs  samples",
        "3             2.5000    12,345   10.0     1     anna*, mira",
        "4             inf       12,345   10.0     1     anna*, mira",
    ]


def test_a_series_for_each_combination_of_the_other_settings_or_one_of_all() -> None:
    assert series(ROWS, T) == {
        "weight_decay=0": [(2, [2.5, 2.3]), (3, [2.1, 2.5])],
        "weight_decay=0.0001": [(2, [2.2, 2.0])],  # no run of the other value has finished
    }
    words = [row({"all": True}, 1, 2.0), row({"all": None}, 1, 3.0)]
    assert series(words, "all") == {"": [("true", [2.0]), ("null", [3.0])]}


@pytest.mark.parametrize(
    ("values", "scale", "ticks"),
    [
        ([2, 3, 4, 5], "linear", ["2", "3", "4", "5"]),
        ([0.001, 0.01, 0.1], "log", ["0.001", "0.01", "0.1"]),
        ([0.0, 1e-4, 1e-2], "symlog", ["0", "0.0001", "0.01"]),
        (["sgd", "adamw"], "linear", ["sgd", "adamw"]),
        (["null", 100, 1000], "linear", ["null", "100", "1000"]),
    ],
)
def test_the_axis_follows_the_values(values: list[float | str], scale: str, ticks: list[str]) -> None:
    (axes,) = draw_varied("key", {"": [(value, [2.0, 2.5]) for value in values]}).axes
    assert axes.get_xscale() == scale
    assert [label.get_text() for label in axes.get_xticklabels()] == ticks
