"""A sweep in its folder: Optuna's study of its points, and the workers that train them, one fit after the other."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import partial
from itertools import product
from multiprocessing import Process, get_context
from pathlib import Path
from statistics import mean
from typing import Any

import optuna
import torch
import yaml
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import LambdaCallback
from optuna import exceptions, pruners, samplers, storages
from optuna.distributions import CategoricalDistribution, IntDistribution, json_to_distribution
from optuna.storages._heartbeat import get_heartbeat_thread as heartbeat  # else, study.optimize alone beats
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from mlp_lm.commands.fit import fit, prepare
from mlp_lm.errors import Interrupted, MlpLmError, SettingsError, is_out_of_memory
from mlp_lm.files import write_text
from mlp_lm.runs import CONFIG, LOCK, read_report
from mlp_lm.training.cli import lightning_session, torch_as_before

JOURNAL, ASKED, FOLDER = "journal.log", "asked", "folder"
PRUNERS: dict[Any, Any] = {False: pruners.NopPruner, "hyperband": pruners.HyperbandPruner}  # else the median
SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 60  # seconds of silence after which another machine is taken for dead
BROKEN = (OSError, NotImplementedError, ImportError, SQLAlchemyError, exceptions.StorageInternalError)  # 2nd: no locks

optuna.logging.set_verbosity(optuna.logging.ERROR)  # we say ourselves what becomes of a point
warnings.filterwarnings("ignore", category=exceptions.ExperimentalWarning)  # of what comes next
warnings.filterwarnings("ignore", message="The distribution is specified by")  # a step need not lead to the end
warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be")  # we beat in `work`
# A point that is taken up is a new trial, with what the old one has reported and the runs that it has finished.
take_up = storages.RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)


def checked(space: dict[str, Any], config: str | None) -> tuple[str, str]:
    """The config that all runs share, with the fingerprint of the corpus, and the name for the sweep's folder.

    Raises SettingsError with all that is wrong with any choice, or an end of a range, and with their data.
    """
    ends = {name: getattr(v, "choices", None) or (v.low, v.high) for name, v in space.items()}
    first = {name: values[0] for name, values in ends.items()}
    found, problems = None, []
    for point in (first, *({**first, name: value} for name, values in ends.items() for value in values[1:])):
        try:
            with lightning_session():
                run = prepare([*([f"--config={config}"] if config else []), *flags(point)])
            if run.trainer.world_size > 1:
                raise SettingsError("trainer.devices: a run of a sweep takes one process; expected 1 on 1 node")
            found = found or (f"{run.config_text()}# corpus {run.data.corpus.fingerprint}\n", run.name)
        except MlpLmError as error:
            problems.append(str(error))
    if found is None or problems:
        raise SettingsError("; ".join(dict.fromkeys(problems)))
    return found


def flags(point: dict[str, Any]) -> list[str]:
    """The settings of a point as flags; numbers exactly."""
    return [f"--{name}={value}" for name, value in point.items()]


def tell(trial: optuna.Trial, trainer: Any, _: Any) -> None:
    """Tell a trial the dev loss of a validation, and end its run there if it is to be pruned."""
    number = math.ceil((trainer.fit_loop.total_batch_idx + 1) / trainer.val_check_batch)  # hyperband counts validations
    trial.report(trainer.callback_metrics["dev/loss"].item(), number)
    # What is pruned stays so, whoever resumes the run: hyperband would not say it again.
    if not trainer.should_stop and ("pruned" in trial.user_attrs or trial.should_prune()):
        trial.set_user_attr("pruned", True)
        trainer.should_stop = True  # as if the run were done, with all that it leaves


class Sweep:
    """The study of a sweep, and who is at work on which of its points."""

    def __init__(self, folder: Path, url: str | None) -> None:
        """Open it, new or begun: Optuna's journal in `folder`, or in the database at `url`, where it has the names of
        the folder and of the one above."""
        self.folder, self.url, self.lock = folder, url, FileLock(folder / LOCK)
        if url is None:
            self.name, path = "sweep", str(folder / JOURNAL)
            self.storage: Any = storages.JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
        else:  # pings, as a connection may have been cut; a worker silent for a minute is dead
            self.name = "/".join(folder.absolute().parts[-2:])
            beats: Any = {"heartbeat_interval": 20, "grace_period": GRACE, "heartbeat_stale_trial_callback": take_up}
            connect = partial(storages.RDBStorage, url, {"pool_pre_ping": True}, **beats)
            try:
                self.storage = connect()
            except (IntegrityError, ProgrammingError):  # another machine makes the same tables
                time.sleep(1)
                self.storage = connect()
        self.study: optuna.Study = None  # type: ignore[assignment]  # until it is begun
        with suppress(KeyError):
            self.study = optuna.load_study(study_name=self.name, storage=self.storage)
        if self.asked:
            folder.mkdir(parents=True, exist_ok=True)  # of a sweep in a database, it may be another machine's
            write_text(folder / CONFIG, self.asked["config"])

    @property
    def asked(self) -> dict[str, Any]:
        """What was asked, space and config; empty until it is begun."""
        return self.study.user_attrs.get(ASKED, {}) if self.study else {}

    def space(self) -> dict[str, Any]:
        """What each setting varies over."""
        return {name: json_to_distribution(values) for name, values in self.asked["space"].items()}

    def begin(self, asked: dict[str, Any]) -> None:
        """Note what is searched, and queue its points, unless that is done; queue those that failed once more.

        Args:
            asked: What was asked, the space, and the config; of several machines that begin a sweep at once, that of
                the one which makes the study. It queues all points; the others wait for that, a minute at most.
        """
        makes = self.study is None
        try:
            self.study = self.study or optuna.create_study(study_name=self.name, storage=self.storage)
        except exceptions.DuplicatedStudyError:
            makes, self.study = False, optuna.load_study(study_name=self.name, storage=self.storage)
        deadline = time.monotonic() + GRACE
        while self.url and not makes and not self._is_queued() and time.monotonic() < deadline:
            time.sleep(0.2)
        if not self.asked:
            self.study.set_user_attr(ASKED, asked)
        write_text(self.folder / CONFIG, self.asked["config"])
        queued = len(self.study.get_trials(deepcopy=False))  # some, if a process was killed at this
        for number, point in [*enumerate(self._points())][queued:]:
            self.study.enqueue_trial(point, user_attrs={FOLDER: f"trial_{number}"})
        for trial in self.trials():
            if trial.state == TrialState.FAIL:
                take_up(self.study, trial)

    def _points(self) -> list[dict[str, Any]]:
        """What is known of each point at the start: of a grid all, else nothing."""
        if self.asked["trials"]:
            return [{}] * self.asked["trials"]
        space = self.space()
        return [dict(zip(space, values, strict=True)) for values in product(*(v.choices for v in space.values()))]

    def _is_queued(self) -> bool:
        return bool(self.asked) and len(self.study.get_trials(deepcopy=False)) >= len(self._points())

    def trials(self) -> list[FrozenTrial]:
        """The trial of each point that counts, which is the last one with its folder."""
        trials = [trial for trial in self.study.get_trials() if FOLDER in trial.user_attrs]
        return [*{trial.user_attrs[FOLDER]: trial for trial in trials}.values()]

    def take_up_dead(self) -> None:
        """Queue the points of dead workers again: found by their locks, or on a database by their heartbeats."""
        storages.fail_stale_trials(self.study)
        for trial in self.study.get_trials(states=[TrialState.RUNNING]) if self.url is None else []:
            with suppress(Timeout), self.lock_of(trial).acquire(timeout=0):
                self._take_up(trial)

    def _take_up(self, trial: FrozenTrial | optuna.Trial) -> None:
        if (latest := self.study.trials[trial.number]).state == TrialState.RUNNING:
            self.study.tell(trial.number, state=TrialState.FAIL)
            take_up(self.study, latest)  # if we are killed before, the next command does

    def lock_of(self, trial: FrozenTrial | optuna.Trial) -> FileLock:
        """What the worker at a point holds while it lives."""
        return FileLock(self.folder / f".{trial.user_attrs[FOLDER]}.lock")

    def work(self, threads: int) -> None:
        """Run one point after the other, until none waits. On a signal, raises Interrupted once its run is saved."""
        for each in SIGNALS:
            signal.signal(each, interrupt)
        torch.set_num_threads(threads)
        self.first_seed = yaml.safe_load(self.asked["config"])["seed_everything"]
        self.study.pruner = PRUNERS.get(self.asked["prune"], pruners.MedianPruner)()
        sampler = samplers.RandomSampler if self.asked["sampler"] == "random" else samplers.TPESampler
        while True:
            with self.lock:  # until the point that is chosen has a lock of its own
                self.take_up_dead()
                if not self.study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
                    return
                trial = self.study.ask()
                if FOLDER not in trial.user_attrs:  # on a database, another machine was faster
                    self.study.tell(trial, state=TrialState.FAIL)
                    continue
                alive = heartbeat(trial._trial_id, self.storage) if self.url else self.lock_of(trial).acquire()
            # Seeded by the number of a trial, what is chosen does not depend on who works.
            self.study.sampler = sampler(seed=(self.first_seed + trial.number) % 2**32)
            with alive, suppress(exceptions.UpdateFinishedTrialError):  # it was taken up while this process slept
                self._run_point(trial)

    def _run_point(self, trial: optuna.Trial) -> None:
        """The mean dev loss of its runs is that of a point."""
        try:
            for name, values in self.space().items():
                if isinstance(values, CategoricalDistribution):
                    trial.suggest_categorical(name, values.choices)
                else:
                    suggest: Any = trial.suggest_int if isinstance(values, IntDistribution) else trial.suggest_float
                    suggest(name, values.low, values.high, step=values.step, log=values.log)
            losses = [run["losses"]["dev"]["nats_per_token"] for run in self._runs(trial)]
            loss = None if "pruned" in trial.user_attrs else mean(losses)
            state = TrialState.PRUNED if loss is None else TrialState.COMPLETE
            said = "pruned" if loss is None else f"dev loss {loss:.4f}"
        except Interrupted:
            with self.lock:
                self._take_up(trial)
            raise
        except (MlpLmError, MemoryError, RuntimeError) as error:
            if not isinstance(error, MlpLmError) and not is_out_of_memory(error):
                raise
            state, loss = TrialState.FAIL, None
            said = str(error) if isinstance(error, MlpLmError) else "out of memory"
            trial.set_user_attr("problem", said)
        self.study.tell(trial, loss, state, skip_if_finished=True)
        done = [point.state.is_finished() for point in self.trials()]
        print(f"{sum(done)}/{len(done)} {trial.user_attrs[FOLDER]}: {said}", file=sys.stderr, flush=True)

    def _runs(self, trial: optuna.Trial) -> list[dict[str, Any]]:
        """What came out of each seed's run. Only a point's first run is pruned: its curve is compared with those of
        other points with the same seed; a point that survives has all its seeds."""
        for other in self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            if other.params == trial.params:  # a sampler may choose a point again
                for name in ("runs", FOLDER):
                    trial.set_user_attr(name, other.user_attrs[name])
        runs: list[dict[str, Any]] = trial.user_attrs.get("runs", [])
        while len(runs) < (1 if "pruned" in trial.user_attrs else self.asked["seeds"] or 1):
            seed = self.first_seed + len(runs)
            run_dir = self.folder / trial.user_attrs[FOLDER] / f"seed_{seed}"
            if read_report(run_dir) is None:
                told = [] if runs else [LambdaCallback(on_validation_end=partial(tell, trial))]
                own = {"seed_everything": seed, "run_dir": run_dir, "report_test": False, "ckpt_path": "auto"}
                with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                    fit([f"--config={self.folder / CONFIG}", *flags(trial.params | own)], callbacks=told)
            report: Any = read_report(run_dir)
            runs = [*runs, {name: report[name] for name in ("losses", "best_step", "weights", "seconds", "samples")}]
            trial.set_user_attr("runs", runs)
        return runs


def interrupt(number: int, _: object) -> None:
    """Raise Interrupted on a first signal; others are ignored while what is being trained is saved."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted("stopped", exit_code=128 + number)  # what shells report for a signal


def work(sweep: Sweep, jobs: int) -> None:
    """Let `jobs` workers run, one here, the others in processes, each with its share of the cores; see `Sweep.work`."""
    threads = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else max(1, torch.get_num_threads() // jobs)
    args = (sweep.folder, sweep.url, threads)
    others = [get_context("spawn").Process(target=_help, args=args) for _ in range(1, jobs)]
    before = [signal.getsignal(each) for each in SIGNALS]
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: one that still imports is ended by us, in silence
        for process in others:
            process.start()
        with torch_as_before():
            sweep.work(threads)
        for process in others:
            process.join()
    finally:
        for process in filter(Process.is_alive, others):
            process.terminate()
            process.join()
        for each, handler in zip(SIGNALS, before, strict=True):
            signal.signal(each, handler)


def _help(folder: Path, url: str | None, threads: int) -> None:
    with suppress(MlpLmError, *BROKEN):  # what ends all workers, the command itself tells
        Sweep(folder, url).work(threads)
