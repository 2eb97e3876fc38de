"""Hostile input for `fuzz.py`: a maker fills the working folder with files and gives the command line of one case."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mlp_lm.settings import RANGES

TINY = ["--model.embedding_dim=2", "--model.hidden_dim=4", "--model.lr_warmup_steps=0", "--data.context_size=2"]
TINY += ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.logger=false", "--data.batch_size=16"]
FIT = ["fit", "--run_dir=run", *TINY]
GOOD = {"items.txt": b"", "good.ckpt": b"", "counts.npz": b"", "mixture.npz": b""}  # `fuzz.prepare` fills them


class Case(NamedTuple):
    """One command line, and the files or folders that it may write."""

    args: list[str]
    asked: tuple[str, ...] = ()
    large: bool = False  # honest work that takes longer than other cases may


Maker = Callable[[random.Random], Case]

# -- values --------------------------------------------------------------------------------------------------------

NUMBERS: list[Any] = [0, -1, 1, 2, 7, 2**20, 2**31, 2**63, 2**64, -(2**63), 10**30, 1e308, -0.0, 1e-320, 0.5]
NUMBERS += [float("nan"), float("inf"), -float("inf"), True, False, None]
TEXTS = [
    "",
    ".",
    "a",
    "names",
    "../../x",
    "/",
    "~no_such_user/x",
    "s3://b/k",
    "a\0b",
    "\ud800",
    "\u202eabc",
    "e\u0301" * 9,
]
TEXTS += [
    "\U0001f9d1\u200d\U0001f680",
    "\x1b[31m",
    "a\nb",
    "\u2028",
    "9" * 5000,
    "0x" + "f" * 5000,
    "[" * 5000,
    "x" * 10**6,
]
TEXTS += ["!!python/object/apply:os.system [touch pwned]", "&a [*a]", "${HOME}", "{a: 1}", "1e400", "1_0", "2001-01-01"]
ALPHABETS = [
    "abc",
    "אבגד\u202e\u200f",
    "e\u0301\u0316\u0327",
    "\x00\x0b\x1c\x85\u2028",
    "漢字かな",
    "\U0001f600😀\ufe0f\u200d",
    " \t\u3000",
]


def value(rng: random.Random, depth: int = 2) -> Any:
    """A number, a text, or a small list or mapping of such."""
    kind = rng.randrange(6)
    if kind < 3 or depth == 0:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(TEXTS)
    values = [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return values if rng.random() < 0.5 else {str(k): v for k, v in enumerate(values)}


def damage(rng: random.Random, data: bytes) -> bytes:
    """`data` cut off, with bytes flipped, with a part repeated or missing, or nothing but noise."""
    kind, at = rng.randrange(5), rng.randrange(len(data))
    if kind == 0:
        return data[:at]
    if kind == 1:
        flipped = bytearray(data)
        for _ in range(rng.choice([1, 10, 100])):
            flipped[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(flipped)
    if kind == 2:
        return data[:at] + data[rng.randrange(len(data)) :]
    if kind == 3:
        return data + rng.randbytes(rng.randrange(100))
    return rng.randbytes(rng.choice([0, 1, 10, 1000, 100_000]))


def change(rng: random.Random, content: Any) -> Any:
    """`content` with one part of it, at any depth, replaced, dropped or changed a little."""
    if isinstance(content, dict) and content and rng.random() < 0.9:
        key = rng.choice([*content])
        rest = {k: v for k, v in content.items() if k != key}
        return rest if rng.random() < 0.1 else {**rest, key: change(rng, content[key])}
    if isinstance(content, list) and content and rng.random() < 0.8:
        at = rng.randrange(len(content))
        return [*content[:at], change(rng, content[at]), *content[at + 1 :]]
    if isinstance(content, torch.Tensor) and rng.random() < 0.9:
        return change_tensor(rng, content)
    return value(rng)


def change_tensor(rng: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    """Another type, shape, size or content; among them tensors that claim to be far larger than they are."""
    changes: list[Callable[[], torch.Tensor]] = [
        lambda: tensor.to(rng.choice([torch.float64, torch.int64, torch.complex64, torch.bool, torch.bfloat16])),
        lambda: tensor.flatten()[: rng.randrange(3)],
        lambda: torch.full_like(tensor, rng.choice([0, 1, 100])),
        lambda: tensor.double() * 1e38,
        lambda: tensor.new_zeros(1).expand(rng.choice([10, 2**20, 2**40])),
        lambda: tensor[None],
        lambda: tensor.to_sparse(),
        lambda: torch.empty(tensor.shape, device="meta"),
    ]
    return rng.choice(changes)()


# -- corpora -------------------------------------------------------------------------------------------------------


def corpus(rng: random.Random) -> Case:
    """A text file of any bytes, read by each command that reads one."""
    kind = rng.randrange(6)
    if kind == 0:
        data = damage(rng, GOOD["items.txt"])
    elif kind == 1:
        data = rng.randbytes(rng.randrange(2000)).replace(b"\xff", b"\n")
    else:
        alphabet = "".join(rng.choices(ALPHABETS, k=rng.randrange(1, 4))) + "ab"
        lines = [
            "".join(rng.choices(alphabet, k=rng.choice([0, 1, 5, 40]))) for _ in range(rng.choice([1, 6, 50, 300]))
        ]
        data = rng.choice(["\n", "\r\n", "\r"]).join(lines).encode(rng.choice(["utf-8"] * 5 + ["utf-8-sig", "utf-16"]))
    name = rng.choice(["hostile.txt", "hostile.txt", "...txt", ".txt", "\u202etxt", "a b'$(x).txt", "names "])
    Path(name).write_bytes(data)
    if rng.random() < 0.15:
        return Case([*FIT, f"--data.path={name}"], ("run",))
    if rng.random() < 0.05:  # a run named after its data
        return Case(["fit", f"--data.path={name}", *TINY], ("runs",))
    if rng.random() < 0.5:
        return Case(["score", rng.choice(["good.ckpt", "counts.npz"]), name, *rng.choice([[], ["--skip_unknown"]])])
    return Case(["ngram", name, "--orders=1,3", "--smoothing", rng.choice(["mkn", "add_k", "interpolated", "none"])])


# -- configs -------------------------------------------------------------------------------------------------------

# A run on 7 nodes waits for them, one on 7 devices starts as many processes, and one of a million steps takes its time.
LEFT_OUT = ("model.vocab_size", "trainer.max_steps", "trainer.num_nodes", "trainer.devices")
SETTINGS = [name for name in RANGES if "." in name and name not in LEFT_OUT]
SETTINGS += ["seed_everything", "run_dir", "report_test", "ckpt_path", "config", "data", "model", "trainer", "model.x"]
SETTINGS += [f"trainer.{name}" for name in ("accelerator", "strategy")]
SETTINGS += [f"trainer.{name}" for name in ("callbacks", "deterministic", "profiler", "logger")]
BASE: dict[str, Any] = {"data": {"path": "items.txt"}, "model": {"hidden_dim": 4}, "trainer": {"max_steps": 2}}
LAUGHS = "a0: &a0 [lol]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(30))
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{i + 1}: &a{i + 1} {{<<: [{', '.join([f'*a{i}'] * 9)}]}}\n" for i in range(30))
YAMLS = [LAUGHS, LAUGHS + "data: *a30\n", MERGES, "data: &d {path: *d}\n", "&r [*r]", "[" * 20_000, "{a: " * 5_000]
YAMLS += [
    "- " * 50_000,
    "data: !!python/object/apply:os.system ['touch pwned']",
    "!!python/name:os.system",
    "--- 1\n--- 2",
]
YAMLS += ["data:\n  path: !!binary aXRlbXM=\n", "x" * 10**6, "? [a, b]\n: c", "data: !!set {a, b}", "a: " + "9" * 5_000]
YAMLS += ["? " * 5_000 + "a", "data: {path: 'a\\0b'}", '"\\0": 1', 'data: {path: "\\uD800"}', "data: 0x" + "f" * 5_000]
YAMLS += ["config: hostile.yaml", "trainer: {callbacks: [{class_path: os.system, init_args: {command: touch pwned}}]}"]


def as_yaml(settings: dict[str, Any]) -> bytes:
    """JSON, which is YAML, too."""
    return (
        json.dumps(settings).replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf").encode()
    )


def config(rng: random.Random) -> Case:
    """A config that is no YAML, hostile YAML, or has hostile values; or the same as flags."""
    name, flags = "hostile.yaml", TINY
    settings: dict[str, Any] = {section: dict(values) for section, values in BASE.items()}
    for key in rng.choices(SETTINGS, k=rng.choice([1, 1, 2, 5])):
        section, _, setting = key.rpartition(".")
        part = settings.setdefault(section, {}) if section else settings
        if isinstance(part, dict):
            part[setting] = value(rng)
            flags = [flag for flag in flags if not flag.startswith(f"--{key}=")]
    if rng.random() < 0.3:
        pairs = [(f"{s}.{k}", v) for s, vs in settings.items() if isinstance(vs, dict) for k, v in vs.items()]
        return Case([*FIT[:2], *flags, *(f"--{k}={v}" for k, v in pairs)], ("run",))
    data = as_yaml(settings)
    if rng.random() < 0.4:
        data = rng.choice([rng.choice(YAMLS).encode(), damage(rng, data), damage(rng, rng.choice(YAMLS).encode())])
    if rng.random() < 0.1:
        name = rng.choice(
            ["...yaml", ".yaml", "..", "s3://b/x.yaml", "/dev/zero", "a\0b", "~no_such_user/x", "\u202e.yaml"]
        )
    if "/" not in name and "\0" not in name and name != "..":
        Path(name).write_bytes(data)
    place = rng.choice([["--run_dir=run"], []])
    named = settings.get("run_dir")
    asked = ("run", "runs", named) if named and isinstance(named, str) else ("run", "runs")
    return Case(["fit", "--config", name, "--data.path=items.txt", *place, *flags], asked)


# -- checkpoints and count files -----------------------------------------------------------------------------------


class Evil:
    """A pickle that runs a command when it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


def readers(rng: random.Random, name: str) -> Case:
    """The commands that read a checkpoint or count file."""
    commands = [["sample", name, "--num=2"], ["score", name, "items.txt"]] * 2
    commands += [
        ["ngram", f"--mix={name}", "--orders=2"],
        ["validate", "--ckpt_path", name],
        ["fit", "--ckpt_path", name],
    ]
    args = rng.choice(commands)
    if args[0] == "fit":  # continues in the checkpoint's own folder
        Path("mine").mkdir()
        Path(name).rename(f"mine/{name}")
        return Case(
            ["fit", "--ckpt_path", f"mine/{name}", "--trainer.max_steps=4", "--trainer.logger=false"], ("mine",)
        )
    return Case(args)


def checkpoint(rng: random.Random) -> Case:
    """A checkpoint that is damaged, lies, or is none."""
    name = rng.choice(["hostile.ckpt"] * 9 + ["hostile.npz"])
    if rng.random() < 0.3:
        Path(name).write_bytes(damage(rng, GOOD["good.ckpt"]))
    elif rng.random() < 0.1:
        evil: Any = rng.choice([Evil(), {"mlp_lm": Evil()}, [Evil()] * 3])
        if rng.random() < 0.5:
            torch.save(evil, name)
        else:
            Path(name).write_bytes(pickle.dumps(evil))
    else:
        content = torch.load(io.BytesIO(GOOD["good.ckpt"]), weights_only=True)
        part = rng.choice(["mlp_lm", "TextDataModule", "state_dict", None])
        changed = change(rng, content) if part is None else {**content, part: change(rng, content[part])}
        torch.save(changed, name)
        if rng.random() < 0.1:
            repack(name, zipfile.ZIP_DEFLATED)
    return readers(rng, name)


def count_file(rng: random.Random) -> Case:
    """A count file or mixture that is damaged, lies, or is none."""
    good = GOOD[rng.choice(["counts.npz", "mixture.npz"])]
    arrays: dict[str, Any] = dict(np.load(io.BytesIO(good)))
    if rng.random() < 0.3:
        Path("hostile.npz").write_bytes(damage(rng, good))
        return readers(rng, "hostile.npz")
    if rng.random() < 0.5:
        header = change(rng, json.loads(str(arrays["header"])))
        arrays["header"] = np.array(json.dumps(header))
    else:
        name = rng.choice([*arrays])
        old = arrays[name]
        arrays[name] = rng.choice(
            [
                old.astype(object),
                np.array([Evil()]),
                old[..., None],
                old.ravel()[: rng.randrange(3)],
                np.zeros(3, rng.choice(["f4", "c16", "i8", "U1", "V8", "?", "M8[s]", "f2"])),
                np.full(old.shape, rng.choice([np.nan, np.inf, -1, 1e308, 0])),
            ]
        )
    if rng.random() < 0.1:
        del arrays[rng.choice([*arrays])]
    np.savez_compressed("hostile.npz", **arrays)
    return readers(rng, "hostile.npz")


def repack(name: str, method: int) -> None:
    """Write a zip file again, its entries packed by `method`."""
    with zipfile.ZipFile(name) as file:
        entries = [(info.filename, file.read(info)) for info in file.infolist()]
    with zipfile.ZipFile(name, "w", method) as file:
        for entry, data in entries:
            file.writestr(entry, data)


# -- paths and flags -----------------------------------------------------------------------------------------------

PATHS = ["../x{}", "../../x{}", "{root}/x{}", "a\0b{}", "", ".", "..", "folder", "folder/x{}", "none/x{}", "s3://b/x{}"]
PATHS += [
    "file:///x{}",
    "gs://b/x{}",
    "~no_such_user/x{}",
    "~/x{}",
    "x" * 300 + "{}",
    "a\nb{}",
    "\u202ex{}",
    "\udcff{}",
    "-{}",
]
PATHS += [
    "items.txt",
    "good.ckpt",
    "link{}",
    "hard{}",
    "items.txt/x{}",
    "pipe{}",
    "none/y",
    "e\u0301{}",
    "...{}",
]


def path(rng: random.Random) -> Case:
    """An output under a name that is a trick."""
    root = str(Path.cwd().parent.parent)
    flag, suffix = rng.choice(
        [("output", ".csv"), ("save", ".npz"), ("json", ".json"), ("plot", ".svg"), ("run_dir", "")]
    )
    Path("folder").mkdir()
    os.symlink("items.txt", f"link{suffix}")
    os.link("items.txt", f"hard{suffix}")
    name = rng.choice(PATHS).replace("{root}", root).replace("{}", suffix)
    asked = () if "://" in name or not name or "\0" in name else (os.path.expanduser(name),)
    if flag == "output":
        return Case(["score", "good.ckpt", "items.txt", f"--output={name}"], asked)
    if flag == "run_dir":
        return Case(["fit", f"--run_dir={name}", "--data.path=items.txt", *TINY], asked)
    return Case(["ngram", "items.txt", "--orders=1,2", f"--{flag}={name}"], asked)


def flags(rng: random.Random) -> Case:
    """Sampling and counting with hostile numbers and texts."""
    names = rng.choice(
        [["prompt", "num", "temperature", "top_k", "top_p", "seed", "max_length"], ["orders", "split_seed"]]
    )
    given = [f"--{name}={value(rng)}" for name in rng.choices(names, k=rng.choice([1, 2, 3]))]
    if "orders" in names:
        return Case(["ngram", "items.txt", *given])
    model = rng.choice(["good.ckpt", "counts.npz", "mixture.npz"])
    return Case(["sample", model, "--num=2", *given], large="--num=1048576" in given)  # a million items take a while


MAKERS: list[Maker] = [corpus, corpus, config, config, checkpoint, checkpoint, count_file, count_file, path, flags]
