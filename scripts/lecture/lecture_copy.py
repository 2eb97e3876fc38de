"""Copies of `lecture.py`: without its solutions, and as a notebook."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlp_lm.errors import DataError
from mlp_lm.files import write_text
from mlp_lm.text.datasets import resolve_path
from mlp_lm.text.reading import parse_items, read_text

HERE = Path(__file__).resolve().parent
# A cell of jupytext's percent format: a line `# %%`, perhaps with `[markdown]` or tags, and the lines that follow.
CELL = re.compile(r"^# %%(.*)\n((?s:.*?))(?=^# %%|\Z)", re.MULTILINE)
SOLUTION = re.compile(r"^( *)# BEGIN SOLUTION\n.*?^ *# END SOLUTION\n", re.MULTILINE | re.DOTALL)


def without_solutions(text: str) -> str:
    """Replace the solutions in a percent script by `...`, and leave out the cells that make no sense in a copy."""
    kept = (cell[0] for cell in CELL.finditer(text) if 'tags=["master"]' not in cell[1])
    return SOLUTION.sub(r"\1...  # your code\n", "".join(kept))


def as_notebook(text: str) -> str:
    """Convert a percent script to a Jupyter notebook, nbformat 4.5."""
    cells = []
    for number, (header, source) in enumerate(CELL.findall(text)):
        source = source.strip("\n")
        kind: dict[str, Any] = {"cell_type": "code", "execution_count": None, "outputs": []}
        if "[markdown]" in header:
            source, kind = re.sub(r"^# ?", "", source, flags=re.MULTILINE), {"cell_type": "markdown"}
        cells.append({**kind, "id": f"cell-{number}", "metadata": {}, "source": source.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


def write_exercises(folder: Path, names: str, notebook: bool) -> list[Path]:
    """Write the exercises into `folder`, with the names and the checks that they need. Returns their files.

    Raises:
        DataError: `folder` has exercises already, which may have someone's work in them; or `names` is not a text, or
            contains a dot.
    """
    text = without_solutions((HERE / "lecture.py").read_text(encoding="utf-8"))
    files = {folder / "lecture_exercises.py": text}
    if notebook:
        files[folder / "lecture_exercises.ipynb"] = as_notebook(text)
    for path in files:
        if path.exists():
            raise DataError(f"{path}: exists, and may have your work in it; name another folder, or move it away")
    source = resolve_path(names)
    items = parse_items(text := read_text(source), source)
    for number, line in enumerate(text.split("\n"), start=1):
        if "." in line:
            raise DataError(
                f"{source}:{number}: found {line!r}, but the dot is the boundary in the exercises; leave it out"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "names.txt", "\n".join(items) + "\n")
    for helper in ("lecture.py", "lecture_checks.py", "lecture_copy.py"):  # the first has the solutions
        shutil.copyfile(HERE / helper, folder / helper)
    for path, content in files.items():
        write_text(path, content)
    return list(files)


def main(args: Sequence[str]) -> int:
    """The command line of `lecture.py`."""
    parser = argparse.ArgumentParser("lecture.py", description="The lecture as a program, or exercises made of it.")
    parser.add_argument("--exercises", metavar="DIR", type=Path, required=True, help="write the exercises into DIR")
    parser.add_argument("--notebook", action="store_true", help="write them as a notebook, too")
    parser.add_argument(
        "--names",
        metavar="FILE",
        default="names",
        help="text file with one name a line, in place of the bundled names; makemore fetches the lecture's",
    )
    given = parser.parse_args(args)
    try:
        for path in write_exercises(given.exercises, given.names, given.notebook):
            print(f"written: {path}")
    except (DataError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    return 0
