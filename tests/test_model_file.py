"""Counts, mixtures and exported networks in one file: whole or refused, whatever happened to it."""

from __future__ import annotations

import errno
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from mlp_lm import load
from mlp_lm.cli import main
from mlp_lm.errors import CheckpointError
from mlp_lm.models import model_file
from tests.conftest import Capture, error_of

KINDS = ["counts", "network", "mixture"]


@pytest.fixture(scope="module")
def folder(best: Path, good: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each kind, named after it; read only."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "counts.safetensors").write_bytes(good["counts.safetensors"])
    assert main(["export", str(best), "--format=safetensors", f"--output={folder / 'network.safetensors'}"]) == 0
    files = [str(best), str(folder / "counts.safetensors")]
    assert main(["mix", *files, f"--save={folder / 'mixture.safetensors'}"]) == 0
    return folder


def assert_refused(path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: damaged, or not written by mlp_lm"


@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_goes_unnoticed(kind: str, folder: Path, tmp_path: Path) -> None:
    content, path = (folder / f"{kind}.safetensors").read_bytes(), tmp_path / "damaged.safetensors"
    tensors = 8 + int.from_bytes(content[:8], "little")
    rng = random.Random(1)
    for region in (range(8), range(8, tensors), range(tensors, len(content))):  # length of the header, header, tensors
        for bit in rng.sample(range(8 * region.start, 8 * region.stop), 60):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            assert_refused(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_refused_wherever_it_ends(kind: str, folder: Path, tmp_path: Path) -> None:
    content, path = (folder / f"{kind}.safetensors").read_bytes(), tmp_path / "damaged.safetensors"
    for percent in range(100):
        path.write_bytes(content[: len(content) * percent // 100])
        assert_refused(path)


# -- files that are whole, but not ours --------------------------------------------------------------------------------

Change = Callable[[Any, dict[str, Tensor]], object]


def rewritten(path: Path, copy: Path, change: Change) -> Path:
    """A copy whose header and tensors are changed, with the right digest."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["mlp_lm"])
    tensors = safetensors.torch.load_file(path)
    change(header, tensors)
    text = json.dumps(header)
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {[*tensor.shape]}\n".encode() + tensor.numpy().tobytes())
    safetensors.torch.save_file(tensors, copy, {"mlp_lm": text, "sha256": digest.hexdigest()})
    return copy


def leave_out_a_token(header: Any, tensors: dict[str, Tensor]) -> None:
    """Make a file of counts one of order 1 that knows a token less."""
    for name in [name for name in tensors if "level2" in name or "level3" in name]:
        del tensors[name]
    tensors |= {f"part0.level1.{name}": tensors[f"part0.level1.{name}"][1:] for name in ("keys", "probs")}
    header["parts"][0].update(context_size=1, sizes={"order": 1})


CHANGES: dict[str, Change] = {
    "no vocabulary": lambda header, tensors: header.pop("vocab"),
    "another entry": lambda header, tensors: header.update(more=1),
    "a text for a number": lambda header, tensors: header.update(longest_item="7"),
    "a number for a text": lambda header, tensors: header["vocab"].__setitem__(1, 7),
    "a shorter vocabulary": lambda header, tensors: header["vocab"].pop(),
    "a repeated token": lambda header, tensors: header["vocab"].__setitem__(1, header["vocab"][2]),
    "no boundary": lambda header, tensors: header["vocab"].__setitem__(0, "x"),
    "an unknown layout": lambda header, tensors: header["data"].update(layout="poem"),
    "no parts": lambda header, tensors: header["parts"].clear(),
    "an unknown kind": lambda header, tensors: header["parts"][0].update(kind="magic"),
    "another context": lambda header, tensors: header["parts"][0].update(context_size=9),
    "no sizes": lambda header, tensors: header["parts"][0]["sizes"].clear(),
    "a cache with tensors": lambda header, tensors: header["parts"][0].update(kind="cache"),
    "one more tensor": lambda header, tensors: tensors.update(more=torch.ones(2)),
    "one tensor less": lambda header, tensors: tensors.pop(max(tensors, key=lambda name: name.startswith("part"))),
    "the items of two splits": lambda header, tensors: tensors.pop("dev_hashes"),
    "hashes that are no integers": lambda header, tensors: tensors.update(dev_hashes=torch.ones(2)),
    "nothing": lambda header, tensors: header.clear(),
}
CHANGES_OF_COUNTS: dict[str, Change] = {
    "32 bits": lambda header, tensors: tensors.update({"part0.level2.probs": tensors["part0.level2.probs"].float()}),
    "one key less": lambda header, tensors: tensors.update({"part0.level2.keys": tensors["part0.level2.keys"][1:]}),
    "keys not sorted": lambda header, tensors: tensors.update(
        {"part0.level2.keys": tensors["part0.level2.keys"].flip(0)}
    ),
    "large keys": lambda header, tensors: tensors.update({"part0.level2.keys": tensors["part0.level2.keys"] + 10**6}),
    "one probability less": lambda header, tensors: tensors.update(
        {"part0.level3.probs": tensors["part0.level3.probs"][1:]}
    ),
    "a token less": leave_out_a_token,
    "another order": lambda header, tensors: header["parts"][0]["sizes"].update(order=2),
}
CHANGES_OF_NETWORKS: dict[str, Change] = {
    "64 bits": lambda header, tensors: tensors.update({"part0.output.bias": tensors["part0.output.bias"].double()}),
    "another layer": lambda header, tensors: header["parts"][0]["sizes"].update(num_layers=2),
    "another width": lambda header, tensors: header["parts"][0]["sizes"].update(hidden_dim=17),
    "an unknown size": lambda header, tensors: header["parts"][0]["sizes"].update(depth=1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_header_that_does_not_fit_is_refused_although_the_digest_does(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    original, copy = folder / f"{kind}.safetensors", tmp_path / "copy.safetensors"
    assert load(rewritten(original, copy, lambda header, tensors: None)).kind == kind
    own = CHANGES_OF_COUNTS if kind == "counts" else CHANGES_OF_NETWORKS
    for name, change in {**CHANGES, **own}.items():
        print(name)
        assert_refused(rewritten(original, copy, change))


def test_what_is_not_read_is_one_line(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    (old := tmp_path / "counts.npz").touch()
    safetensors.torch.save_file({"weight": torch.ones(2)}, foreign := tmp_path / "gpt2.safetensors", {"format": "pt"})
    newer = rewritten(
        folder / "counts.safetensors",
        tmp_path / "newer.safetensors",
        lambda header, tensors: header.update(format_version=2, new=True),
    )
    for file, expected in (
        (old, "counts.npz: written by an older mlp_lm; re-create it with ngram --save or mix --save\n"),
        (foreign, "gpt2.safetensors: damaged, or not written by mlp_lm\n"),
        (
            newer,
            "newer.safetensors: format 2, but this mlp_lm reads 1; install a newer mlp_lm, or re-create the file\n",
        ),
        (tmp_path / "gone.safetensors", "gone.safetensors: no such file; expected a checkpoint or a run folder\n"),
    ):
        for args in (["sample"], ["score", "--item=anna"], ["mix", str(folder / "counts.safetensors")], ["export"]):
            assert error_of([*args, str(file)], capsys).endswith(expected)
    for args in (["validate", "--ckpt_path"], ["fit", "--ckpt_path"]):
        error = error_of([*args, str(folder / "counts.safetensors")], capsys)
        assert error.endswith("counts.safetensors: not a training checkpoint; expected the .ckpt file of a run\n")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EIO, "Input/output error"), "counts.safetensors: cannot be read (Input/output error)"),
        (MemoryError(), "out of memory; use a smaller"),
    ],
)
def test_a_file_that_the_machine_cannot_read_is_not_called_damaged(
    error: Exception, expected: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(model_file, "safe_open", fail)
    assert expected in error_of(["sample", str(folder / "counts.safetensors")], capsys)
