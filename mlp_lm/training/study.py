"""What a sweep searches, and Optuna's study of it: its points, and who is at work on which."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
import yaml
from filelock import FileLock, Timeout
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from mlp_lm.errors import SettingsError
from mlp_lm.files import write_text
from mlp_lm.settings import Range
from mlp_lm.training.runs import CONFIG, LOCK

JOURNAL, PLAN, POINT = "journal.log", "plan", "point"
SETTING = re.compile(r"(data|model|trainer)\.[\w.]+")
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})((?::(?:log|int|{NUMBER}))*)")
Values = CategoricalDistribution | IntDistribution | FloatDistribution  # choices as written, a range as numbers

BROKEN = (OSError, NotImplementedError, ImportError, SQLAlchemyError, StorageInternalError)  # the second: no locks

optuna.logging.set_verbosity(optuna.logging.ERROR)  # we say ourselves what becomes of a point
warnings.filterwarnings("ignore", category=ExperimentalWarning)  # of what comes next
warnings.filterwarnings("ignore", message="The distribution is specified by")  # a step need not lead to the end
# A point that is taken up is a new trial, with what the old one has reported and the runs that it has finished.
take_up = RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)


def _parse_values(text: str) -> Values:
    if not (match := RANGE.fullmatch(text.strip())):
        choices = yaml.load(f"[{text}]", yaml.BaseLoader)
        if not choices or not all(isinstance(choice, str) for choice in choices):
            raise ValueError("no list of values")
        return CategoricalDistribution(choices)
    words = match[3].split(":")[1:]
    number: Any = int if "int" in words else float
    kind: Any = IntDistribution if "int" in words else FloatDistribution
    steps = [number(word) for word in words if word not in ("log", "int")]
    if len(steps) > 1:
        raise ValueError("more than one step")
    values: Values = kind(number(match[1]), number(match[2]), "log" in words, *steps[:1])
    return values


@dataclass(frozen=True)
class Plan:
    """What a sweep searches, and how.

    Args:
        vary: KEY=V1,V2,... or KEY=LOW..HIGH[:log][:int][:STEP] (repeatable): a setting of fit and its choices, as in
            YAML, or the range it is drawn from. With one choice, it is set for all runs, for example
            trainer.max_steps=100.
        seeds: Runs of each point (default: 1), which is ranked by their mean dev loss; they differ in seed_everything
            alone, counted up from the config's.
        sampler: grid runs all combinations; random and tpe choose --trials points, tpe from what came out so far.
            Default: tpe if there is a range, else grid.
        trials: Points that random or tpe choose.
        prune: End a point's first run early, and leave out its other seeds: once five points are complete, if its
            lowest dev loss so far is above the median of theirs at that validation (median, also without a value), or
            by hyperband.
    """

    vary: Sequence[str] = ()
    seeds: Annotated[int, Range(1, 1000)] | None = None
    sampler: Literal["grid", "random", "tpe"] | None = None
    trials: Annotated[int, Range(1, 10_000)] | None = None
    prune: bool | Literal["median", "hyperband"] = False

    def completed(self) -> Plan:
        """Choose what is left open. Raises SettingsError where no sweep can be so."""
        space = self.space()
        ranges = [name for name, values in space.items() if not isinstance(values, CategoricalDistribution)]
        sampler = self.sampler or ("tpe" if ranges else "grid")
        if not space and self.seeds in (None, 1):
            raise SettingsError("vary: missing; expected --vary KEY=..., --seeds above 1, or the sweep_dir of a sweep")
        if sampler == "grid" and ranges:
            raise SettingsError(f"sampler: {ranges[0]} is a range, a grid needs choices; expected random or tpe")
        if (self.trials is None) != (sampler == "grid"):
            expected = "none, as a grid runs all its points" if sampler == "grid" else "how many points to choose"
            raise SettingsError(f"trials: found {self.trials} with the sampler {sampler}, expected {expected}")
        return replace(self, seeds=self.seeds or 1, sampler=sampler)

    def space(self) -> dict[str, Values]:
        """What each setting varies over.

        Choices stay as written, quoted where one holds a comma: fit's own parser reads them.
        Raises SettingsError that names everything that is wrong.
        """
        space: dict[str, Values] = {}
        problems = []
        for text in self.vary:
            key, _, values = text.partition("=")
            name = key.strip().replace("-", "_")
            try:
                if name in space or not SETTING.fullmatch(name):
                    raise ValueError("set twice" if name in space else f"{name!r} is not in data, model or trainer")
                space[name] = _parse_values(values)
            except (ValueError, yaml.YAMLError) as error:
                reason = getattr(error, "problem", error)
                problems.append(
                    f"vary: found {text!r}, expected KEY=V1,... or KEY=LOW..HIGH[:log][:int][:STEP] ({reason})"
                )
        if problems:
            raise SettingsError("; ".join(problems))
        return space

    def ends(self) -> dict[str, Sequence[Any]]:
        """The choices of each setting, or both ends of its range."""
        space = self.space().items()
        return {name: v.choices if isinstance(v, CategoricalDistribution) else (v.low, v.high) for name, v in space}

    def points(self) -> list[dict[str, Any]]:
        """The grid's points, the last setting varying fastest; empty ones where a sampler chooses."""
        if self.trials is not None:
            return [{}] * self.trials
        choices = self.ends()
        return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]

    def points_to_check(self) -> list[dict[str, Any]]:
        """Each choice and both ends of each range, beside the first of the others."""
        first = {name: values[0] for name, values in self.ends().items()}
        return [first, *({**first, name: value} for name, values in self.ends().items() for value in values[1:])]


@contextmanager
def explained() -> Iterator[None]:
    """Raise SettingsError, in one line, where the folder of a sweep or its database fails."""
    try:
        yield
    except BROKEN as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise SettingsError(f"sweep_dir or storage: cannot be used ({reason}); name another") from error


def open_study(folder: Path, url: str | None, plan: Plan | None = None, config: str = "") -> optuna.Study | None:
    """The study of the sweep in `folder`; if there is none, a new one of `plan` and `config`, or None without a plan.

    It lies in the folder, as Optuna's journal, or in the database at `url`, under the names of the folder and of the
    one above.
    """
    name, path = "/".join(folder.absolute().parts[-2:]) if url else "sweep", str(folder / JOURNAL)
    if url is not None:  # pings, as a connection may have been cut; a worker silent for a minute is dead
        options: Any = {"heartbeat_interval": 20, "grace_period": 60, "heartbeat_stale_trial_callback": take_up}
        storage: Any = RDBStorage(url, {"pool_pre_ping": True}, **options)
    elif plan is None and not Path(path).exists():
        return None
    else:
        storage = JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
    if plan is None and name not in optuna.get_all_study_names(storage):
        return None
    study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
    if plan is not None and PLAN not in study.user_attrs:
        begun = len(study.get_trials(deepcopy=False))  # by a process that was killed
        for number, point in [*enumerate(plan.points())][begun:]:
            study.enqueue_trial(point, user_attrs={POINT: number})
        study.set_user_attr(CONFIG, config)
        study.set_user_attr(PLAN, asdict(plan))
    if PLAN not in study.user_attrs:
        return None
    folder.mkdir(parents=True, exist_ok=True)  # of a sweep in a database, it may be another machine's
    write_text(folder / CONFIG, study.user_attrs[CONFIG])
    return study


def latest_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trial of each point that counts, which is the last one."""
    latest = {trial.user_attrs[POINT]: trial for trial in study.get_trials() if POINT in trial.user_attrs}
    return [latest[point] for point in sorted(latest)]


def point_folder(trial: FrozenTrial | optuna.Trial) -> str:
    """The name of a point's folder, which has a run folder for each seed."""
    return f"trial_{trial.user_attrs[POINT]}"


def point_lock(folder: Path, trial: FrozenTrial | optuna.Trial) -> FileLock:
    """What the worker at a point holds while it lives."""
    (folder / point_folder(trial)).mkdir(exist_ok=True)
    return FileLock(folder / point_folder(trial) / LOCK)


def take_up_dead(study: optuna.Study, folder: Path) -> None:
    """Let the points of dead workers be taken up: found by their locks, or on a database by their heartbeats."""
    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(states=[TrialState.RUNNING]) if (folder / JOURNAL).exists() else []:
        with suppress(Timeout), point_lock(folder, trial).acquire(timeout=0):
            if trial.number in [latest.number for latest in latest_trials(study)]:
                take_up(study, trial)  # first: whoever is killed between the two loses nothing
            study.tell(trial.number, state=TrialState.FAIL)
