"""`python -m mlp_lm sweep`: a search over settings with Optuna, each point runs of `fit`, and one table."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock

from mlp_lm.errors import Interrupted, SettingsError, TrainingError
from mlp_lm.files import write_text
from mlp_lm.parsing import check_config_file
from mlp_lm.settings import Range
from mlp_lm.training.runs import CONFIG, new_folder


def sweep(
    config: str | None = None,
    vary: Sequence[str] = (),
    seeds: Annotated[int, Range(1, 1000)] | None = None,
    sampler: Literal["grid", "random", "tpe"] | None = None,
    trials: Annotated[int, Range(1, 10_000)] | None = None,
    prune: bool | Literal["median", "hyperband"] = False,
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
        config: Config of all runs; without one, that of fit without one.
        vary: KEY=V1,V2,... or KEY=LOW..HIGH[:log][:int][:STEP] (repeatable): a setting of fit and its choices, as in
            YAML, or the range it is drawn from. With one choice, it is set for all runs, for example
            trainer.max_steps=100.
        seeds: Runs of each point (default: 1), which is ranked by their mean dev loss; they differ in seed_everything
            alone, counted up from the config's.
        sampler: grid runs all combinations; random and tpe choose --trials points, tpe from what came out so far.
            Default: tpe if there is a range, else grid.
        trials: Points that random or tpe choose.
        prune: End a point's first run early, and leave out its other seeds, if at a validation its dev loss is above
            the median of the other points' there (median, also without a value), or by hyperband.
        jobs: Runs at a time. Each gets its share of the cores, unless OMP_NUM_THREADS is set.
        sweep_dir: Folder of the sweep, new or of a sweep to resume (default: runs/<config name>/sweep_N).
        storage: URL of a database for many machines, such as postgresql+psycopg://USER@HOST/NAME; without one, the
            sweep lies in its folder. To be given again with --sweep_dir.
    """
    if config is not None:
        check_config_file(config)
    if storage is not None and sweep_dir is None:
        raise SettingsError("storage: needs --sweep_dir DIR, whose last two names are the sweep's in the database")
    if sweep_dir is None and not vary and seeds in (None, 1):
        raise SettingsError("vary: missing, so that nothing varies; expected --vary KEY=... or --seeds above 1")
    from mlp_lm.training import results  # here: help and slips take no seconds
    from mlp_lm.training.study import JOURNAL, PLAN, Plan, explained, latest_trials, open_study, take_up
    from mlp_lm.training.worker import checked, work

    given = Plan([*vary], seeds, sampler, trials, "median" if prune is True else prune or None)
    folder = None if sweep_dir is None else Path(sweep_dir).expanduser()
    with explained(folder or Path()):
        study = None if folder is None else open_study(folder, storage)
    if folder is not None and study is not None:
        plan = Plan(**study.user_attrs[PLAN])
        folder.mkdir(parents=True, exist_ok=True)  # of a database, it may be another machine's
        write_text(folder / CONFIG, plan.config)
        config = config or str(folder / CONFIG)
    else:
        if folder is not None and folder.exists() and {p.name for p in folder.iterdir()} - {".lock", JOURNAL}:
            raise SettingsError(f"sweep_dir: {folder} is not empty and holds no sweep; name a new folder")
        if folder is not None and not vary and seeds in (None, 1):
            raise SettingsError(f"sweep_dir: {folder} holds no sweep to resume; a new one needs --vary KEY=...")
        plan = given.completed()
    found, name = checked(plan, config)
    if study is None:
        plan, folder = found, folder or new_folder(name, "sweep", "sweep_dir")
    problems = [f"config: {line.strip()}" for line in found.config.splitlines() if line not in plan.config.splitlines()]
    problems += ["data: another text"] * (found.data != plan.data)
    asked = vars(given).items() if study else ()
    problems += [f"{name}: {value}" for name, value in asked if value and value != vars(plan)[name]]
    if problems:
        raise SettingsError(f"{'; '.join(problems)}: not as when the sweep began; leave that out, or name a new folder")
    assert folder is not None
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # of several commands at once, one makes the sweep, and the others join it
            study = open_study(folder, storage, plan)
            assert study is not None
            write_text(folder / CONFIG, plan.config)
            for trial in latest_trials(study):
                if trial.state.name == "FAIL":
                    take_up(study, trial)
    stopped, killed = None, 0
    try:
        killed = work(folder, storage, jobs)
    except Interrupted as stop:
        stopped = stop
    rows = results.write(study, folder)
    again = ["python", "-m", "mlp_lm", "sweep", f"--sweep_dir={folder}", f"--jobs={jobs}"]
    resume = f"to resume: {shlex.join(again if storage is None else [*again, f'--storage={storage}'])}"
    failed, left = (sum(row["status"] in kinds for row in rows) for kinds in (["failed"], ["running", "waiting"]))
    if stopped is not None:
        raise Interrupted(f"stopped; {resume}", stopped.exit_code)
    if failed or killed:
        raise TrainingError(f"{failed} of {len(rows)} points and {killed} of {jobs} workers failed; {resume}")
    if left:
        print(f"{left} of {len(rows)} points are still at work elsewhere; if killed there, {resume}", file=sys.stderr)
