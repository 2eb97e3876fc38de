"""Settings that do not go together, and what a checkpoint fixes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlp_lm.training.resuming import FIXED_BY_WEIGHTS, changed
from tests.conftest import Capture, error_of

HORIZON = ["--model.lr_decay_steps=10", "--trainer.max_steps=11"]
SPLIT = ["--data.train_path=a", "--data.dev_path=b", "--data.test_path=c"]
AT_ODDS = [
    (["--data.train_path=a"], "data.dev_path, data.test_path: missing, expected all of data.train_path, "),
    ([*SPLIT, "--data.path=a"], "data.path: found together with data.train_path"),
    (["--data.min_count=3"], "data.min_count: applies only to words (got 3)"),
    (["--data.newlines=drop"], "data.newlines: applies only to data.layout text"),
    (["--model.momentum=0.9"], "model.momentum: applies only to model.optimizer sgd (got 0.9)"),
    (["--model.residual=true"], "model.residual: applies only to model.num_layers above 1"),
    (["--model.tied=true", "--model.direct=true"], "model.direct: does not go with model.tied"),
    (["--model.hidden_dim=0"], "model.hidden_dim: found 0, which needs --model.direct true"),
    (["--model.hidden_dim=0", "--model.direct=true", "--model.num_layers=2"], "model.num_layers: found 2, but"),
]


@pytest.mark.parametrize(("flags", "problem"), AT_ODDS)
def test_settings_at_odds_are_one_line(flags: list[str], problem: str, capsys: Capture) -> None:
    error = error_of(["fit", "--data.path=nowhere.txt"][: 1 if "train_path" in flags[0] else 2] + flags, capsys)
    assert error.startswith(f"mlp_lm fit: error: {problem}") and "; model" not in error


def test_all_settings_at_odds_are_named_at_once(capsys: Capture) -> None:
    error = error_of(["fit", "--data.min_count=3", "--model.momentum=0.9", "--model.residual=true"], capsys)
    assert [name in error for name in ("data.min_count", "model.momentum", "model.residual")] == [True] * 3


def test_a_run_may_not_train_on_at_a_learning_rate_of_0(corpus_file: Path, tmp_path: Path, capsys: Capture) -> None:
    args = ["fit", f"--data.path={corpus_file}", f"--run_dir={tmp_path / 'run'}", *HORIZON]
    error = error_of(args, capsys)
    assert "trainer.max_steps: found 11, but the learning rate is 0 from step 10 on; raise --model.lr_decay" in error
    error = error_of([*args[:-1], "--trainer.max_epochs=20"], capsys)
    assert "trainer.max_epochs: found 20, but the learning rate is 0 from step 10 on" in error


def test_a_network_keeps_its_shape() -> None:
    trained = dict.fromkeys(FIXED_BY_WEIGHTS, False) | {"model.hidden_dim": 200, "model.num_layers": 1}
    assert [*changed({**trained, "model.dropout": 0.5}, trained, FIXED_BY_WEIGHTS)] == []
    assert [*changed({**trained, "model.hidden_dim": 77, "model.num_layers": 2}, trained, FIXED_BY_WEIGHTS)] == [
        "model.hidden_dim: found 77, but the checkpoint has 200 (its weights were trained with that); leave it out",
        "model.num_layers: found 2, but the checkpoint has 1 (its weights were trained with that); leave it out",
    ]
