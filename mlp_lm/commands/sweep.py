"""`python -m mlp_lm sweep`: a search over settings with Optuna, each point runs of `fit`, and one table."""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, Literal

import optuna
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution, distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from mlp_lm.errors import Interrupted, SettingsError, TrainingError
from mlp_lm.figures import curves
from mlp_lm.files import write_csv
from mlp_lm.runs import CONFIG, output_folder, starred
from mlp_lm.settings import Range

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})((?::[^:]+)*)")
FORM = "KEY=V1,... or KEY=LOW..HIGH[:log][:int][:STEP]"
STATUS = {"COMPLETE": "finished", "PRUNED": "pruned", "RUNNING": "running", "WAITING": "waiting", "FAIL": "failed"}
Row = dict[str, Any]  # the columns of sweep.csv


def sweep(
    vary: Sequence[str] = (),
    seeds: Annotated[int, Range(1, 1000)] | None = None,
    sampler: Literal["grid", "random", "tpe"] | None = None,
    trials: Annotated[int, Range(1, 10_000)] | None = None,
    prune: bool | Literal["median", "hyperband"] = False,
    config: str | None = None,
    jobs: Annotated[int, Range(1, 1024)] = 1,
    sweep_dir: str | None = None,
    storage: str | None = None,
) -> None:
    """Search over settings: a grid of choices, or points that a sampler chooses, each run with one seed or several.

    The sweep's folder gets a folder of runs for each point, sweep.csv, and a picture of the dev loss for each setting
    that varies; the test split stays unread. `sweep --sweep_dir DIR` resumes a sweep, or joins it from another
    terminal or machine: points that have finished stay, begun ones are resumed, failed ones tried again. Exit code 2
    if a point failed.

    Args:
        vary: KEY=V1,V2,... or KEY=LOW..HIGH[:log][:int][:STEP] (repeatable): a setting of fit and its choices, as in
            YAML, or the range it is drawn from. With one choice, it is set for all runs, for example
            trainer.max_steps=100.
        seeds: Runs of each point (default: 1), which is ranked by their mean dev loss; they differ in seed_everything
            alone, counted up from the config's.
        sampler: grid runs all combinations; random and tpe choose --trials points, tpe from what came out so far.
            Default: tpe with --trials, else grid.
        trials: Points that random or tpe choose.
        prune: End a point's first run early, and leave out its other seeds: once five points are complete, if its
            lowest dev loss so far is above the median of theirs at that validation (median, also without a value), or
            by hyperband.
        config: Config of all runs; without one, that of fit without one.
        jobs: Runs at a time. Each gets its share of the cores, unless OMP_NUM_THREADS is set.
        sweep_dir: Folder of the sweep, new or of a sweep to resume (default: runs/<config name>/sweep_N).
        storage: URL of a database for many machines, such as postgresql+psycopg://USER@HOST/NAME; without one, the
            sweep lies in its folder. To be given again with --sweep_dir.
    """
    if storage is not None and sweep_dir is None:
        raise SettingsError("storage: needs --sweep_dir DIR, whose last two names are the sweep's in the database")
    from mlp_lm.commands.study import BROKEN, JOURNAL, Sweep, checked, work  # here: help takes no seconds

    asked = {"vary": [*vary], "seeds": seeds, "sampler": sampler, "trials": trials, "prune": prune}
    folder = Path(os.path.expanduser(sweep_dir or ""))
    try:
        begun = Sweep(folder, storage) if sweep_dir and (storage or (folder / JOURNAL).exists()) else None
        if begun and begun.asked:
            space = begun.space()
            shared, _ = checked(space, config or str(folder / CONFIG))
            old = begun.asked["config"].splitlines()
            changed = [f"config: {line.strip()}" for line in shared.splitlines() if line not in old]
            changed += [f"{flag}: {value}" for flag, value in asked.items() if value and value != begun.asked[flag]]
            if changed:
                raise SettingsError(f"{'; '.join(changed)}: not as when the sweep began; leave that out")
        else:
            space = space_of(asked)
            shared, name = checked(space, config)
            if begun is None or storage:
                begun = Sweep(output_folder(sweep_dir, name, "sweep", "sweep_dir"), storage)
        again = [f"--sweep_dir={begun.folder}", f"--jobs={jobs}", *([f"--storage={storage}"] if storage else [])]
        resume = f"to resume: python -m mlp_lm sweep {shlex.join(again)}"
        with begun.lock:  # of several commands at once, one makes the sweep, and the others join it
            begun.begin({**asked, "config": shared, "space": {n: distribution_to_json(v) for n, v in space.items()}})
        try:
            work(begun, jobs)
        except Interrupted as stop:
            raise Interrupted(f"stopped; {resume}", stop.exit_code) from None
        finally:
            with begun.lock:
                begun.take_up_dead()
            statuses = write(begun.study, begun.trials(), begun.space(), begun.folder)
    except BROKEN as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise SettingsError(f"sweep_dir or storage: cannot be used ({reason}); name another") from error
    failed, waiting, running = map(statuses.count, ("failed", "waiting", "running"))
    if failed or waiting:
        raise TrainingError(f"{failed} of {len(statuses)} points failed, {waiting} are not done; {resume}")
    if running:
        print(f"{running} of {len(statuses)} points are still at work elsewhere; {resume}", file=sys.stderr)


def space_of(asked: dict[str, Any]) -> dict[str, Any]:
    """What each setting varies over; choices stay as written, quoted where one holds a comma: fit's parser reads them.

    Raises SettingsError that names everything that is wrong.
    """
    space: dict[str, Any] = {}
    problems = []
    for text in asked["vary"]:
        key, _, values = text.partition("=")
        name = key.strip().replace("-", "_")
        try:
            if name in space or not name.startswith(("data.", "model.", "trainer.")):
                raise ValueError("set twice" if name in space else f"{name!r} is not in data, model or trainer")
            space[name] = _parse_values(values)
        except (ValueError, yaml.YAMLError) as error:
            problems.append(f"vary: found {text!r}, expected {FORM} ({getattr(error, 'problem', error)})")
    if not space and not problems and asked["seeds"] in (None, 1):
        problems.append("vary: missing; expected --vary KEY=..., --seeds above 1, or the sweep_dir of a sweep")
    ranges = not all(isinstance(values, CategoricalDistribution) for values in space.values())
    sampled = ranges or asked["sampler"] in ("random", "tpe")
    if ranges and asked["sampler"] == "grid":
        problems.append("sampler: grid takes choices, not ranges; leave --sampler out, with --trials set")
    elif sampled and asked["trials"] is None:
        problems.append("trials: missing; ranges, random and tpe need a number of points")
    elif asked["trials"] is not None and asked["sampler"] == "grid":
        problems.append(f"trials: found {asked['trials']}; a grid runs all combinations; leave --trials out")
    if problems:
        raise SettingsError("; ".join(problems))
    return space


def _parse_values(text: str) -> CategoricalDistribution | IntDistribution | FloatDistribution:
    if not (match := RANGE.fullmatch(text.strip())):
        choices = yaml.load(f"[{text}]", yaml.BaseLoader)
        if not choices or not all(isinstance(choice, str) for choice in choices):
            raise ValueError("no list of values")
        return CategoricalDistribution(choices)
    low, high, words = match[1], match[2], match[3].split(":")[1:]
    step = ":".join(word for word in words if word not in ("log", "int"))
    if "int" in words:
        return IntDistribution(int(low), int(high), "log" in words, int(step or 1))
    return FloatDistribution(float(low), float(high), "log" in words, float(step) if step else None)


def write(study: optuna.Study, trials: Sequence[FrozenTrial], space: Mapping[str, Any], folder: Path) -> list[str]:
    """Write sweep.csv and the pictures, print the table and what follows from it. Returns what became of each point."""
    rows = rows_of(trials, space)
    varied = {name: values for name, values in space.items() if not values.single()}
    write_csv(folder / "sweep.csv", [rows[0], *([text(cell, 7) for cell in row.values()] for row in rows)])
    save_pictures(rows, varied, folder)
    texts = (table_text(rows, varied), best_text(rows, varied), importances(study, varied))
    print(*filter(None, texts), f"table and pictures: {folder}", sep="\n\n", flush=True)
    return [row["status"] for row in rows]


def rows_of(trials: Sequence[FrozenTrial], names: Collection[str]) -> list[Row]:
    """The points: finished ones by mean dev loss (of best.ckpt, nats/token), then pruned ones, then the others."""
    rows: list[Row] = []
    for trial in trials:
        runs = trial.user_attrs.get("runs", [])
        losses = [run["losses"]["dev"]["nats_per_token"] for run in runs]
        known = {**dict.fromkeys(names), **trial.system_attrs.get("fixed_params", {}), **trial.params}
        figures = {
            "dev_loss": round(mean(losses), 6) if losses else None,
            "std_dev_loss": round(stdev(losses), 6) if len(losses) > 1 else None,  # over seeds (n − 1)
            "dev_losses": losses,
            "best_step": [run["best_step"] for run in runs],
            "weights": runs[0]["weights"] if runs else None,
            "seconds": sum(run["seconds"] for run in runs),
            "status": STATUS[trial.state.name],
            "folder": trial.user_attrs["folder"],
            "problem": trial.user_attrs.get("problem") if trial.state == TrialState.FAIL else None,
            "samples": ", ".join(starred(**sample) for run in runs[:1] for sample in run["samples"]) or None,
        }
        rows.append(known | figures)
    return sorted(rows, key=lambda row: ([*STATUS.values()].index(row["status"]), row["dev_loss"] or math.inf))


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
    finished = [row for row in rows if row["status"] == "finished"]
    if not finished or not names:
        return ""
    best, *others = finished
    lines = [f"best settings, of {best['folder']}:"]
    for section in dict.fromkeys(name.partition(".")[0] for name in names):
        own = [name for name in names if name.startswith(f"{section}.")]
        lines += [f"{section}:", *(f"  {name.partition('.')[2]}: {best[name]}" for name in own)]
    if others:
        sure = "no spread to compare it with: one seed each"
        if best["std_dev_loss"] is not None:
            error = math.hypot(best["std_dev_loss"], others[0]["std_dev_loss"]) / math.sqrt(len(best["dev_losses"]))
            sure = f"standard error over seeds {error:.4f}"
        lines.append(f"the second is {others[0]['dev_loss'] - best['dev_loss']:.4f} nats/token behind; {sure}")
    return "\n".join(lines)


def importances(study: optuna.Study, names: Collection[str]) -> str:
    """How much each setting matters, by Optuna's PED-ANOVA; empty with fewer than 20 finished points."""
    if len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])) < 20 or not names:
        return ""
    shares = optuna.importance.get_param_importances(study, params=[*names])
    return "importances (PED-ANOVA): " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items())


def save_pictures(rows: Sequence[Row], space: Mapping[str, Any], folder: Path) -> None:
    """For each setting its picture: the dev losses of all finished runs over its values."""
    rows = [row for row in rows if row["status"] == "finished"]
    for key, values in space.items() if rows else ():
        losses: dict[float | str, list[float]] = {}
        for row in rows:
            value = float(row[key]) if re.fullmatch(NUMBER, str(row[key])) else row[key]
            losses.setdefault(value, []).extend(row["dev_losses"])
        axis: Any = "choices" if isinstance(values, CategoricalDistribution) else "log" if values.log else "linear"
        curves.save(curves.draw_varied(key, losses, axis), str(folder / f"{key}.png"))
