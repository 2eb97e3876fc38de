"""What `fit` does on a CUDA device, against the CPU; skipped where there is none."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from mlp_lm.cli import main
from mlp_lm.training.fast_lane import MULTIPLES
from tests.conftest import assert_same_run, fit, report, stop_at
from tests.test_resume import INTERVALS, RECIPES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = ["--trainer.accelerator=cuda"]


def dev_loss(run_dir: Path) -> float:
    loss: float = report(run_dir)["losses"]["dev"]["nats_per_token"]
    return loss


@pytest.mark.parametrize("recipe", ["sgd", "momentum"])
def test_losses_are_those_of_the_cpu_to_rounding(recipe: str, corpus_file: Path, tmp_path: Path) -> None:
    flags = [*RECIPES[recipe], "--trainer.max_steps=40"]
    on_cuda = fit(corpus_file, tmp_path / "cuda", *flags, *CUDA)
    assert dev_loss(on_cuda) == pytest.approx(dev_loss(fit(corpus_file, tmp_path / "cpu", *flags)), abs=1e-4)
    assert report(on_cuda)["device"] == "cuda:0"


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_large_vocabulary_and_16_bit_products_train_too(
    precision: str, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlp_lm.models.network.LARGE_VOCAB", 2)
    flags = [*RECIPES["momentum"], "--trainer.max_steps=40"]
    exact = fit(corpus_file, tmp_path / "32-true", *flags, *CUDA)
    rounded = fit(corpus_file, tmp_path / precision, *flags, *CUDA, f"--trainer.precision={precision}")
    assert dev_loss(rounded) == pytest.approx(dev_loss(exact), abs=0.01)


def test_the_fast_lane_is_that_of_the_cpu_to_rounding(corpus_file: Path, tmp_path: Path) -> None:
    flags = [*RECIPES["sgd"], *(f"--{name}=40" for name in ("data.steps_per_execution", *MULTIPLES))]
    on_cuda = fit(corpus_file, tmp_path / "cuda", *flags, *CUDA)
    assert dev_loss(on_cuda) == pytest.approx(dev_loss(fit(corpus_file, tmp_path / "cpu", *flags)), abs=1e-4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_deterministic_run_that_was_stopped_and_resumed_is_the_uninterrupted_one(
    recipe: str, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*RECIPES[recipe], *INTERVALS, *CUDA, "--trainer.deterministic=true"]
    whole = fit(corpus_file, tmp_path / "whole", *flags)
    with monkeypatch.context() as patch:
        stop_at(22, signal.SIGTERM, patch)
        run = fit(corpus_file, tmp_path / "run", *flags, expected=143)
    assert main(["fit", "--ckpt_path", str(run)]) == 0
    assert_same_run(whole, run)
