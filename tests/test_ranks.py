"""Several processes: what each sees, and that together they do what one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mlp_lm.cli import main
from mlp_lm.text.windows import Chunk, Order
from mlp_lm.training.datamodule import Batches, Chunks, TextDataModule
from mlp_lm.training.trainer import Trainer
from tests.conftest import ROOT, SMALL, fit
from tests.test_fit import assert_same_weights, scalars, weights

# 966 windows in train: in batches of 193, each epoch ends with a batch of one row, which leaves nothing for a second
# process. Float64, where the order of a sum changes the last of 16 digits.
UNEVEN = ["--data.batch_size=193", "--trainer.precision=64-true", "--model.dropout=0", "--trainer.max_steps=16"]
UNEVEN += ["--data.steps_per_execution=4", "--trainer.log_every_n_steps=3", "--trainer.val_check_interval=5"]
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
        return list(Chunks(data.windows("train"), Order(966, 193, seed=1), 4, trainer))


@pytest.mark.parametrize("num_ranks", [2, 3, 200])
def test_processes_share_out_the_rows_of_each_batch(corpus_file: Path, num_ranks: int) -> None:
    data = TextDataModule(str(corpus_file), context_size=3)
    shares = [chunks_of(rank, num_ranks, data) for rank in range(num_ranks)]
    for whole, *parts in zip(chunks_of(0, 1, data), *shares, strict=True):
        contexts, targets, batch_size = whole
        assert {part[2] for part in parts} == {batch_size} == {targets.shape[1]}
        sizes = [part[1].shape[1] for part in parts]
        assert sum(sizes) == batch_size and max(sizes) - min(sizes) <= 1
        for rank, (own_contexts, own_targets, _) in enumerate(parts):  # as cards are dealt
            assert torch.equal(own_contexts, contexts[:, rank::num_ranks])
            assert torch.equal(own_targets, targets[:, rank::num_ranks])


@pytest.mark.parametrize("num_ranks", [1, 2, 7, 5000])
def test_every_window_is_evaluated_by_one_process(corpus_file: Path, num_ranks: int) -> None:
    dev = TextDataModule(str(corpus_file), context_size=3).windows("dev")
    shares = [Batches(dev.share(rank, num_ranks), vocab_size=2**20) for rank in range(num_ranks)]  # 64 at once
    for share in shares:
        assert len(share) == len(list(share)) >= 1  # even those without windows, who must add their nothing
    numbers = torch.cat([torch.arange(len(dev))[rank::num_ranks] for rank in range(num_ranks)])
    seen = [torch.cat(parts) for parts in zip(*(batch for share in shares for batch in share), strict=True)]
    for found, expected in zip(seen, dev[:], strict=True):
        assert torch.equal(found, expected[numbers])


# -- mistakes, in one process --------------------------------------------------------------------------------------


def test_predict_takes_one_process(best: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--ckpt_path", str(best), *TWO]) == 2
    assert "trainer.devices: predict writes one file, in order; it takes one process" in capfd.readouterr().err


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
    for name, expected in weights(one).items():
        assert (weights(other)[name] - expected).abs().max() < 1e-9, name


def test_two_processes_train_as_one_does(corpus_file: Path, tmp_path: Path) -> None:
    one = fit(corpus_file, tmp_path / "one", *UNEVEN)
    out, err = output(command(*fit_args(corpus_file, tmp_path / "two", *UNEVEN, *TWO)))
    assert_nearly_same(one, tmp_path / "two")
    assert err == "" and out.count("2 processes") == out.count("generated") == 1  # the first alone reports


@pytest.mark.slow
def test_torchrun_gives_the_same_run(corpus_file: Path, tmp_path: Path) -> None:
    output(command(*fit_args(corpus_file, tmp_path / "two", *UNEVEN, *TWO, "--trainer.strategy=ddp")))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "mlp_lm"]
    output([*torchrun, *fit_args(corpus_file, tmp_path / "run", *UNEVEN, *TWO)])
    assert_same_weights(tmp_path / "two", tmp_path / "run")
    assert scalars(tmp_path / "two") == scalars(tmp_path / "run")


@pytest.mark.slow
def test_a_resumed_run_of_two_processes_ends_like_an_uninterrupted_one(corpus_file: Path, tmp_path: Path) -> None:
    flags = [*TWO, "--model.dropout=0.3", "--model.lr_decay_steps=16", "--trainer.val_check_interval=8"]
    output(command(*fit_args(corpus_file, tmp_path / "whole", *flags, "--trainer.max_steps=16")))
    output(command(*fit_args(corpus_file, tmp_path / "parts", *flags, "--trainer.max_steps=8")))
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    output(command("fit", f"--ckpt_path={last}", *TWO, "--trainer.accelerator=cpu", "--trainer.max_steps=16"))
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
        (["--run_dir={new}", "--model.optimizer=sgd", "--model.learning_rate=1e38"], "dev loss is nan at step"),
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


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds a process's children in /proc")
@pytest.mark.parametrize("victim", ["first", "second"])
def test_when_a_process_is_killed_the_other_ends_with_one_line(corpus_file: Path, tmp_path: Path, victim: str) -> None:
    first = start(command(*fit_args(corpus_file, tmp_path / "run", *TWO, "--trainer.max_steps=1000000")))
    last = tmp_path / "run" / "checkpoints" / "best.ckpt"
    while not last.exists():  # it trains
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.2)
    (second,) = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    os.kill(first.pid if victim == "first" else int(second), signal.SIGKILL)
    _, err = first.communicate(timeout=60)  # stderr is closed by the last of them
    assert first.returncode == (-signal.SIGKILL if victim == "first" else 2)
    assert err.startswith("mlp_lm fit: error: another process ended") and err.count("\n") == 1
