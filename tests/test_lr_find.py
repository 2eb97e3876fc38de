"""`lr-find` from the command line, on a small corpus."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import yaml

from mlp_lm.cli import main
from mlp_lm.training.datamodule import TextDataModule
from mlp_lm.training.module import MLPModule
from tests.conftest import SMALL, error_of, fit, scalars

Capture = pytest.CaptureFixture[str]
FAST = [
    *SMALL,
    "--data.batch_size=50",  # 966 windows: the last batch of each epoch is smaller
    "--steps=200",
    "--trainer.logger=false",
]
SGD = ["--model.optimizer=sgd", "--model.dropout=0"]  # takes the fused step


def lr_find(corpus: Path, folder: Path, *flags: str) -> list[dict[str, float]]:
    """The rows of lr_find.csv; later flags win."""
    assert main(["lr-find", f"--data.path={corpus}", f"--output_dir={folder}", *FAST, *flags]) == 0
    return rows(folder)


def rows(folder: Path) -> list[dict[str, float]]:
    with open(folder / "lr_find.csv", encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("flags", [["--max=100", *SGD], ["--model.optimizer=adamw"]])
def test_a_range_test_leaves_its_files_and_suggests_a_rate(
    flags: list[str], corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_dump({"data": {"path": str(corpus_file)}, "model": {"hidden_dim": 16}})
    Path("mine.yaml").write_text(config)
    assert main(["lr-find", "--config", "mine.yaml", *FAST, *flags]) == 0
    assert main(["lr_find", "--config", "mine.yaml", *FAST, *flags]) == 0
    out = capsys.readouterr().out
    assert Path("mine.yaml").read_text() == config
    assert sorted(p.name for p in Path().iterdir()) == ["mine.yaml", "runs"]
    first, second = sorted(Path("runs/mine").iterdir())
    assert (first.name, second.name) == ("lr_find_0", "lr_find_1")
    assert sorted(p.name for p in second.iterdir()) == ["lr_find.csv", "lr_find.png"]
    assert rows(first) == rows(second)
    assert (first / "lr_find.png").read_bytes().startswith(b"\x89PNG")
    lowest = min(rows(first), key=lambda row: row["smoothed"])
    found = re.search(r"minimum divided by 1.5:\n\nmodel:\n  learning_rate: ([\d.]+)\n", out)
    assert found and float(found[1]) == pytest.approx(lowest["rate"] / 1.5, rel=0.05)


def test_tensorboard_shows_the_rows_of_the_csv(corpus_file: Path, tmp_path: Path) -> None:
    table = lr_find(corpus_file, tmp_path / "out", "--trainer.logger=true")
    curves = scalars(tmp_path / "out")
    assert set(curves) == {"lr_find/lr", "lr_find/loss", "lr_find/smoothed"}
    for tag, column in (("lr_find/lr", "rate"), ("lr_find/loss", "loss"), ("lr_find/smoothed", "smoothed")):
        assert [step for step, _ in curves[tag]] == [row["step"] for row in table]
        assert [value for _, value in curves[tag]] == pytest.approx([row[column] for row in table])


@pytest.mark.parametrize("flags", [SGD, ["--model.dropout=0.3"]])
def test_steps_per_execution_changes_no_result(flags: list[str], corpus_file: Path, tmp_path: Path) -> None:
    flags = [*flags, "--max=1000"]  # beyond blow-up
    one, seven, all_ = (
        lr_find(corpus_file, tmp_path / str(k), *flags, f"--data.steps_per_execution={k}") for k in (1, 7, 1000)
    )
    assert one == seven == all_
    assert len(one) < 200


def test_the_test_ends_soon_after_blow_up(corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    count_steps = MLPModule._count_steps

    def and_note(module: MLPModule, num_steps: int) -> None:
        calls.append(num_steps)
        count_steps(module, num_steps)

    monkeypatch.setattr(MLPModule, "_count_steps", and_note)
    table = lr_find(corpus_file, tmp_path / "out", *SGD, "--max=1000", "--data.steps_per_execution=1")
    assert len(table) <= len(calls) <= len(table) + 8 < 200  # eight steps lie between two looks


def test_start_weights_examples_and_dropout_are_those_of_fit(corpus_file: Path, tmp_path: Path) -> None:
    # At rates so low that no weight changes, across an epoch of the data.
    flags = ["--model.dropout=0.3", "--data.batch_size=50", "--seed_everything=3", "--trainer.log_every_n_steps=1"]
    curve = scalars(fit(corpus_file, tmp_path / "run", *flags, "--model.learning_rate=1e-30"))["train/loss"]
    args = ["lr-find", f"--data.path={corpus_file}", *FAST, *flags, "--min=1e-31", "--max=1e-30"]
    assert main([*args, f"--output_dir={tmp_path / 'out'}"]) == 2  # the loss never falls
    assert [row["loss"] for row in rows(tmp_path / "out")[:12]] == pytest.approx([loss for _, loss in curve], abs=0)


def test_the_schedule_of_the_config_plays_no_part_but_weight_decay_does(corpus_file: Path, tmp_path: Path) -> None:
    one = lr_find(corpus_file, tmp_path / "one", *SGD)
    assert [one[i]["rate"] for i in (0, 1)] == pytest.approx([1e-4, 1e-4 * 1e5 ** (1 / 199)])
    schedule = ["--model.lr_schedule=step", "--model.lr_warmup_steps=50", "--model.lr_drop_at=0.1"]
    schedule += ["--trainer.val_check_interval=3", "--trainer.log_every_n_steps=2", "--trainer.max_steps=5"]
    assert lr_find(corpus_file, tmp_path / "schedule", *SGD, *schedule) == one
    assert lr_find(corpus_file, tmp_path / "decay", *SGD, "--model.weight_decay=0.5") != one


def test_dev_and_test_are_not_read(corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: TextDataModule) -> None:
        raise AssertionError("data other than train was asked for")

    monkeypatch.setattr(TextDataModule, "val_dataloader", refuse)
    monkeypatch.setattr(TextDataModule, "test_dataloader", refuse)
    lr_find(corpus_file, tmp_path / "out")


def test_the_config_of_a_run_will_do(run_dir: Path, tmp_path: Path) -> None:
    assert main(["lr-find", "--config", str(run_dir / "config.yaml"), f"--output_dir={tmp_path / 'out'}"]) == 0


def test_the_help_describes_the_range(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["lr-find", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    for text in ("--min MIN Learning rate of the first step", "--max MAX Learning rate of the last", "--steps STEPS"):
        assert text in out
    assert "--output_dir" in out and "--run_dir" not in out and "--ckpt_path" not in out


# -- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--min=1", "--max=0.1"], "min: found 1, expected a learning rate below --max, 0.1"),
        (["--min=1", "--max=1"], "min: found 1"),
        (["--min=0"], "min: found 0.0, expected a number above 0"),
        (["--max=inf"], "max: found 'inf', expected float"),
        (["--steps=99"], "steps: found 99, expected a whole number from 100"),
        (["--steps=many"], "steps: found 'many', expected int"),
        (["--minimum=1"], "unrecognized arguments: --minimum=1; did you mean --min?"),
        (["--model.dropout=2"], "model.dropout: found 2.0"),
        (["--ckpt_path=x.ckpt"], "--ckpt_path: goes with fit"),
        (["--run_dir=x"], "name a folder with --output_dir"),
        (["--report-test=false"], "--report_test: goes with fit"),
        (["--trainer.devices=2"], "trainer.devices: lr-find takes one process"),
        (["--output_dir="], "output_dir: the working folder is not empty"),
        (["--min=1e34", "--max=1e35", "--model.fused=false"], "blown up or is no finite number at step"),
    ],
)
def test_bad_input(
    flags: list[str],
    expected: str,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.txt").write_bytes(corpus_file.read_bytes())
    assert expected in error_of(["lr-find", "--data.path=own.txt", *FAST, *SGD, *flags], capsys)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / "own.txt"]
    assert list(tmp_path.rglob("lr_find_*")) == []


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--min=1e-9", "--max=1e-8"], "no suggestion: the loss never falls by more than its noise; raise --max"),
        (["--min=1e-3", "--max=0.1"], "no suggestion: the loss does not rise again"),
    ],
)
def test_a_range_without_a_valley(
    flags: list[str], expected: str, corpus_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "out"
    assert main(["lr-find", f"--data.path={corpus_file}", f"--output_dir={folder}", *FAST, *SGD, *flags]) == 2
    out, err = capsys.readouterr()
    assert expected in err and "learning_rate:" not in out
    assert {"lr_find.csv", "lr_find.png"} == {p.name for p in folder.iterdir()}  # to look at


def test_a_folder_with_files_is_left_alone(corpus_file: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "precious").touch()
    args = ["lr-find", f"--data.path={corpus_file}", f"--output_dir={tmp_path}", *FAST]
    assert "is not empty" in error_of(args, capsys)
