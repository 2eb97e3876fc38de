"""Several processes: what each sees, and that together they do what one does."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.distributed import DistNetworkError

from mlp_lm.cli import main
from mlp_lm.errors import LostProcessError
from mlp_lm.text.windows import Chunk, Order
from mlp_lm.training.datamodule import Chunks, TextDataModule
from mlp_lm.training.ranks import losses_reported
from mlp_lm.training.trainer import Trainer
from tests.conftest import ROOT, SMALL, fit, scalars
from tests.test_fit import assert_same_weights, weights

# Float64, where the order of a sum changes the last of 16 digits.
EXACT = ["--data.batch_size=194", "--trainer.precision=64-true", "--model.dropout=0", "--trainer.max_steps=16"]
EXACT += ["--data.steps_per_execution=4", "--trainer.log_every_n_steps=3", "--trainer.val_check_interval=5"]
TWO = ["--trainer.devices=2"]


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "mlp_lm", *args]


def start(args: list[str]) -> subprocess.Popen[str]:
    """Start a command in a process of its own, and so the other processes that it starts."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(args, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output(args: list[str], expected: int = 0) -> tuple[str, str]:
    """What a command writes to stdout and stderr."""
    with start(args) as process:
        try:
            out, err = process.communicate(timeout=100)
        finally:
            process.kill()
    assert process.returncode == expected, err
    return out, err


def fit_args(corpus: Path, run_dir: Path, *flags: str) -> list[str]:
    return ["fit", f"--data.path={corpus}", f"--run_dir={run_dir}", *SMALL, *flags]


# -- shares, in one process ----------------------------------------------------------------------------------------


def chunks_of(rank: int, num_ranks: int, data: TextDataModule) -> list[Chunk]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "global_rank", rank)
        patch.setattr(Trainer, "world_size", num_ranks)
        trainer = Trainer(max_steps=25, val_check_interval=23, log_every_n_steps=6, accelerator="cpu")
        return list(Chunks(data.windows("train"), Order(966, 192, seed=1), 4, trainer))


@pytest.mark.parametrize("num_ranks", [2, 3, 192])
def test_processes_share_out_the_rows_of_each_batch(corpus_file: Path, num_ranks: int) -> None:
    data = TextDataModule(str(corpus_file), context_size=3)
    shares = [chunks_of(rank, num_ranks, data) for rank in range(num_ranks)]
    for whole, *parts in zip(chunks_of(0, 1, data), *shares, strict=True):
        for rank, part in enumerate(parts):  # as cards are dealt
            assert torch.equal(part[0], whole[0][:, rank::num_ranks])
            assert torch.equal(part[1], whole[1][:, rank::num_ranks])


def test_the_processes_must_divide_the_batch_size(corpus_file: Path, tmp_path: Path) -> None:
    flags = ["--data.batch_size=33", *TWO]
    _, err = output(command(*fit_args(corpus_file, tmp_path / "run", *flags)), expected=2)
    assert err == "mlp_lm fit: error: data.batch_size: found 33, expected a multiple of 2 processes\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("num_ranks", [1, 2, 7, 200])
@pytest.mark.parametrize("split", ["dev", "test"])
def test_every_window_is_evaluated_by_one_process(
    corpus_file: Path, monkeypatch: pytest.MonkeyPatch, split: str, num_ranks: int
) -> None:
    monkeypatch.setattr("mlp_lm.text.windows.EVAL_BATCH_SIZE", 10)
    data = TextDataModule(str(corpus_file), context_size=3)
    data.trainer = Trainer(accelerator="cpu")
    monkeypatch.setattr(Trainer, "world_size", num_ranks)
    seen: list[list[int]] = []
    for rank in range(num_ranks):
        monkeypatch.setattr(Trainer, "global_rank", rank)
        batches = data.val_dataloader() if split == "dev" else data.test_dataloader()
        assert len(batches) == len(list(batches)) >= 1  # even without windows, for the sum over the processes
        seen += [row for contexts, targets in batches for row in torch.column_stack([contexts, targets]).tolist()]
    contexts, targets = data.windows(split)[:]
    assert sorted(seen) == sorted(torch.column_stack([contexts, targets]).tolist())


# -- mistakes, in one process --------------------------------------------------------------------------------------


def test_predict_takes_one_process(
    best: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mlp_lm.training.ranks.start", pytest.fail)  # which would run these tests again
    assert main(["predict", "--ckpt_path", str(best), *TWO]) == 2
    assert "trainer.devices: predict writes one file, in order, and takes one process" in capfd.readouterr().err


def test_torchrun_and_devices_must_agree(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "1"), ("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert main(fit_args(corpus_file, tmp_path / "run")) == 2
    assert "but torchrun started 2 processes" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "SLURM_LOCALID"])
def test_of_the_processes_of_a_machine_the_first_reports_a_mistake(
    variable: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    errors = []
    for rank in ("0", "1"):
        monkeypatch.setenv(variable, rank)
        assert main(["fit", "--model.dropout=2"]) == 2
        errors.append(capfd.readouterr().err)
    assert "model.dropout: found 2.0" in errors[0] and errors[1] == ""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:525] Connection closed by peer [::1]:29"), "Connection closed"),
        (RuntimeError("Application timeout caused pair closure"), "Application timeout caused pair closure"),
        (DistNetworkError("The client socket has timed out after 50000ms"), "The client socket has timed out"),
    ],
)
def test_what_torch_raises_for_a_lost_process(error: Exception, reason: str) -> None:
    with pytest.raises(LostProcessError, match=re.escape(reason)), losses_reported():
        raise error


def test_other_errors_are_no_lost_process() -> None:
    with pytest.raises(RuntimeError, match="shape"), losses_reported():
        raise RuntimeError("mat1 and mat2 have another shape")


def test_another_strategy_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--trainer.strategy=fsdp"]) == 2
    assert "trainer.strategy: found 'fsdp', expected auto or ddp" in capfd.readouterr().err


# -- two processes -------------------------------------------------------------------------------------------------


def assert_nearly_same(one: Path, other: Path) -> None:
    """Two runs in float64 have the same curves and weights to rounding."""
    first, second = scalars(one), scalars(other)
    assert first.keys() == second.keys()
    for tag in first:
        assert [step for step, _ in first[tag]] == [step for step, _ in second[tag]]
        assert [value for _, value in first[tag]] == pytest.approx([value for _, value in second[tag]], rel=1e-6), tag
    losses, expected_losses = (json.loads((run / "report.json").read_text())["losses"] for run in (other, one))
    for split in expected_losses:
        assert losses[split] == pytest.approx(expected_losses[split], rel=1e-9)
    for name, expected in weights(one).items():
        assert (weights(other)[name] - expected).abs().max() < 1e-9, name


def test_two_processes_train_as_one_does(corpus_file: Path, tmp_path: Path) -> None:
    one = fit(corpus_file, tmp_path / "one", *EXACT)
    out, err = output(command(*fit_args(corpus_file, tmp_path / "two", *EXACT, *TWO)))
    assert_nearly_same(one, tmp_path / "two")
    assert err == "" and out.count("2 processes") == out.count("generated") == 1  # the first alone reports


@pytest.mark.slow
def test_torchrun_gives_the_same_run(corpus_file: Path, tmp_path: Path) -> None:
    output(command(*fit_args(corpus_file, tmp_path / "two", *EXACT, *TWO, "--trainer.strategy=ddp")))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "mlp_lm"]
    output([*torchrun, *fit_args(corpus_file, tmp_path / "run", *EXACT, *TWO)])
    assert_same_weights(tmp_path / "two", tmp_path / "run")
    assert scalars(tmp_path / "two") == scalars(tmp_path / "run")


@pytest.mark.slow
def test_a_resumed_run_of_two_processes_ends_like_an_uninterrupted_one(corpus_file: Path, tmp_path: Path) -> None:
    flags = [*TWO, "--data.batch_size=194", "--model.dropout=0.3", "--model.lr_decay_steps=16"]
    flags += ["--trainer.val_check_interval=8"]
    output(command(*fit_args(corpus_file, tmp_path / "whole", *flags, "--trainer.max_steps=16")))
    output(command(*fit_args(corpus_file, tmp_path / "parts", *flags, "--trainer.max_steps=8")))
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    goes_on = ["--trainer.accelerator=cpu", "--trainer.max_steps=16", "--data.steps_per_execution=3"]
    output(command("fit", f"--ckpt_path={last}", *TWO, *goes_on))
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert scalars(tmp_path / "whole")["dev/loss"] == scalars(tmp_path / "parts")["dev/loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["validate", "test"])
def test_two_processes_evaluate_as_one_does(best: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    args = [name, f"--ckpt_path={best}", "--trainer.accelerator=cpu"]
    assert main(args) == 0
    assert output(command(*args, *TWO)) == (capfd.readouterr().out, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--run_dir={full}"], "run_dir: {full} is not empty"),
        (["--run_dir={new}", "--model.optimizer=sgd", "--model.learning_rate=1e35"], "train loss is "),
    ],
)
def test_what_the_first_process_or_all_meet_is_one_line(
    corpus_file: Path, tmp_path: Path, flags: list[str], expected: str
) -> None:
    places = {"full": str(tmp_path / "full"), "new": str(tmp_path / "new")}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    steps = ["--trainer.max_steps=10", "--model.lr_schedule=constant", "--model.dropout=0"]
    args = ["fit", f"--data.path={corpus_file}", *SMALL, *steps, *(flag.format(**places) for flag in flags), *TWO]
    _, err = output(command(*args), expected=2)
    assert expected.format(**places) in err and err.count("\n") == 1


def wait_until_it_trains(process: subprocess.Popen[str], run_dir: Path) -> None:
    while not (run_dir / "checkpoints" / "best.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no signals")
def test_a_signal_to_one_process_ends_all_with_the_run_saved(corpus_file: Path, tmp_path: Path) -> None:
    with start(command(*fit_args(corpus_file, tmp_path / "run", *TWO, "--trainer.max_steps=1000000"))) as first:
        try:
            wait_until_it_trains(first, tmp_path / "run")
            first.terminate()
            _, err = first.communicate(timeout=60)
        finally:
            first.kill()
    assert first.returncode == 143
    assert err.startswith("mlp_lm fit: SIGTERM at step ") and err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds a process's children in /proc")
@pytest.mark.parametrize(
    ("victim", "signum", "reason"),
    [
        ("first", signal.SIGKILL, "Connection "),
        ("second", signal.SIGKILL, "Connection "),
        # Fails when the private name in `ranks.start` means nothing more. Lightning ignores the first error where its
        # own broadcast meets it; the next is then about what that has left.
        ("second", signal.SIGSTOP, "(Timed out|Application timeout)"),
    ],
)
def test_when_a_process_is_lost_the_other_ends_with_one_line(
    corpus_file: Path, tmp_path: Path, victim: str, signum: int, reason: str
) -> None:
    with start(command(*fit_args(corpus_file, tmp_path / "run", *TWO, "--trainer.max_steps=1000000"))) as first:
        try:
            wait_until_it_trains(first, tmp_path / "run")
            (child,) = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
            second = int(child)
            os.kill(first.pid if victim == "first" else second, signum)
            first.wait(timeout=60)
            if signum == signal.SIGSTOP:
                os.kill(second, signal.SIGKILL)
            _, err = first.communicate(timeout=10)  # both have closed stderr
        finally:
            first.kill()
    assert first.returncode == (-signal.SIGKILL if victim == "first" else 2)
    assert re.fullmatch(f"mlp_lm fit: error: another process ended.*{reason}.*\n", err)


@pytest.mark.slow
def test_the_commands_of_the_readme_for_one_machine_run(tmp_path: Path) -> None:
    rows = re.findall(r"^\| (a laptop|the same)[^|]*\| `(.*)` \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [where for where, _ in rows] == ["a laptop", "the same"]
    for where, row in rows:
        program, *args = shlex.split(row)
        module = ["-m", "torch.distributed.run"] if program == "torchrun" else []
        short = [f"--run_dir={tmp_path / where}", "--trainer.max_steps=3", "--model.lr_decay_steps=3"]
        out, _ = output([sys.executable, *module, *args, *short])
        assert "2 processes" in out and "3 steps" in out
