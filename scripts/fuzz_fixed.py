"""The cases that must be among those of `fuzz.py`, whatever the seed; see `fuzz_cases.py`."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fuzz_cases import FIT, GOOD, YAMLS, Case, Maker, readers


def bomb(good: bytes, entry: str, start: bytes, gigabytes: int) -> bytes:
    """The zip file `good` with one entry replaced by `start` and then gigabytes of zeros, deflated a thousandfold."""
    deflate = zlib.compressobj(9, wbits=-15)
    head = deflate.compress(start) + deflate.flush(zlib.Z_FULL_FLUSH)
    block = deflate.compress(bytes(2**24)) + deflate.flush(zlib.Z_FULL_FLUSH)
    packed = head + block * (64 * gigabytes) + deflate.flush()
    size = len(start) + (gigabytes << 30)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            if info.filename != entry:
                new.writestr(info.filename, old.read(info))
        at = buffer.tell()
        new.writestr(entry, packed)
        new.getinfo(entry).compress_type, new.getinfo(entry).file_size = zipfile.ZIP_DEFLATED, min(size, 2**32 - 2)
    data = bytearray(buffer.getvalue())
    data[at + 8 : at + 10] = struct.pack("<H", zipfile.ZIP_DEFLATED)
    data[at + 22 : at + 26] = struct.pack("<I", min(size, 2**32 - 2))
    return bytes(data)


def truncation(name: str, percent: int) -> Maker:
    """The first so many percent of a good file."""

    def truncated(rng: random.Random) -> Case:
        Path(f"hostile{name[-5:]}").write_bytes(GOOD[name][: len(GOOD[name]) * percent // 100])
        return readers(rng, f"hostile{name[-5:]}")

    return truncated


def written(data: Callable[[], bytes], name: str, *args: str) -> Maker:
    """A file of fixed content, and a command that reads it."""

    def fixed(_: random.Random) -> Case:
        Path(name).write_bytes(data())
        return Case([*args], ("run",), large=data() is MANY)

    return fixed


def bombed(good: str, start: bytes) -> Callable[[], bytes]:
    """A good zip file, one of its larger entries unpacking to three gigabytes."""

    def build() -> bytes:
        with zipfile.ZipFile(io.BytesIO(GOOD[good])) as file:
            entry = next(name for name in file.namelist() if name.endswith(("data/0", "level1_probs.npy")))
        return bomb(GOOD[good], entry, start, 3)

    return build


def with_parts(part: str, **values: Any) -> Callable[[], bytes]:
    """The good checkpoint with other values in a part of it."""

    def build() -> bytes:
        content = torch.load(io.BytesIO(GOOD["good.ckpt"]), weights_only=True)
        ours = content["mlp_lm"]
        parts = {"data": content["TextDataModule"], "ours": ours, "model": ours["model"], "trainer": ours["trainer"]}
        parts[part].update(values)
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    return build


def raw_pickle(body: bytes) -> Callable[[], bytes]:
    """A zip file as torch writes it, whose pickle is `body`."""

    def build() -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            for name, data in (("data.pkl", b"\x80\x02" + body + b"."), ("byteorder", b"little"), ("version", b"3\n")):
                file.writestr(f"archive/{name}", data)
        return buffer.getvalue()

    return build


NPY = (
    b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (402653184,), }".ljust(117) + b"\n"
)
NESTED = b"}K\x01\x85q\x00" + b"".join(b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60)) + b"K\x01s"
LETTERS = [chr(i) for i in range(0x4E00, 0x4E00 + 20_000)] + [chr(i) for i in range(0x20000, 0x20000 + 80_000)]
MANY = "\n".join("".join(LETTERS[i : i + 5]) for i in range(0, 100_000, 5)).encode()
MARKS = ("a" + "\u0301\u0316" * 400_000 + "\n" + "b\nc\nd\ne\nf\ng\n").encode()
COUNT = ["ngram", "h.txt", "--orders=2"]
FIXED: list[Maker] = [truncation(name, percent) for name in ("good.ckpt", "counts.npz") for percent in range(100)]
FIXED += [
    written(bombed("good.ckpt", b""), "h.ckpt", "sample", "h.ckpt"),
    written(bombed("counts.npz", NPY), "h.npz", "sample", "h.npz"),
    written(bombed("mixture.npz", NPY), "h.npz", "score", "h.npz", "items.txt"),
    written(with_parts("model", hidden_dim=2**16), "h.ckpt", "sample", "h.ckpt"),
    written(with_parts("model", num_layers=1000, hidden_dim=2**16), "h.ckpt", "sample", "h.ckpt"),
    written(with_parts("model", embedding_dim=10**12), "h.ckpt", "validate", "--ckpt_path=h.ckpt"),
    written(with_parts("data", longest_item=2**30), "h.ckpt", "sample", "h.ckpt"),
    written(raw_pickle(NESTED), "h.ckpt", "sample", "h.ckpt"),
    written(raw_pickle(b"cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R"), "h.ckpt", "sample", "h.ckpt"),
    written(lambda: MARKS, "h.txt", *COUNT),
    written(lambda: MARKS, "h.txt", *COUNT, "--max_item_length=2000000"),
    written(lambda: b"a" * 10**6 + b"\nb\nc\nd\ne\nf\n", "h.txt", *COUNT),
    written(lambda: b"a" * 10**6 + b"\nb\nc\nd\ne\nf\n", "h.txt", "score", "good.ckpt", "h.txt"),
    written(lambda: b"z" * 10**6 + b"\nb\nc\nd\ne\nf\n", "h.txt", "score", "good.ckpt", "h.txt"),
    written(
        lambda: b"ab\n" * 10 + b"a" * 10**6 + b"\nb\nc\nd\n",
        "h.txt",
        *FIT,
        "--data.path=h.txt",
        "--data.unique=false",
        "--data.max_item_length=2000000",
    ),
    written(lambda: MANY, "h.txt", "score", "good.ckpt", "h.txt"),
    written(
        lambda: MANY,
        "h.txt",
        "fit",
        "--data.path=h.txt",
        "--run_dir=run",
        "--trainer.max_steps=1",
        "--report_test=false",
    ),
    *(written(text.encode, "h.yaml", "fit", "--config=h.yaml", *FIT[1:]) for text in YAMLS),
    written(lambda: b"", "h.txt", "score", "good.ckpt", "/dev/zero"),
    written(lambda: b"", "h.txt", "ngram", "/dev/zero"),
    written(lambda: b"", "h.txt", "sample", "/dev/zero"),
    written(lambda: b"", "h.txt", "sample", "good.ckpt", "--max_length=2147483647"),
    written(lambda: b"", "h.txt", *FIT, "--data.path=items.txt", "--model.hidden_dim=65536", "--model.num_layers=1000"),
    written(lambda: b"", "h.txt", *FIT, "--data.path=items.txt", "--trainer.devices=1000000000"),
    written(lambda: b"", "h.txt", *FIT, "--data.path=items.txt", "--trainer.num_nodes=1000000000"),
    written(with_parts("trainer", callbacks=[{"class_path": "os.system"}]), "h.ckpt", "validate", "--ckpt_path=h.ckpt"),
    written(with_parts("trainer", devices=7), "h.ckpt", "validate", "--ckpt_path=h.ckpt"),
    written(
        with_parts("ours", since_log=[torch.zeros(3_000_000), torch.ones(3_000_000)]),
        "h.ckpt",
        "validate",
        "--ckpt_path=h.ckpt",
    ),
    written(raw_pickle(b"](" + b"\x8f" * 2_900_000 + b"e"), "h.ckpt", "sample", "h.ckpt"),
]
