"""Several processes: what each sees, and that together they do what one does."""

from __future__ import annotations

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
from mlp_lm.training.datamodule import TextDataModule
from mlp_lm.training.trainer import Trainer, report_lost_process
from tests.conftest import LOGGED, ROOT, SMALL, Capture, assert_same_run, fit, report, scalars, state

# Float64, where the order of a sum changes the last of 16 digits.
EXACT = [LOGGED, "--data.batch_size=194", "--trainer.precision=64-true", "--model.dropout=0", "--trainer.max_steps=16"]
EXACT += ["--trainer.log_every_n_steps=3", "--trainer.val_check_interval=5"]
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


def in_two_processes(script: Path, *commands: tuple[list[str], int]) -> tuple[str, str]:
    """What two processes write that torchrun starts and that do these commands, each with its exit code, in turn."""
    checks = [f"assert main({[*args, *TWO]}) == {code}\n" for args, code in commands]
    end = "sys.stdout.flush()\nos._exit(0)\n"  # as `run_and_end` does: Python's ordinary way may crash
    script.write_text("import os\nimport sys\n\nfrom mlp_lm.cli import main\n\n" + "".join(checks) + end)
    return output([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)])


def test_every_window_is_evaluated_by_one_process(corpus_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlp_lm.text.windows.EVAL_BATCH_SIZE", 10)
    data = TextDataModule(path=str(corpus_file), context_size=3)
    data.trainer = Trainer(accelerator="cpu")
    monkeypatch.setattr(Trainer, "world_size", 200)  # more than dev has windows
    seen: list[list[int]] = []
    for rank in range(200):
        monkeypatch.setattr(Trainer, "global_rank", rank)
        batches = list(data.val_dataloader())
        assert len(batches) == 1  # even without windows, for the sum over the processes
        seen += torch.column_stack(batches[0]).tolist()
    assert sorted(seen) == sorted(torch.column_stack(data.windows("dev")[:]).tolist())


def test_the_processes_must_divide_the_batch_size(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.setattr(Trainer, "start_processes", pytest.fail)  # which would run these tests again
    fit(corpus_file, tmp_path / "run", "--data.batch_size=33", *TWO, expected=2)
    expected = "mlp_lm fit: error: data.batch_size: found 33, expected a multiple of 2 processes\n"
    assert capfd.readouterr().err == expected
    assert not (tmp_path / "run").exists()


def test_predict_takes_one_process(best: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    monkeypatch.setattr(Trainer, "start_processes", pytest.fail)
    assert main(["predict", "--ckpt_path", str(best), *TWO]) == 2
    assert "trainer.devices: predict writes one file, in order, and takes one process" in capfd.readouterr().err


def test_torchrun_and_devices_must_agree(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "1"), ("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    fit(corpus_file, tmp_path / "run", expected=2)
    assert "but torchrun started 2 processes" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "SLURM_LOCALID"])
def test_of_the_processes_of_a_machine_the_first_reports_a_mistake(
    variable: str, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    for rank, shown in (("0", "model.dropout must be at least 0 and below 1"), ("1", "")):
        monkeypatch.setenv(variable, rank)
        assert main(["fit", "--model.dropout=2"]) == 2
        err = capfd.readouterr().err
        assert shown in err and bool(err) == bool(shown)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:525] Connection closed by peer [::1]:29"), "Connection closed"),
        (RuntimeError("Application timeout caused pair closure"), "Application timeout caused pair closure"),
        (DistNetworkError("The client socket has timed out after 50000ms"), "The client socket has timed out"),
    ],
)
def test_what_torch_raises_for_a_lost_process_is_one_error_and_nothing_else_is(error: Exception, reason: str) -> None:
    with pytest.raises(LostProcessError, match=re.escape(reason)), report_lost_process():
        raise error
    with pytest.raises(RuntimeError, match="shape"), report_lost_process():
        raise RuntimeError("mat1 and mat2 have another shape")


@pytest.mark.slow
def test_two_processes_train_resume_evaluate_and_fail_as_one_does(
    best: Path, corpus_file: Path, tmp_path: Path, capfd: Capture
) -> None:
    one, evaluate = fit(corpus_file, tmp_path / "one", *EXACT), ["test", f"--ckpt_path={best}"]
    capfd.readouterr()
    assert main([*evaluate, "--trainer.accelerator=cpu"]) == 0
    evaluation = capfd.readouterr().out
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()

    def fit_args(name: str, *flags: str) -> list[str]:
        return ["fit", f"--data.path={corpus_file}", f"--run_dir={tmp_path / name}", *SMALL, *EXACT, *flags]

    dropout = ["--trainer.precision=32-true", "--model.dropout=0.3", "--model.lr_decay_steps=16"]
    diverging = ["--model.optimizer=sgd", "--model.learning_rate=1e35", "--trainer.precision=32-true"]
    out, err = in_two_processes(
        tmp_path / "commands.py",
        (fit_args("two"), 0),
        (fit_args("whole", *dropout), 0),
        (fit_args("parts", *dropout, "--trainer.max_steps=10"), 0),
        (["fit", f"--ckpt_path={tmp_path / 'parts'}", "--trainer.max_steps=16"], 0),
        (evaluate, 0),
        (fit_args("full"), 2),  # which the first process alone meets
        (fit_args("new", *diverging), 2),  # and this all of them
    )
    # The first alone reports: that five runs begin, that four end, and the losses.
    assert [out.count(text) for text in ("2 processes", "samples:", evaluation)] == [5, 4, 1]
    full, diverged = re.findall("^mlp_lm fit: error: .*", err, re.MULTILINE)
    assert "full is not empty" in full and "train loss is nan at step 3" in diverged and "Traceback" not in err

    two, whole, parts = tmp_path / "two", tmp_path / "whole", tmp_path / "parts"
    torch.testing.assert_close(state(one), state(two), rtol=0, atol=1e-9)
    torch.testing.assert_close(scalars(one), scalars(two), rtol=1e-6, atol=0)
    torch.testing.assert_close(report(one)["losses"], report(two)["losses"], rtol=1e-9, atol=0)
    torch.testing.assert_close(state(whole), state(parts), rtol=0, atol=0)
    curves, resumed = scalars(whole), scalars(parts)
    assert curves.pop("dev/lowest_loss")[-1:] == resumed.pop("dev/lowest_loss")[-1:]  # each part has an end of its own
    assert curves == resumed


@pytest.mark.slow
def test_the_commands_of_the_readme_for_two_processes_give_the_same_run(tmp_path: Path) -> None:
    rows = re.findall(r"^\| (?:a laptop|the same)[^|]*\| `(.*)` \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [row.split()[0] for row in rows] == ["python", "torchrun"]
    for row in rows:
        program, *args = shlex.split(row)
        module = ["-m", "torch.distributed.run"] if program == "torchrun" else []
        short = [f"--run_dir={tmp_path / program}", "--trainer.max_steps=3", "--model.lr_decay_steps=3"]
        out, _ = output([sys.executable, *module, *args, *short])
        assert "2 processes" in out and "3 steps" in out
    assert_same_run(tmp_path / "python", tmp_path / "torchrun")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds a process's children in /proc")
@pytest.mark.parametrize(
    ("victim", "signum", "code", "line"),
    [
        ("first", signal.SIGTERM, 143, "mlp_lm fit: SIGTERM at step .* saved .*"),
        ("first", signal.SIGKILL, -signal.SIGKILL, "mlp_lm fit: error: another process died.*Connection .*"),
        ("second", signal.SIGKILL, 2, "mlp_lm fit: error: another process died.*Connection .*"),
    ],
)
def test_when_one_process_is_ended_the_other_ends_with_one_line(
    victim: str, signum: int, code: int, line: str, corpus_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = [*TWO, "--trainer.max_steps=1000000", "--trainer.enable_progress_bar=false"]
    with start(command("fit", f"--data.path={corpus_file}", f"--run_dir={run}", *SMALL, *flags)) as first:
        try:
            while not (run / "checkpoints" / "best.ckpt").exists():
                assert first.poll() is None
                time.sleep(0.2)
            (second,) = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
            os.kill(first.pid if victim == "first" else int(second), signum)
            _, err = first.communicate(timeout=60)  # both have closed stderr
        finally:
            first.kill()
    assert first.returncode == code
    assert re.fullmatch(line + "\n", err), err
