"""What came out of a sweep: rows for sweep.csv, a table of points for the terminal, series for the pictures."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from mlp_lm.settings import as_written
from mlp_lm.text.vocab import printable
from mlp_lm.training.runs import starred
from mlp_lm.training.sweep.grid import short_names

NUM_SAMPLES = 5  # of each point in the table
SAMPLES_WIDTH = 80  # characters: running text would fill the screen
MAX_LINES = 8  # of one picture; more cannot be told apart
Series = list[tuple[float | str, list[float]]]  # values of a setting, and the dev losses of the runs with each


@dataclass(frozen=True)
class Row:
    """One run."""

    values: Mapping[str, Any]  # of the varied settings
    seed: int
    folder: str
    report: Mapping[str, Any] | None  # None where it has not finished
    problem: str = ""  # why it failed

    @property
    def loss(self) -> float:
        """Dev loss of best.ckpt in nats/token; infinite where there is none, which sorts last."""
        loss = self.report["losses"]["dev"]["nats_per_token"] if self.report else None
        return math.inf if loss is None else float(loss)

    @property
    def status(self) -> str:
        """`finished`, `failed` or `not finished`."""
        return "finished" if self.report else "failed" if self.problem else "not finished"

    @property
    def samples(self) -> list[str]:
        """Generated items; * marks those in the training set."""
        samples = self.report["samples"][:NUM_SAMPLES] if self.report else []
        return [starred(**sample) for sample in samples]


def by_point(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each point, seeds in their order; points sorted by mean dev loss."""
    points: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        points.setdefault(tuple(map(as_written, row.values.values())), []).append(row)
    return sorted(points.values(), key=lambda point: _mean(_losses(point)))


def _losses(rows: Sequence[Row]) -> list[float]:
    return [row.loss for row in rows if math.isfinite(row.loss)]


def _mean(losses: Sequence[float]) -> float:
    return mean(losses) if losses else math.inf


def _deviation(losses: Sequence[float]) -> float | None:
    """Standard deviation over seeds, of the sample (n − 1)."""
    return stdev(losses) if len(losses) > 1 else None


def csv_text(rows: Sequence[Row]) -> str:
    """A CSV row for each run, sorted by its dev loss; mean and standard deviation are those of its point."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    figures = ["dev_loss", "mean_dev_loss", "std_dev_loss", "weights", "seconds", "first_step", "steps"]
    writer.writerow([*rows[0].values, "seed_everything", *figures, "samples", "status", "problem", "folder"])
    losses = {row.folder: _losses(point) for point in by_point(rows) for row in point}
    for row in sorted(rows, key=lambda row: row.loss):
        own, report = losses[row.folder], row.report or {}
        numbers = [row.loss, _mean(own), _deviation(own)]
        writer.writerow(
            [
                *map(as_written, row.values.values()),
                row.seed,
                *("" if number is None or not math.isfinite(number) else f"{number:.6f}" for number in numbers),
                *(report.get(name, "") for name in ("weights", "seconds", "first_step", "steps")),
                ", ".join(row.samples),
                row.status,
                row.problem,
                row.folder,
            ]
        )
    return file.getvalue()


def table_text(rows: Sequence[Row]) -> str:
    """A line for each point, sorted by mean dev loss, and one for each run that failed."""
    keys = varying(rows)
    names = short_names(keys)
    lines = [[*(names[key] for key in keys), "dev loss", "weights", "seconds", "runs", "samples"]]
    for point in by_point(rows):
        lines.append([*(as_written(point[0].values[key]) for key in keys), *_figures(point)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    failed = [f"failed: {row.folder}: {row.problem}" for row in rows if row.problem]
    legend = ["(* = in the training set)"] if any(s.endswith("*") for row in rows for s in row.samples) else []
    return "\n".join(aligned + legend + failed)


def _figures(point: Sequence[Row]) -> list[str]:
    """Dev loss, weights, seconds, runs and samples of a point; the samples are those of its first run."""
    done = [row for row in point if row.report]
    if not done:
        return [point[0].status, "", "", f"0 of {len(point)}", ""]
    losses, report = _losses(point), done[0].report or {}
    deviation = _deviation(losses)
    loss = f"{_mean(losses):.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")
    seconds = [row.report["seconds"] for row in done if row.report]
    runs = str(len(done)) if len(done) == len(point) else f"{len(done)} of {len(point)}"
    return [
        loss,
        f"{report['weights']:,}",
        f"{mean(seconds):.1f}" if seconds else "",
        runs,
        printable(", ".join(done[0].samples))[:SAMPLES_WIDTH],
    ]


def varying(rows: Sequence[Row]) -> list[str]:
    """The settings that have more than one value."""
    return [key for key in rows[0].values if len({as_written(row.values[key]) for row in rows}) > 1]


def series(rows: Sequence[Row], key: str) -> dict[str, Series]:
    """Dev losses over the values of a setting: a series for each combination of the other settings, or one of all."""
    others = [other for other in varying(rows) if other != key]
    names = short_names(others)
    labels = [", ".join(f"{names[other]}={as_written(row.values[other])}" for other in others) for row in rows]
    if len({*labels}) > MAX_LINES:
        labels = [""] * len(rows)
    found: dict[str, dict[float | str, list[float]]] = {}
    for label, row in zip(labels, rows, strict=True):
        if math.isfinite(row.loss):
            found.setdefault(label, {}).setdefault(_for_axis(row.values[key]), []).append(row.loss)
    return {label: [*points.items()] for label, points in found.items()}


def _for_axis(value: Any) -> float | str:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else as_written(value)
