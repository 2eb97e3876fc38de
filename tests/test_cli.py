"""The help, sample and score commands."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlp_lm import __version__, load
from mlp_lm.cli import COMMANDS, main
from mlp_lm.training.datamodule import TextDataModule
from tests.conftest import Capture, error_of

# -- help --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_the_top_level_help_lists_every_command(args: list[str], capsys: Capture) -> None:
    assert main(args) == 0
    out = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in out and command.summary in out


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mlp_lm {__version__}\n"


@pytest.mark.parametrize(
    ("command", "described"),
    [
        ("fit", ["--data.context_size", "--model.dropout", "--trainer.max_steps", "--run_dir", "--report_test"]),
        ("test", ["--ckpt_path"]),
        ("sample", ["--prompt", "--top_k", "--only_new", "Checkpoint to generate from"]),
        ("sweep", ["--vary", "(repeatable)", "--seeds", "--jobs", "--random", "--sweep_dir"]),
        ("score", ["--output", "--skip_unknown", "Text file with one item a line"]),
    ],
)
def test_the_help_of_a_command_names_its_flags(command: str, described: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    for text in described:
        assert text in out


def test_every_setting_has_a_help_text(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert re.findall(r"--[\w.]+ [^ ]+ \((?:type|default).*?\)", text) == []  # a flag followed by no description


# -- sample ------------------------------------------------------------------------------------------------------


def test_sample_prints_one_item_a_line_and_counts_the_known_ones(best: Path, capsys: Capture) -> None:
    assert main(["sample", str(best), "--num=5", "--seed=1"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == load(best).sample(5, seed=1)
    assert err.startswith("5 items: ") and "in train" in err and "in dev or test" in err and "new" in err


def test_flags_may_be_written_with_hyphens_and_switches_take_no_value(best: Path, capsys: Capture) -> None:
    assert main(["sample", str(best), "--num", "3", "--top-k=2", "--only-new", "--max-length", "9", "--seed=1"]) == 0
    assert capsys.readouterr().err == "3 items: 0 in train, 0 in dev or test, 3 new\n"


def test_a_cut_item_is_marked(best: Path, capsys: Capture) -> None:
    assert main(["sample", str(best), "--num=20", "--max_length=1", "--seed=1"]) == 0
    out, err = capsys.readouterr()
    cut = [line for line in out.splitlines() if line.endswith("…")]
    assert cut and f"{len(cut)} cut at --max_length" in err
    assert all(len(line) == 2 for line in cut)


def test_a_reader_that_stops_early_ends_the_command_quietly(best: Path) -> None:
    command = [sys.executable, "-m", "mlp_lm", "sample", str(best), "--num=100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


# -- score -------------------------------------------------------------------------------------------------------


def test_score_gives_a_row_for_each_item_and_one_for_all(best: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "items.txt").write_text("abe\n\nnora\n")
    assert main(["score", str(best), str(tmp_path / "items.txt")]) == 0
    out, err = capsys.readouterr()
    header, *rows, last = csv.reader(out.splitlines())
    assert header == ["item", "tokens", "log_prob", "nats_per_token"]
    expected = load(best).score(["abe", "nora"])
    assert [(r[0], int(r[1])) for r in rows] == [("abe", 4), ("nora", 5)]
    assert [float(r[2]) for r in rows] == pytest.approx([s.log_prob for s in expected], abs=1e-6)
    assert last[:2] == ["", "9"]
    assert float(last[3]) == pytest.approx(-sum(s.log_prob for s in expected) / 9, abs=1e-6)
    assert err.startswith("2 items, 9 tokens: ")


def test_score_writes_a_file_and_can_skip_unknown_characters(best: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "items.txt").write_text("abe\nzoë\n")
    args = ["score", str(best), str(tmp_path / "items.txt"), "--output", str(tmp_path / "scores.csv")]
    message = error_of(args, capsys)
    assert "'zoë' ('z', 'ë')" in message and "a b c d e" in message and "--skip_unknown" in message
    assert not (tmp_path / "scores.csv").exists()
    assert main([*args, "--skip_unknown"]) == 0
    assert [row[0] for row in csv.reader((tmp_path / "scores.csv").open())] == ["item", "abe", ""]
    assert "1 items with unknown characters left out" in capsys.readouterr().err


def test_score_says_how_many_items_the_model_has_learnt(
    best: Path, corpus_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    train = TextDataModule(str(corpus_file)).corpus.items("train")[:3]
    (tmp_path / "items.txt").write_text("\n".join([*train, "aaaaaaaa"]))
    assert main(["score", str(best), str(tmp_path / "items.txt")]) == 0
    assert capsys.readouterr().err.endswith("bits/token; 3 of them stand in train, which it has learnt\n")
