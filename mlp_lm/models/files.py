"""Writing a file whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO


def is_one_of(path: str | os.PathLike[str], others: Iterable[str | os.PathLike[str]]) -> bool:
    """Whether `path` is one of the `others` under the same or another name, a link for example."""
    there = [other for other in others if os.path.exists(other)]
    return os.path.exists(path) and any(os.path.samefile(path, other) for other in there)


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file so that `path` holds, at any moment, the old file or the new one, never half of it.

    Raises OSError, also where `path` is a device, a pipe or a folder.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # renaming would put a file in the place of a device
        raise OSError(errno.EINVAL, "no regular file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the new name, too, must survive a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
