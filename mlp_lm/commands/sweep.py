"""`python -m mlp_lm sweep`: a search over settings with Optuna, each point runs of `fit`, and one table."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

from filelock import FileLock
from optuna.trial import TrialState

from mlp_lm.errors import Interrupted, SettingsError, TrainingError
from mlp_lm.settings import Range
from mlp_lm.training.runs import CONFIG, LOCK, new_folder
from mlp_lm.training.study import JOURNAL, PLAN, Plan, explained, latest_trials, open_study, take_up, take_up_dead


def sweep(
    plan: Plan,
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
        plan: What to search, and how.
        config: Config of all runs; without one, that of fit without one.
        jobs: Runs at a time. Each gets its share of the cores, unless OMP_NUM_THREADS is set.
        sweep_dir: Folder of the sweep, new or of a sweep to resume (default: runs/<config name>/sweep_N).
        storage: URL of a database for many machines, such as postgresql+psycopg://USER@HOST/NAME; without one, the
            sweep lies in its folder. To be given again with --sweep_dir.
    """
    if storage is not None and sweep_dir is None:
        raise SettingsError("storage: needs --sweep_dir DIR, whose last two names are the sweep's in the database")
    from mlp_lm.training import results  # here: help takes no seconds
    from mlp_lm.training.worker import checked, work

    with explained():
        folder = None if sweep_dir is None else Path(os.path.expanduser(sweep_dir))
        study = None if folder is None else open_study(folder, storage)
        if folder is None or study is None:
            if folder is not None and folder.exists() and {path.name for path in folder.iterdir()} - {LOCK, JOURNAL}:
                raise SettingsError(
                    f"sweep_dir: {folder} is not empty and holds no sweep; name a new folder, or its storage"
                )
            plan = plan.completed()
            text, name = checked(plan, config)
            folder = folder or new_folder(name, "sweep", "sweep_dir")
        else:
            begun, text = Plan(**study.user_attrs[PLAN]), study.user_attrs[CONFIG]
            found, _ = checked(begun, config or str(folder / CONFIG))
            problems = [f"config: {line.strip()}" for line in found.splitlines() if line not in text.splitlines()]
            begun_with, asked = vars(begun), vars(plan).items()
            problems += [f"{flag}: {value}" for flag, value in asked if value and value != begun_with[flag]]
            if problems:
                raise SettingsError(f"{'; '.join(problems)}: not as when the sweep began; leave that out")
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK):  # of several commands at once, one makes the sweep, and the others join it
            study = open_study(folder, storage, plan, text)
            assert study is not None
            for trial in latest_trials(study):
                if trial.state == TrialState.FAIL:
                    take_up(study, trial)
        stopped = None
        try:
            work(folder, storage, jobs)
        except Interrupted as stop:
            stopped = stop
        with FileLock(folder / LOCK):
            take_up_dead(study, folder)
        rows = results.write(study, folder)
    again = [f"--sweep_dir={folder}", f"--jobs={jobs}", *([] if storage is None else [f"--storage={storage}"])]
    resume = f"to resume: python -m mlp_lm sweep {shlex.join(again)}"
    if stopped is not None:
        raise Interrupted(f"stopped; {resume}", stopped.exit_code)
    count = Counter(row["status"] for row in rows)
    if count["failed"] or count["waiting"]:
        raise TrainingError(
            f"{count['failed']} of {len(rows)} points failed, {count['waiting']} are not done; {resume}"
        )
    if count["running"]:
        print(f"{count['running']} of {len(rows)} points are still at work elsewhere; {resume}", file=sys.stderr)
