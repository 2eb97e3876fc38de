"""`validate`, `test` and `predict` from the command line, on a small corpus."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlp_lm.cli import main
from mlp_lm.training import datamodule
from tests.conftest import Capture, error_of, report


@pytest.mark.parametrize(("command", "split"), [("validate", "dev"), ("test", "test")])
def test_validate_and_test_print_the_loss_of_the_report_and_write_nothing(
    best: Path,
    run_dir: Path,
    command: str,
    split: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([command, "--ckpt_path", str(best)]) == 0
    out, err = capfd.readouterr()
    name, loss, unit = out.split()[:3]
    assert (name, unit) == (f"{split}:", "nats/token,")
    assert float(loss) == pytest.approx(report(run_dir)["losses"][split]["nats_per_token"], abs=1e-4)
    assert err == ""
    assert not [*tmp_path.iterdir()]  # such as Lightning's lightning_logs


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_loss_of_a_part_of_the_split_says_so(
    command: str, best: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(datamodule, "eval_batch_size", lambda _: 50)  # three batches
    args = [command, f"--ckpt_path={best}"]
    assert main([*args, f"--trainer.limit_{command.removesuffix('idate')}_batches=2"]) == 0
    assert capsys.readouterr().out.endswith("bits/token, 2 of 3 batches\n")
    other = f"--trainer.limit_{'val' if command == 'test' else 'test'}_batches"
    assert f"{other}: no effect on {command}" in error_of([*args, f"{other}=2"], capsys)


def test_predict_writes_a_row_for_each_window_of_dev(
    best: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    copy = shutil.copy(best, tmp_path)
    monkeypatch.setattr(datamodule, "eval_batch_size", lambda _: 50)
    assert main(["predict", "--ckpt_path", str(copy), "--trainer.limit_predict_batches=2"]) == 0
    assert capsys.readouterr().out.startswith("predictions for 100 windows of dev: ")
    assert main(["predict", "--ckpt_path", str(copy)]) == 0
    header, first, *rest = (tmp_path / "predictions.csv").read_text().splitlines()
    assert header == "context,target,nats,predicted,probability"
    assert first.startswith(",")
    assert len(rest) + 1 == report(run_dir)["windows"]["dev"]
    assert capsys.readouterr().out.startswith(f"predictions for {len(rest) + 1} windows")


def test_an_evaluation_warns_of_nothing(best: Path, recwarn: pytest.WarningsRecorder) -> None:
    assert main(["test", f"--ckpt_path={best}"]) == 0
    assert [str(warning.message) for warning in recwarn] == []


def test_a_logger_of_the_users_gets_the_loss(best: Path, tmp_path: Path) -> None:
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}"]
    assert main(["test", f"--ckpt_path={best}", *logger]) == 0
    (path,) = tmp_path.rglob("metrics.csv")
    assert "test/loss" in path.read_text()


def test_nothing_to_evaluate_is_one_line(best: Path, capsys: Capture) -> None:
    error = error_of(["test", f"--ckpt_path={best}", "--trainer.limit_test_batches=0"], capsys)
    assert "trainer.limit_test_batches: found 0, which leaves nothing to evaluate" in error
