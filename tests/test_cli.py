"""The top-level help, sample and score."""

from __future__ import annotations

import csv
import io
import os
import sys
from pathlib import Path

import pytest

from mlp_lm import Sampling, __version__, load
from mlp_lm.cli import main
from mlp_lm.commands import COMMANDS
from mlp_lm.training.datamodule import TextDataModule
from tests.conftest import Capture, error_of


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["help"]])
def test_the_top_level_help_lists_every_command(args: list[str], capsys: Capture) -> None:
    assert main(args) == 0
    out = capsys.readouterr().out
    assert [name for name, command in COMMANDS.items() if f"  {name} " not in out or command.summary not in out] == []


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mlp_lm {__version__}\n"


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "30000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["default", "count", "policy"],
)
def test_waiting_threads_leave_their_core_unless_the_user_has_a_wish(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = dict(given)
    monkeypatch.setattr(os, "environ", environment)
    assert main(["--version"]) == 0
    assert environment.get("GOMP_SPINCOUNT") == expected


def test_sample_prints_one_item_a_line_and_counts_the_known_ones(best: Path, capsys: Capture) -> None:
    assert main(["sample", str(best), "--num=5", "--seed=1"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(sample) for sample in load(best).sample(5, Sampling(seed=1))]
    assert err.startswith("5 items: ") and " in train, " in err and " in dev or test, " in err and " new" in err


def test_an_item_that_is_cut_ends_with_an_ellipsis(best: Path, capsys: Capture) -> None:
    assert main(["sample", str(best), "--num=20", "--max_length=1", "--seed=1"]) == 0
    out, err = capsys.readouterr()
    cut = [line for line in out.splitlines() if line.endswith("…")]
    assert cut and f"{len(cut)} cut at --max_length" in err
    assert all(len(line) == 2 for line in cut)


def test_sample_says_what_helps_if_it_finds_too_few_new_items(best: Path, corpus_file: Path, capsys: Capture) -> None:
    known = corpus_file.read_text().split()[0]
    flags = [f"--prompt={known}", f"--max_length={len(known)}", "--temperature=0", "--only_new"]
    assert main(["sample", str(best), "--num=2", *flags]) == 0
    assert "found only 0 of the 2 requested new items after 100 attempts each; raise" in capsys.readouterr().err


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
    assert "; 1 item with unknown characters left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "stdin", "items"),
    [
        (["--item=nora", "--item", " abe"], "", ["nora", "abe"]),
        (["-"], "\ufeffabe\r\n\nnora", ["abe", "nora"]),
        (["--item=ABE", "--item=Nora", "--lowercase"], "", ["abe", "nora"]),
    ],
)
def test_score_takes_single_items_and_standard_input(
    args: list[str], stdin: str, items: list[str], best: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
    assert main(["score", str(best), *args]) == 0
    assert [row[0] for row in csv.reader(capsys.readouterr().out.splitlines())] == ["item", *items, ""]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--item=Nora"], "item: 1 item with unknown characters: 'Nora' ('N'); the model knows a b c d e i n o r; "),
        (["--item=Nora"], "; --lowercase turns all items into lower case, --skip_unknown leaves such items out"),
        (["--item=Zoe"], "knows a b c d e i n o r; --skip_unknown leaves such items out"),
        ([], "score one thing: a text file, - for standard input, or --item ITEM"),
        (["names", "--item=nora"], "score one thing: a text file, - for standard input, or --item ITEM"),
        (["-"], "standard input: an empty file; expected one item a line"),  # standard input is closed
    ],
)
def test_score_says_what_helps(
    args: list[str], expected: str, best: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert expected in error_of(["score", str(best), *args], capsys)


def test_score_says_how_many_items_are_in_the_training_set(
    best: Path, corpus_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    train = TextDataModule(path=str(corpus_file)).corpus.items("train")[:3]
    (tmp_path / "items.txt").write_text("\n".join([*train, "aaaaaaaa"]))
    assert main(["score", str(best), str(tmp_path / "items.txt")]) == 0
    assert capsys.readouterr().err.endswith("bits/token; 3 of them are in the training set\n")
