"""From a file to its text or its items: UTF-8, NFC, line feeds, and one clear error for what cannot be read."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from mlp_lm.errors import DataError
from mlp_lm.text.datasets import DATASETS
from mlp_lm.text.tokenizer import BLOCK


def read_text(path: Path) -> str:
    """Read a whole text file; see `read_pieces`."""
    return "".join(read_pieces(path))


def read_pieces(path: Path) -> Iterator[str]:
    """Read a text file in pieces of whole lines, each decoded by `decode_text`.

    Raises DataError if the file cannot be read.
    """
    lines = 0
    try:
        with path.open("rb") as file:
            while data := file.read(BLOCK) + file.readline():
                yield decode_text(data, path, lines)
                lines += data.count(b"\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected a text file, or one of: {', '.join(DATASETS)}") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder; expected a text file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def read_running_text(path: Path) -> Iterator[str]:
    """`read_pieces`; raises DataError at the end if the file is empty or has only white space."""
    empty = invisible = True
    for piece in read_pieces(path):
        empty, invisible = False, invisible and piece.isspace()
        yield piece
    if invisible:
        raise DataError(f"{path}: {'an empty file' if empty else 'only white space'}; expected running text")


def decode_text(data: bytes, path: Path, lines_before: int = 0) -> str:
    """Decode UTF-8 to NFC-normalised text without a byte order mark, every line end a line feed.

    Args:
        data: The bytes.
        path: Where they come from, for the error.
        lines_before: How many lines of the file precede them.

    Raises:
        DataError: The bytes are not UTF-8; names `path` and the line.
    """
    if not lines_before:
        data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = lines_before + data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise DataError(
            f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x} at byte {column} of the line); "
            "convert the file to UTF-8"
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # Windows and classic Mac OS
    return unicodedata.normalize("NFC", text)


def parse_items(text: str, path: Path, max_item_length: int | None = None) -> list[str]:
    """Split a text into items: its lines without surrounding white space, empty ones skipped.

    Raises DataError if there are none or one is too long; names `path` and, if possible, the line.
    """
    items = [item for line in text.split("\n") if (item := line.strip())]
    if not items:
        raise DataError(f"{path}: {'only blank lines' if text else 'an empty file'}; expected one item a line")
    if max_item_length is not None and max(map(len, items)) > max_item_length:
        for number, line in enumerate(text.split("\n"), start=1):
            if (length := len(line.strip())) > max_item_length:
                raise DataError(
                    f"{path}:{number}: an item of {length:,} characters, at most {max_item_length:,} are allowed; "
                    "is this one item a line? If so, raise max_item_length"
                )
    return items
