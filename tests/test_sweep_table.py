"""Rows, table and pictures of a sweep, from literal rows."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.axes import Axes

from mlp_lm.figures.curves import draw_varied
from mlp_lm.training.sweep.table import Row, csv_text, series, table_text


def row(values: dict[str, object], seed: int, loss: float | None, problem: str = "", first_step: int = 0) -> Row:
    report = {
        "losses": {"dev": {"nats_per_token": loss}},
        "weights": 12345,
        "seconds": 10.0 * seed,
        "first_step": first_step,
        "steps": 100,
        "samples": [{"text": "anna", "where": "train"}, {"text": "mira", "where": "new"}],
    }
    folder = ",".join(f"{name}={value}" for name, value in values.items())
    return Row(values, seed, f"{folder},seed={seed}", None if loss is None else report, problem)


T, W = "data.context_size", "model.weight_decay"
ROWS = [
    row({T: 2, W: 0.0}, 1, 2.5),
    row({T: 3, W: 0.0}, 1, 2.1),
    row({T: 2, W: 1e-4}, 1, 2.2, first_step=50),
    row({T: 3, W: 1e-4}, 1, None, problem="diverged"),
    row({T: 2, W: 0.0}, 2, 2.3),
    row({T: 3, W: 0.0}, 2, 2.5),
    row({T: 2, W: 1e-4}, 2, 2.0),
    row({T: 3, W: 1e-4}, 2, None),
]


def test_the_table_has_a_line_for_each_point_the_lowest_mean_first() -> None:
    assert table_text(ROWS).splitlines() == [
        "context_size  weight_decay  dev loss         weights  seconds  runs    samples",
        "2             0.0001        2.1000 ± 0.1414  12,345   15.0     2       anna*, mira",
        "3             0             2.3000 ± 0.2828  12,345   15.0     2       anna*, mira",
        "2             0             2.4000 ± 0.1414  12,345   15.0     2       anna*, mira",
        "3             0.0001        failed                             0 of 2",
        "(* stands in train)",
        "failed: data.context_size=3,model.weight_decay=0.0001,seed=1: diverged",
    ]


def test_a_point_with_one_run_has_no_deviation_and_settings_with_one_value_no_column() -> None:
    assert table_text([row({T: 3, W: 0.0}, 1, 2.5), row({T: 4, W: 0.0}, 1, None)]).splitlines()[:3] == [
        "context_size  dev loss      weights  seconds  runs    samples",
        "3             2.5000        12,345   10.0     1       anna*, mira",
        "4             not finished                    0 of 1",
    ]


def test_the_csv_has_a_row_for_each_run_the_lowest_loss_first() -> None:
    rows = list(csv.DictReader(csv_text(ROWS).splitlines()))
    assert [r["dev_loss"] for r in rows] == [f"{x:.6f}" for x in (2.0, 2.1, 2.2, 2.3, 2.5, 2.5)] + ["", ""]
    assert (rows[0][T], rows[0][W], rows[0]["seed_everything"]) == ("2", "0.0001", "2")
    assert (rows[0]["mean_dev_loss"], rows[0]["std_dev_loss"]) == ("2.100000", "0.141421")
    assert [(r["status"], r["problem"]) for r in rows[-2:]] == [("failed", "diverged"), ("not finished", "")]


def test_a_loss_that_is_no_number_sorts_last() -> None:
    broken = row({T: 1}, 1, 0.0)
    assert broken.report is not None
    broken.report["losses"]["dev"]["nats_per_token"] = None  # what JSON has for it
    assert math.isinf(broken.loss)
    assert [r[T] for r in csv.DictReader(csv_text([broken, row({T: 2}, 1, 9.0)]).splitlines())] == ["2", "1"]


def test_a_series_for_each_combination_of_the_other_settings_or_one_of_all() -> None:
    assert series(ROWS, T) == {
        "weight_decay=0": [(2, [2.5, 2.3]), (3, [2.1, 2.5])],
        "weight_decay=0.0001": [(2, [2.2, 2.0])],  # no run of the other value has finished
    }
    assert series([row({"fused": True}, 1, 2.0), row({"fused": None}, 1, 3.0)], "fused") == {
        "": [("true", [2.0]), ("null", [3.0])]
    }
    many = [row({T: i, "model.dropout": i / 10}, 1, 2.0 + i) for i in range(9)]
    assert series(many, T) == {"": [(i, [2.0 + i]) for i in range(9)]}


def axes_of(values: Sequence[float | str]) -> Axes:
    (axes,) = draw_varied("key", {"": [(value, [2.0, 2.5]) for value in values]}).axes
    return axes


@pytest.mark.parametrize(
    ("values", "scale", "ticks"),
    [
        ([2, 3, 4, 5], "linear", ["2", "3", "4", "5"]),
        ([0.001, 0.01, 0.1], "log", ["0.001", "0.01", "0.1"]),
        ([0.1, 0.001, 0.01], "log", ["0.1", "0.001", "0.01"]),
        ([0.0, 1e-4, 1e-2], "symlog", ["0", "0.0001", "0.01"]),
        (["sgd", "adamw"], "linear", ["sgd", "adamw"]),
        (["null", 100, 1000], "linear", ["null", "100", "1000"]),
        ([0.0], "linear", ["0"]),
    ],
)
def test_the_axis_follows_the_values(values: list[float | str], scale: str, ticks: list[str]) -> None:
    axes = axes_of(values)
    assert axes.get_xscale() == scale
    assert [label.get_text() for label in axes.get_xticklabels()] == ticks


def test_seeds_are_dots_and_their_mean_is_a_line() -> None:
    lines = {"a": [(3, [2.0, 3.0]), (2, [4.0])], "b": [(2, [1.0])]}
    (axes,) = draw_varied("key", lines).axes
    drawn = [(line.get_linestyle(), [(x, y) for x, y in np.asarray(line.get_xydata())]) for line in axes.lines]
    assert drawn == [
        ("-", [(2, 4.0), (3, 2.5)]),
        ("None", [(2, 4.0), (3, 2.0), (3, 3.0)]),
        ("-", [(2, 1.0)]),
        ("None", [(2, 1.0)]),
    ]
    assert axes.get_legend() is not None and axes_of([1, 2]).get_legend() is None
