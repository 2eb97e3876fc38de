"""Outputs are checked before any work, and written whole or not at all."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from mlp_lm.errors import SettingsError
from mlp_lm.files import PICTURES, check_outputs, write_atomically, write_csv, write_json, write_text

Outputs = dict[str, tuple[str | None, tuple[str, ...]]]


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({"plot": ("a.gif", PICTURES)}, "plot: found 'a.gif', expected a file that ends in .png or .svg"),
        ({"json": ("", ())}, "json: '' cannot be written; expected a file in a folder that exists"),
        ({"json": (".", ())}, "json: '.' cannot be written; expected a file in a folder that exists"),
        ({"json": ("missing/a.json", ())}, "json: 'missing/a.json' cannot be written"),
        ({"json": ("./names.txt", ())}, "json: ./names.txt would overwrite an input; choose another file"),
        ({"json": ("link", ())}, "json: link would overwrite an input; choose another file"),
        (
            {"json": ("a.png", ()), "plot": ("a.png", PICTURES)},
            "plot: a.png would overwrite the output of --json; choose another file",
        ),
    ],
)
def test_outputs_that_cannot_be_or_would_overwrite(
    outputs: Outputs, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("names.txt").touch()
    Path("link").symlink_to("names.txt")
    check_outputs([None, "names.txt"], json=("a.json", ()), plot=("....svg", PICTURES), csv=(None, ()))
    with pytest.raises(SettingsError) as caught:
        check_outputs([None, "names.txt"], **outputs)
    assert str(caught.value).startswith(expected)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fill_the_disk(file: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        write_atomically(path, fill_the_disk)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "old")]
    with pytest.raises(SettingsError, match=r"cannot be written \(Is a directory\)"):
        write_text(tmp_path, "text")


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "text"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)


def test_tables_and_json_as_other_programs_read_them(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", iter([("item", "tokens"), ("zoë", 4), ('a,"', 4)]))
    assert (tmp_path / "a.csv").read_bytes().decode() == 'item,tokens\nzoë,4\n"a,""",4\n'
    write_json(tmp_path / "a.json", {"losses": [1.5, math.inf, math.nan], "item": "zoë"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"losses": [1.5, None, None], "item": "zoë"} and "zoë" in text
