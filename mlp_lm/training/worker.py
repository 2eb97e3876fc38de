"""A worker of a sweep: one fit after the other in this process, each in a run folder of its own."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from multiprocessing import Process, get_context
from pathlib import Path
from statistics import mean
from typing import Any

import optuna
from filelock import FileLock
from lightning.pytorch.callbacks import LambdaCallback
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState

from mlp_lm.errors import Interrupted, MlpLmError, SettingsError, TrainingError, is_out_of_memory
from mlp_lm.settings import SEED, check
from mlp_lm.training import cli, study
from mlp_lm.training.fit import Fit
from mlp_lm.training.runs import CONFIG, read_report, starred
from mlp_lm.training.study import POINT, Plan, Point
from mlp_lm.training.trainer import Trainer

PRUNERS = {None: NopPruner, "median": MedianPruner, "hyperband": HyperbandPruner}


def flags(point: Point) -> list[str]:
    """A point as flags of fit; numbers exactly."""
    return [f"--{name}={value}" for name, value in point.items()]


class DryFit(Fit):
    """Checks settings and data, and builds trainer and model; trains nothing."""

    def before_instantiate_classes(self) -> None:
        """Keep the settings before what is left open, such as the length, is chosen."""
        self.text = self.config_text()

    def after_instantiate_classes(self) -> None:
        """Refuse several processes before they start."""
        if self.trainer.world_size > 1:
            raise SettingsError("trainer.devices: a run of a sweep takes one process; expected 1 on 1 node")

    def fit(self, **kwargs: Any) -> None:
        """The run would start now; enough."""


def checked(plan: Plan, config: str | None) -> tuple[Plan, str]:
    """The plan with what its runs share, and the name for its folder.

    Raises SettingsError with all that is wrong with any choice, or an end of a range, and with their data.
    """
    problems: dict[str, None] = {}
    text, data = "", set[str]()
    for point in reversed(plan.points_to_check()):  # so that the first is left
        try:
            fit = cli.run(DryFit, ["fit", *([] if config is None else [f"--config={config}"]), *flags(point)], "")
            assert isinstance(fit, DryFit)
            check(
                {"seed_everything": fit.options["seed_everything"] + (plan.seeds or 1) - 1}, {"seed_everything": SEED}
            )
            text = fit.text
            data.add(fit.datamodule.corpus.fingerprint)
        except MlpLmError as error:
            problems[str(error)] = None
    if problems:
        raise SettingsError("; ".join(reversed(problems)))
    seed = fit.options["seed_everything"]
    return replace(plan, config=text, first_seed=seed, data=sorted(data)), fit.run_name()


class ReportedFit(Fit):
    """A fit that tells a trial the dev loss of each validation, and ends at one where the trial is to be pruned."""

    def __init__(self, trial: optuna.Trial, *args: Any) -> None:
        """`args`: those of a `Fit`."""
        self.trial = trial
        super().__init__(*args)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the report; config.yaml has none, as the run is that of any `fit`."""
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(LambdaCallback(on_validation_end=self._tell))  # type: ignore[attr-defined]
        return trainer

    def _tell(self, trainer: Any, _: Any) -> None:
        number = -(-trainer.global_step // trainer.steps_per_validation)  # hyperband counts validations
        self.trial.report(trainer.callback_metrics["dev/loss"].item(), number)
        if trainer.global_step < trainer.max_steps and self.trial.should_prune():
            trainer.should_stop = True  # as if the run were done, with all that it leaves


class Worker:
    """Runs one point after the other, until none waits."""

    def __init__(self, folder: Path, url: str | None) -> None:
        """`folder`: of the sweep, whose study lies there or in the database at `url`."""
        opened = study.open_study(folder, url)
        assert opened is not None
        self.folder, self.url, self.study, self.plan = folder, url, opened, Plan(**opened.user_attrs[study.PLAN])
        self.study.pruner = PRUNERS[self.plan.prune]()
        self.space = study.parse_vary(self.plan.vary)
        self.claim = FileLock(folder / ".lock")  # held from the choice of a point until that has a lock of its own
        self.lock: FileLock | None = None

    def work(self) -> None:
        """Raises Interrupted on a signal; another worker can then take up the point."""
        while True:
            with self.claim:
                study.take_up_dead(self.study, self.folder)
                waiting = self.study.get_trials(deepcopy=False, states=[TrialState.WAITING])
                if not waiting:
                    return
                self.number = waiting[0].number  # on a database a guess, as another machine may be faster
                # So no two workers draw the same, nor a later one what was drawn before.
                seed = (self.plan.first_seed + self.number) % 2**32 if self.url is None else None
                self.study.sampler = TPESampler(seed=seed) if self.plan.sampler == "tpe" else RandomSampler(seed=seed)
                try:
                    self.study.optimize(self._run_point, n_trials=1, catch=TrainingError)
                except Interrupted:
                    trial = self.study.get_trials()[self.number]
                    if trial.state == TrialState.FAIL:
                        study.take_up(self.study, trial)
                    raise
                finally:
                    if self.lock is not None:
                        self.lock.release()
            trial = self.study.get_trials()[self.number]
            if not trial.state.is_finished():
                continue
            said = {TrialState.PRUNED: "pruned", TrialState.FAIL: trial.user_attrs.get("problem")}.get(trial.state)
            done = sum(latest.state.is_finished() for latest in study.latest_trials(self.study))
            said = f"{study.point_folder(trial)}: {said or f'dev loss {trial.value:.4f}'}"
            print(f"{done}/{self.plan.trials} {said}", file=sys.stderr, flush=True)

    def _run_point(self, trial: optuna.Trial) -> float:
        """The mean dev loss of a point over its seeds."""
        if POINT not in trial.user_attrs:
            raise TrainingError("no point is left: on a database, another machine was faster")
        self.number = trial.number
        if self.url is None:
            self.lock = study.lock_point(self.folder, trial)
        point = {name: suggest(trial, name, values) for name, values in self.space.items()}
        self.claim.release()
        for other in self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            if other.params == trial.params:  # a sampler may choose a point again
                trial.set_user_attr("runs", other.user_attrs["runs"])
        runs = [*trial.user_attrs.get("runs", ())]
        try:
            while len(runs) < (self.plan.seeds or 1) and not (runs and runs[-1]["pruned"]):
                runs.append(self._run(trial, point, len(runs)))
                trial.set_user_attr("runs", runs)
        except (MlpLmError, MemoryError, RuntimeError) as error:
            if isinstance(error, Interrupted) or not (isinstance(error, MlpLmError) or is_out_of_memory(error)):
                raise
            trial.set_user_attr("problem", str(error) if isinstance(error, MlpLmError) else "out of memory")
            raise TrainingError from error
        if runs[-1]["pruned"]:
            raise optuna.TrialPruned
        return float(mean(run["dev_loss"] for run in runs))

    def _run(self, trial: optuna.Trial, point: Point, index: int) -> dict[str, Any]:
        """Start, resume or look up a run, and say what came out. Only a point's first run is pruned: its curve is
        compared with those of other points with the same seed; a point that survives has all its seeds."""
        seed, folder = self.plan.first_seed + index, study.point_folder(trial)
        run_dir = self.folder / folder / f"seed_{seed}"
        if read_report(run_dir) is None:
            own = [f"--seed_everything={seed}", "--report_test=false", f"--run_dir={run_dir}", "--ckpt_path=auto"]
            fit = partial(ReportedFit, trial) if index == 0 else Fit
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                cli.run(fit, ["fit", f"--config={self.folder / CONFIG}", *flags(point), *own], "")
        report = read_report(run_dir)
        assert report is not None
        pruned = index == 0 and report["steps"] < report["max_steps"] and bool(trial.should_prune())
        figures = {name: report[name] for name in ("best_step", "weights", "seconds")}
        figures |= {"folder": folder, "samples": [starred(**sample) for sample in report["samples"]]}
        return {"dev_loss": report["losses"]["dev"]["nats_per_token"], "pruned": pruned, **figures}


def suggest(trial: optuna.Trial, name: str, values: dict[str, Any]) -> Any:
    """A setting's value at a point: of the grid, or chosen by the sampler."""
    if "choices" in values:
        return trial.suggest_categorical(name, **values)
    return trial.suggest_int(name, **values) if isinstance(values["low"], int) else trial.suggest_float(name, **values)


def work(folder: Path, url: str | None, jobs: int = 1) -> int:
    """Let `jobs` workers run until no point waits: one here, or several processes, each with its share of the cores.

    Returns how many of these failed. On a signal, raises Interrupted once what is being trained has been saved.
    """

    def interrupt(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted("stopped", exit_code=128 + number)  # what shells report for a signal

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    processes = [get_context("spawn").Process(target=_work, args=(folder, url)) for _ in range(jobs if jobs > 1 else 0)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = {"OMP_NUM_THREADS": str(max(1, cores // jobs))} if processes and "OMP_NUM_THREADS" not in os.environ else {}
    try:
        if not processes:
            with study.explained(folder):
                Worker(folder, url).work()
        os.environ.update(share)
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return sum(process.exitcode != 0 for process in processes)
    finally:
        for process in filter(Process.is_alive, processes):
            process.terminate()
            process.join()
        for name in share:
            os.environ.pop(name, None)
        for number, handler in before.items():
            signal.signal(number, handler)


def _work(folder: Path, url: str | None) -> None:
    try:
        work(folder, url)
    except MlpLmError as error:
        sys.exit(error.exit_code if isinstance(error, Interrupted) else f"mlp_lm sweep: error: {error}")
