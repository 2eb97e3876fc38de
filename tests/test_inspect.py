"""The inspect command and the numbers behind it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from mlp_lm.cli import main
from mlp_lm.text.statistics import histogram, odd_characters, repeats_of_train, script, statistics
from tests.conftest import Capture, error_of

NAMES = ["emma", "olivia", "ava", "emma", "isabella", "sophia", "mia", "emma"]


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "items.txt"
    path.write_text("\n".join(NAMES) + "\n")
    return path


def test_what_is_in_a_few_names() -> None:
    found = statistics(NAMES, "\n".join(NAMES), split_seed=42)
    assert (found.num_items, found.num_different, found.first_items) == (8, 6, NAMES)
    assert found.lengths == {3: 2, 4: 3, 6: 2, 8: 1}
    assert (found.shortest, found.longest) == (["ava", "mia"], ["isabella"])
    assert list(found.characters.items())[:3] == [("a", 10), ("m", 7), ("i", 5)]
    assert found.odd_characters == []


def test_items_of_dev_and_test_that_stand_in_train_too() -> None:
    items = [str(i) for i in range(10)]
    assert repeats_of_train(items, 42) == {"dev": (0, 1), "test": (0, 1)}
    assert repeats_of_train(["a"] * 10, 42) == {"dev": (1, 1), "test": (1, 1)}
    # At seed 42, places 0 and 1 of ten become dev and test.
    assert repeats_of_train([items[5], *items[1:]], 42) == {"dev": (1, 1), "test": (0, 1)}


@pytest.mark.parametrize(
    ("character", "why"),
    [
        ("\x07", "control"),
        ("\t", "control"),
        ("\u200b", "zero-width"),
        ("\u00ad", "zero-width"),
        ("\u3164", "zero-width"),
        ("\u0378", "unassigned"),
        ("\ue000", "private use"),
        ("\u00a0", "unusual space"),
        ("\ufffd", "left by a wrong encoding"),
        ("а", "CYRILLIC letter among others"),  # which looks like the Latin a
        ("語", "CJK letter among others"),
    ],
)
def test_odd_characters_are_found_with_their_line(character: str, why: str) -> None:
    text = "anna\n" * 60 + f"an{character}na\nb\n"
    (odd,) = odd_characters(Counter(text.replace("\n", "")), text)
    assert (odd.character, odd.why, odd.count, odd.line) == (character, why, 1, 61)
    assert odd.code_point == f"U+{ord(character):04X}"


@pytest.mark.parametrize("text", ["zoë d'arc-o.k. 12", "мария\nанна", "さくら\nサクラ\n桜", "maʻilu" * 30 + "ー"])
def test_what_is_not_odd(text: str) -> None:
    assert odd_characters(Counter(text.replace("\n", "")), text) == []


def test_a_script_looks_odd_below_one_percent_of_all_letters() -> None:
    assert [o.character for o in odd_characters({"a": 9901, "б": 99}, "aб")] == ["б"]
    assert odd_characters({"a": 9900, "б": 100}, "aб") == []
    assert odd_characters({"a": 1, "!": 10**6}, "a!") == []  # letters are compared with letters alone
    assert [script(c) for c in "aéЖ1-ー桜"] == ["LATIN", "LATIN", "CYRILLIC", "", "", "", "CJK"]


def test_a_histogram_fits_into_a_terminal_and_counts_every_item() -> None:
    assert histogram({2: 5, 4: 1}) == [(2, 2, 5), (3, 3, 0), (4, 4, 1)]
    assert histogram({2: 500, 3: 499, 5: 1}) == [(2, 2, 500), (3, 3, 499), (4, 4, 0), (5, 5, 1)]
    rows = histogram({length: 3 for length in range(1, 1001)})
    assert len(rows) <= 21 and sum(count for *_, count in rows) == 3000
    assert histogram({3: 500, 4: 499, 5000: 1}) == [(3, 3, 500), (4, 4, 499), (5, 5000, 1)]  # one line of prose


def test_the_report(names: Path, capsys: Capture) -> None:
    assert main(["inspect", str(names), "--item=emma", "--context_size=3"]) == 0
    out = capsys.readouterr().out
    assert f"{names}: 8 items, 6 different, 12 tokens with the boundary" in out
    assert "shortest  ava, mia (3 tokens)" in out and "longest   isabella (8 tokens)" in out
    assert "4" + " " * 16 + "3  ##" in out
    assert "a        10 26.32%" in out
    assert "2 lines repeat an earlier one" in out and "of 1 dev items" in out and "of 1 test items" in out
    assert out.endswith("\n... -> e\n..e -> m\n.em -> m\nemm -> a\nmma -> .\n")


def test_an_item_with_dots_and_a_corpus_too_small_to_split(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "items.txt").write_text("a.b\na.b\n")
    assert main(["inspect", str(tmp_path / "items.txt"), "--item", " a.b ", "--context_size=2"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("\n. . -> a\n. a -> '.'\na '.' -> b\n'.' b -> .\n")
    assert "dev items" not in out


def test_json_for_machines(names: Path, tmp_path: Path) -> None:
    target = tmp_path / "found.json"
    assert main(["inspect", str(names), "--item=ava", f"--json={target}"]) == 0
    found = json.loads(target.read_text())
    assert (found["items"], found["different_items"]) == (8, 6)
    assert found["lengths"][0] == {"length": 3, "items": 2}
    assert found["characters"][0] == {"character": "a", "count": 10, "share": 10 / 38}
    assert found["windows"][0] == {"context": [".", ".", "."], "target": "a"}
    assert found["repeats_of_train_unless_unique"]["dev"]["items"] == 1


def test_what_a_terminal_would_not_show_is_escaped(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "items.txt").write_text("an\x1b[31mna\nbob\n" + "x" * 100)
    assert main(["inspect", str(tmp_path / "items.txt")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "'an\\x1b[31mna'" in out and "x" * 60 + "…" in out
    assert "U+001B          1  line 1        control: '\\x1b'" in out


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["nowhere.txt"], "nowhere.txt: no such file"),
        (["FILE", "--item=Zoë"], "item: 'Zoë' has unknown 'Z', 'ë'; "),
        (["FILE", "--context_size=0"], "data.context_size: found 0"),
        (["FILE", "--split_seed=-1"], "data.split_seed: found -1"),
        (["FILE", "--json=FILE"], "is an input too"),
        (["FILE", "--itme=emma"], "did you mean --item?"),
    ],
)
def test_bad_input(flags: list[str], expected: str, names: Path, capsys: Capture) -> None:
    assert expected in error_of(["inspect", *(flag.replace("FILE", str(names)) for flag in flags)], capsys)
    assert names.read_text().startswith("emma\n")
