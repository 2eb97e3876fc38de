"""What several test files need: a small corpus, and one short run on it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from mlp_lm.cli import main

ROOT = Path(__file__).resolve().parent.parent

Capture = pytest.CaptureFixture[str]

torch.set_num_threads(1)


def error_of(args: list[str], capsys: Capture) -> str:
    """Run a command that must fail: exit code 2, nothing on stdout, one line on stderr, which comes back."""
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("mlp_lm")
    return err


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 different items of three to seven characters, from a seed."""
    rng = random.Random(1)
    items = {"".join(rng.choices("abcdeinor", k=rng.randint(3, 7))) for _ in range(210)}
    path = tmp_path_factory.mktemp("corpus") / "items.txt"
    path.write_text("\n".join(sorted(items)[:200]) + "\n")
    return path


SMALL = [
    "--model.embedding_dim=4",
    "--model.hidden_dim=16",
    "--model.lr_warmup_steps=2",
    "--data.context_size=3",
    "--trainer.accelerator=cpu",  # where runs can be compared bit by bit
]


def fit(corpus: Path | str, run_dir: Path, *flags: str, expected: int = 0) -> Path:
    """A short run through the command line; later flags win. Returns its folder. `expected`: exit code."""
    steps = ["--data.batch_size=64", "--trainer.max_steps=12", "--trainer.val_check_interval=5"]
    args = ["fit", f"--data.path={corpus}", f"--run_dir={run_dir}", *SMALL, *steps, *flags]
    assert main(args) == expected
    return run_dir


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's curves: (step, value) by name."""
    # Two files of one second have no order by their names, so TensorBoard's guess which one replaces which is off.
    events = EventAccumulator(str(run_dir), purge_orphaned_data=False)
    events.Reload()
    return {tag: sorted((e.step, e.value) for e in events.Scalars(tag)) for tag in events.Tags()["scalars"]}


@pytest.fixture(scope="session")
def run_dir(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 12 steps; read only."""
    return fit(corpus_file, tmp_path_factory.mktemp("runs") / "run", "--trainer.log_every_n_steps=4")


@pytest.fixture(scope="session")
def best(run_dir: Path) -> Path:
    """The checkpoint of that run."""
    return run_dir / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="session")
def good(best: Path, corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A checkpoint and a count file as they should be."""
    counts = tmp_path_factory.mktemp("counts") / "counts.npz"
    assert main(["ngram", str(corpus_file), "--orders=3", f"--save={counts}"]) == 0
    return {"best.ckpt": best.read_bytes(), "counts.npz": counts.read_bytes()}
