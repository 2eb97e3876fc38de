"""A run that was stopped anywhere and resumed ends as if it had never been stopped."""

from __future__ import annotations

import math
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock

from mlp_lm import runs
from mlp_lm.cli import main
from tests.conftest import (
    LOGGED,
    Capture,
    assert_same_run,
    before_step,
    error_of,
    events,
    fit,
    last,
    report,
    scalars,
    state,
    stop_at,
)

STEPS = 40  # of batches of 50, some of which span two epochs of 966 windows
LOG_POINTS = sorted({*range(4, STEPS, 4), *range(9, STEPS, 9), STEPS})
INTERVALS = [LOGGED, f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=9", "--trainer.log_every_n_steps=4"]
CLASSIC = ["--model.optimizer=sgd", "--model.dropout=0", "--model.learning_rate=0.1", "--model.lr_schedule=step"]
RECIPES = {
    "sgd": CLASSIC,
    "momentum": [*CLASSIC, "--model.momentum=0.9"],
    "adamw": ["--model.optimizer=adamw", "--model.dropout=0.3", "--model.num_layers=2"],
    "clipping": ["--model.dropout=0.3", "--trainer.gradient_clip_val=0.05"],
    "accumulation": ["--model.dropout=0.3", "--trainer.accumulate_grad_batches=2"],
    "average": ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.9"],
}
FAST = [("adamw", 22), ("accumulation", 7)]
STOPS = random.Random(1)
MATRIX = [(recipe, STOPS.randrange(STEPS - 4)) for recipe in RECIPES for _ in range(3)]


@pytest.fixture(scope="module")
def uninterrupted(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of a recipe that nothing stops; made once."""
    folder = tmp_path_factory.mktemp("uninterrupted")

    def run(recipe: str) -> Path:
        if not (folder / recipe).exists():
            fit(corpus_file, folder / recipe, *INTERVALS, "--data.batch_size=50", *RECIPES[recipe])
        return folder / recipe

    return run


@pytest.mark.parametrize(
    ("recipe", "step"),
    [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in MATRIX)],
)
def test_a_stopped_and_resumed_run_is_the_uninterrupted_one(
    recipe: str,
    step: int,
    uninterrupted: Callable[[str], Path],
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        stop_at(step, signal.SIGTERM, patch)
        run = fit(corpus_file, tmp_path / "run", *INTERVALS, "--data.batch_size=50", *RECIPES[recipe], expected=143)
    assert state(run)["global_step"] == next(point for point in LOG_POINTS if point > step)
    assert main(["fit", "--ckpt_path", str(run)]) == 0
    assert_same_run(uninterrupted(recipe), run)


@pytest.mark.parametrize("step", [3, 15])  # in the first epoch, and at its end, by the fourth step of a call
def test_the_fast_lane_resumes_exactly_too_and_no_bit_depends_on_k(
    step: int, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*CLASSIC, *INTERVALS, "--trainer.val_check_interval=8", "--data.batch_size=50"]
    whole = fit(corpus_file, tmp_path / "whole", *flags, "--data.steps_per_execution=2")
    with monkeypatch.context() as patch:
        stop_at(step, signal.SIGTERM, patch)
        run = fit(corpus_file, tmp_path / "run", *flags, "--data.steps_per_execution=4", expected=143)
    assert state(run)["global_step"] == step + 1
    assert main(["fit", "--ckpt_path", str(run)]) == 0
    assert_same_run(whole, run)


EPOCHS = [
    "--trainer.max_steps=null",
    "--trainer.max_epochs=4",
    "--model.lr_schedule=constant",
    "--data.batch_size=100",
]  # of 10 steps


@pytest.mark.parametrize(
    "validations",
    [
        ["--trainer.val_check_interval=7"],
        ["--trainer.val_check_interval=0.5"],
        ["--trainer.check_val_every_n_epoch=3", "--trainer.val_check_interval=1.0"],  # none in the last epoch
        ["--trainer.limit_val_batches=0"],
    ],
    ids=" ".join,
)
def test_a_run_of_epochs_resumes_exactly_after_a_signal_and_after_its_end(
    validations: list[str], corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [LOGGED, *EPOCHS, *validations, "--trainer.log_every_n_steps=4"]
    whole = fit(corpus_file, tmp_path / "whole", *flags)
    with monkeypatch.context() as patch:
        stop_at(16, signal.SIGTERM, patch)
        stopped = fit(corpus_file, tmp_path / "stopped", *flags, expected=143)
    assert main(["fit", f"--ckpt_path={stopped}"]) == 0
    assert_same_run(whole, stopped)
    longer = fit(corpus_file, tmp_path / "longer", *flags, "--trainer.max_epochs=2")
    assert main(["fit", f"--ckpt_path={longer}", "--trainer.max_epochs=4"]) == 0
    torch.testing.assert_close(state(whole)["state_dict"], state(longer)["state_dict"], rtol=0, atol=0)


STOPPING = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=dev/loss"]
STOPPING += ["--trainer.callbacks.stopping_threshold=1000"]  # at the first validation


def test_a_run_that_stopped_early_has_ended(corpus_file: Path, tmp_path: Path, capsys: Capture) -> None:
    flags = [*STOPPING, "--ckpt_path=auto"]
    run = fit(corpus_file, tmp_path / "run", *flags)
    before = state(run)
    assert before["global_step"] == 5
    capsys.readouterr()
    fit(corpus_file, run, *flags)  # the same line again, which has the callback once, too
    assert f"run {run} has ended" in capsys.readouterr().out
    torch.testing.assert_close(state(run), before, rtol=0, atol=0)
    assert "but this run has ended, at step 5; to train on: " in error_of(["fit", f"--ckpt_path={run}"], capsys)
    assert main(["fit", f"--ckpt_path={run}", "--trainer.max_steps=13"]) == 0


def test_a_run_of_epochs_does_not_go_back_either(corpus_file: Path, tmp_path: Path, capsys: Capture) -> None:
    rising = [
        "--model.optimizer=sgd",
        "--model.dropout=0",
        "--model.learning_rate=30",
        "--trainer.val_check_interval=7",
    ]
    run = fit(corpus_file, tmp_path / "run", *EPOCHS, *rising)
    best = run / "checkpoints" / "best.ckpt"
    capsys.readouterr()
    assert "but its run has reached step 40, which would be lost" in error_of(["fit", f"--ckpt_path={best}"], capsys)
    error = error_of(["fit", f"--ckpt_path={run}", "--trainer.max_epochs=2"], capsys)
    assert "trainer.max_epochs: found 2, but the checkpoint is in epoch 4 already" in error
    error = error_of(["fit", f"--ckpt_path={run}"], capsys)
    assert "trainer.max_epochs: found 4, but this run has ended, at step 40; to train on: " in error


def test_an_accumulation_schedule_resumes_exactly_too(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Lightning counts its validations in batches; they must not fall between the batches of a step.
    flags = [LOGGED, "--trainer.callbacks+=GradientAccumulationScheduler", '--trainer.callbacks.scheduling={"0": 2}']
    flags += ["--trainer.val_check_interval=8"]
    whole = fit(corpus_file, tmp_path / "whole", *flags, "--trainer.log_every_n_steps=4")
    with monkeypatch.context() as patch:
        stop_at(6, signal.SIGTERM, patch)
        run = fit(corpus_file, tmp_path / "run", *flags, "--trainer.log_every_n_steps=4", expected=143)
    assert main(["fit", f"--ckpt_path={run}"]) == 0
    assert_same_run(whole, run)


def test_a_checkpoint_is_read_once_its_run_is_locked(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    with monkeypatch.context() as patch:
        stop_at(1, signal.SIGTERM, patch)
        run = fit(corpus_file, tmp_path / "run", "--trainer.log_every_n_steps=2", expected=143)
    earlier = last(run).read_bytes()
    with monkeypatch.context() as patch:
        stop_at(3, signal.SIGTERM, patch)
        assert main(["fit", f"--ckpt_path={run}"]) == 143
    latest = last(run).read_bytes()
    last(run).write_bytes(earlier)
    lock_run = runs.lock_run

    def lock_when_the_first_process_has_ended(run_dir: Path) -> FileLock:
        last(run).write_bytes(latest)
        return lock_run(run_dir)

    monkeypatch.setattr(runs, "lock_run", lock_when_the_first_process_has_ended)
    capsys.readouterr()
    assert main(["fit", f"--ckpt_path={run}"]) == 0
    assert "resumed at step 4\n" in capsys.readouterr().out and report(run)["first_step"] == 4


def test_what_an_older_checkpoint_lacks_was_as_its_default_is(run_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    content = torch.load(last(run_dir), weights_only=True)
    del content["hyper_parameters"]["direct"]
    torch.save(content, tmp_path / "old.ckpt")
    error = error_of(["fit", f"--ckpt_path={tmp_path / 'old.ckpt'}", "--model.direct=true"], capsys)
    assert "model.direct: found True, but the checkpoint has False" in error
    assert main(["test", f"--ckpt_path={tmp_path / 'old.ckpt'}"]) == 0


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one_with_a_large_vocabulary_too(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlp_lm.models.network.LARGE_VOCAB", 2)
    flags = [LOGGED, "--trainer.log_every_n_steps=4"]
    whole = fit(corpus_file, tmp_path / "whole", *flags)
    with monkeypatch.context() as patch:
        stop_at(6, signal.SIGTERM, patch)
        run = fit(corpus_file, tmp_path / "run", *flags, expected=143)
    assert main(["fit", "--ckpt_path", str(run)]) == 0
    assert_same_run(whole, run)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_last_ckpt_and_prints_the_command_that_resumes(
    signum: signal.Signals, code: int, corpus_file: Path, tmp_path: Path, capfd: Capture
) -> None:
    before = signal.getsignal(signum)
    flags = ["--trainer.log_every_n_steps=3", "--report_test=false", "--trainer.enable_progress_bar=false"]
    with pytest.MonkeyPatch.context() as patch:
        stop_at(6, signum, patch)
        run = fit(corpus_file, tmp_path / "my run", *flags, expected=code)
    assert signal.getsignal(signum) == before
    err = capfd.readouterr().err
    assert err.startswith(f"mlp_lm fit: {signum.name} at step 9: saved {last(run)}; resume with: ")
    assert err.count("\n") == 1
    assert state(run)["global_step"] == 9 and not (run / "report.json").exists()
    python, dash, module, *args = shlex.split(err.split("resume with: ")[1])
    assert (python, dash, module) == ("python", "-m", "mlp_lm")
    assert args == ["fit", "--ckpt_path", str(last(run))]
    assert main(args) == 0
    assert report(run)["steps"] == 12 and list(report(run)["losses"]) == ["dev"]


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(corpus_file: Path, tmp_path: Path) -> None:
    flags = [f"--data.path={corpus_file}", f"--run_dir={tmp_path / 'run'}", "--model.hidden_dim=16"]
    flags += [f"--trainer.{name}=1000000" for name in ("max_steps", "log_every_n_steps", "val_check_interval")]
    with subprocess.Popen([sys.executable, "-m", "mlp_lm", "fit", *flags], stdout=subprocess.DEVNULL) as process:
        while not last(tmp_path / "run").exists():
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert process.wait(timeout=10) == -signal.SIGINT


@pytest.mark.slow
def test_a_run_killed_before_its_first_validation_resumes_from_step_0(
    uninterrupted: Callable[[str], Path], corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def kill() -> None:
        raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        before_step(6, kill, patch)
        fit(corpus_file, tmp_path / "run", *INTERVALS, "--data.batch_size=50", *RECIPES["adamw"])
    assert state(tmp_path / "run")["global_step"] == 0
    time.sleep(1.1)  # TensorBoard orders the files of a run by the second they were begun in
    assert main(["fit", "--ckpt_path", str(last(tmp_path / "run"))]) == 0
    whole, resumed = (events(run, purge=True) for run in (uninterrupted("adamw"), tmp_path / "run"))
    for tag in whole.Tags()["scalars"]:
        points = [[(e.step, e.value) for e in reader.Scalars(tag)] for reader in (whole, resumed)]
        assert points[0] == points[1], tag
    assert [e.step for e in resumed.Scalars("dev/lowest_loss")] == [40]


def test_a_checkpoint_that_was_moved_resumes_there_with_its_own_seed(corpus_file: Path, tmp_path: Path) -> None:
    flags = ["--seed_everything=7", "--model.lr_decay_steps=20", "--model.dropout=0.3"]
    whole = fit(corpus_file, tmp_path / "whole", *flags, "--trainer.max_steps=20")
    fit(corpus_file, tmp_path / "part", *flags, "--trainer.max_steps=10")
    (tmp_path / "moved").mkdir()
    checkpoint = shutil.copy(last(tmp_path / "part"), tmp_path / "moved")
    assert main(["fit", "--ckpt_path", str(checkpoint), "--trainer.max_steps=20"]) == 0
    torch.testing.assert_close(state(whole)["state_dict"], state(tmp_path / "moved")["state_dict"], rtol=0, atol=0)
    assert (tmp_path / "moved" / "checkpoints" / "best.ckpt").exists()


def test_one_flag_trains_on_and_the_schedule_follows(run_dir: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run_dir, tmp_path / "run")
    assert main(["fit", f"--ckpt_path={run}", "--trainer.max_steps=24"]) == 0
    rates = dict(scalars(run)["lr"])
    assert rates[12] == pytest.approx(0.006 * 0.5 * (1 + math.cos(math.pi * 11 / 12)), rel=1e-5)
    assert rates[16] == pytest.approx(0.006 * 0.5 * (1 + math.cos(math.pi * 15 / 24)), rel=1e-5)
    assert report(run)["steps"] == 24


def test_auto_starts_a_run_and_resumes_it(corpus_file: Path, tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)  # what a job leaves that was killed while it wrote its first checkpoint
    for name in (".lock", "config.yaml", "hparams.yaml", "events.out.tfevents.1", "checkpoints/.7.part"):
        (run / name).touch()
    with pytest.MonkeyPatch.context() as patch:
        stop_at(6, signal.SIGTERM, patch)
        fit(corpus_file, run, "--ckpt_path=auto", "--trainer.log_every_n_steps=4", expected=143)
    assert state(run)["global_step"] == 8
    fit(corpus_file, run, "--ckpt_path=auto", "--trainer.log_every_n_steps=4")
    assert f"run {run}, resumed at step 8\n" in capsys.readouterr().out
    assert report(run)["steps"] == 12
    before = state(run)
    fit(corpus_file, run, "--ckpt_path=auto", "--trainer.log_every_n_steps=4")  # a job that is started once too often
    torch.testing.assert_close(state(run), before, rtol=0, atol=0)
    capsys.readouterr()
    message = error_of(["fit", "--ckpt_path=auto"], capsys)
    assert "ckpt_path: auto resumes the run in --run_dir, which is missing" in message


def test_a_run_resumes_with_what_its_checkpoint_does_not_hold(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=dev/loss"]
    with pytest.MonkeyPatch.context() as patch:
        stop_at(6, signal.SIGTERM, patch)
        flags = ["--report_test=false", "--trainer.log_every_n_steps=4", *stopping]
        run = fit(corpus_file, tmp_path / "run", *flags, expected=143)
    before = yaml.safe_load((run / "config.yaml").read_text())
    monkeypatch.chdir(run)
    assert main(["fit", "--ckpt_path=checkpoints/last.ckpt"]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text()) == before
    assert before["trainer"]["max_steps"] == 12 and len(before["trainer"]["callbacks"]) == 1
    assert list(report(run)["losses"]) == ["dev"]


@pytest.mark.parametrize("name", ["mine.txt", "checkpoints/mine.ckpt"])
def test_a_folder_with_files_of_the_users_own_is_not_a_run_that_was_killed_at_once(
    name: str, corpus_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for leftover in (".lock", "config.yaml", name):
        (run / leftover).touch()
    fit(corpus_file, run, "--ckpt_path=auto", expected=2)
    assert (run / name).exists()


def test_a_resumed_run_is_not_finished_and_its_config_is_the_one_it_was_resumed_with(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fit(corpus_file, tmp_path / "run", LOGGED, "--model.lr_schedule=constant")
    content = torch.load(last(run), weights_only=True)
    content["callbacks"]["Checkpoints"]["seconds"] = 1000.0
    torch.save(content, last(run))
    more = ["--trainer.max_steps=40"]
    with monkeypatch.context() as patch:
        stop_at(15, signal.SIGTERM, patch)
        assert main(["fit", f"--ckpt_path={run}", *more]) == 143
    assert not (run / "report.json").exists()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 40 and "run_dir" not in config
    assert main(["fit", f"--ckpt_path={run}"]) == 0
    assert report(run)["seconds"] > 1000  # of both parts
    assert [step for step, _ in scalars(run)["dev/loss"]] == [5, 10, 12, 15, 20, 25, 30, 35, 40]


def test_a_run_does_not_go_back_behind_what_it_has_reached(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    with monkeypatch.context() as patch:
        stop_at(6, signal.SIGTERM, patch)
        run = fit(corpus_file, tmp_path / "run", "--trainer.log_every_n_steps=4", expected=143)
    best = run / "checkpoints" / "best.ckpt"
    assert main(["fit", f"--ckpt_path={best}"]) == 2
    assert f"best.ckpt is at step 5, but its run has reached step 8, which would be lost; resume {last(run)}, or" in (
        capfd.readouterr().err
    )
    (tmp_path / "branch").mkdir()
    shutil.copy(best, tmp_path / "branch")
    assert main(["fit", f"--ckpt_path={tmp_path / 'branch' / 'best.ckpt'}"]) == 0  # a copy may
    last(run).write_bytes(b"")
    assert main(["fit", f"--ckpt_path={best}"]) == 0  # and so may what is left of a damaged run
    assert state(run)["global_step"] == 12


def test_a_run_that_is_being_trained_is_not_resumed_by_a_second_process(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    codes: list[int] = []
    with monkeypatch.context() as patch:
        second = ["fit", "--ckpt_path", str(last(tmp_path / "run"))]
        before_step(6, lambda: codes.append(main(second)), patch)
        run = fit(corpus_file, tmp_path / "run")
    assert codes == [2]
    error = f"mlp_lm fit: error: run_dir: {run} is being trained by another process; wait for it"
    assert error in capfd.readouterr().err.splitlines()
    assert report(run)["steps"] == 12  # the first is not disturbed


def test_of_two_processes_that_take_the_same_new_folder_one_is_refused(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    locks: list[FileLock] = []
    empty_folder = runs.empty_folder

    def and_lose_the_race(name: str, flag: str) -> Path:
        folder = empty_folder(name, flag)
        locks.append(runs.lock_run(folder))
        return folder

    monkeypatch.setattr(runs, "empty_folder", and_lose_the_race)
    run = fit(corpus_file, tmp_path / "run", expected=2)
    locks[0].release()
    assert f"run_dir: {run} is being trained by another process; wait for it\n" in capfd.readouterr().err
    assert [path.name for path in run.iterdir()] == [".lock"]  # the winner's


def test_a_read_only_run_folder_is_one_line_when_it_is_resumed(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    with monkeypatch.context() as patch:
        stop_at(6, signal.SIGTERM, patch)
        run = fit(corpus_file, tmp_path / "run", "--trainer.log_every_n_steps=4", expected=143)
    capfd.readouterr()
    folders = (run, run / "checkpoints")
    for folder in folders:
        folder.chmod(0o500)
    try:
        if os.access(run, os.W_OK):
            pytest.skip("root may write anywhere")
        assert main(["fit", f"--ckpt_path={run}"]) == 2
    finally:
        for folder in folders:
            folder.chmod(0o700)
    err = capfd.readouterr().err
    assert str(run) in err and "(Permission denied)" in err and err.count("\n") == 1
