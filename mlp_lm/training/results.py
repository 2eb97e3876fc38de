"""What came out of a sweep: a row for each point, their table, the best settings, and points for pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from mlp_lm.figures import curves
from mlp_lm.files import write_csv
from mlp_lm.training.study import NUMBER, PLAN, Values, latest_trials, parse_vary, point_folder

ENOUGH = 20  # finished points, for importances
MAX_LINES = 8  # of one picture; more cannot be told apart
STATUS = {"COMPLETE": "finished", "PRUNED": "pruned", "RUNNING": "running", "WAITING": "waiting", "FAIL": "failed"}
Row = dict[str, Any]  # the columns of sweep.csv


def write(study: optuna.Study, folder: Path) -> list[Row]:
    """Write sweep.csv and the pictures, print the table and what follows from it. Returns the rows."""
    rows, space = rows_of(study), parse_vary(study.user_attrs[PLAN]["vary"])
    names = short_names(space)
    write_csv(folder / "sweep.csv", [rows[0], *([text(cell, 7) for cell in row.values()] for row in rows)])
    save_pictures(rows, space, folder)
    texts = (table_text(rows, names), best_text(rows, names), importances(study, names))
    print("\n\n".join([*filter(None, texts), f"table and pictures: {folder}"]), flush=True)
    return rows


def rows_of(study: optuna.Study) -> list[Row]:
    """The points: finished ones by mean dev loss (of best.ckpt, nats/token), then pruned ones, then the others."""
    rows: dict[str, Row] = {}
    space = parse_vary(study.user_attrs[PLAN]["vary"])
    for trial in latest_trials(study):
        runs = trial.user_attrs.get("runs", [])
        losses = [run["dev_loss"] for run in runs]
        folder = runs[0]["folder"] if runs else point_folder(trial)  # a point chosen again: the first's
        known = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        row = {name: known.get(name) for name in space} | {
            "dev_loss": round(mean(losses), 6) if losses else None,
            "std_dev_loss": round(stdev(losses), 6) if len(losses) > 1 else None,  # over seeds (n − 1)
            "dev_losses": losses,
            "best_step": [run["best_step"] for run in runs],
            "weights": runs[0]["weights"] if runs else None,
            "seconds": sum(run["seconds"] for run in runs),
            "status": STATUS[trial.state.name],
            "folder": folder,
            "problem": trial.user_attrs.get("problem") if trial.state == TrialState.FAIL else None,
            "samples": ", ".join(runs[0]["samples"]) if runs else None,
        }
        rows.setdefault(folder, row)
    order = [*STATUS.values()]
    return sorted(rows.values(), key=lambda r: (order.index(r["status"]), r["dev_loss"] or math.inf))


def text(value: Any, digits: int) -> str:
    """A cell of the table: numbers with so many significant digits."""
    if isinstance(value, list):
        return " ".join(text(part, digits) for part in value)
    return "" if value is None else f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def short_names(space: Mapping[str, Values]) -> dict[str, str]:
    """The settings with more than one value, and what to call them: by their last parts, unless two share one."""
    names = [name for name, values in space.items() if len(values.get("choices", "ab")) > 1]
    ends = [name.split(".")[-1] for name in names]
    return {name: end if ends.count(end) == 1 else name for name, end in zip(names, ends, strict=True)}


def table_text(rows: Sequence[Row], names: Mapping[str, str]) -> str:
    """The rows for a terminal, and why points failed."""
    several = any(len(row["dev_losses"]) > 1 for row in rows)
    seeds = ["std_dev_loss", "dev_losses"] if several else []
    columns = [*names, "dev_loss", *seeds, "best_step", "weights", "seconds", "status", "folder"]
    lines = [[names.get(name, name) for name in columns]]
    lines += [[text(row[name], 5) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([*aligned, *(f"{row['folder']} failed: {row['problem']}" for row in rows if row["problem"])])


def best_text(rows: Sequence[Row], names: Mapping[str, str]) -> str:
    """The best settings as lines of a config, and how sure the ranking is; empty where no point has finished."""
    best, second = [*(row for row in rows if row["status"] == "finished"), None, None][:2]
    if best is None or not names:
        return ""
    lines = [f"best settings, of {best['folder']}:"]
    for section in dict.fromkeys(name.partition(".")[0] for name in names):
        lines.append(f"{section}:")
        for name in (name for name in names if name.startswith(f"{section}.")):
            value = best[name]  # most readers of YAML take Python's 1e-05 for a text
            number = np.format_float_positional(value, trim="0") if isinstance(value, float) else value
            lines.append(f"  {name.partition('.')[2]}: {number}")
    if second is not None:
        apart, seeds = second["dev_loss"] - best["dev_loss"], len(best["dev_losses"])
        sure = "one seed each cannot tell it from chance, --seeds 3 may"
        if seeds > 1:
            error = math.sqrt((best["std_dev_loss"] ** 2 + second["std_dev_loss"] ** 2) / seeds)
            sure = (
                f"{'more' if apart > 2 * error else 'not more'} than twice the standard error over seeds, {error:.4f}"
            )
        lines.append(f"the second is {apart:.4f} nats/token behind: {sure}")
    return "\n".join(lines)


def importances(study: optuna.Study, names: Mapping[str, str]) -> str:
    """How much each setting matters, by Optuna's PED-ANOVA; empty with fewer than 20 finished points."""
    if len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])) < ENOUGH or not names:
        return ""
    shares = optuna.importance.get_param_importances(study, params=[*names])
    return "importances (PED-ANOVA): " + ", ".join(f"{names[name]} {share:.2f}" for name, share in shares.items())


def save_pictures(rows: Sequence[Row], space: Mapping[str, Values], folder: Path) -> None:
    """For each setting its picture: a line for each combination of the other choices; only dots for ranges."""
    names = short_names(space)
    rows = [row for row in rows if row["status"] == "finished"]
    for key in names if rows else ():
        others = [name for name in names if name != key]
        labels = [", ".join(f"{names[name]}={row[name]}" for name in others) for row in rows]
        if len({*labels}) > MAX_LINES or any("low" in space[name] for name in others):
            labels = [""] * len(rows)
        series: dict[str, dict[float | str, list[float]]] = {}
        for label, row in zip(labels, rows, strict=True):
            value = float(row[key]) if re.fullmatch(NUMBER, str(row[key])) else row[key]
            series.setdefault(label, {}).setdefault(value, []).extend(row["dev_losses"])
        points = {label: [*values.items()] for label, values in series.items()}
        axis: Any = "choices" if "choices" in space[key] else "log" if space[key]["log"] else "linear"
        curves.save(curves.draw_varied(key, points, axis), str(folder / f"{key}.png"))
