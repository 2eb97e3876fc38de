"""Datasets known by name: bundled with the package, or fetched once into the user's cache folder."""

from __future__ import annotations

import hashlib
import io
import os
import re
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock

from mlp_lm.errors import DataError
from mlp_lm.files import write_atomically

TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web with a known checksum."""

    url: str
    sha256: str  # of the file in the cache folder
    file_name: str
    convert: Callable[[bytes], bytes] | None = None  # from what is downloaded to that file
    # The published split cuts after these numbers of tokens, line ends dropped, instead of at 80 % and 90 %.
    cuts: tuple[int, int] | None = None


def brown_text(archive: bytes) -> bytes:
    """Extract the Brown corpus from NLTK's zip file: one sentence per line, tokens between spaces, without tags."""
    lines = []
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        for name in sorted(name for name in files.namelist() if re.fullmatch(r"brown/c[a-r]\d\d", name)):
            sentences = map(str.split, files.read(name).decode().splitlines())
            lines += [" ".join(token.rpartition("/")[0] for token in sentence) for sentence in sentences if sentence]
    return "".join(f"{line}\n" for line in lines).encode()


DATASETS: dict[str, Path | RemoteFile] = {
    "names": Path(__file__).with_name("names.txt"),
    "makemore": RemoteFile(
        url="https://raw.githubusercontent.com/karpathy/makemore/master/names.txt",
        sha256="0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
        file_name="makemore_names.txt",
    ),
    "shakespeare": RemoteFile(
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        file_name="tinyshakespeare.txt",
    ),
    "brown": RemoteFile(
        url="https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/corpora/brown.zip",
        sha256="1c2bc5499dfabffb49758b2d93a78a83b567695ae3abc905bb84bf1ff0dc1587",
        file_name="brown.txt",
        convert=brown_text,
        cuts=(800_000, 1_000_000),  # Bengio et al. (2003, section 4.1)
    ),
}


def resolve_path(path: str) -> Path:
    """Return the file that a path or the name of a dataset refers to. Raises DataError if it cannot be fetched."""
    dataset = DATASETS.get(path)
    if isinstance(dataset, RemoteFile):
        return fetch(dataset, cache_folder())
    if path == "~":  # a file of that name, since the home folder is not a text
        return Path(path)
    return dataset or Path(os.path.expanduser(path))  # unlike Path.expanduser, keeps the ~ of an unknown user


def cache_folder() -> Path:
    """Return `$MLP_LM_CACHE`, or `mlp_lm` in the user's cache folder."""
    if own := os.environ.get("MLP_LM_CACHE"):
        return Path(own)
    base = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "mlp_lm"


def fetch(remote: RemoteFile, folder: Path) -> Path:
    """Return the copy of `remote` in `folder`, downloading it first if necessary; one process does, others wait.

    Raises DataError if it cannot be fetched, or if the copy has the wrong checksum.
    """
    target = folder / remote.file_name
    own_copy = "or name your own copy by its path"
    try:
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{target}.lock"):
                if not target.exists():
                    _download(remote, target)
        found = hashlib.sha256(target.read_bytes()).hexdigest()
    except (OSError, HTTPException, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"could not fetch {remote.url} ({error}); put the file at {target}, {own_copy}") from error
    if found != remote.sha256:
        raise DataError(f"{target}: sha256 {found[:12]}…, expected {remote.sha256[:12]}…; delete the file, {own_copy}")
    return target


def _download(remote: RemoteFile, target: Path) -> None:
    with urllib.request.urlopen(remote.url, timeout=TIMEOUT_SECONDS) as response:
        content = response.read()
    if remote.convert is not None:
        content = remote.convert(content)
    if (found := hashlib.sha256(content).hexdigest()) != remote.sha256:
        raise ValueError(f"received sha256 {found[:12]}…, expected {remote.sha256[:12]}…")
    write_atomically(target, lambda file: file.write(content))
