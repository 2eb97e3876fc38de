"""`lr-find`: from the command line, on a small corpus; and what it makes of losses."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from mlp_lm.cli import main
from mlp_lm.commands.lr_find import Floats, evaluate, smooth, two_digits
from mlp_lm.errors import TrainingError
from mlp_lm.training.datamodule import TextDataModule
from tests.conftest import LOGGED, SMALL, Capture, error_of, fit, scalars

FAST = [*(flag for flag in SMALL if "warmup" not in flag), "--data.batch_size=50", "--steps=200"]
SGD = ["--model.optimizer=sgd", "--model.dropout=0"]


def lr_find(corpus: Path, folder: Path, *flags: str) -> list[dict[str, float]]:
    """The rows of lr_find.csv; later flags win."""
    assert main(["lr-find", f"--data.path={corpus}", f"--output_dir={folder}", *FAST, *flags]) == 0
    return rows(folder)


def rows(folder: Path) -> list[dict[str, float]]:
    with open(folder / "lr_find.csv", encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("flags", "rule", "divisor"),
    [(["--max=100", *SGD], "sgd: the rate at the minimum divided by 2", 2), ([], "adamw: the rate at the minimum", 1)],
    ids=["sgd", "adamw"],
)
def test_a_range_test_leaves_its_files_and_suggests_a_rate(
    flags: list[str],
    rule: str,
    divisor: int,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("val_dataloader", "test_dataloader"):
        monkeypatch.setattr(TextDataModule, name, lambda _: pytest.fail("data other than train was read"))
    Path("mine.yaml").write_text(yaml.safe_dump({"data": {"path": str(corpus_file)}}))
    for _ in range(2):
        assert main(["lr-find", "--config", "mine.yaml", *FAST, *flags]) == 0
    out = capsys.readouterr().out
    assert sorted(p.name for p in Path().iterdir()) == ["mine.yaml", "runs"]
    first, second = sorted(Path("runs/mine").iterdir())
    assert (first.name, second.name) == ("lr_find_0", "lr_find_1")
    assert sorted(p.name for p in second.iterdir()) == ["lr_find.csv", "lr_find.png"]
    assert rows(first) == rows(second)
    assert (first / "lr_find.png").read_bytes().startswith(b"\x89PNG")
    assert [row["rate"] for row in rows(first)[:2]] == pytest.approx(
        [1e-4, 1e-4 * (1e6 if flags else 1e5) ** (1 / 199)]
    )
    lowest = min(rows(first), key=lambda row: row["smoothed"])
    found = re.search(rf"suggestion for {rule}\n\nmodel:\n  learning_rate: ([\d.]+)\n", out)
    assert found and float(found[1]) == pytest.approx(lowest["rate"] / divisor, rel=0.05)


def test_a_range_that_blows_up_ends_early_and_still_suggests(
    corpus_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    table = lr_find(corpus_file, tmp_path / "out", *SGD, "--max=1000")
    assert len(table) < 200
    assert 2 * table[0]["loss"] < max(row["loss"] for row in table) < 50  # long before it is infinite
    out = capsys.readouterr().out
    assert f"{len(table)} of 200 steps, until the loss blew up\n" in out and "  learning_rate: 0." in out


def test_the_loss_of_a_step_is_that_before_it(corpus_file: Path, tmp_path: Path) -> None:
    # The curve of a fit, at the constant rate of the first step.
    flags = [*SGD, "--data.batch_size=50", "--seed_everything=3"]
    table = lr_find(corpus_file, tmp_path / "out", *flags, "--min=1", "--max=1000")
    constant = ["--model.lr_schedule=constant", "--model.lr_warmup_steps=0", "--model.learning_rate=1"]
    run = fit(corpus_file, tmp_path / "run", LOGGED, *flags, *constant, "--trainer.log_every_n_steps=1")
    curve = [loss for _, loss in scalars(run)["train/loss"]]
    assert table[0]["rate"] == 1
    assert [row["loss"] for row in table[:2]] == pytest.approx(curve[:2], rel=1e-6)
    assert table[2]["loss"] != pytest.approx(curve[2], rel=1e-6)  # the second step has another rate


@pytest.mark.slow
def test_schedule_intervals_and_callbacks_play_no_part_but_weight_decay_does(corpus_file: Path, tmp_path: Path) -> None:
    one = lr_find(corpus_file, tmp_path / "one", *SGD)
    stopping = {"class_path": "EarlyStopping", "init_args": {"monitor": "dev/loss"}}
    own = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(tmp_path / "own")}}
    intervals = {"val_check_interval": 3, "log_every_n_steps": 2, "max_steps": 5}
    config = {
        "trainer": {**intervals, "callbacks": [stopping, own]},
        "model": {"lr_schedule": "cosine", "lr_decay_steps": 1000, "lr_warmup_steps": 50},
        "data": {"steps_per_execution": 7},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert lr_find(corpus_file, tmp_path / "other", *SGD, f"--config={tmp_path / 'config.yaml'}") == one
    assert not (tmp_path / "own").exists()
    assert lr_find(corpus_file, tmp_path / "decay", *SGD, "--model.weight_decay=0.5") != one


@pytest.mark.slow
def test_the_config_of_a_run_works(run_dir: Path, tmp_path: Path) -> None:
    config = ["--config", str(run_dir / "config.yaml")]
    assert main(["lr-find", *config, "--steps=200", f"--output_dir={tmp_path / 'out'}"]) == 0


# -- mistakes ----------------------------------------------------------------------------------------------------

NAN_AT_STEP_2 = ["--model.weight_decay=1000", "--model.decay_all=true"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--min=1", "--max=1"], "min must be below --max, 1 (got 1)"),
        (["--min=0"], "min must be above 0"),
        (["--steps=99"], "steps must be between 100 and 100,000 (got 99)"),
        (["--minimum=1"], "unrecognized arguments: --minimum=1; did you mean --min?"),
        (["--ckpt_path=BEST"], "unrecognized arguments: --ckpt_path"),
        (["--run_dir=x"], "unrecognized arguments: --run_dir"),
        (["--model.lr_warmup_steps=2", "--trainer.max_steps=9"], "--model.lr_warmup_steps, --trainer.max_steps: no ef"),
        (["--trainer.devices=2"], "trainer.devices: lr-find takes one process"),
        (["--output_dir=."], "output_dir: . is not empty"),
        (["--min=1e-3", "--max=0.1"], "no suggestion: the loss does not rise again"),
        (["--min=9e34", "--max=1e35", *NAN_AT_STEP_2], "no suggestion: the loss never falls; lower --min"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(
    flags: list[str],
    expected: str,
    corpus_file: Path,
    best: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.txt").write_bytes(corpus_file.read_bytes())
    flags = [flag.replace("BEST", str(best)) for flag in flags]
    capfd.readouterr()
    assert expected in error_of(["lr-find", "--data.path=own.txt", *FAST, *SGD, *flags], capfd)
    assert [*tmp_path.iterdir()] == [tmp_path / "own.txt"]


# -- what it makes of losses -------------------------------------------------------------------------------------

STEPS = 1000
RATES = np.geomspace(1e-4, 10, STEPS).tolist()
WIDTH = 40.0  # of the smoothing, in steps


def through(*points: tuple[int, float], noise: float = 0.02) -> Floats:
    """Losses of steps on straight lines between points (step, loss), with noise from a seed."""
    steps, losses = zip(*points, strict=True)
    line = np.interp(np.arange(steps[-1] + 1), steps, losses)
    return np.asarray(line + noise * np.random.default_rng(1).standard_normal(len(line)))


def test_one_loss_spreads_to_both_sides_like_a_gaussian() -> None:
    losses = np.ones(101)
    losses[50] = 1.4
    smoothed = smooth(losses, 4.0) - 1
    assert smoothed == pytest.approx(smoothed[::-1])
    assert smoothed[[54, 58]] / smoothed[50] == pytest.approx([np.exp(-0.5), np.exp(-2)])
    assert smoothed.sum() == pytest.approx(0.4)


@pytest.mark.parametrize("num_losses", [1, 2, 5, 100])  # fewer than the weights, too
def test_a_line_stays_a_line_up_to_both_ends(num_losses: int) -> None:
    line = np.linspace(2.0, 3.0, num_losses)
    assert smooth(line, 4.0) == pytest.approx(line)


def test_huge_losses_do_not_reach_far_back() -> None:
    losses = through((0, 3.0), (999, 2.0), noise=0)
    losses[600:] = 1e30
    assert smooth(losses, 20.0)[560] == pytest.approx(losses[560], abs=0.5)  # two widths before


@pytest.mark.parametrize(
    "losses",
    [
        through((0, 3.3), (300, 3.2), (600, 2.2), (700, 2.4), (999, 3.0)),
        through((0, 3.3), (300, 3.2), (600, 2.2), (680, 2.4), (700, 90.0)),  # ended early
    ],
)
def test_a_minimum_in_the_middle_is_found(losses: Floats) -> None:
    test = evaluate(RATES, losses.tolist(), WIDTH, divisor=2)
    assert 570 < test.minimum < 630
    assert len(test.rates) == len(test.losses) == len(test.smoothed) == len(losses)
    assert test.suggestion == pytest.approx(RATES[test.minimum] / 2)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (through((0, 3.3), (999, 4.5)), "the loss never falls; lower --min"),
        (through((0, 3.3), (30, 90.0)), "the loss never falls; lower --min"),
        (through((0, 3.3), (999, 2.5)), "the loss does not rise again, so its minimum may lie further on; raise --max"),
    ],
)
def test_a_curve_without_a_minimum_inside_suggests_nothing(losses: Floats, expected: str) -> None:
    with pytest.raises(TrainingError, match=f"^no suggestion: .*{expected}"):
        evaluate(RATES, losses.tolist(), WIDTH, divisor=2)


@pytest.mark.parametrize(
    ("rate", "text"), [(0.0998, "0.1"), (0.0731, "0.073"), (5.04e-5, "0.00005"), (12.34, "12"), (123.4, "120")]
)
def test_a_suggestion_has_two_digits_and_is_a_number_in_yaml(rate: float, text: str) -> None:
    assert two_digits(rate) == text
    assert yaml.safe_load(text) == pytest.approx(rate, rel=0.05)
