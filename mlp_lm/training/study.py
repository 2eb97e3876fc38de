"""What a sweep searches, and Optuna's study of it: its points, and who is at work on which."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import optuna
import yaml
from filelock import FileLock, Timeout
from optuna.storages import JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from mlp_lm.errors import SettingsError

JOURNAL, PLAN, POINT = "journal.log", "plan", "point"
MAX_RUNS = 10_000  # of one sweep; more is a slip of the hand
HEARTBEAT: dict[str, Any] = {"heartbeat_interval": 20, "grace_period": 60}  # seconds, of workers on a database
SETTING = re.compile(r"(data|model|trainer)\.[\w.]+|seed_everything")
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})((?::(?:log|int|{NUMBER}))*)")
Point = dict[str, Any]  # setting to value: of a choice as written, of a range a number
Values = dict[
    str, Any
]  # what a setting varies over, for Optuna's suggest_*: `choices`, or `low`, `high`, `log`, `step`

optuna.logging.set_verbosity(optuna.logging.ERROR)  # we say ourselves what becomes of a point
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # of what comes next
# A point that is taken up is a new trial, with what the old one has reported and the runs that it has finished.
take_up = RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)


def parse_vary(texts: Sequence[str]) -> dict[str, Values]:
    """What each setting varies over: choices, `KEY=V1,V2,...`, or a range, `KEY=LOW..HIGH[:log][:int][:STEP]`.

    Choices stay as written, quoted where one holds a comma: fit's own parser reads them.
    Raises SettingsError that names everything that is wrong.
    """
    space: dict[str, Values] = {}
    problems = []
    for text in texts:
        key, _, values = text.partition("=")
        name = key.strip().replace("-", "_")
        try:
            if name in space or not SETTING.fullmatch(name):
                raise ValueError("a setting twice" if name in space else f"{name!r} is no setting of a config")
            space[name] = _parse_values(values)
            if name == "seed_everything" and len(space[name].get("choices", "")) != 1:
                raise ValueError("the first seed is enough, --seeds is how many")
        except (ValueError, Warning, yaml.YAMLError) as error:
            reason = "not YAML" if isinstance(error, yaml.YAMLError) else error
            problems.append(f"found {text!r}, expected KEY=V1,V2,... or KEY=LOW..HIGH[:log][:int][:STEP] ({reason})")
    if problems:
        raise SettingsError("; ".join(f"vary: {problem}" for problem in problems))
    return space


def _parse_values(text: str) -> Values:
    if not (match := RANGE.fullmatch(text.strip())):
        choices = yaml.load(f"[{text}]", yaml.BaseLoader)
        if not choices or not all(isinstance(choice, str) for choice in choices):
            raise ValueError("no list of values")
        return {"choices": choices}
    words = match[3].split(":")[1:]
    number: Any = int if "int" in words else float
    steps = [number(word) for word in words if word not in ("log", "int")] or [1 if number is int else None]
    values = {"low": number(match[1]), "high": number(match[2]), "log": "log" in words, "step": steps[0]}
    kind = optuna.distributions.IntDistribution if number is int else optuna.distributions.FloatDistribution
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of steps that do not lead to the end
        kind(**values)
    return values


@dataclass(frozen=True)
class Plan:
    """What a sweep does; kept in its study. None is for what a command leaves open."""

    vary: Sequence[str]
    seeds: int | None = None
    sampler: str | None = None
    trials: int | None = None
    prune: str | None = None
    config: str = ""  # the settings that all runs share
    first_seed: int = 0
    data: Sequence[str] = ()  # fingerprints of the corpora

    def completed(self) -> Plan:
        """Choose what is left open. Raises SettingsError where no sweep can be so."""
        space, seeds = parse_vary(self.vary), self.seeds or 1
        choices = [values["choices"] for values in space.values() if "choices" in values]
        sampler = self.sampler or ("grid" if len(choices) == len(space) else "tpe")
        trials = prod(map(len, choices)) if sampler == "grid" else self.trials
        if not space and seeds == 1:
            raise SettingsError("vary: missing, so that nothing varies; expected --vary KEY=... or --seeds above 1")
        if sampler == "grid" and len(choices) < len(space):
            raise SettingsError("sampler: a grid needs choices, KEY=V1,V2,...; for a range, expected random or tpe")
        if sampler == "grid" and self.trials is not None:
            raise SettingsError("trials: a grid runs all its points; to run some of them, add --sampler random")
        if trials is None:
            raise SettingsError(f"trials: missing, expected --trials N, the number of points that {sampler} chooses")
        if trials * seeds > MAX_RUNS:
            raise SettingsError(f"vary: found {trials * seeds:,} runs, expected at most {MAX_RUNS:,}")
        return replace(self, seeds=seeds, sampler=sampler, trials=trials)

    def points(self) -> list[Point]:
        """The grid's points, the last setting varying fastest; empty ones where a sampler chooses."""
        choices = {name: values["choices"] for name, values in parse_vary(self.vary).items() if "choices" in values}
        grid = [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
        return grid if self.sampler == "grid" else [{}] * (self.trials or 0)

    def points_to_check(self) -> list[Point]:
        """Each choice and both ends of each range, beside the first of the others."""
        space = parse_vary(self.vary)
        ends = {name: values.get("choices") or [values["low"], values["high"]] for name, values in space.items()}
        first = {name: values[0] for name, values in ends.items()}
        return [first, *({**first, name: value} for name, values in ends.items() for value in values[1:])]


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Raise SettingsError, in one line, where the folder of a sweep or its database fails."""
    try:
        yield
    except OSError as error:
        raise SettingsError(f"sweep_dir: {folder} cannot be used ({error.strerror}); name another folder") from error
    except (ImportError, SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise SettingsError(f"storage: the database cannot be used ({reason}); expected a URL of SQLAlchemy") from error


def open_study(folder: Path, url: str | None, plan: Plan | None = None) -> optuna.Study | None:
    """The study of the sweep in `folder`; if there is none, a new one of `plan`, or None without a plan.

    It lies in the folder, as Optuna's journal, or in the database at `url`, under the names of the folder and of the
    one above.
    """
    name, path = "/".join(folder.absolute().parts[-2:]) if url else "sweep", str(folder / JOURNAL)
    if url is None and plan is None and not Path(path).exists():
        return None
    if url is None:
        storage: Any = JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
    else:  # pings, as a connection may have been cut
        storage = RDBStorage(url, {"pool_pre_ping": True}, **HEARTBEAT, heartbeat_stale_trial_callback=take_up)
    if plan is None and name not in optuna.get_all_study_names(storage):
        return None
    study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
    if plan is not None and PLAN not in study.user_attrs:
        begun = len(study.get_trials(deepcopy=False))  # by a process that was killed
        for number, point in [*enumerate(plan.points())][begun:]:
            study.enqueue_trial(point, user_attrs={POINT: number})
        study.set_user_attr(PLAN, asdict(plan))
    return study if PLAN in study.user_attrs else None


def latest_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trial of each point that counts, which is the last one."""
    latest = {trial.user_attrs[POINT]: trial for trial in study.get_trials() if POINT in trial.user_attrs}
    return [latest[point] for point in sorted(latest)]


def point_folder(trial: FrozenTrial | optuna.Trial) -> str:
    """The name of a point's folder, which has a run folder for each seed, and the lock of the worker that is at it."""
    return f"trial_{trial.user_attrs[POINT]}"


def lock_point(folder: Path, trial: FrozenTrial | optuna.Trial) -> FileLock:
    """Take the lock that the worker at a point holds while it lives. Raises Timeout if one does."""
    (folder / point_folder(trial)).mkdir(exist_ok=True)
    lock = FileLock(folder / point_folder(trial) / ".lock", timeout=0)
    lock.acquire()
    return lock


def take_up_dead(study: optuna.Study, folder: Path) -> None:
    """Let the points of dead workers be taken up: found by their locks, or on a database by their heartbeats."""
    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(states=[TrialState.RUNNING]) if (folder / JOURNAL).exists() else []:
        try:
            lock = lock_point(folder, trial)
        except Timeout:
            continue
        if trial.number in [latest.number for latest in latest_trials(study)]:
            take_up(study, trial)  # first: whoever is killed between the two loses nothing
        study.tell(trial.number, state=TrialState.FAIL)
        lock.release()
