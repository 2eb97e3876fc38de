"""Outputs: checked before any work, and written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from mlp_lm.errors import SettingsError

PICTURES = (".png", ".svg")


def absolute(path: str) -> str:
    """A path that holds in any folder; `~` is the user's home."""
    return str(Path(os.path.expanduser(path)).absolute())


def check_outputs(inputs: Iterable[str | None], **outputs: tuple[str | None, tuple[str, ...]]) -> None:
    """Raise SettingsError for an output that cannot be written, or that would overwrite an input or another output.

    Args:
        inputs: Files that are read; None for one that was not named.
        outputs: By flag, the file to write, None if it was not asked for, and the suffixes that it may have, () for
            any.
    """
    taken = {os.path.realpath(path): "an input" for path in inputs if path is not None}
    for flag, (value, suffixes) in outputs.items():
        if value is None:
            continue
        path = Path(value)
        if suffixes and path.suffix not in suffixes:
            raise SettingsError(f"{flag}: found {value!r}, expected a file that ends in {' or '.join(suffixes)}")
        if not value or path.is_dir() or not path.absolute().parent.is_dir():
            raise SettingsError(f"{flag}: {value!r} cannot be written; expected a file in a folder that exists")
        if (real := os.path.realpath(path)) in taken:
            raise SettingsError(f"{flag}: {value} would overwrite {taken[real]}; choose another file")
        taken[real] = f"the output of --{flag}"


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file so that `path` holds, at any moment, the old file or the new one, never half of it."""
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe or a device, such as /dev/stdout, must not be replaced
        with open(path, "wb") as file:
            write(file)
        return
    path = Path(os.path.realpath(path))  # a link stays one
    temporary = path.with_name(f".{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all. Raises SettingsError if it cannot be written."""
    write_lines(path, [text])


def write_lines(path: str | os.PathLike[str], lines: Iterable[str]) -> None:
    """`write_text` of lines as they come."""
    write_or_explain(path, lambda file: file.writelines(line.encode() for line in lines))


def write_csv(path: str | os.PathLike[str], rows: Iterable[Iterable[object]]) -> None:
    """Write rows as they come to a CSV file, whole or not at all. Raises SettingsError if it cannot be written."""

    def write(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        text.detach()  # which writes the rest, and leaves the file open

    write_or_explain(path, write)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """`write_text` of `value` as JSON, with null for numbers that are not finite, which JSON cannot say."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_or_explain(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """`write_atomically`. Raises SettingsError if the file cannot be written."""
    try:
        write_atomically(path, write)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written ({error.strerror})") from error


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
