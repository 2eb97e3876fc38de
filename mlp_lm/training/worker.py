"""A worker of a sweep: one fit after the other in this process, each in a run folder of its own."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from functools import partial
from multiprocessing import Process, get_context
from pathlib import Path
from statistics import mean
from typing import Any

import optuna
import torch
import yaml
from filelock import FileLock
from lightning.pytorch.callbacks import LambdaCallback
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from mlp_lm.errors import Interrupted, MlpLmError, SettingsError, TrainingError, is_out_of_memory
from mlp_lm.training import cli, study
from mlp_lm.training.fit import Fit
from mlp_lm.training.runs import CONFIG, LOCK, read_report, starred
from mlp_lm.training.study import POINT, Plan
from mlp_lm.training.trainer import Trainer

PRUNERS: dict[Any, Any] = {False: NopPruner, True: MedianPruner, "median": MedianPruner, "hyperband": HyperbandPruner}
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class DryFit(Fit):
    """Checks settings and data, and builds trainer and model; trains nothing."""

    def before_instantiate_classes(self) -> None:
        """Keep the settings before what is left open, such as the length, is chosen."""
        self.text = self.config_text()

    def after_instantiate_classes(self) -> None:
        """Refuse several processes before they start, and a teacher that cannot be used."""
        if self.trainer.world_size > 1:
            raise SettingsError("trainer.devices: a run of a sweep takes one process; expected 1 on 1 node")
        _ = self.datamodule.teacher

    def fit(self, **kwargs: Any) -> None:
        """The run would start now; note what it would be trained on."""
        self.text += f"# corpus {self.datamodule.corpus.fingerprint}\n"


def checked(plan: Plan, config: str | None) -> tuple[str, str]:
    """The config that all runs share, with the fingerprint of the corpus, and the name for the sweep's folder.

    Raises SettingsError with all that is wrong with any choice, or an end of a range, and with their data.
    """
    problems: dict[str, None] = {}  # a set in order
    shared = [] if config is None else [f"--config={config}"]
    for point in reversed(plan.points_to_check()):  # so that the first is left
        try:
            fit = cli.run(DryFit, ["fit", *shared, *flags(point)], "")
        except MlpLmError as error:
            problems[str(error)] = None
    if problems:
        raise SettingsError("; ".join(reversed(problems)))
    assert isinstance(fit, DryFit)
    return fit.text, fit.run_name()


def flags(point: dict[str, Any]) -> list[str]:
    """A point as flags of fit; numbers exactly."""
    return [f"--{name}={value}" for name, value in point.items()]


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
            self.trial.set_user_attr("pruned", True)  # which hyperband would not say again
            trainer.should_stop = True  # as if the run were done, with all that it leaves


class Worker:
    """Runs one point after the other, until none waits."""

    def __init__(self, folder: Path, url: str | None) -> None:
        """`folder`: of the sweep, whose study lies there or in the database at `url`."""
        opened = study.open_study(folder, url)
        assert opened is not None
        self.folder, self.url, self.study, self.plan = folder, url, opened, Plan(**opened.user_attrs[study.PLAN])
        self.first_seed = yaml.safe_load(opened.user_attrs[CONFIG])["seed_everything"]
        self.study.pruner = PRUNERS[self.plan.prune]()
        self.claim = FileLock(folder / LOCK)  # held from the choice of a point until that has a lock of its own

    def work(self) -> None:
        """Raises Interrupted on a signal; another worker can then take up the point."""
        while True:
            with self.claim, ExitStack() as self.held:
                study.take_up_dead(self.study, self.folder)
                if not self.study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
                    return
                try:
                    self.study.optimize(self._run_point, n_trials=1, catch=TrainingError, callbacks=[self._say])
                except ValueError as error:  # a process that slept for long, whose point was taken up, goes on
                    if "Cannot tell" not in str(error):
                        raise

    def _run_point(self, trial: optuna.Trial) -> float:
        try:
            return self._mean_loss(trial)
        except Interrupted:
            study.take_up(self.study, self.study.get_trials()[trial.number])  # perhaps by a worker that goes on
            raise
        except (MlpLmError, MemoryError, RuntimeError) as error:
            if not isinstance(error, MlpLmError) and not is_out_of_memory(error):
                raise
            trial.set_user_attr("problem", str(error) if isinstance(error, MlpLmError) else "out of memory")
            raise TrainingError from error

    def _mean_loss(self, trial: optuna.Trial) -> float:
        """The mean dev loss of a point over its seeds."""
        if POINT not in trial.user_attrs:
            raise TrainingError("no point is left: on a database, another machine was faster")
        if self.url is None:
            self.held.enter_context(study.point_lock(self.folder, trial))
        self.claim.release()
        # Seeded by the number, no two workers draw the same, nor a later one what was drawn before.
        sampler = TPESampler if self.plan.sampler == "tpe" else RandomSampler
        self.study.sampler = sampler(seed=(self.first_seed + trial.number) % 2**32)
        for name, values in self.plan.space().items():
            if isinstance(values, CategoricalDistribution):
                trial.suggest_categorical(name, values.choices)
            else:
                suggest: Any = trial.suggest_int if isinstance(values, IntDistribution) else trial.suggest_float
                suggest(name, values.low, values.high, step=values.step, log=values.log)
        runs = trial.user_attrs.get("runs", [])
        for other in self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            if other.params == trial.params:  # a sampler may choose a point again
                runs = other.user_attrs["runs"]
        trial.set_user_attr("runs", runs)
        while len(runs) < (self.plan.seeds or 1) and not (runs and runs[-1]["pruned"]):
            runs = [*runs, self._run(trial, len(runs))]
            trial.set_user_attr("runs", runs)
        if runs[-1]["pruned"]:
            raise optuna.TrialPruned
        return float(mean(run["dev_loss"] for run in runs))

    def _run(self, trial: optuna.Trial, index: int) -> dict[str, Any]:
        """Start, resume or look up a run, and say what came out. Only a point's first run is pruned: its curve is
        compared with those of other points with the same seed; a point that survives has all its seeds."""
        seed, folder = self.first_seed + index, study.point_folder(trial)
        run_dir = self.folder / folder / f"seed_{seed}"
        if read_report(run_dir) is None:
            own = [f"--seed_everything={seed}", "--report_test=false", f"--run_dir={run_dir}", "--ckpt_path=auto"]
            fit = partial(ReportedFit, trial) if index == 0 else Fit
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                cli.run(fit, ["fit", f"--config={self.folder / CONFIG}", *flags(trial.params), *own], "")
        report = read_report(run_dir)
        assert report is not None
        pruned = index == 0 and report["steps"] < report["max_steps"] and "pruned" in trial.user_attrs
        figures = {name: report[name] for name in ("best_step", "weights", "seconds")}
        figures |= {"folder": folder, "samples": [starred(**sample) for sample in report["samples"]]}
        return {"dev_loss": report["losses"]["dev"]["nats_per_token"], "pruned": pruned, **figures}

    def _say(self, _: optuna.Study, trial: FrozenTrial) -> None:
        points = study.latest_trials(self.study)
        if POINT in trial.user_attrs:
            done = sum(point.state.is_finished() for point in points)
            said = {TrialState.PRUNED: "pruned", TrialState.FAIL: trial.user_attrs.get("problem")}.get(trial.state)
            said = said or f"dev loss {trial.value:.4f}"
            print(f"{done}/{len(points)} {study.point_folder(trial)}: {said}", file=sys.stderr, flush=True)


def interrupt(number: int, _: object) -> None:
    """Raise Interrupted on a first signal; others are ignored while what is being trained is saved."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted("stopped", exit_code=128 + number)  # what shells report for a signal


@study.explained()
def work(folder: Path, url: str | None, jobs: int = 1) -> None:
    """Let `jobs` workers run until no point waits: one here, or several processes, each with its share of the cores.

    On a signal, raises Interrupted once what is being trained has been saved.
    """
    processes = [get_context("spawn").Process(target=_work, args=(folder, url, jobs)) for _ in range(jobs)]
    before = [signal.signal(each, interrupt) for each in SIGNALS]
    try:
        if jobs == 1:
            Worker(folder, url).work()
            return
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: one that still imports is ended by us, in silence
        for process in processes:
            process.start()
        signal.signal(signal.SIGINT, interrupt)
        for process in processes:
            process.join()
    finally:
        for process in filter(Process.is_alive, processes):
            process.terminate()
            process.join()
        for each, handler in zip(SIGNALS, before, strict=True):
            signal.signal(each, handler)


def _work(folder: Path, url: str | None, jobs: int) -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    try:
        work(folder, url)
    except MlpLmError as error:  # of a signal, the command itself tells
        sys.exit(None if isinstance(error, Interrupted) else f"mlp_lm sweep: error: {error}")
