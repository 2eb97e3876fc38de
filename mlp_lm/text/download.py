"""Datasets known by name: fetched once into the user's cache folder, checked, and never left there half."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from mlp_lm.errors import DataError

TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web whose content is known."""

    url: str
    sha256: str
    file_name: str  # in the cache folder


MAKEMORE = RemoteFile(
    url="https://raw.githubusercontent.com/karpathy/makemore/master/names.txt",
    sha256="0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
    file_name="makemore_names.txt",
)


def cache_folder() -> Path:
    """`$MLP_LM_CACHE`, else `mlp_lm` in the user's cache folder."""
    if own := os.environ.get("MLP_LM_CACHE"):
        return Path(own)
    base = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "mlp_lm"


def fetch(remote: RemoteFile, folder: Path) -> Path:
    """The local copy of `remote` in `folder`, downloaded first where there is none.

    Processes that ask at the same time wait for the one that downloads. The file appears under its final name
    only when its checksum is right. Raises DataError that says where to put the file by hand.
    """
    from filelock import FileLock

    target = folder / remote.file_name
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == remote.sha256:
        return target  # no lock needed, which a read-only folder could not hold
    with _advice(remote, target):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{remote.file_name}.lock"):
            if not target.exists():
                _download(remote, target)
            elif (found := hashlib.sha256(target.read_bytes()).hexdigest()) != remote.sha256:
                raise OSError(f"{target} has sha256 {found[:12]}…, expected {remote.sha256[:12]}…: delete it")
    return target


@contextmanager
def _advice(remote: RemoteFile, target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a header that is no number
        reason = getattr(error, "reason", None) or error
        status = f"HTTP {error.code} " if isinstance(error, urllib.error.HTTPError) else ""
        raise DataError(
            f"could not fetch {remote.url} ({status}{reason}); put the file at {target}, "
            "or name your own copy with --data.path FILE"
        ) from error


def _download(remote: RemoteFile, target: Path) -> None:
    part = target.with_name(f"{target.name}.part")  # the lock leaves it to one process
    digest, received = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(remote.url, timeout=TIMEOUT_SECONDS) as response, part.open("wb") as file:
            while block := response.read(1 << 16):
                file.write(block)
                digest.update(block)
                received += len(block)
            announced = response.headers.get("Content-Length")
        if announced is not None and received != int(announced):
            raise OSError(f"cut off after {received:,} of {int(announced):,} bytes")
        if digest.hexdigest() != remote.sha256:
            raise OSError(f"received sha256 {digest.hexdigest()[:12]}…, expected {remote.sha256[:12]}…")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
