"""What a user can cause while a command works: one clear line each, nothing overwritten, and a fitting exit code."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mlp_lm.cli import main
from mlp_lm.errors import DataError
from mlp_lm.models.language_model import LanguageModel
from mlp_lm.training.module import MLPModule
from tests.conftest import SMALL, Capture, error_of

# -- data ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "items.txt: no such file; expected a text file, or one of: names, makemore"),
        (b"", "items.txt: an empty file; expected one item a line"),
        (b"\n \r\n\t\n", "items.txt: only blank lines"),
        (b"anna\nbob\n\xff\xfe\n", "items.txt:3: not UTF-8 (byte 0xff at byte 1 of the line)"),
        (b"a\nb\nc\na\nb\n", "items.txt: 3 items, too few for train, dev and test; at least 6 are needed"),
        (b"anna\n" + b"x" * 10_001, "items.txt:2: an item of 10,001 characters, at most 10,000 are allowed"),
    ],
)
def test_a_bad_corpus(
    content: bytes | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("items.txt").write_bytes(content)
    assert expected in error_of(["fit", *SMALL, "--data.path=items.txt", "--run_dir=run"], capsys)
    assert not Path("run").exists()


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "a\nb", "s3://bucket/x", "x" * 5000, "."])
def test_a_path_that_is_no_text(path: str, capsys: Capture) -> None:
    assert error_of(["ngram", path], capsys)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["sample", "FILE", "--prompt=Zoë"], "unknown characters 'Z', 'ë'; the model knows a b c d e"),
        (["sample", "FILE", "--prompt=anna", "--max_length=3"], "max_length must be at least 4, the length of"),
        (["score", "FILE", "nowhere.txt"], "nowhere.txt: no such file"),
        (["score", "FILE", __file__, "--skip_unknown"], "unknown characters in every item; the model knows a b c"),
        (["score", "FILE", "names", "--output=/nowhere/scores.csv"], "output: '/nowhere/scores.csv' cannot be written"),
        (["score", "FILE", "names", "--output=FILE"], "would overwrite an input; choose another file"),
    ],
)
def test_what_a_model_cannot_do(args: list[str], expected: str, best: Path, capsys: Capture) -> None:
    assert expected in error_of([arg.replace("FILE", str(best)) for arg in args], capsys)


# -- devices and folders -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--trainer.accelerator=tpu"], "trainer: "),
        (["--trainer.devices=0"], "trainer: "),
        (["--trainer.devices=3"], "data.batch_size: found 1,024, expected a multiple of 3 processes"),
        (["--run_dir=s3://bucket/run"], "run_dir: found 's3://bucket/run', expected a folder on this machine"),
        (["--run_dir=mine"], "run_dir: mine is not empty; name a new folder"),
        (["--run_dir="], "run_dir: the working folder is not empty; name a new folder"),
        (["--run_dir=mine/config.yaml"], "run_dir: mine/config.yaml cannot be used (File exists); name a new folder"),
        (["--run_dir=" + "x" * 300], "cannot be used (File name too long); name a new folder"),
    ],
)
def test_a_machine_or_folder_that_a_run_cannot_use(
    flags: list[str],
    expected: str,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/config.yaml").write_text("precious")
    assert expected in error_of(["fit", *SMALL, f"--data.path={corpus_file}", *flags], capsys)
    assert Path("mine/config.yaml").read_text() == "precious" and os.listdir() == ["mine"]


def test_the_home_of_an_unknown_user_is_a_folder_like_others(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [f"--data.path={corpus_file}", "--trainer.max_steps=1", "--run_dir=~nobody_here/run"]
    assert main(["fit", *SMALL, *flags]) == 0
    assert Path("~nobody_here/run/report.json").exists()


# -- runs that cannot be resumed as asked --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model.optimizer=sgd"], "found 'sgd', but the checkpoint has 'adamw' (its optimizer has a state); leave"),
        (["--data.batch_size=32"], "found 32, but the checkpoint has 64 (its position in the data depends"),
        (["--data.split_seed=1"], "data.split_seed: found 1, but the checkpoint has 42 (its split follows from it)"),
        (["--seed_everything=1"], "seed_everything: found 1, but the checkpoint has 42"),
        (["--model.dropout=0.5", "--model.hidden_dim=8"], "leave it out; model.dropout: found 0.5, but the"),
        (["--run_dir=elsewhere"], "run_dir: a resumed run stays in its own folder; leave out --run_dir"),
        (["--trainer.max_steps=11"], "trainer.max_steps: found 11, but the checkpoint is at step 12 already"),
        ([], "found 12, but this run has ended, at step 12; to train on: python -m mlp_lm fit --ckpt_path="),
        (["--model.lr_decay_steps=12"], "last.ckpt --trainer.max_steps=18 --model.lr_decay_steps=18"),
        (
            ["--trainer.max_steps=11", "--model.dropout=0.5", "--run_dir=x"],
            "leave out --run_dir; trainer.max_steps: fo",
        ),
    ],
)
def test_what_a_resumed_run_cannot_change(
    flags: list[str], expected: str, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in error_of(["fit", "--ckpt_path", str(run_dir), *flags], capsys)
    assert os.listdir() == []


def test_a_run_folder_is_never_written_twice(run_dir: Path, corpus_file: Path, capsys: Capture) -> None:
    message = error_of(["fit", f"--data.path={corpus_file}", f"--run_dir={run_dir}"], capsys)
    assert f"holds a run already; name another folder, or resume that run with --ckpt_path {run_dir}" in message


# -- how commands end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "mlp_lm sample: error: out of memory; use a smaller data.batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (
            UnicodeEncodeError("ascii", "é", 0, 1, "ordinal"),
            r"'\xe9' cannot be printed as ascii; set PYTHONIOENCODING=utf-8",
        ),
        (OSError(28, "No space left on device"), "No space left on device"),
        (DataError("a\x1b[31m\u2028b\n"), r"a\x1b[31m b"),
    ],
)
def test_what_ends_as_one_line(
    error: Exception, expected: str, best: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(LanguageModel, "sample", fail)
    assert expected in error_of(["sample", str(best)], capsys)


def test_what_stdout_cannot_show_is_escaped_but_not_in_a_file_of_samples(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def printed(args: list[str], is_terminal: bool, code: int) -> bytes:
        stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(stdout, "isatty", lambda: is_terminal)
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(args) == code
        return stdout.buffer.getvalue()

    (tmp_path / "items.txt").write_text(corpus_file.read_text().replace("a", "é"), encoding="utf-8")
    fit = ["fit", *SMALL, f"--data.path={tmp_path / 'items.txt'}", f"--run_dir={tmp_path / 'run'}"]
    assert rb"\xe9" in printed([*fit, "--trainer.max_steps=2"], is_terminal=False, code=0)  # a log
    assert rb"\xe9" in printed(["sample", str(tmp_path / "run")], is_terminal=True, code=0)
    assert printed(["sample", str(tmp_path / "run")], is_terminal=False, code=2) == b""


def test_a_bug_of_ours_keeps_its_traceback(best: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(LanguageModel, "sample", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["sample", str(best)])


def test_ctrl_c_ends_any_command_with_130_and_without_a_word(
    best: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def press(*_: object) -> None:
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)  # Lightning ignores further ones
    monkeypatch.setattr(MLPModule, "test_step", press)
    assert main(["test", f"--ckpt_path={best}"]) == 130
    signal.signal(signal.SIGINT, handler)
    assert capsys.readouterr() == ("", "")


def test_sigterm_in_an_evaluation_is_no_success(
    best: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def end(*_: object) -> None:
        raise SIGTERMException  # as Lightning does, whose exit code would be 0

    monkeypatch.setattr(MLPModule, "on_test_epoch_end", end)
    assert main(["test", f"--ckpt_path={best}"]) == 143
    assert capfd.readouterr().err == "mlp_lm test: SIGTERM: ended\n"


@pytest.mark.slow  # a process for each
@pytest.mark.skipif(os.name == "nt", reason="shell redirections")
@pytest.mark.parametrize(
    ("command", "exit_code", "err"),
    [
        ("sample {best} --num=20000 | head -c 1", 141, ""),  # a reader that stops early
        ("sample {best} --num=3 > /dev/full", 2, "mlp_lm sample: error: [Errno 28] No space left on device"),
        ("sample {best} --num=3 >&-", 0, "3 items: "),
        ("fit {short} >&- 2>&-", 0, ""),
        ("fit {short} 2>/dev/full", 0, ""),
    ],
)
def test_a_closed_full_or_hasty_output(
    command: str, exit_code: int, err: str, best: Path, corpus_file: Path, tmp_path: Path
) -> None:
    short = f"--data.path={corpus_file} --run_dir={tmp_path / 'run'} --trainer.max_steps=2 --model.hidden_dim=16"
    command = command.format(best=best, short=short)
    command = f'"{sys.executable}" -m mlp_lm {command}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == exit_code
    assert err in done.stderr and "Traceback" not in done.stderr and (err or not done.stderr)
