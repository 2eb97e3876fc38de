"""Checkpoints: whole or refused, never other weights in silence, and no code of theirs is run."""

from __future__ import annotations

import errno
import io
import os
import pickle
import random
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mlp_lm import load
from mlp_lm.cli import main
from mlp_lm.errors import CheckpointError
from mlp_lm.models import checkpoint
from tests.conftest import Capture, error_of, fit


def log_probs(path: Path) -> Tensor:
    """What the model in a file says, in every bit: log-probabilities after all pairs of the first tokens."""
    model = load(path)
    contexts = torch.cartesian_prod(torch.arange(5), torch.arange(10))  # (50, 2)
    return model.log_probs(torch.nn.functional.pad(contexts, (model.context_size - 2, 0)))


def is_refused(path: Path, expected: Tensor) -> bool:
    """Whether a file that may be damaged is refused in one line; if it is not, it must say what it did before."""
    try:
        found = log_probs(path)
    except CheckpointError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
        return True
    assert torch.equal(found, expected)
    return False


def flip(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_an_entry_that_one_bit_marks_as_a_folder_is_refused(good: dict[str, bytes], tmp_path: Path) -> None:
    # Torch would leave such a tensor unread, as whatever memory holds.
    content, path = good["best.ckpt"], tmp_path / "best.ckpt"
    entry = zipfile.ZipFile(io.BytesIO(content)).start_dir
    while (entry := content.find(b"PK\x01\x02", entry)) >= 0:
        path.write_bytes(flip(content, 8 * (entry + 38) + 4))  # its external attributes
        with pytest.raises(CheckpointError, match="damaged"):
            load(path)
        entry += 1


# -- damage --------------------------------------------------------------------------------------------------------


def test_a_truncated_file_is_refused_wherever_it_ends(good: dict[str, bytes], tmp_path: Path) -> None:
    path, content = tmp_path / "best.ckpt", good["best.ckpt"]
    path.write_bytes(content)
    expected = log_probs(path)
    for percent in range(100):
        path.write_bytes(content[: len(content) * percent // 100])
        assert is_refused(path, expected), percent


def test_a_flipped_bit_is_refused_or_changes_nothing(good: dict[str, bytes], tmp_path: Path) -> None:
    path, content = tmp_path / "best.ckpt", good["best.ckpt"]
    path.write_bytes(content)
    expected = log_probs(path)
    refused = 0
    for bit in random.Random(1).sample(range(8 * len(content)), 200):
        path.write_bytes(flip(content, bit))
        refused += is_refused(path, expected)
    assert refused > 50  # the others fell on padding, dates and what else a reader does not need


def middle_of_weights(path: Path) -> int:
    weights = checkpoint.read(path)["state_dict"]["network.hidden.0.weight"].numpy().tobytes()  # the largest tensor
    return path.read_bytes().index(weights) + len(weights) // 2


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_in_the_middle_of_weights_is_refused(
    bit: int, good: dict[str, bytes], tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "best.ckpt"
    path.write_bytes(good["best.ckpt"])
    path.write_bytes(flip(good["best.ckpt"], 8 * middle_of_weights(path) + bit))
    assert "best.ckpt: damaged, or not a file of mlp_lm" in error_of(["sample", str(path)], capsys)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EIO, "Input/output error"), "best.ckpt: cannot be read (Input/output error)"),
        (MemoryError(), "out of memory; use a smaller"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory; use a smaller"),
    ],
)
def test_a_file_that_the_machine_cannot_read_is_not_called_damaged(
    error: Exception, expected: str, best: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fail)
    assert expected in error_of(["sample", str(best)], capsys)


# -- what other files hold -----------------------------------------------------------------------------------------


class MakesFolder:
    """A pickle of it makes a folder when it is read."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("made",)


@pytest.mark.parametrize("name", ["objects.ckpt", "objects.safetensors", "plain.ckpt", "legacy.ckpt"])
def test_a_file_that_would_run_code_runs_none(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"mlp_lm": MakesFolder()}, "objects.ckpt")
    torch.save({"mlp_lm": MakesFolder()}, "legacy.ckpt", _use_new_zipfile_serialization=False)
    torch.save({"mlp_lm": MakesFolder()}, "objects.safetensors")
    Path("plain.ckpt").write_bytes(pickle.dumps(MakesFolder()))
    for args in (["sample", name], ["validate", "--ckpt_path", name]):
        message = error_of(args, capsys)
        assert f"error: {name}: " in message
        assert [word for word in ("pickle", "weights_only", "safe_globals") if word in message] == []
    assert not Path("made").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lightning", "lightning: a checkpoint of another program; expected one that mlp_lm wrote"),
        ("newer", "newer: format 99, but this mlp_lm reads 3; install a newer mlp_lm"),
        ("older", "older: format 1, but this mlp_lm reads 3; re-create it"),
        ("text", "text: damaged, or not a file of mlp_lm"),
        ("empty", "empty: damaged, or not a file of mlp_lm"),
        ("missing", "missing: no such file; expected a checkpoint"),
        ("folder", "folder: a folder without checkpoints/best.ckpt; expected a run folder\n"),
        ("runs", "expected a run folder; did you mean runs/version_0?"),
        ("https://example.org/best.ckpt", "no such file; expected a checkpoint or a run folder; download it"),
    ],
)
def test_a_file_that_is_no_checkpoint_of_ours(
    name: str,
    expected: str,
    best: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    content = checkpoint.read(best)
    torch.save({"state_dict": content["state_dict"], "pytorch-lightning_version": "2.6.6"}, "lightning")
    for file, version in (("newer", 99), ("older", 1)):
        torch.save({**content, "mlp_lm": {**content["mlp_lm"], "format_version": version}}, file)
    Path("folder").mkdir()
    Path("runs/version_0/checkpoints").mkdir(parents=True)
    Path("runs/version_0/checkpoints/best.ckpt").touch()
    Path("text").write_text("anna\nbob\n")
    Path("empty").touch()
    for args in (["validate", "--ckpt_path"], ["fit", "--ckpt_path"]):
        assert expected in error_of([*args, name], capsys)
    for command in ("sample", "mix"):
        assert expected in error_of([command, name], capsys)


def test_a_run_without_a_validation_yet_has_its_last_checkpoint_named(tmp_path: Path) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    with pytest.raises(CheckpointError, match=re.escape(f"; there is {last}")):
        load(tmp_path)


# -- what ours stand for -------------------------------------------------------------------------------------------


def test_a_run_folder_stands_for_its_best_checkpoint(
    run_dir: Path, best: Path, corpus_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    def output(*args: str) -> str:
        assert main([*args]) == 0
        return capsys.readouterr().out

    assert torch.equal(log_probs(run_dir), log_probs(best))
    assert output("sample", str(run_dir), "--seed=1") == output("sample", str(best), "--seed=1")
    assert output("score", str(run_dir), str(corpus_file)) == output("score", str(best), str(corpus_file))
    assert output("validate", "--ckpt_path", str(run_dir)) == output("validate", "--ckpt_path", str(best))
    output("plot", str(run_dir), "--what=embeddings", f"--output={tmp_path / 'map.svg'}")


def copy_of_run(run_dir: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A run folder whose two checkpoints hold something else."""
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("best.ckpt", "last.ckpt"):
        content = checkpoint.read(run_dir / "checkpoints" / name)
        change(content)
        checkpoint.write(content, folder / "checkpoints" / name)
    return folder


@pytest.mark.slow
def test_a_setting_that_an_older_checkpoint_lacks_takes_its_default(
    run_dir: Path, good: dict[str, bytes], tmp_path: Path, capsys: Capture
) -> None:
    (counts := tmp_path / "counts.safetensors").write_bytes(good["counts.safetensors"])

    def forget(content: dict[str, Any]) -> None:
        for name in ("decay_all", "num_layers"):
            del content["hyper_parameters"][name]
        for name in ("train_path", "unique", "split_seed", "max_item_length", "layout", "tokens", "min_count"):
            del content["datamodule_hyper_parameters"][name]

    older = copy_of_run(run_dir, tmp_path / "older", forget)
    same = copy_of_run(run_dir, tmp_path / "same", lambda content: None)
    longer = ["--trainer.max_steps=15", "--model.lr_decay_steps=15"]
    for run in (older, same):
        assert main(["sample", str(run), "--seed=1", "--num=3"]) == 0
        assert main(["validate", f"--ckpt_path={run}"]) == 0
        assert main(["mix", str(run), str(counts)]) == 0
        assert main(["plot", str(run), "--what=activations", f"--output={tmp_path / 'plot.png'}"]) == 0
        capsys.readouterr()
        assert main(["fit", f"--ckpt_path={run}", *longer]) == 0
    resumed, expected = (checkpoint.read(run / "checkpoints" / "last.ckpt") for run in (older, same))
    assert resumed["hyper_parameters"] == expected["hyper_parameters"] and resumed["global_step"] == 15
    for name, weight in expected["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], weight)


def test_a_checkpoint_works_from_another_folder(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(corpus_file, "items.txt")
    fit("items.txt", Path("run"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["validate", "--ckpt_path=../run"]) == 0
    assert main(["ngram", "../items.txt", "--orders=2", "--save=../counts.safetensors"]) == 0
    assert main(["mix", "../run", "../counts.safetensors"]) == 0
    assert main(["fit", "--ckpt_path=../run", "--trainer.max_steps=14", "--model.lr_decay_steps=14"]) == 0
    assert checkpoint.read("../run/checkpoints/last.ckpt")["global_step"] == 14
    assert list(Path().iterdir()) == []


def test_a_checkpoint_of_other_data_or_of_another_network(
    best: Path, corpus_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    def validate(*flags: str) -> str:
        return error_of(["validate", "--ckpt_path", str(best), *flags], capsys)

    (tmp_path / "other.txt").write_text(corpus_file.read_text().replace("a", "x"))
    (tmp_path / "fewer.txt").write_text(corpus_file.read_text().partition("\n")[2])
    assert "--data.split_seed, --model.hidden_dim: no effect on validate" in validate(
        "--data.split_seed=1", "--model.hidden_dim=9"
    )
    (tmp_path / "wide.yaml").write_text("model:\n  hidden_dim: 9\n")
    assert "model.hidden_dim: found 9, but the checkpoint has 16" in validate(f"--config={tmp_path / 'wide.yaml'}")
    message = validate(f"--data.path={tmp_path / 'other.txt'}")
    assert f"{best}: the data has other characters (with 'x'; without 'a') than" in message and "use `score`" in message
    assert "has other items than" in validate(f"--data.path={tmp_path / 'fewer.txt'}")
    (tmp_path / "split.yaml").write_text("data:\n  split_seed: 1\n")
    message = validate(f"--config={tmp_path / 'split.yaml'}")
    assert "has the same items, but split differently (unique, split_seed) from" in message
