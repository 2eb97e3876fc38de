"""Lightning's own surface: what its users know works here, and what cannot is refused with the reason."""

from __future__ import annotations

import csv
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ThroughputMonitor
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from mlp_lm import load
from mlp_lm.cli import main
from mlp_lm.errors import SettingsError
from mlp_lm.models.fused import FusedSGD
from mlp_lm.training.datamodule import TextDataModule
from mlp_lm.training.module import MLPModule
from mlp_lm.training.trainer import NOT_OURS, Trainer
from tests.conftest import LOGGED, Capture, error_of, fit, report, scalars, stop_at

DIVERGING = ["--model.optimizer=sgd", "--model.dropout=0", "--model.lr_schedule=constant", "--model.learning_rate=30"]
HANDWRITTEN = "gradients written by hand"


# -- callbacks and loggers -----------------------------------------------------------------------------------------


def test_early_stopping_by_flags_ends_a_diverging_run_with_a_report(corpus_file: Path, tmp_path: Path) -> None:
    stopping = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=dev/loss"]
    run = fit(corpus_file, tmp_path / "run", LOGGED, *DIVERGING, *stopping, "--trainer.callbacks.patience=1")
    assert [step for step, _ in scalars(run)["dev/loss"]] == [5, 10]
    assert report(run)["steps"] == 10 and report(run)["best_step"] == 5


@pytest.mark.parametrize("step", [6, 9])  # saved at step 8, in the midst of an epoch of Lightning's, and at 10
def test_early_stopping_by_config_also_ends_a_run_that_was_resumed(
    step: int, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = {"class_path": "EarlyStopping", "init_args": {"monitor": "dev/loss", "patience": 2}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [stopping]}}))
    flags = [f"--config={tmp_path / 'config.yaml'}", "--trainer.max_steps=20", "--trainer.log_every_n_steps=4"]
    with monkeypatch.context() as patch:
        stop_at(step, signal.SIGTERM, patch)
        run = fit(corpus_file, tmp_path / "run", LOGGED, *DIVERGING, *flags, expected=143)
    assert main(["fit", f"--config={run / 'config.yaml'}", f"--ckpt_path={run}"]) == 0
    assert [step for step, _ in scalars(run)["dev/loss"]] == [5, 10, 15]
    assert report(run)["steps"] == 15


def test_another_logger_gets_the_same_curves(run_dir: Path, corpus_file: Path, tmp_path: Path) -> None:
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'csv'}"]
    run = fit(corpus_file, tmp_path / "run", *logger, "--trainer.log_every_n_steps=4")
    (path,) = (tmp_path / "csv").rglob("metrics.csv")
    rows = [*csv.DictReader(path.open())]
    for name in ("train/loss", "dev/loss"):
        points = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        torch.testing.assert_close(points, scalars(run_dir)[name], rtol=1e-6, atol=0)  # TensorBoard keeps float32
    assert not [*run.glob("events.*")]


def test_a_users_own_checkpoints_go_where_they_are_wanted(corpus_file: Path, tmp_path: Path) -> None:
    own = [f"dirpath={tmp_path / 'own'}", "monitor=dev/loss", "filename=mine"]
    flags = ["--trainer.callbacks+=ModelCheckpoint", *(f"--trainer.callbacks.{setting}" for setting in own)]
    fit(corpus_file, tmp_path / "run", *flags)
    assert load(tmp_path / "own" / "mine.ckpt").sample(1)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["EMAWeightAveraging"], "EMAWeightAveraging; it counts calls of training_step"),
        (["TQDMProgressBar"], "it counts calls of training_step, each of which runs several steps; trainer.enable_pro"),
        (["LearningRateMonitor"], "LearningRateMonitor; the learning rate is logged as lr"),
        (["StochasticWeightAveraging", "swa_lrs=0.1"], "manual optimization cannot do it"),
        (["ModelCheckpoint", "every_n_train_steps=15"], "every_n_train_steps of ModelCheckpoint: it counts calls"),
        (["EarlyStopping", "monitor=dev_loss"], "dev_loss"),
    ],
)
def test_a_callback_that_cannot_work_is_refused_in_one_line(
    flags: list[str], reason: str, corpus_file: Path, tmp_path: Path, capfd: Capture
) -> None:
    name, *settings = flags
    flags = [f"--trainer.callbacks+={name}", *(f"--trainer.callbacks.{setting}" for setting in settings)]
    fit(corpus_file, tmp_path / "run", *flags, expected=2)
    *_, error = capfd.readouterr().err.splitlines()
    assert reason in error


# -- settings of Lightning's Trainer -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOT_OURS)
def test_a_setting_that_does_not_go_with_several_steps_a_call_is_refused_with_the_reason(
    name: str, tmp_path: Path, capsys: Capture
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"trainer": {name: 1}}))
    for args in (["fit", f"--trainer.{name}=1"], ["fit", "--config", str(config)]):
        error = error_of(args, capsys)
        assert f"trainer.{name}" in error and NOT_OURS[name] in error


def test_detect_anomaly_turns_the_handwritten_step_off(corpus_file: Path, tmp_path: Path, capfd: Capture) -> None:
    classic = ["--model.optimizer=sgd", "--model.dropout=0", "--trainer.max_steps=1"]
    fit(corpus_file, tmp_path / "by hand", *classic)
    assert HANDWRITTEN in capfd.readouterr().err
    fit(corpus_file, tmp_path / "by autograd", *classic, "--trainer.detect_anomaly=true")
    assert HANDWRITTEN not in capfd.readouterr().err


# -- our classes in other programs ---------------------------------------------------------------------------------


def test_load_from_checkpoint_gives_the_network_that_load_gives(best: Path, corpus_file: Path) -> None:
    contexts, _ = TextDataModule(path=str(corpus_file), context_size=3).windows("dev")[:]
    module = MLPModule.load_from_checkpoint(best, weights_only=True).eval()
    assert torch.equal(module.network.log_probs(contexts), load(best).log_probs(contexts))
    assert module.hparams["hidden_dim"] == 16


def test_load_from_checkpoint_gives_the_data(best: Path, corpus_file: Path) -> None:
    data = TextDataModule.load_from_checkpoint(best, weights_only=True)
    assert data.hparams["path"] == str(corpus_file) and data.hparams["context_size"] == 3
    assert data.corpus.vocab.tokens == load(best).vocab.tokens
    assert data.order_seed == 42


@pytest.mark.filterwarnings("ignore")  # Lightning's, which `fit` drops
def test_lightnings_trainer_fits_the_module_and_its_checkpoint_can_be_loaded(
    corpus_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    data = TextDataModule(path=str(corpus_file), context_size=3, batch_size=100, steps_per_execution=4)
    module = MLPModule(data.vocab_size, context_size=3, hidden_dim=16, lr_warmup_steps=0)
    trainer = pl.Trainer(max_steps=19, accelerator="cpu", logger=CSVLogger(tmp_path, "log", ""))
    trainer.fit(module, data)
    logged = [row for row in csv.DictReader((tmp_path / "log" / "metrics.csv").open()) if row["dev/loss"]]
    assert [int(row["step"]) for row in logged] == [9, 18, 19]  # none of two batches, before the first step
    assert trainer.global_step == 19
    assert trainer.current_epoch == 3  # of 9 whole batches from 966 windows, and one of the last step
    assert trainer.callback_metrics["dev/loss"] < 2.3  # log 10: better than guessing
    (path,) = tmp_path.rglob("*.ckpt")
    contexts, _ = data.windows("dev")[:]
    assert torch.equal(load(path).log_probs(contexts), module.eval().network.log_probs(contexts))
    capsys.readouterr()
    assert "trainer.max_steps: missing; it is not in" in error_of(["fit", f"--ckpt_path={path}"], capsys)


@pytest.mark.filterwarnings("ignore")  # Lightning's, which `fit` drops
def test_a_second_fit_of_a_module_chooses_schedule_and_kind_of_step_anew(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = TextDataModule(path=str(corpus_file), context_size=3)
    module = MLPModule(data.vocab_size, 3, optimizer="sgd", dropout=0, lr_schedule="constant", lr_warmup_steps=0)

    def learning_rate_of_a_fit(rate: float, detect_anomaly: bool) -> float:
        module.hparams["learning_rate"] = rate
        trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, detect_anomaly=detect_anomaly)
        trainer.fit(module, data)
        return float(trainer.optimizers[0].param_groups[0]["lr"])

    assert learning_rate_of_a_fit(0.1, detect_anomaly=False) == 0.1
    module._losses.append(torch.tensor([torch.nan]))  # as a fit may leave that ends between two log points
    monkeypatch.setattr(FusedSGD, "run", lambda *_: pytest.fail("the step of the first fit was taken"))
    assert learning_rate_of_a_fit(0.2, detect_anomaly=True) == 0.2


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"val_check_interval": 0}, "trainer.val_check_interval must be between 1 and 1,000,000,000 (got 0)"),
        ({"callbacks": ThroughputMonitor(len)}, "trainer.callbacks: found ThroughputMonitor; it counts calls"),
        ({"gradient_clip_val": 1}, "trainer.gradient_clip_val: manual optimization cannot do it; lower model.lear"),
    ],
)
def test_our_trainer_refuses_in_python_what_the_command_line_refuses(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Trainer(**settings)
    assert str(caught.value).startswith(expected)


def test_a_checkpoint_without_our_data_says_what_it_lacks(corpus_file: Path, tmp_path: Path, capsys: Capture) -> None:
    data = TextDataModule(path=str(corpus_file), context_size=3)
    contexts, targets = data.windows("train")[:64]
    one_chunk = DataLoader(TensorDataset(contexts[None], targets[None]))  # (1, 64, 3) and (1, 64)
    trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.fit(MLPModule(data.vocab_size, 3), one_chunk)
    (path,) = tmp_path.rglob("*.ckpt")
    capsys.readouterr()
    assert "has no vocabulary, as it was trained without a TextDataModule" in error_of(["sample", str(path)], capsys)
