"""The inspect command and the numbers behind it."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path

import pytest

from mlp_lm.cli import main
from mlp_lm.commands.inspect import inspect
from mlp_lm.text.advice import looks_like_prose
from mlp_lm.text.statistics import OddCharacter, histogram, odd_characters, repeats_of_train
from mlp_lm.training.datamodule import TextDataModule
from tests.conftest import Capture, error_of

NAMES = ["emma", "olivia", "ava", "emma", "isabella", "sophia", "mia", "emma"]


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "items.txt"
    path.write_text("\n".join(NAMES) + "\n")
    return path


def test_items_of_dev_and_test_that_occur_in_train_too() -> None:
    items = [str(i) for i in range(10)]
    assert repeats_of_train(items, 42) == {"dev": 0, "test": 0}
    assert repeats_of_train(["a"] * 20, 42) == {"dev": 1, "test": 1}
    # At seed 42, items 0 and 1 of ten become dev and test.
    assert repeats_of_train([items[5], *items[1:]], 42) == {"dev": 1, "test": 0}


@pytest.mark.parametrize(
    ("character", "kind", "name"),
    [
        ("\t", "control", r"'\t'"),
        ("\u200b", "zero-width or format", "ZERO WIDTH SPACE"),
        ("\u00a0", "unusual space", "NO-BREAK SPACE"),
        ("\ufffd", "wrong encoding", "REPLACEMENT CHARACTER"),
    ],
)
def test_odd_characters_are_found_with_their_first_line(character: str, kind: str, name: str) -> None:
    text = f"anna\nan{character}na\nb{character}\n"
    code_point = f"U+{ord(character):04X}"
    assert odd_characters({"a": 4, character: 2}, text) == [OddCharacter(code_point, name, kind, 2, 2)]
    assert odd_characters(dict.fromkeys("zoë d'arc-o.k. 12 мария さくらー 桜", 1), text) == []


def test_a_histogram_fits_into_a_terminal_and_counts_every_item() -> None:
    assert histogram({2: 5, 4: 1}) == [(2, 2, 5), (3, 3, 0), (4, 4, 1)]
    assert histogram({3: 500, 4: 499, 5000: 1}) == [(3, 3, 500), (4, 4, 499), (5, 5000, 1)]  # one line of prose
    rows = histogram({length: 3 for length in range(1, 1001)})
    assert rows[:2] == [(1, 50, 150), (51, 100, 150)] and rows[-1] == (951, 1000, 150)
    assert len(rows) == 20


def test_the_report(names: Path, capsys: Capture) -> None:
    assert main(["inspect", str(names)]) == 0
    out, err = capsys.readouterr()
    assert f"{names}: 8 items, 6 distinct; a vocabulary of 12 with the boundary\n" in out
    assert "shortest  ava, mia (3 tokens and the boundary)\n" in out
    assert "longest   isabella (8 tokens and the boundary)\n" in out
    assert "tokens       items  (without the boundary)\n" in out
    assert "4" + " " * 16 + "3  ##" in out
    assert "a        10 26.32%" in out
    assert "no odd characters\n" in out
    assert "2 repeated items; fit drops repeats\n" in out
    assert "with --data.unique false, 100.0% of the items of dev occur in train too\n" in out
    assert err == ""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--item= emma", "--context_size=3"],
            "5 tokens with the boundary|... -> e|..e -> m|.em -> m|emm -> a|mma -> .",
        ),
        (["--item=.", "--context_size=2"], "2 tokens with the boundary|. . -> '.'|. '.' -> ."),
        (["--item=a"], "2 tokens with the boundary|........ -> a|.......a -> ."),  # as in fit by default
    ],
)
def test_an_item_is_shown_as_windows_alone(flags: list[str], expected: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "items.txt").write_text("emma\n.\n")
    assert main(["inspect", str(tmp_path / "items.txt"), *flags]) == 0
    assert capsys.readouterr().out.splitlines() == expected.split("|")


def test_windows_have_the_context_of_fit() -> None:
    sizes = [signature(f).parameters["context_size"].default for f in (inspect, TextDataModule.__init__)]
    assert sizes == [8, 8]


def test_one_item_is_too_small_to_split(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "items.txt").write_text(".\n")
    assert main(["inspect", str(tmp_path / "items.txt")]) == 0
    out = capsys.readouterr().out
    assert ": 1 item, 1 distinct; a vocabulary of 2" in out and "(1 token and" in out and "\n0 repeated items\n" in out
    assert "train" not in out


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (
            ["Before we proceed any further, hear me speak.", "Speak, speak."] * 2 + ["You are all resolved to die?"],
            True,
        ),
        (["Before we proceed any further, hear me speak.", "Speak, speak."], False),  # half of them
        (["The Lord of the Rings: The Two Towers", "Les quatre cents coups", "Vertigo"] * 9, False),
        (["Smith, John A. B.", "O'Neill, Mary C. D."], False),  # short
        (["Smith, Johann Sebastian Amadeus"], True),
        (["Smith-Johanssonsdottir, Anna-Sofia"], False),  # one blank
        (["no marks at all in these long lines of words"], False),
        (["version 1.2.3 and e.g.x in a long line of words"], False),  # no mark ends a clause
    ],
)
def test_running_text_is_recognised(items: list[str], expected: bool) -> None:
    assert looks_like_prose(items) == expected


def test_running_text_gets_one_line_of_advice(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "items.txt"
    path.write_text("Before we proceed any further, hear me speak.\nYou are all resolved, rather, to die.\n")
    assert main(["inspect", str(path)]) == 0
    err = capsys.readouterr().err
    assert err.startswith(f"{path}: looks like running text, but each line is an item") and err.count("\n") == 1


def test_json_has_all_figures(names: Path, tmp_path: Path) -> None:
    assert main(["inspect", str(names), "--item=ava", f"--json={tmp_path / 'found.json'}"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["items"], found["distinct_items"], found["longest"]) == (8, 6, ["isabella"])
    assert found["lengths"] == {"3": 2, "4": 3, "6": 2, "8": 1}
    assert list(found["characters"].items())[:3] == [("a", 10), ("m", 7), ("i", 5)]
    assert found["windows"][0] == [["."] * 8, "a"]
    assert found["repeats_of_train"] == {"dev": 1, "test": 0}


def test_what_a_terminal_would_not_show_is_escaped(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "items.txt").write_text("an\x1b[31mna\nbob\n" + "x" * 100)
    assert main(["inspect", str(tmp_path / "items.txt")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "'an\\x1b[31mna'" in out and "x" * 60 + "…" in out
    assert "U+001B          1  line 1        control: '\\x1b'" in out


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["FILE", "--item=Zoë"], "item: 'Zoë' has the unknown characters 'Z', 'ë'; the corpus has a b "),
        (["FILE", "--context_size=0"], "context_size must be between 1 and 1,024 (got 0)"),
        (["FILE", "--json=FILE"], "would overwrite an input"),
        (["FILE", "--nearest=a", "--json=figures.json"], "nearest: is about a network, and goes with no flag"),
        (["FILE", "--nearest=a", "--layout=text"], "nearest: is about a network, and goes with no flag"),
        (["FILE", "--train_path=a", "--dev_path=b", "--test_path=c"], "test_path: inspect takes one text; name one"),
        (["names", "--train_path=a"], "inspect takes one text"),
    ],
)
def test_bad_input(flags: list[str], expected: str, names: Path, capsys: Capture) -> None:
    assert expected in error_of(["inspect", *(flag.replace("FILE", str(names)) for flag in flags)], capsys)
    assert names.read_text().startswith("emma\n")
