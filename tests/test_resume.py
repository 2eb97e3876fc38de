"""A run is the same again, with one seed, and after it was stopped anywhere and continued."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mlp_lm.cli import main
from mlp_lm.training.module import MLPModule
from tests.conftest import fit, scalars

STEPS = 40  # of batches of 50, some of which span two epochs of 966 windows
CLASSIC = ["--model.optimizer=sgd", "--model.dropout=0", "--model.learning_rate=0.1", "--model.lr_schedule=step"]
RECIPES = {
    "fused": CLASSIC,
    "unfused": [*CLASSIC, "--model.fused=false"],
    "momentum": [*CLASSIC, "--model.momentum=0.9"],
    "adamw": ["--model.optimizer=adamw", "--model.dropout=0.3", "--model.num_layers=2"],
}


def run(corpus: Path, folder: Path, recipe: str, steps_per_execution: int, expected: int = 0) -> Path:
    flags = ["--data.batch_size=50", f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=9"]
    flags += ["--trainer.log_every_n_steps=4", f"--data.steps_per_execution={steps_per_execution}"]
    return fit(corpus, folder, *RECIPES[recipe], *flags, expected=expected)


def stop_at(step: int, signum: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a signal in the midst of the call of `training_step` that contains a step."""
    training_step = MLPModule.training_step

    def interrupted(module: MLPModule, chunk: Any) -> None:
        if module.global_step <= step < module.global_step + len(chunk[1]):
            os.kill(os.getpid(), signum)
        training_step(module, chunk)

    monkeypatch.setattr(MLPModule, "training_step", interrupted)


def state(folder: Path) -> dict[str, Any]:
    """What must be the same: weights, optimizer, step, lowest dev loss."""
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    parts = {name: content[name] for name in ("state_dict", "optimizer_states", "global_step")}
    best = {name: state["best_dev_loss"] for name, state in content["callbacks"].items()}
    return {**parts, "best_dev_loss": best}


def assert_equal(one: Any, other: Any) -> None:
    """Bit by bit, through dictionaries and lists."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert one == other


def step_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


def samples(folder: Path) -> list[dict[str, str]]:
    """The generated items of the report, which marks a finished run."""
    found: list[dict[str, str]] = json.loads((folder / "report.json").read_text())["samples"]
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_seed_gives_the_same_bits(recipe: str, corpus_file: Path, tmp_path: Path) -> None:
    one, other = (run(corpus_file, tmp_path / name, recipe, 7) for name in ("one", "other"))
    assert_equal(state(one), state(other))
    assert scalars(one) == scalars(other)
    assert samples(one) == samples(other)


def test_another_number_of_threads_changes_no_more_than_rounding(corpus_file: Path, tmp_path: Path) -> None:
    flags = ["--model.hidden_dim=256", "--model.dropout=0.3", "--data.batch_size=512", "--trainer.precision=64-true"]
    before = torch.get_num_threads()
    try:
        one, two = (
            fit(corpus_file, tmp_path / number, *flags, f"--trainer.num_threads={number}") for number in ("1", "2")
        )
    finally:
        torch.set_num_threads(before)
    for name, weight in state(one)["state_dict"].items():
        torch.testing.assert_close(weight, state(two)["state_dict"][name], rtol=1e-9, atol=1e-12)
    assert samples(one) == samples(two)


ONE_OF_EACH = [("fused", 7, 3), ("unfused", 1, 8), ("momentum", 100, 21), ("adamw", 7, 22)]
LOG_POINTS = sorted({*range(4, STEPS, 4), *range(9, STEPS, 9), STEPS})
STOPS = random.Random(1).sample(range(STEPS - 4), 8)
MATRIX = [(recipe, k, step) for recipe in RECIPES for k in (1, 7, 100) for step in STOPS]


@pytest.mark.parametrize(
    ("recipe", "steps_per_execution", "step"),
    [*ONE_OF_EACH, *(pytest.param(*case, marks=pytest.mark.slow) for case in MATRIX if case not in ONE_OF_EACH)],
)
def test_a_stopped_and_continued_run_is_the_uninterrupted_one(
    recipe: str,
    steps_per_execution: int,
    step: int,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run(corpus_file, tmp_path / "whole", recipe, 1)
    with monkeypatch.context() as patch:
        stop_at(step, signal.SIGTERM, patch)
        parts = run(corpus_file, tmp_path / "parts", recipe, steps_per_execution, expected=143)
    assert state(parts)["global_step"] == next(point for point in LOG_POINTS if point > step)
    assert main(["fit", "--ckpt_path", str(parts / "checkpoints" / "last.ckpt")]) == 0
    assert_equal(state(whole), state(parts))
    assert scalars(whole) == scalars(parts)
    assert samples(whole) == samples(parts)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_last_ckpt_alone_and_says_how_to_continue(
    signum: signal.Signals,
    code: int,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    stop_at(6, signum, monkeypatch)
    before = signal.getsignal(signum)
    flags = ["--trainer.log_every_n_steps=3", "--trainer.log_samples=false", "--report_test=false"]
    folder = fit(corpus_file, tmp_path / "run", *flags, expected=code)
    last = folder / "checkpoints" / "last.ckpt"
    how = "--trainer.accelerator=cpu --trainer.log_samples=false --report_test=false"  # which a checkpoint does not say
    command = f"python -m mlp_lm fit --ckpt_path={last} {how}"
    assert capfd.readouterr().err == f"mlp_lm fit: {signum.name} at step 9: saved {last}; resume with: {command}\n"
    assert step_of(last) == 9
    assert step_of(last.with_name("best.ckpt")) == 5
    assert signal.getsignal(signum) == before
    assert not (folder / "report.json").exists()


def test_a_run_does_not_go_back_behind_what_it_has_reached(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_at(6, signal.SIGTERM, patch)
        folder = fit(corpus_file, tmp_path / "run", "--trainer.log_every_n_steps=4", expected=143)
    last, best = folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "best.ckpt"
    assert main(["fit", f"--ckpt_path={best}"]) == 2
    assert f"best.ckpt is at step 5, but its run has reached step 8, which would be lost; continue {last}, or copy" in (
        capfd.readouterr().err
    )
    (tmp_path / "branch").mkdir()
    (tmp_path / "branch" / "best.ckpt").write_bytes(best.read_bytes())
    assert main(["fit", f"--ckpt_path={tmp_path / 'branch' / 'best.ckpt'}"]) == 0  # a copy may
    last.write_bytes(b"")
    assert main(["fit", f"--ckpt_path={best}"]) == 0  # and so may what is left of a damaged run
    assert step_of(last) == 12


def test_a_second_ctrl_c_ends_at_once(corpus_file: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = [f"--data.path={corpus_file}", f"--run_dir={run_dir}", "--model.hidden_dim=16"]
    flags += [f"--trainer.{name}=1000000" for name in ("max_steps", "log_every_n_steps", "val_check_interval")]
    with subprocess.Popen([sys.executable, "-m", "mlp_lm", "fit", *flags], stdout=subprocess.DEVNULL) as process:
        while not (run_dir / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.05)
        time.sleep(0.5)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert process.wait(timeout=10) == -signal.SIGINT


def test_a_run_that_goes_on_is_not_finished_and_its_config_is_the_one_it_goes_on_with(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fit(corpus_file, tmp_path / "run", "--model.lr_schedule=constant")
    path = folder / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["callbacks"]["Checkpoints"]["seconds"] = 1000.0
    torch.save(content, path)
    last = f"--ckpt_path={path}"
    with monkeypatch.context() as patch:
        stop_at(15, signal.SIGTERM, patch)
        assert main(["fit", last, "--trainer.max_steps=40"]) == 143
    assert not (folder / "report.json").exists()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 40 and config["ckpt_path"] is None
    assert main(["fit", last]) == 0
    assert json.loads((folder / "report.json").read_text())["seconds"] > 1000  # of both parts


def test_weights_that_are_no_numbers_are_never_saved(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def overflow(module: MLPModule) -> None:
        module.network.get_parameter("hidden.0.bias").data.fill_(torch.inf)  # tanh is 1, and the loss a number

    monkeypatch.setattr(MLPModule, "on_validation_epoch_start", overflow)
    folder = fit(corpus_file, tmp_path / "run", expected=2)
    assert "or a weight no number, at step 5" in capfd.readouterr().err
    assert step_of(folder / "checkpoints" / "last.ckpt") == 0
    assert not (folder / "checkpoints" / "best.ckpt").exists()
