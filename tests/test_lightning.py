"""Lightning's own surface: each argument, callback and logger does here what Lightning's manual says of it.

Every row of the table runs twice, through our command line and in a plain Lightning script.
"""

from __future__ import annotations

import csv
import json
import math
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from mlp_lm import load
from mlp_lm.cli import main
from mlp_lm.errors import SettingsError
from mlp_lm.text.windows import Batch
from mlp_lm.training.datamodule import TextDataModule
from mlp_lm.training.module import MLPModule
from mlp_lm.training.trainer import UNSUPPORTED_ARGUMENTS, Trainer
from tests.conftest import CONSTANT_SGD, LOGGED, Capture, error_of, fit, last, report, scalars, stop_at

DIVERGING = ["--model.optimizer=sgd", "--model.dropout=0", "--model.lr_schedule=constant", "--model.learning_rate=30"]
EPOCH = 10  # steps: 966 windows in batches of 100

# -- the table -----------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """Arguments of the Trainer and of the model, a callback with its arguments, and what proves their effect."""

    trainer: dict[str, Any]
    proof: Callable[[Outcome], bool]
    callback: str = ""
    arguments: dict[str, Any] | None = None
    model: dict[str, Any] | None = None


@dataclass
class Outcome:
    """What a run leaves: its checkpoint at the end, its curves {name: {step: value}}, what it printed."""

    checkpoint: dict[str, Any]
    curves: dict[str, dict[int, float]]
    printed: str
    folder: Path

    @property
    def steps(self) -> int:
        return int(self.checkpoint["global_step"])

    def points(self, name: str) -> list[int]:
        return [*self.curves.get(name, {})]

    def losses(self) -> list[float]:
        return [*self.curves["train/loss"].values()]


def batch_size(batch: Batch) -> int:
    """For ThroughputMonitor."""
    return len(batch[1])


def falls(outcome: Outcome) -> bool:
    return outcome.losses()[-1] < outcome.losses()[0] - 0.1


def stays(outcome: Outcome) -> bool:
    return outcome.losses() == pytest.approx([outcome.losses()[0]] * 12, abs=1e-5)


STEEP: dict[str, Any] = {"optimizer": "sgd", "weight_decay": 0.0, "dropout": 0.0, "learning_rate": 1.0}
STEEP |= {"lr_schedule": "constant", "lr_warmup_steps": 0}
ONE_BATCH = {"overfit_batches": 1, "max_steps": 12}
NEXT_TO_NOTHING = {"gradient_clip_val": 1e-9}
TABLE = {
    "max_epochs": Row({"max_epochs": 2}, lambda o: o.steps == 2 * EPOCH and 2 * EPOCH in o.points("dev/loss")),
    "max_epochs and max_steps": Row({"max_epochs": 2, "max_steps": 15}, lambda o: o.steps == 15),
    "limit_train_batches int": Row({"limit_train_batches": 3, "max_epochs": 2}, lambda o: o.steps == 6),
    "limit_train_batches float": Row({"limit_train_batches": 0.5, "max_epochs": 2}, lambda o: o.steps == EPOCH),
    "limit_val_batches": Row({"limit_val_batches": 0, "max_epochs": 1}, lambda o: not o.points("dev/loss")),
    "overfit_batches": Row(
        {"overfit_batches": 2, "max_epochs": 3},
        lambda o: o.losses()[:2] == pytest.approx(o.losses()[4:]) and o.losses()[0] != pytest.approx(o.losses()[1]),
        model={**STEEP, "learning_rate": 1e-30},
    ),
    "overfit_batches float": Row(
        {"overfit_batches": 1.0, "max_epochs": 2},
        lambda o: o.losses()[:EPOCH] == pytest.approx(o.losses()[EPOCH:]),
        model={**STEEP, "learning_rate": 1e-30},
    ),
    "reload_dataloaders_every_n_epochs": Row(
        {"reload_dataloaders_every_n_epochs": 1, "max_epochs": 2},
        lambda o: o.losses()[:EPOCH] != pytest.approx(o.losses()[EPOCH:]),
        model={**STEEP, "learning_rate": 1e-30},
    ),
    "accumulate_grad_batches": Row({"accumulate_grad_batches": 2, "max_epochs": 1}, lambda o: o.steps == EPOCH // 2),
    "no gradient_clip_val": Row(ONE_BATCH, falls, model=STEEP),
    "gradient_clip_val": Row({**ONE_BATCH, **NEXT_TO_NOTHING}, stays, model=STEEP),
    "gradient_clip_algorithm": Row(
        {**ONE_BATCH, **NEXT_TO_NOTHING, "gradient_clip_algorithm": "value"}, stays, model=STEEP
    ),
    "check_val_every_n_epoch": Row(
        {"check_val_every_n_epoch": 2, "max_epochs": 4}, lambda o: o.points("dev/loss") == [2 * EPOCH, 4 * EPOCH]
    ),
    "val_check_interval float": Row(
        {"val_check_interval": 0.5, "max_epochs": 1}, lambda o: o.points("dev/loss") == [EPOCH // 2, EPOCH]
    ),
    "val_check_interval int": Row(
        {"val_check_interval": 4, "check_val_every_n_epoch": None, "max_steps": 12},
        lambda o: o.points("dev/loss") == [4, 8, 12],
    ),
    "precision 64-true": Row(
        {"precision": "64-true", "max_steps": 2},
        lambda o: o.checkpoint["state_dict"]["network.output.weight"].dtype == torch.float64,
    ),
    "precision bf16-mixed": Row(
        {"precision": "bf16-mixed", "max_steps": 2},
        lambda o: o.losses()[0] == pytest.approx(math.log(10), abs=0.1),
    ),
    "gradient_clip_val with bf16-mixed": Row(
        {**ONE_BATCH, **NEXT_TO_NOTHING, "precision": "bf16-mixed"}, stays, model=STEEP
    ),
    "profiler simple": Row({"profiler": "simple", "max_steps": 2}, lambda o: "run_training_batch" in o.printed),
    "max_time": Row({"max_time": "00:00:00:01", "max_steps": 10**8}, lambda o: 0 < o.steps < 10**8),
    "LearningRateMonitor": Row(
        {"max_steps": 4}, lambda o: o.points("lr-AdamW/pg1") != [] and o.curves["lr"][1] > 0, "LearningRateMonitor", {}
    ),
    "EMAWeightAveraging": Row(
        {"max_steps": 4}, lambda o: "averaging_state" in o.checkpoint, "EMAWeightAveraging", {"decay": 0.9}
    ),
    "StochasticWeightAveraging": Row(
        {"max_epochs": 3},
        lambda o: o.curves["lr"][3 * EPOCH] == pytest.approx(0.5),
        "StochasticWeightAveraging",
        {"swa_lrs": 0.5, "swa_epoch_start": 1, "annealing_epochs": 1},
    ),
    "DeviceStatsMonitor": Row(
        {"max_steps": 4},
        lambda o: any(name.startswith("DeviceStatsMonitor") for name in o.curves),
        "DeviceStatsMonitor",
        {"cpu_stats": True},
    ),
    "ThroughputMonitor": Row(
        {"max_steps": 12},
        lambda o: max(o.curves["train/samples"].values()) == 1200,
        "ThroughputMonitor",
        {"batch_size_fn": batch_size, "window_size": 4},
    ),
    "Timer": Row({"max_steps": 10**8}, lambda o: o.steps < 10**8, "Timer", {"duration": {"seconds": 1}}),
    "GradientAccumulationScheduler": Row(
        {"max_epochs": 2},
        lambda o: o.steps == EPOCH + EPOCH // 2,
        "GradientAccumulationScheduler",
        {"scheduling": {1: 2}},
    ),
    "ModelCheckpoint": Row(
        {"max_steps": 6},
        lambda o: [*o.folder.rglob("*step=3*.ckpt")] != [],
        "ModelCheckpoint",
        {"every_n_train_steps": 3, "save_top_k": -1},
    ),
    "TQDMProgressBar": Row({"max_steps": 4}, lambda o: "Epoch 0" in o.printed, "TQDMProgressBar", {}),
    "RichProgressBar": Row({"max_steps": 4}, lambda o: "Epoch 0" in o.printed, "RichProgressBar", {}),
    "LearningRateFinder": Row(
        {"max_steps": 4},
        lambda o: o.checkpoint["hyper_parameters"]["learning_rate"] != 0.006,
        "LearningRateFinder",
        {"num_training_steps": 20},
    ),
    "BatchSizeFinder": Row(
        {"max_steps": 4},
        lambda o: o.checkpoint["datamodule_hyper_parameters"]["batch_size"] == 16,
        "BatchSizeFinder",
        {"init_val": 8, "max_trials": 2, "steps_per_trial": 1},
    ),
    "EarlyStopping": Row(
        {"max_epochs": 9, "val_check_interval": 1.0},
        lambda o: o.steps == EPOCH,
        "EarlyStopping",
        {"monitor": "dev/loss", "stopping_threshold": 1000.0},
    ),
    "min_steps": Row(
        {"max_epochs": 9, "val_check_interval": 1.0, "min_steps": 3 * EPOCH + 1},
        lambda o: o.steps == 3 * EPOCH + 1,
        "EarlyStopping",
        {"monitor": "dev/loss", "stopping_threshold": 1000.0},
    ),
}


def curves_of(folder: Path) -> dict[str, dict[int, float]]:
    """The curves that CSVLogger has written somewhere in a folder."""
    curves: dict[str, dict[int, float]] = {}
    for path in folder.rglob("metrics.csv"):
        for row in csv.DictReader(path.open()):
            for name, value in row.items():
                if value and name != "step":
                    curves.setdefault(name, {})[int(row["step"])] = float(value)
    return curves


def as_flags(section: str, values: dict[str, Any]) -> list[str]:
    """Values as flags; a function by its path."""
    paths = {n: f"{v.__module__}.{v.__name__}" if callable(v) else v for n, v in values.items()}
    texts = {n: v if isinstance(v, str) else json.dumps(v) for n, v in paths.items()}
    return [f"--{section}.{name}={text}" for name, text in texts.items()]


@pytest.mark.parametrize("name", TABLE)
def test_each_argument_has_its_effect_through_the_command_line(
    name: str,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Capture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    row = TABLE[name]
    flags = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv", "--trainer.log_every_n_steps=1"]
    flags += ["--data.batch_size=100", *as_flags("model", row.model or {})]
    if row.callback:
        flags += [f"--trainer.callbacks+={row.callback}", *as_flags("trainer.callbacks", row.arguments or {})]
    if row.callback == "ModelCheckpoint":
        flags += ["--trainer.callbacks.dirpath=own"]
    by_default = {"max_steps": None, "val_check_interval": None}
    run = fit(corpus_file, tmp_path / "run", *flags, *as_flags("trainer", {**by_default, **row.trainer}))
    content = torch.load(last(run), weights_only=True)
    out, err = capfd.readouterr()
    assert row.proof(Outcome(content, curves_of(tmp_path), out + err + caplog.text, tmp_path))


@pytest.mark.filterwarnings("ignore")  # Lightning's, which `fit` drops
@pytest.mark.parametrize("name", TABLE)
def test_each_argument_has_its_effect_in_a_plain_lightning_script(
    name: str,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Capture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    row = TABLE[name]
    pl.seed_everything(42)
    data = TextDataModule(path=str(corpus_file), context_size=3, batch_size=100)
    module = MLPModule(data.vocab_size, 3, **{"embedding_dim": 4, "hidden_dim": 16, **(row.model or {})})
    own = [getattr(callbacks, row.callback)(**(row.arguments or {}))] if row.callback else []
    trainer = pl.Trainer(
        **{"log_every_n_steps": 1, "enable_progress_bar": row.callback.endswith("Bar"), **row.trainer},
        accelerator="cpu",
        logger=CSVLogger("csv"),
        callbacks=own,
    )
    trainer.fit(module, data)
    trainer.save_checkpoint("end.ckpt")
    content = torch.load("end.ckpt", weights_only=True)
    out, err = capfd.readouterr()
    assert row.proof(Outcome(content, curves_of(tmp_path), out + err + caplog.text, tmp_path))


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
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=dev_loss"], "dev_loss"),
        (["--trainer.logger=WandbLogger"], "trainer: Requirement 'wandb"),
        (["--trainer.val_check_interval=50", "--trainer.check_val_every_n_epoch=1"], "trainer: `val_check_interval`"),
        (["--trainer.val_check_interval=0"], "trainer.val_check_interval must be above 0"),
        (
            ["--trainer.callbacks+=GradientAccumulationScheduler", "--trainer.callbacks.scheduling={0:2}"],
            "expected dict",
        ),
    ],
)
def test_a_callback_or_logger_that_cannot_work_is_one_line(
    flags: list[str], reason: str, corpus_file: Path, tmp_path: Path, capfd: Capture
) -> None:
    fit(corpus_file, tmp_path / "run", *flags, expected=2)
    *_, error = capfd.readouterr().err.splitlines()
    assert reason in error and error.startswith("mlp_lm fit: error: ")


@pytest.mark.parametrize("name", UNSUPPORTED_ARGUMENTS)
def test_what_truly_cannot_be_is_refused_with_the_reason(name: str, tmp_path: Path, capsys: Capture) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"trainer": {name: 1}}))
    for args in (["fit", f"--trainer.{name}=1"], ["fit", "--config", str(config)]):
        assert UNSUPPORTED_ARGUMENTS[name] in error_of(args, capsys)
    with pytest.raises(SettingsError, match=name):
        Trainer(**{name: True})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("StochasticWeightAveraging", {"swa_lrs": 0.01, "swa_epoch_start": 3}),  # with a device among its defaults
        ("Timer", {"duration": {"hours": 1}}),  # and with an enum
        ("LearningRateFinder", {"num_training_steps": 20}),
        ("BatchSizeFinder", {"init_val": 8, "max_trials": 2, "steps_per_trial": 1}),
    ],
)
def test_a_run_with_such_a_callback_is_resumed_from_its_step(
    name: str, arguments: dict[str, Any], corpus_file: Path, tmp_path: Path
) -> None:
    callback = [f"--trainer.callbacks+={name}", *as_flags("trainer.callbacks", arguments)]
    run = fit(corpus_file, tmp_path / "run", *callback, "--trainer.max_epochs=5", "--model.lr_decay_steps=16")
    found = torch.load(last(run), weights_only=True)
    assert main(["fit", f"--ckpt_path={run}", "--trainer.max_steps=16"]) == 0
    resumed = torch.load(last(run), weights_only=True)
    assert report(run)["first_step"] == 12 and resumed["global_step"] == 16
    for settings in ("hyper_parameters", "datamodule_hyper_parameters"):
        assert resumed[settings] == found[settings]


@pytest.mark.parametrize("length", ["max_steps=25", "max_epochs=3"])
def test_a_run_that_ends_where_lightning_does_not_validate_keeps_its_last_step(
    length: str, corpus_file: Path, tmp_path: Path, capfd: Capture
) -> None:
    every_second = ["--trainer.check_val_every_n_epoch=2", "--trainer.val_check_interval=1.0", "--data.batch_size=100"]
    flags = [*every_second, "--trainer.max_steps=null", f"--trainer.{length}"]
    run = fit(corpus_file, tmp_path / "run", *flags)
    assert torch.load(last(run), weights_only=True)["global_step"] == (25 if "steps" in length else 30)
    assert report(run)["best_step"] == 20
    short = fit(corpus_file, tmp_path / "short", *every_second, "--trainer.max_steps=3")
    assert report(short)["best_step"] == 3 and "losses of last.ckpt, step 3:" in capfd.readouterr().out


def test_nothing_to_train_on_is_one_line(corpus_file: Path, tmp_path: Path, capfd: Capture) -> None:
    run = fit(corpus_file, tmp_path / "run", "--trainer.limit_train_batches=0", expected=2)
    assert "trainer.limit_train_batches: found 0, which leaves nothing to train on" in capfd.readouterr().err
    assert not run.exists()


def test_fast_dev_run_takes_a_step_and_leaves_nothing(corpus_file: Path, tmp_path: Path, capfd: Capture) -> None:
    run = fit(corpus_file, tmp_path / "run", "--trainer.fast_dev_run=true")
    out, err = capfd.readouterr()
    assert out == "fast_dev_run: 1 step taken, nothing saved\n"
    assert "step 1 of 1: train 2." in err and not run.exists()


def test_sanity_steps_come_before_training_and_leave_no_trace(
    run_dir: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    validation_step = MLPModule.validation_step

    def counting(module: MLPModule, batch: Batch) -> None:
        seen.append(module.global_step)
        validation_step(module, batch)

    monkeypatch.setattr(MLPModule, "validation_step", counting)
    flags = [LOGGED, "--trainer.log_every_n_steps=4"]
    run = fit(corpus_file, tmp_path / "run", *flags, "--trainer.num_sanity_val_steps=1")
    assert seen == [0, 5, 10, 12]
    assert scalars(run) == scalars(run_dir)


def test_detect_anomaly_names_the_operation_that_made_a_nan(corpus_file: Path, tmp_path: Path) -> None:
    flags = [*CONSTANT_SGD, "--model.learning_rate=1e35", "--trainer.detect_anomaly=true"]
    with pytest.raises(RuntimeError, match="returned nan values in its 0th output"):
        fit(corpus_file, tmp_path / "run", *flags)


def test_several_loggers_get_the_same_curves(corpus_file: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    two = [{"class_path": n, "init_args": {"save_dir": str(tmp_path / n)}} for n in ("CSVLogger", "TensorBoardLogger")]
    config.write_text(yaml.safe_dump({"trainer": {"logger": two, "max_steps": 6, "log_every_n_steps": 2}}))
    args = ["fit", f"--config={config}", f"--data.path={corpus_file}", f"--run_dir={tmp_path / 'run'}"]
    assert main([*args, "--model.hidden_dim=16"]) == 0
    written = curves_of(tmp_path / "CSVLogger")
    (events,) = (tmp_path / "TensorBoardLogger").rglob("events.*")
    for name in ("train/loss", "dev/loss", "lr"):
        assert dict(scalars(events.parent)[name]) == pytest.approx(written[name])


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


def test_the_data_can_be_iterated_without_a_trainer(corpus_file: Path) -> None:
    data = TextDataModule(path=str(corpus_file), context_size=3, batch_size=100)
    data.setup("fit")
    loader = data.train_dataloader()
    epochs = [torch.cat([targets for _, targets in loader]) for _ in range(2)]
    assert len(loader) == EPOCH and [len(epoch) for epoch in epochs] == [1000, 1000]
    train = data.windows("train")[:][1]
    assert sorted(epochs[0][:966].tolist()) == sorted(train.tolist())  # the first pass over train, each window once
    assert not torch.equal(*epochs)
    resumed = data.train_dataloader()
    resumed.load_state_dict({"position": EPOCH})
    assert torch.equal(torch.cat([targets for _, targets in resumed]), epochs[1])


@pytest.mark.filterwarnings("ignore")  # Lightning's, which `fit` drops
def test_lightnings_trainer_fits_and_evaluates_the_module_and_its_checkpoint_can_be_loaded(
    corpus_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    data = TextDataModule(path=str(corpus_file), context_size=3, batch_size=100)
    module = MLPModule(data.vocab_size, context_size=3, hidden_dim=16, lr_warmup_steps=0)
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path)
    trainer.fit(module, data)
    assert (trainer.global_step, trainer.current_epoch) == (20, 2)
    assert trainer.callback_metrics["dev/loss"] < 2.3  # log 10: better than guessing
    for split, evaluate in (("dev", trainer.validate), ("test", trainer.test)):
        (metrics,) = evaluate(module, data, verbose=False)
        assert metrics.keys() == {f"{split}/{name}" for name in ("loss", "perplexity", "bits_per_token")}
    (path,) = tmp_path.rglob("*.ckpt")
    contexts, _ = data.windows("dev")[:]
    assert torch.equal(load(path).log_probs(contexts), module.eval().network.log_probs(contexts))
    capsys.readouterr()
    assert "trainer.max_steps: missing; it is not in" in error_of(["fit", f"--ckpt_path={path}"], capsys)


@pytest.mark.filterwarnings("ignore")  # Lightning's, which `fit` drops
@pytest.mark.parametrize("every_n_train_steps", [None, 13])  # at the end of an epoch, by default, and within one
def test_lightnings_own_checkpoints_resume_exactly(
    every_n_train_steps: int | None, corpus_file: Path, tmp_path: Path
) -> None:
    def fitted(max_epochs: int, ckpt_path: Path | None = None) -> dict[str, torch.Tensor]:
        pl.seed_everything(1)
        data = TextDataModule(path=str(corpus_file), context_size=3, batch_size=100)
        module = MLPModule(data.vocab_size, 3, hidden_dim=16, lr_decay_steps=40)
        own = callbacks.ModelCheckpoint(tmp_path, f"{max_epochs}", every_n_train_steps=every_n_train_steps)
        trainer = pl.Trainer(max_epochs=max_epochs, accelerator="cpu", logger=False, callbacks=own)
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        return module.state_dict()

    whole = fitted(4)
    fitted(2)
    torch.testing.assert_close(fitted(4, tmp_path / "2.ckpt"), whole, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore")  # Lightning's, which `fit` drops
def test_dropout_leaves_torchs_own_generator_alone(corpus_file: Path) -> None:
    data = TextDataModule(path=str(corpus_file), context_size=3)
    module = MLPModule(data.vocab_size, 3, hidden_dim=16, dropout=0.5)
    before = torch.get_rng_state()
    pl.Trainer(max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False).fit(module, data)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore")  # Lightning's, which `fit` drops
def test_a_second_fit_of_a_module_chooses_the_schedule_anew(corpus_file: Path) -> None:
    data = TextDataModule(path=str(corpus_file), context_size=3)
    module = MLPModule(data.vocab_size, 3, optimizer="sgd", dropout=0, lr_schedule="constant", lr_warmup_steps=0)
    for rate in (0.1, 0.2):
        module.hparams["learning_rate"] = rate
        trainer = Trainer(max_steps=1, accelerator="cpu", logger=False)
        trainer.fit(module, data)
        assert trainer.optimizers[0].param_groups[0]["lr"] == rate


def test_our_trainer_refuses_in_python_what_the_command_line_refuses() -> None:
    with pytest.raises(
        SettingsError, match=r"^trainer.log_every_n_steps must be between 1 and 1,000,000,000 \(got 0\)"
    ):
        Trainer(log_every_n_steps=0)


def test_a_checkpoint_without_our_data_says_what_it_lacks(corpus_file: Path, tmp_path: Path, capsys: Capture) -> None:
    data = TextDataModule(path=str(corpus_file), context_size=3)
    contexts, targets = data.windows("train")[:64]
    batches = DataLoader(TensorDataset(contexts, targets), batch_size=64)
    trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.fit(MLPModule(data.vocab_size, 3), batches)
    (path,) = tmp_path.rglob("*.ckpt")
    capsys.readouterr()
    assert "has no vocabulary, as it was trained without a TextDataModule" in error_of(["sample", str(path)], capsys)
