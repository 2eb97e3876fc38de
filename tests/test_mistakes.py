"""One clear line for every mistake, and how commands end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mlp_lm.cli import main
from mlp_lm.training.module import MLPModule
from tests.conftest import SMALL, Capture, error_of

TRAIN = ["fit", *SMALL, "--trainer.max_steps=4", "--run_dir=run"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "items.txt: no such file"),
        (b"", "items.txt: an empty file"),
        (b"\n \r\n\t\n", "items.txt: only blank lines"),
        (b"anna\nbob\n\xff\xfe\n", "items.txt:3: not UTF-8 (byte 0xff at byte 1"),
        (b"a\nb\nc\na\nb\n", "items.txt: 3 items, too few for train, dev and test; it takes 6"),
        (b"anna\n" + b"x" * 10_001, "items.txt:2: an item of 10,001 characters, at most 10,000"),
    ],
)
def test_a_bad_corpus(
    content: bytes | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("items.txt").write_bytes(content)
    assert expected in error_of([*TRAIN, "--data.path=items.txt"], capsys)
    assert not Path("run").exists()


def test_a_folder_as_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    assert "a folder" in error_of([*TRAIN, f"--data.path={tmp_path}"], capsys)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model.hiden_dim=3"], ["did you mean --model.hidden_dim?"]),
        (["--hidden-dim=3"], ["did you mean --model.hidden_dim?"]),
        (["--model.hidden_dim=many"], ["model.hidden_dim: found 'many', expected int"]),
        (["--model.optimizer=adam"], ["model.optimizer: found 'adam', expected sgd or adamw"]),
        (
            ["--model.dropout=1", "--data.batch_size=0", "--trainer.max_steps=-1", "--seed_everything=-1"],
            ["model.dropout: found 1.0", "data.batch_size: found 0", "trainer.max_steps: found -1", "seed_everything"],
        ),
        (["--model.momentum=0.9"], ["model.momentum", "model.optimizer sgd"]),
        (["--data.train_path=x"], ["data.dev_path, data.test_path: missing"]),
        (["--model.lr_decay_steps=3"], ["trainer.max_steps: found 4, but the learning rate is 0 from step 3 on"]),
        (["--trainer.accelerator=cuda"], ["not available"]),
        (["--trainer.devices=0"], ["devices"]),
        (["--config=none.yaml"], ["none.yaml"]),
        (["-cnone.yaml"], ["none.yaml: cannot be read"]),
        (["--trainer=mine.yaml"], ["--trainer: a whole section; expected its settings one by one"]),
        (["mine.txt"], ["unrecognized arguments: mine.txt; did you mean --data.path mine.txt?"]),
        (["--trainer.callbacks=s3://bucket/callbacks.yaml"], ["trainer.callbacks: found 's3://bucket/callbacks.yaml'"]),
    ],
)
def test_a_bad_setting(
    flags: list[str], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no data at all: settings are checked before anything is read
    message = error_of([*TRAIN, *flags], capsys)
    for text in expected:
        assert text in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model:\n  hiden_dim: 3\n", "'model.hiden_dim'; did you mean model.hidden_dim? (in bad.yaml)"),
        ("modell:\n  hidden_dim: 3\n", "did you mean model.hidden_dim? (in bad.yaml)"),
        ("model:\n  - [", "bad.yaml:2: not YAML"),
        ("just words", "bad.yaml: not a config"),
        ("data: 3", "bad.yaml: data: found 3, expected settings"),
        ("model:\n  vocab_size: 3\n", "bad.yaml: model.vocab_size follows from the data"),
    ],
)
def test_a_bad_config(
    text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text(text)
    assert expected in error_of(["fit", "--config", "bad.yaml"], capsys)


@pytest.mark.parametrize("command", [["sample", "FILE"], ["validate", "--ckpt_path", "FILE"]])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("missing", "no such file"),
        ("folder", "a folder"),
        ("https://example.org/best.ckpt", "a URL"),
        ("empty", "damaged"),
        ("truncated", "damaged"),
        ("noise", "damaged"),
        ("other", "another program"),
        ("objects", "another program"),
        ("newer", "format 99, this mlp_lm reads up to 2"),
    ],
)
def test_a_bad_checkpoint(
    command: list[str], name: str, expected: str, best: Path, tmp_path: Path, capsys: Capture
) -> None:
    content = torch.load(best, weights_only=True)
    content["mlp_lm"]["format_version"] = 99
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "truncated").write_bytes(best.read_bytes()[:-1000])
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 10)
    torch.save({"state_dict": {}}, tmp_path / "other")
    torch.save({"fits": Path("x")}, tmp_path / "objects")
    torch.save(content, tmp_path / "newer")
    file = name if "://" in name else str(tmp_path / name)
    assert expected in error_of([file if arg == "FILE" else arg for arg in command], capsys)


def test_a_checkpoint_with_missing_weights(best: Path, tmp_path: Path, capsys: Capture) -> None:
    content = torch.load(best, weights_only=True)
    del content["state_dict"]["network.output.bias"]
    torch.save(content, tmp_path / "part.ckpt")
    assert "do not fit together" in error_of(["sample", str(tmp_path / "part.ckpt")], capsys)


def test_a_checkpoint_of_other_data_or_another_network(
    best: Path, corpus_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    def validate(*flags: str) -> str:
        return error_of(["validate", "--ckpt_path", str(best), *flags], capsys)

    assert "data.context_size: found 5, but the checkpoint has 3" in validate("--data.context_size=5")
    assert "model.hidden_dim: found 9" in validate("--model.hidden_dim=9")
    (tmp_path / "more.txt").write_text(corpus_file.read_text() + "xyz\n")
    assert "has other characters (with 'x' 'y' 'z')" in validate(f"--data.path={tmp_path / 'more.txt'}")
    assert "but split in another way (unique, split_seed)" in validate("--data.split_seed=1")
    (tmp_path / "other.txt").write_text(corpus_file.read_text().replace("a", "x"))
    assert "(with 'x'; without 'a')" in validate(f"--data.path={tmp_path / 'other.txt'}")


def test_a_continued_run(best: Path, run_dir: Path, capsys: Capture) -> None:
    def resume(*flags: str) -> str:
        return error_of(["fit", "--ckpt_path", str(run_dir / "checkpoints" / "last.ckpt"), *flags], capsys)

    assert "run_dir: a continued run stays in its own folder" in resume("--run_dir=elsewhere")
    assert "max_steps: found 11, but" in resume("--trainer.max_steps=11") and not Path("elsewhere").exists()
    assert "the learning rate is 0 from step 12 on" in resume("--trainer.max_steps=20")


def test_flags_win_over_a_config_wherever_it_stands(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("trainer:\n  max_steps: 9\nmodel:\n  hidden_dim: 9\n")
    flags = [*SMALL, f"--data.path={corpus_file}", "--trainer.max_steps=4", "--run_dir=run", "--report_test=false"]
    assert main(["fit", *flags, "--config", "c.yaml"]) == 0
    assert "4 steps" in capsys.readouterr().out


def test_evaluation_without_a_checkpoint(capsys: Capture) -> None:
    assert "--ckpt_path: missing" in error_of(["validate"], capsys)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["fti"], "did you mean fit?"),
        (["sample"], "file"),
        (["sample", "FILE", "--nun=3"], "did you mean --num?"),
        (["sample", "FILE", "--num=0", "--top_p=2", "--temperature=-1"], "num: found 0"),
        (["sample", "FILE", "--prompt=Zoë"], "unknown tokens 'Z', 'ë'; the model knows a b c d e"),
        (["sample", "FILE", "--prompt=anna", "--max_length=3"], "max_length: found 3"),
        (["score", "FILE", "nowhere.txt"], "nowhere.txt: no such file"),
        (["score", "FILE", "names", "--skip_unknown", "--output=/nowhere/scores.csv"], "/nowhere/scores.csv"),
        (["score", "FILE", __file__, "--skip_unknown"], "unknown characters in every item"),
    ],
)
def test_a_bad_command_line(args: list[str], expected: str, best: Path, capsys: Capture) -> None:
    assert expected in error_of([str(best) if arg == "FILE" else arg for arg in args], capsys)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
def test_a_full_disk_is_one_line(best: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "mlp_lm", "sample", str(best)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "error" in line] == [
        "mlp_lm: error: [Errno 28] No space left on device"
    ]


def test_a_folder_with_other_files_is_not_taken_for_a_run(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/config.yaml").write_text("precious")
    for run_dir in ("mine", ""):
        assert "not empty" in error_of(["fit", f"--data.path={corpus_file}", f"--run_dir={run_dir}"], capsys)
    assert Path("mine/config.yaml").read_text() == "precious"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model.optimizer=sgd"], "found 'sgd', but the checkpoint has 'adamw' (its optimizer has a state); leave"),
        (["--model.decay_all=true"], "model.decay_all: found True"),
        (["--model.dropout=0.5", "--model.hidden_dim=8"], "model.hidden_dim: found 8, but the checkpoint has 16 (its"),
        (["--trainer.precision=64-true"], "trainer.precision: found '64-true', but the checkpoint has '32-true'"),
        ([], "trainer.max_steps: found 12, where this run has ended; to train on, raise it, and model.lr_decay_steps"),
        (["--data.batch_size=32"], "64 (its place in the data is counted in batches of that size); leave it out"),
        (["--data.split_seed=1"], "data.split_seed: found 1, but the checkpoint has 42 (its split follows from it)"),
        (["--seed_everything=1"], "seed_everything: found 1"),
        (["--ckpt=x"], "unrecognized arguments: --ckpt=x; did you mean --ckpt_path?"),
    ],
)
def test_what_a_continued_run_cannot_change(flags: list[str], expected: str, run_dir: Path, capsys: Capture) -> None:
    assert expected in error_of(["fit", "--ckpt_path", str(run_dir / "checkpoints" / "last.ckpt"), *flags], capsys)


def test_a_run_folder_is_never_written_twice(run_dir: Path, corpus_file: Path, capsys: Capture) -> None:
    message = error_of(["fit", f"--data.path={corpus_file}", f"--run_dir={run_dir}"], capsys)
    assert "holds a run already" in message and "--ckpt_path" in message


def test_a_run_without_a_checkpoint_may_be_just_starting(corpus_file: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    message = error_of(["fit", f"--data.path={corpus_file}", f"--run_dir={tmp_path / 'run'}"], capsys)
    assert "ended before its first checkpoint; if it ended, remove the folder" in message


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


def test_counts_are_not_what_a_mixture_wants_as_its_network(corpus_file: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["ngram", str(corpus_file), "--orders=1", f"--save={tmp_path / 'counts.npz'}"]) == 0
    capsys.readouterr()
    message = error_of(["ngram", f"--mix={tmp_path / 'counts.npz'}"], capsys)
    assert "a file of counts; expected the checkpoint of a network (.ckpt)" in message


def test_sigterm_in_an_evaluation_is_no_success(
    best: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def end(*_: object) -> None:
        raise SIGTERMException  # as Lightning does, whose exit code would be 0

    monkeypatch.setattr(MLPModule, "on_test_epoch_end", end)
    assert main(["test", f"--ckpt_path={best}"]) == 143
    assert capfd.readouterr().err == "mlp_lm test: SIGTERM: ended\n"
