"""What ends a `fit` before its end: a loss that is NaN, a folder that is gone, an output that is closed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest
import torch

from mlp_lm.commands import fit as fit_command
from mlp_lm.errors import SettingsError
from mlp_lm.training.module import MLPModule
from tests.conftest import CONSTANT_SGD, Capture, fit, state


def test_a_train_loss_that_is_nan_ends_the_run_and_keeps_the_last_good_weights(
    corpus_file: Path, tmp_path: Path, capfd: Capture
) -> None:
    flags = ["--model.learning_rate=1e35", "--trainer.log_every_n_steps=4"]
    run = fit(corpus_file, tmp_path / "run", *CONSTANT_SGD, *flags, expected=2)
    err = capfd.readouterr().err
    assert "error: train loss is nan at step 3, where the learning rate is 1e+35; try a lower" in err
    assert err.count("\n") == 1
    assert all(weight.isfinite().all() for weight in state(run)["state_dict"].values())


def test_a_dev_loss_that_is_nan_ends_the_run_in_one_line(corpus_file: Path, tmp_path: Path, capfd: Capture) -> None:
    flags = ["--model.learning_rate=1e35", "--trainer.val_check_interval=1", "--trainer.enable_progress_bar=false"]
    fit(corpus_file, tmp_path / "run", *CONSTANT_SGD, *flags, expected=2)
    err = capfd.readouterr().err
    assert err.startswith("mlp_lm fit: error: dev loss is nan, or a weight is") and err.count("\n") == 1


def test_infinite_weights_are_not_saved_even_if_dev_loss_is_finite(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    def overflow(module: MLPModule) -> None:
        module.network.get_parameter("hidden.0.bias").data.fill_(torch.inf)  # tanh is 1, and the loss finite

    monkeypatch.setattr(MLPModule, "on_validation_epoch_start", overflow)
    run = fit(corpus_file, tmp_path / "run", expected=2)
    assert "or a weight is NaN or infinite, at step 5" in capfd.readouterr().err
    assert state(run)["global_step"] == 0
    assert not (run / "checkpoints" / "best.ckpt").exists()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's, on stderr
@pytest.mark.parametrize(
    ("moment", "logger", "expected"),
    [
        ("on_validation_start", "true", "run: cannot be written (No such file"),
        ("on_validation_start", "false", "run/checkpoints/best.ckpt: cannot be written, its run folder is gone"),
        ("on_train_end", "false", "run/checkpoints/best.ckpt: no such file"),
    ],
)
def test_a_run_folder_that_is_deleted_while_training_is_one_line(
    moment: str,
    logger: str,
    expected: str,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Capture,
) -> None:
    monkeypatch.setattr(MLPModule, moment, lambda _: shutil.rmtree(tmp_path / "run"))
    fit(corpus_file, tmp_path / "run", f"--trainer.logger={logger}", "--trainer.enable_progress_bar=false", expected=2)
    err = capfd.readouterr().err
    assert f"{tmp_path}/{expected}" in err and err.count("\n") == 1


def test_an_error_that_is_not_about_the_run_folder_keeps_its_own_words(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    def fail(_: MLPModule) -> None:
        raise ConnectionError("the tracking server is gone")

    monkeypatch.setattr(MLPModule, "on_validation_start", fail)
    fit(corpus_file, tmp_path / "run", expected=2)
    assert capfd.readouterr().err == "mlp_lm fit: error: the tracking server is gone\n"


def test_an_import_that_fails_keeps_its_traceback(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MLPModule, "on_validation_start", lambda _: import_module("no_such_module"))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        fit(corpus_file, tmp_path / "run")


def test_a_run_whose_config_cannot_be_written_leaves_no_folder(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    def fail(path: Path, text: str) -> None:
        raise SettingsError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr(fit_command, "write_text", fail)
    run = fit(corpus_file, tmp_path / "run", expected=2)
    assert "config.yaml: cannot be written" in capfd.readouterr().err
    assert not run.exists()


def pipe_without_a_reader() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.skipif(sys.platform != "linux", reason="a device that is always full")
@pytest.mark.parametrize(
    ("stdout", "code", "error", "leaves_run"),
    [
        (pipe_without_a_reader, 141, "", False),  # fit … | true
        (lambda: "/dev/full", 2, "mlp_lm fit: error: [Errno 28] No space left on device\n", False),
        (None, 0, "", True),  # fit … >&-
    ],
)
def test_a_run_whose_first_line_cannot_be_printed_leaves_no_folder(
    stdout: Callable[[], int | str] | None,
    code: int,
    error: str,
    leaves_run: bool,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Capture,
) -> None:
    monkeypatch.setattr(sys, "stdout", open(stdout(), "w") if stdout else None)  # noqa: SIM115 - closed below
    run = fit(corpus_file, tmp_path / "run", "--trainer.enable_progress_bar=false", expected=code)
    with suppress(AttributeError, OSError):
        sys.stdout.close()
    assert capfd.readouterr().err == error
    assert run.exists() == (run / "report.json").exists() == leaves_run
