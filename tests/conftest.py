"""What several test files need: a small corpus, one short run on it, and what a run leaves, read back."""

from __future__ import annotations

import gc
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from mlp_lm.cli import main

ROOT = Path(__file__).resolve().parent.parent

Capture = pytest.CaptureFixture[str]

torch.set_num_threads(1)
gc.disable()  # until all tests are imported


def pytest_collection_finish() -> None:
    """Leave what was imported out of the garbage collector's rounds, as the command line does."""
    gc.freeze()
    gc.enable()


def error_of(args: list[str], capsys: Capture) -> str:
    """Run a command that must fail: exit code 2, nothing on stdout, one line on stderr, which comes back."""
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("mlp_lm")
    return err


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 distinct items of three to seven characters, from a seed."""
    rng = random.Random(1)
    items = {"".join(rng.choices("abcdeinor", k=rng.randint(3, 7))) for _ in range(210)}
    path = tmp_path_factory.mktemp("corpus") / "items.txt"
    path.write_text("\n".join(sorted(items)[:200]) + "\n")
    return path


LOGGED = "--trainer.logger=true"
SMALL = [
    "--model.embedding_dim=4",
    "--model.hidden_dim=16",
    "--model.lr_warmup_steps=2",
    "--data.context_size=3",
    "--trainer.accelerator=cpu",  # where runs can be compared bit by bit
]
CONSTANT_SGD = ["--model.optimizer=sgd", "--model.dropout=0", "--model.lr_schedule=constant"]


def fit(corpus: Path | str, run_dir: Path, *flags: str, expected: int = 0) -> Path:
    """A short run through the command line; later flags win. Returns its folder. `expected`: exit code.

    Without a logger, which takes longer than the rest; `LOGGED` is for tests that read what it writes.
    """
    short = ["--data.batch_size=64", "--trainer.max_steps=12", "--trainer.val_check_interval=5"]
    args = ["fit", f"--data.path={corpus}", f"--run_dir={run_dir}", *SMALL, *short, "--trainer.logger=false", *flags]
    assert main(args) == expected
    return run_dir


def before_step(step: int, do: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something in the call of `training_step` that contains a step."""
    from mlp_lm.training.fast_lane import FastLane  # here: most test files need no Lightning
    from mlp_lm.training.module import MLPModule

    def patch(kind: type[MLPModule]) -> None:
        training_step = kind.training_step

        def interrupted(module: MLPModule, batch: Any) -> Any:
            num_steps = len(batch[1]) if kind is FastLane else 1
            if module.global_step <= step < module.global_step + num_steps:
                do()
            return training_step(module, batch)

        monkeypatch.setattr(kind, "training_step", interrupted)

    patch(MLPModule)
    patch(FastLane)


def stop_at(step: int, signum: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a signal in the call of `training_step` that contains a step."""
    before_step(step, lambda: os.kill(os.getpid(), signum), monkeypatch)


def events(run_dir: Path, purge: bool = False) -> EventAccumulator:
    """All that a run has written for TensorBoard; with `purge`, what TensorBoard shows of a run that was resumed.

    It finds out what was replaced from the order of the files, which those of one second do not have.
    """
    reader = EventAccumulator(
        str(run_dir), {"scalars": 0, "tensors": 0, "histograms": 0, "images": 0}, purge_orphaned_data=purge
    )
    reader.Reload()
    return reader


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's curves: (step, value) by name."""
    reader = events(run_dir)
    return {tag: sorted((e.step, e.value) for e in reader.Scalars(tag)) for tag in reader.Tags()["scalars"]}


def last(run_dir: Path) -> Path:
    """The checkpoint to resume from."""
    return run_dir / "checkpoints" / "last.ckpt"


def state(run_dir: Path) -> dict[str, Any]:
    """What `last.ckpt` has of training: step, weights, optimizer, lowest dev loss."""
    content = torch.load(last(run_dir), weights_only=True)
    names = ("global_step", "state_dict", "optimizer_states", "current_model_state")  # the last with averaged weights
    parts = {name: content[name] for name in names if name in content}
    return {**parts, "best_dev_loss": content["callbacks"]["Checkpoints"]["best_dev_loss"]}


def report(run_dir: Path) -> dict[str, Any]:
    """The report of a finished run."""
    content: dict[str, Any] = json.loads((run_dir / "report.json").read_text())
    return content


def assert_same_run(one: Path, other: Path) -> None:
    """Two finished runs have the same bits: weights, optimizer, curves and samples."""
    torch.testing.assert_close(state(one), state(other), rtol=0, atol=0)
    assert scalars(one) == scalars(other) != {}
    assert report(one)["samples"] == report(other)["samples"]


@pytest.fixture(scope="session")
def run_dir(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 12 steps; read only."""
    return fit(corpus_file, tmp_path_factory.mktemp("runs") / "run", LOGGED, "--trainer.log_every_n_steps=4")


@pytest.fixture(scope="session")
def best(run_dir: Path) -> Path:
    """The checkpoint of that run."""
    return run_dir / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="session")
def good(best: Path, corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A checkpoint and a count file as they should be."""
    counts = tmp_path_factory.mktemp("counts") / "counts.safetensors"
    assert main(["ngram", str(corpus_file), "--orders=3", f"--save={counts}"]) == 0
    return {"best.ckpt": best.read_bytes(), "counts.safetensors": counts.read_bytes()}
