"""What came out of a sweep: a row for each point, their table, the best settings, and pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from mlp_lm.figures import curves
from mlp_lm.files import write_csv
from mlp_lm.training.study import NUMBER, PLAN, Plan, Values, latest_trials, point_folder

ENOUGH = 20  # finished points, for importances
STATUS = {"COMPLETE": "finished", "PRUNED": "pruned", "RUNNING": "running", "WAITING": "waiting", "FAIL": "failed"}
Row = dict[str, Any]  # the columns of sweep.csv


def write(study: optuna.Study, folder: Path) -> list[Row]:
    """Write sweep.csv and the pictures, print the table and what follows from it. Returns the rows."""
    space = Plan(**study.user_attrs[PLAN]).space()
    rows = rows_of(study, space)
    space = {name: values for name, values in space.items() if not values.single()}
    write_csv(folder / "sweep.csv", [rows[0], *([text(cell, 7) for cell in row.values()] for row in rows)])
    save_pictures(rows, space, folder)
    texts = (table_text(rows, space), best_text(rows, space), importances(study, space))
    print("\n\n".join([*filter(None, texts), f"table and pictures: {folder}"]), flush=True)
    return rows


def rows_of(study: optuna.Study, names: Collection[str]) -> list[Row]:
    """The points: finished ones by mean dev loss (of best.ckpt, nats/token), then pruned ones, then the others."""
    rows: dict[str, Row] = {}
    for trial in latest_trials(study):
        runs = trial.user_attrs.get("runs", [])
        losses = [run["dev_loss"] for run in runs]
        folder = runs[0]["folder"] if runs else point_folder(trial)  # a point chosen again: the first's
        known = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        row = {name: known.get(name) for name in names} | {
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
    return sorted(rows.values(), key=lambda row: (order.index(row["status"]), row["dev_loss"] or math.inf))


def text(value: Any, digits: int) -> str:
    """A cell of the table: numbers with so many significant digits."""
    if isinstance(value, list):
        return " ".join(text(part, digits) for part in value)
    return "" if value is None else f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def table_text(rows: Sequence[Row], names: Collection[str]) -> str:
    """The rows for a terminal, and why points failed."""
    columns = [*names, "dev_loss", "std_dev_loss", "dev_losses", "best_step", "weights", "seconds", "status", "folder"]
    lines = [columns, *([text(row[name], 5) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([*aligned, *(f"{row['folder']} failed: {row['problem']}" for row in rows if row["problem"])])


def best_text(rows: Sequence[Row], names: Collection[str]) -> str:
    """The best settings as lines of a config, and how sure the ranking is; empty where no point has finished."""
    best, second = [*(row for row in rows if row["status"] == "finished"), None, None][:2]
    if best is None or not names:
        return ""
    lines = [f"best settings, of {best['folder']}:"]
    for section in dict.fromkeys(name.partition(".")[0] for name in names):
        own = [name for name in names if name.startswith(f"{section}.")]
        lines += [f"{section}:", *(f"  {name.partition('.')[2]}: {best[name]}" for name in own)]
    if second is not None:
        sure = "no spread to compare it with: one seed each"
        if best["std_dev_loss"] is not None:
            error = math.hypot(best["std_dev_loss"], second["std_dev_loss"]) / math.sqrt(len(best["dev_losses"]))
            sure = f"standard error over seeds {error:.4f}"
        lines.append(f"the second is {second['dev_loss'] - best['dev_loss']:.4f} nats/token behind; {sure}")
    return "\n".join(lines)


def importances(study: optuna.Study, names: Collection[str]) -> str:
    """How much each setting matters, by Optuna's PED-ANOVA; empty with fewer than 20 finished points."""
    if len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])) < ENOUGH or not names:
        return ""
    shares = optuna.importance.get_param_importances(study, params=[*names])
    return "importances (PED-ANOVA): " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items())


def save_pictures(rows: Sequence[Row], space: Mapping[str, Values], folder: Path) -> None:
    """For each setting its picture: the dev losses of all finished runs over its values."""
    rows = [row for row in rows if row["status"] == "finished"]
    for key, values in space.items() if rows else ():
        losses: dict[float | str, list[float]] = {}
        for row in rows:
            value = float(row[key]) if re.fullmatch(NUMBER, str(row[key])) else row[key]
            losses.setdefault(value, []).extend(row["dev_losses"])
        axis: Any = "choices" if isinstance(values, CategoricalDistribution) else "log" if values.log else "linear"
        curves.save(curves.draw_varied(key, losses, axis), str(folder / f"{key}.png"))
