"""Checkpoints and count files that are made to harm end as one line, at a cost in keeping with their size."""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlp_lm.cli import main
from mlp_lm.errors import CheckpointError
from mlp_lm.models import checkpoint
from mlp_lm.models.checkpoint import load
from mlp_lm.models.network import MLP
from tests.conftest import Capture, error_of


class Evil:
    """A pickle that makes a file when it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("command", [["sample", "evil"], ["validate", "--ckpt_path", "evil"]])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_never_runs_and_nothing_says_how_it_could(
    command: list[str], zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"mlp_lm": Evil()}, "evil", _use_new_zipfile_serialization=zipped)
    message = error_of(command, capsys)
    assert "another program" in message or "damaged" in message
    assert not [hint for hint in ("weights_only", "safe_globals", "pickle", "trust") if hint in message]
    assert not Path("pwned").exists()


def test_code_in_a_count_file_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("evil.npz", header=np.array(Evil(), object))
    message = error_of(["sample", "evil.npz"], capsys)
    assert "damaged" in message and "pickle" not in message
    assert not Path("pwned").exists()


def claiming(good: bytes, entry: str, size: int) -> bytes:
    """A zip file that says of one entry that it unpacks to `size` bytes."""
    with zipfile.ZipFile(io.BytesIO(good)) as file:
        info = next(info for info in file.infolist() if info.filename.endswith(entry))
    data = bytearray(good)
    central = good.index(b"PK\x01\x02", good.rindex(info.filename.encode()) - 46)
    data[central + 24 : central + 28] = struct.pack("<I", size)
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "entry"), [("best.ckpt", "data/0"), ("best.ckpt", "data.pkl"), ("counts.npz", "header.npy")]
)
def test_an_entry_that_unpacks_to_gigabytes_is_refused_before(
    name: str, entry: str, good: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpack(*_: Any, **__: Any) -> None:
        raise AssertionError("unpacked")

    monkeypatch.setattr(zipfile.ZipFile, "open", unpack)
    monkeypatch.setattr(torch, "load", unpack)
    (tmp_path / name).write_bytes(claiming(good[name], entry, 3 << 30))
    with pytest.raises(CheckpointError, match="would unpack to 3,2"):
        load(tmp_path / name)


def test_a_compressed_checkpoint_is_not_ours(good: dict[str, bytes], tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(io.BytesIO(good["best.ckpt"])) as old,
        zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
        new.writestr("archive/data/99", bytes(10**6))
    with pytest.raises(CheckpointError, match="would unpack to 1,0"):
        load(tmp_path / "x")


def pickled(path: Path, body: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + body + b".")
        file.writestr("archive/byteorder", b"little")
        file.writestr("archive/version", b"3\n")
    return path


PAIRS = b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(60))  # of the tuple on the stack and itself


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"}K\x01\x85q\x00" + PAIRS + b"K\x00s", "a container twice"),  # a key whose hash takes 2^60 steps
        (b"]q\x00h\x00a", "a container twice"),  # a list that holds itself
        (b"](" + b"K\x01" * 17 + b"tq\x00h\x00a", "a container twice"),  # a tuple whose hash takes its time each time
        (b"]" + b"(" + b"\x8f" * 200_000 + b"e", "more parts than ours"),  # empty sets, 200 bytes for each byte
        (b"cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R", "objects that ours never do"),  # 8 GiB of zeros
    ],
)
def test_a_pickle_that_grows(body: bytes, expected: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=expected):
        load(pickled(tmp_path / "x.ckpt", body))


def test_strings_tensors_and_flat_tuples_may_stand_in_a_checkpoint_twice(best: Path, tmp_path: Path) -> None:
    pair, score = (0.9, 0.99), torch.tensor(1.0)  # as optimizers and callbacks have them
    torch.save(torch.load(best, weights_only=True) | {"callbacks": [pair, pair, score, score]}, tmp_path / "x.ckpt")
    assert checkpoint.read(tmp_path / "x.ckpt")["callbacks"] == [pair, pair, score, score]


Change = Callable[[dict[str, Any]], object]
LIES: dict[str, tuple[Change, str]] = {
    "a wide network": (lambda c: c["mlp_lm"]["model"].update(hidden_dim=2**16), "not those of a network"),
    "a deep network": (lambda c: c["mlp_lm"]["model"].update(num_layers=1000), "not those of a network"),
    "out of range": (lambda c: c["mlp_lm"]["model"].update(hidden_dim=10**12), "model.hidden_dim: found 1000000000000"),
    "no number": (lambda c: c["mlp_lm"]["model"].update(hidden_dim=[16]), "model.hidden_dim: found"),
    "no settings": (lambda c: c["mlp_lm"]["model"].clear(), "damaged"),
    "settings for Lightning": (lambda c: c.update(hyper_parameters={"dropout": 0.9}), "parts that ours never have"),
    "another split": (lambda c: c["TextDataModule"]["item_hashes"].update(x="a"), "are item_hashes"),
    "more losses than steps": (
        lambda c: c["mlp_lm"].update(since_log=[torch.zeros(99), torch.ones(99)]),
        "are since_log",
    ),
    "a state that repeats one number": (
        lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(1).expand(10, 4)),
        "not stored as ours are",
    ),
    "a callback": (lambda c: c["mlp_lm"]["trainer"].update(callbacks=[{"class_path": "a.B"}]), "are settings"),
    "devices": (lambda c: c["mlp_lm"]["trainer"].update(devices=3), "are settings"),
    "a precision that is none": (lambda c: c["mlp_lm"]["trainer"].update(precision="x"), "trainer.precision: found"),
    "empty batches": (lambda c: c["mlp_lm"].update(since_log=[torch.zeros(2), torch.zeros(2)]), "are since_log"),
    "endless batches": (
        lambda c: c["mlp_lm"].update(since_log=[torch.zeros(2), torch.full((2,), math.inf)]),
        "are since_log",
    ),
    "a path that is none": (lambda c: c["TextDataModule"]["settings"].update(path=["x"]), "data.path: found"),
    "no vocabulary": (lambda c: c["TextDataModule"].update(vocab=["", 1]), "damaged"),
    "long tokens": (lambda c: c["TextDataModule"].update(vocab=["", "ab", *"cdefghij"]), "not one character"),
    "fewer tokens": (lambda c: c["TextDataModule"]["vocab"].pop(), "wrong or missing are vocab"),
    "no hashes": (lambda c: c["TextDataModule"]["item_hashes"].update(train=torch.zeros(2)), "are item_hashes"),
    "no longest item": (lambda c: c["TextDataModule"].update(longest_item="x"), "are longest_item"),
    "no step": (lambda c: c.update(global_step=-1), "since_log, global_step"),
    "no random state": (lambda c: c["mlp_lm"].update(random_state=torch.zeros(3)), "damaged"),
    "views": (
        lambda c: c["state_dict"].update({"network.output.weight": torch.zeros(1).expand(10, 2**40)}),
        "larger than the file",
    ),
    "views elsewhere": (lambda c: c.update(more=[{"x": torch.zeros(1).expand(2**40)}]), "larger than the file"),
    "complex weights": (
        lambda c: c["state_dict"].update({k: v.cfloat() for k, v in c["state_dict"].items()}),
        "another program",
    ),
    "mixed weights": (
        lambda c: c["state_dict"].update({"network.output.bias": torch.zeros(10).half()}),
        "not all float32",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_checkpoint_that_lies(lie: str, best: Path, tmp_path: Path, capsys: Capture) -> None:
    change, expected = LIES[lie]
    content = torch.load(best, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "x.ckpt")
    assert expected in error_of(["sample", str(tmp_path / "x.ckpt")], capsys)


@pytest.mark.parametrize(
    "header",
    [
        {"vocab": ["", *"abcdefgh", 1]},
        {"vocab": ["", *"abcdefgh\n"]},
        {"longest_item": "x"},
        {"order": 10**9},
        {"vocab": 3},
    ],
)
def test_a_count_file_that_lies(
    header: dict[str, Any], good: dict[str, bytes], tmp_path: Path, capsys: Capture
) -> None:
    arrays = dict(np.load(io.BytesIO(good["counts.npz"])))
    arrays["header"] = np.array(json.dumps(json.loads(str(arrays["header"])) | header))
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    assert "do not fit together" in error_of(["sample", str(tmp_path / "x.npz")], capsys)


COUNTER = "epoch_loop.manual_optimization.optim_step_progress"
DAMAGES: dict[str, Callable[[Any], object]] = {
    "no optimizer": lambda c: c.update(optimizer_states=[{}]),
    "an optimizer without a state": lambda c: c["optimizer_states"][0]["state"].clear(),
    "a state of another shape": lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(1)),
    "a state of whole numbers": lambda c: c["optimizer_states"][0]["state"][0].update(step=torch.tensor(3)),
    "a state of no tensor": lambda c: c["optimizer_states"][0]["state"][0].update(step=3),
    "a wrong direction": lambda c: c["optimizer_states"][0]["param_groups"][0].update(maximize=True),
    "a rate that is a tensor": lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr=torch.tensor(0.1)),
    "two groups": lambda c: c["optimizer_states"][0]["param_groups"].pop(),
    "no loops": lambda c: c.update(loops={"fit_loop": 3}),
    "another counter": lambda c: c["loops"]["fit_loop"][COUNTER]["total"].update(completed=10**9),
    "no version": lambda c: c.update({"pytorch-lightning_version": "x"}),
    "no lowest loss": lambda c: c["callbacks"]["Checkpoints"].update(best_dev_loss=math.nan),
    "time before time": lambda c: c["callbacks"]["Checkpoints"].update(seconds=-1.0),
    "time without end": lambda c: c["callbacks"]["Checkpoints"].update(seconds=2**2000),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_whose_other_parts_are_damaged_is_not_continued(
    damage: str, run_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    content = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    DAMAGES[damage](content)
    torch.save(content, tmp_path / "x.ckpt")
    more = ["--trainer.max_steps=14", "--model.lr_decay_steps=14", "--trainer.logger=false"]
    assert main(["fit", "--ckpt_path", str(tmp_path / "x.ckpt"), *more]) == 2
    assert "x.ckpt: damaged; it cannot be restored" in capsys.readouterr().err


def test_a_checkpoint_with_weights_of_another_network_is_not_evaluated(
    best: Path, tmp_path: Path, capsys: Capture
) -> None:
    content = torch.load(best, weights_only=True)
    content["state_dict"]["network.output.bias"] = torch.zeros(3)
    torch.save(content, tmp_path / "x.ckpt")
    assert "do not fit together" in error_of(["validate", "--ckpt_path", str(tmp_path / "x.ckpt")], capsys)


def test_weights_that_overflow_are_one_line(best: Path, tmp_path: Path, capsys: Capture) -> None:
    content = torch.load(best, weights_only=True)
    for weight in content["state_dict"].values():
        weight.fill_(3e38)
    torch.save(content, tmp_path / "x.ckpt")
    assert "probabilities are no numbers" in error_of(["sample", str(tmp_path / "x.ckpt")], capsys)


@pytest.mark.parametrize("dtypes", [[torch.float16], [torch.complex64], [torch.float64, torch.float32]])
def test_weights_are_of_one_usual_type(dtypes: list[torch.dtype]) -> None:
    weights = MLP(3, 2, 2, 2).state_dict()
    odd = {name: weight.to(dtypes[i % len(dtypes)]) for i, (name, weight) in enumerate(weights.items())}
    with pytest.raises(ValueError, match="not all float32 or all float64"):
        MLP.from_weights(odd, 3, 2, embedding_dim=2, hidden_dim=2, num_layers=1)
    assert MLP.from_weights(weights, 3, 2, embedding_dim=2, hidden_dim=2, num_layers=1).count_weights() == 25


def test_weights_of_another_shape_are_refused_without_making_the_network() -> None:
    with pytest.raises(ValueError, match="not those of a network"):
        MLP.from_weights({}, vocab_size=10, context_size=1000, embedding_dim=600, hidden_dim=100, num_layers=1)


def test_a_zip_file_of_several_disks_is_damaged(good: dict[str, bytes], tmp_path: Path, capsys: Capture) -> None:
    end = good["best.ckpt"].rindex(b"PK\x05\x06")
    locator = b"PK\x06\x07" + struct.pack("<LQL", 1, 0, 2)
    (tmp_path / "x.ckpt").write_bytes(good["best.ckpt"][:end] + locator + good["best.ckpt"][end:])
    assert "damaged" in error_of(["sample", str(tmp_path / "x.ckpt")], capsys)
