"""`fit` from the command line, on a small corpus."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

from mlp_lm import load
from mlp_lm.cli import main
from mlp_lm.models.metrics import evaluate
from mlp_lm.text.advice import PROSE_ADVICE
from mlp_lm.text.windows import Windows
from mlp_lm.training.datamodule import TextDataModule
from mlp_lm.training.trainer import Trainer, run_length
from tests.conftest import CONSTANT_SGD, LOGGED, SMALL, Capture, assert_same_run, fit, last, report, scalars, state


def test_a_run_leaves_config_events_checkpoints_and_report(run_dir: Path) -> None:
    assert {p.name for p in run_dir.iterdir()} > {"config.yaml", ".lock", "checkpoints", "report.json"}
    assert {p.name for p in (run_dir / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert "run_dir" not in config and config["trainer"]["log_every_n_steps"] == 4
    content = report(run_dir)
    assert content["steps"] == 12
    assert content["weights"] == 10 * 4 + (3 * 4 * 16 + 16) + (16 * 10 + 10)
    assert content["settings"]["data"]["context_size"] == content["settings"]["model"]["context_size"] == 3
    assert content["settings"]["model"]["lr_decay_steps"] is None  # max_steps, whatever that will be
    assert len(content["samples"]) == 10 and content["samples"][0].keys() == {"text", "seen_in"}


def test_the_reported_losses_are_those_of_best_ckpt_reloaded(run_dir: Path, best: Path, corpus_file: Path) -> None:
    data = TextDataModule(path=str(corpus_file), context_size=3)
    for split in ("dev", "test"):
        loss = evaluate(load(best).nats, [data.windows(split)[:]])
        reported = report(run_dir)["losses"][split]
        assert reported["nats_per_token"] == pytest.approx(loss.nats_per_token, abs=1e-6)
        assert reported["tokens"] == loss.tokens


def test_every_validation_is_a_point_of_the_training_curve_too(run_dir: Path) -> None:
    curves = scalars(run_dir)
    assert [step for step, _ in curves["train/loss"]] == [4, 5, 8, 10, 12]
    assert [step for step, _ in curves["dev/loss"]] == [5, 10, 12]


def test_a_point_of_the_training_curve_is_the_mean_loss_of_the_steps_before_it(
    corpus_file: Path, tmp_path: Path
) -> None:
    # At next to no learning rate, 3 steps of 644 windows (2 epochs of 966) must have the loss of train itself.
    flags = [*CONSTANT_SGD, "--model.learning_rate=1e-30", "--data.batch_size=644", "--trainer.max_steps=3"]
    run = fit(corpus_file, tmp_path / "run", LOGGED, *flags, "--trainer.log_every_n_steps=3")
    loss = evaluate(load(last(run)).nats, [TextDataModule(path=str(corpus_file), context_size=3).windows("train")[:]])
    ((step, train_loss),) = scalars(run)["train/loss"]
    assert step == 3 and train_loss == pytest.approx(loss.nats_per_token, abs=1e-6)


def test_the_saved_config_gives_the_same_run(run_dir: Path, tmp_path: Path) -> None:
    assert main(["fit", "--config", str(run_dir / "config.yaml"), "--run_dir", str(tmp_path / "again")]) == 0
    assert_same_run(run_dir, tmp_path / "again")


def test_another_seed_gives_another_order_and_other_weights(run_dir: Path, corpus_file: Path, tmp_path: Path) -> None:
    other = fit(corpus_file, tmp_path / "run", "--seed_everything=7", "--trainer.max_steps=1")
    first, second = (torch.load(last(run), weights_only=True) for run in (run_dir, other))
    assert [content["TextDataModule"]["order_seed"] for content in (first, second)] == [42, 7]
    assert not torch.equal(first["state_dict"]["network.output.weight"], second["state_dict"]["network.output.weight"])


def test_runs_are_numbered_under_the_name_of_their_config(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"data": {"path": str(corpus_file)}, "model": {"hidden_dim": 4}, "trainer": {"max_steps": 2}}
    Path("mine.yaml").write_text(yaml.safe_dump(settings))
    for config in ("mine.yaml", "mine.yaml", "runs/mine/version_0/config.yaml"):
        assert main(["fit", "--config", config, "--report_test=false"]) == 0
    assert sorted(p.name for p in Path("runs/mine").iterdir()) == ["version_0", "version_1", "version_2"]


def test_a_corpus_with_fewer_windows_than_a_batch_trains(tmp_path: Path) -> None:
    (tmp_path / "items.txt").write_text("ab\nba\naab\nbba\nabab\nbaba\n")
    run = fit(tmp_path / "items.txt", tmp_path / "run", LOGGED, "--data.batch_size=100")
    assert [step for step, _ in scalars(run)["dev/loss"]] == [5, 10, 12]


def test_what_is_loaded_from_disk_is_the_network_that_was_trained(corpus_file: Path, tmp_path: Path) -> None:
    for flags in (["--model.residual=true"], ["--model.direct=true"], ["--model.tied=true"]):
        run = fit(corpus_file, tmp_path / flags[0], "--model.num_layers=2", *flags)
        assert report(run)["losses"]["dev"]["nats_per_token"] == pytest.approx(state(run)["best_dev_loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("own", "environment", "batch_size", "expected"),
    [
        (None, None, 32, 1),  # a small step
        (None, None, 1024, 3),  # a large one: as many as there are
        (2, "4", 1024, 2),
        (None, "4", 32, 3),  # OMP_NUM_THREADS is torch's own business
    ],
)
def test_threads_follow_the_step_unless_the_user_chooses(
    own: int | None, environment: str | None, batch_size: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        trainer = Trainer(accelerator="cpu", num_threads=own)
        monkeypatch.setenv("OMP_NUM_THREADS", "8")  # as Lightning does when it starts processes: not the user's choice
        trainer.set_threads(batch_size, num_weights=12_000)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_a_rising_dev_loss_leaves_best_ckpt_alone_also_in_a_resumed_run(corpus_file: Path, tmp_path: Path) -> None:
    run = fit(
        corpus_file, tmp_path / "run", LOGGED, *CONSTANT_SGD, "--model.learning_rate=0.1", "--trainer.max_steps=10"
    )
    before = (run / "checkpoints" / "best.ckpt").read_bytes()
    # The schedule is constant: a longer horizon changes nothing.
    flags = ["--model.learning_rate=30", "--trainer.max_steps=20", "--model.lr_decay_steps=20"]
    assert main(["fit", "--ckpt_path", str(last(run)), *flags]) == 0
    losses = [loss for _, loss in scalars(run)["dev/loss"]]
    assert min(losses[2:]) > min(losses[:2]), "nothing to test"
    assert (run / "checkpoints" / "best.ckpt").read_bytes() == before


def test_report_test_false_leaves_test_unread(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = TextDataModule.windows

    def all_but_test(data: TextDataModule, split: str) -> Windows:
        assert split != "test", "test data was asked for"
        return windows(data, split)

    monkeypatch.setattr(TextDataModule, "windows", all_but_test)
    run = fit(corpus_file, tmp_path / "run", "--report_test=false")
    assert list(report(run)["losses"]) == ["dev"]


def test_what_fit_prints(corpus_file: Path, tmp_path: Path, capfd: Capture) -> None:
    fit(corpus_file, tmp_path / "run", LOGGED)
    out, err = capfd.readouterr()
    # A line for each validation where stderr is no terminal, and nothing of Lightning's.
    assert re.sub(r"\d+\.\d{4}|[\d,]+\.\d steps/s", "#", err) == (
        "step 5 of 12: train #, dev #, #, 00:00 left\n"
        "step 10 of 12: train #, dev #, #, 00:00 left\n"
        "step 12 of 12: train #, dev #, #, 00:00 left\n"
    )
    assert out.startswith(f"{corpus_file}: 966 / ")
    for expected in ("weights, 12 steps", "nats/token", "dev ", "test ", "samples", "tensorboard --logdir"):
        assert expected in out
    assert f"sample {tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}" in out
    assert "guessing" not in out


@pytest.mark.parametrize(
    ("max_steps", "val_check_interval", "steps_per_epoch", "expected"),
    [
        (None, None, 3.51, (70, 6)),
        (None, None, 0.01, (1, 1)),
        (None, None, 1000, (3000, 250)),
        (600, None, 3.51, (600, 50)),
        (None, 9, 3.51, (70, 9)),
        (200_000, None, 3.51, (200_000, 250)),
    ],
)
def test_a_small_text_is_trained_on_for_twenty_epochs(
    max_steps: int | None, val_check_interval: int | None, steps_per_epoch: float, expected: tuple[int, int]
) -> None:
    assert run_length(steps_per_epoch, max_steps, val_check_interval) == expected


def test_a_length_that_was_chosen_stands_in_the_first_line_and_in_config_yaml(
    corpus_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["fit", f"--data.path={corpus_file}", f"--run_dir={tmp_path / 'run'}", *SMALL]) == 0
    assert "; 19 steps, 20.1 epochs; run " in capsys.readouterr().out
    trainer = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]
    assert (trainer["max_steps"], trainer["val_check_interval"]) == (19, 2)


def test_running_text_gets_one_line_of_advice(tmp_path: Path, capfd: Capture) -> None:
    lines = [f"It was the {i}th of the month, and the clocks were striking {i}." for i in range(20)]
    (tmp_path / "book.txt").write_text("\n".join(lines))
    fit(tmp_path / "book.txt", tmp_path / "run", "--trainer.enable_progress_bar=false")
    assert capfd.readouterr().err == f"{tmp_path / 'book.txt'}: {PROSE_ADVICE}\n"


def test_the_report_says_that_a_run_was_stopped_early_or_should_have_been(
    corpus_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    long = ["--trainer.max_steps=250", *CONSTANT_SGD, "--model.learning_rate=2", "--trainer.val_check_interval=10"]
    stop = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=dev/loss"]
    fit(corpus_file, tmp_path / "stopped", *long, *stop, "--trainer.callbacks.patience=2")
    best = report(tmp_path / "stopped")["best_step"]
    assert f" weights, {best + 20} of 250 steps in " in capsys.readouterr().out
    fit(corpus_file, tmp_path / "whole", *long)
    out = capsys.readouterr().out
    best = report(tmp_path / "whole")["best_step"]
    assert " weights, 250 steps in " in out
    assert f"dev has not been better since step {best}; to end such a run sooner: {' '.join(stop)}" in out


def test_a_network_that_is_worse_than_guessing_says_so(corpus_file: Path, tmp_path: Path, capfd: Capture) -> None:
    fit(corpus_file, tmp_path / "bad", *CONSTANT_SGD, "--model.learning_rate=30", "--trainer.val_check_interval=12")
    assert "dev is no better than guessing uniformly among 10 tokens" in capfd.readouterr().out


def test_on_a_terminal_there_is_a_bar_in_steps(
    corpus_file: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    fit(corpus_file, tmp_path / "run")
    bar = capsys.readouterr().err
    assert "12/12" in bar and "step/s" in bar and "train 2." in bar and ", dev 2." in bar
