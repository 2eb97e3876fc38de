"""`sweep` from the command line; in most tests a stand-in takes the place of `fit`, but never that of its parser."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from mlp_lm.cli import main
from mlp_lm.commands import sweep as command
from mlp_lm.training.sweep import processes
from tests.conftest import SMALL, Capture, error_of, fit, parse_in_this_process

# Notes its arguments, and leaves what fit leaves, a report of the same form too. The loss is context_size + seed / 10.
STAND_IN = """
import json, os, pathlib, sys, time
flags = dict(arg[2:].split("=", 1) for arg in sys.argv[1:] if "=" in arg)
folder = pathlib.Path(flags["run_dir"]) if "run_dir" in flags else pathlib.Path(flags["ckpt_path"]).parent.parent
with open("calls.txt", "a") as calls:
    calls.write(json.dumps({"args": sys.argv[1:], "threads": os.environ.get("OMP_NUM_THREADS")}) + "\\n")
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
size, seed = int(flags["data.context_size"]), int(flags["seed_everything"])
if size == 13:
    sys.exit("a warning\\nmlp_lm fit: error: train loss is nan at step 5; try less")
if size == 99:
    os.kill(os.getppid(), 2)
    time.sleep(60)
report = json.loads(pathlib.Path("report.json").read_text()) | {"weights": 1000 * size, "seconds": 1.5}
report["losses"]["dev"]["nats_per_token"] = size + seed / 10
report["samples"][:2] = [report["samples"][0] | {"text": "emma", "seen_in": s} for s in ("train", "new")]
(folder / "report.json").write_text(json.dumps(report))
"""
SWEEP = ["sweep", "--config", "c.yaml", "--sweep_dir", "s", "--vary"]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus_file: Path, run_dir: Path) -> None:
    """A working folder with a config, where `fit` is the stand-in and its parser answers without a new process."""
    monkeypatch.chdir(tmp_path)
    Path("fit.py").write_text(STAND_IN)
    shutil.copy(run_dir / "report.json", "report.json")
    Path("c.yaml").write_text(yaml.safe_dump({"seed_everything": 5, "data": {"path": str(corpus_file)}}))
    monkeypatch.setattr(command, "FIT", [sys.executable, "-S", "fit.py"])
    monkeypatch.setattr(processes, "POLL", 0.01)
    parse_in_this_process(monkeypatch)


def calls() -> list[dict[str, Any]]:
    """What the stand-in was called with since the last look."""
    path = Path("calls.txt")
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def started(*args: str, expected: int = 0) -> list[str]:
    """The folders or checkpoints of the runs that a sweep starts."""
    calls()
    assert main([*SWEEP, *args]) == expected
    return [call["args"][-1].partition("=")[2] for call in calls()]


def rows_of(folder: str) -> list[dict[str, str]]:
    with open(Path(folder) / "sweep.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("workplace")
def test_a_sweep_leaves_a_folder_a_run_a_csv_a_table_and_a_picture(capsys: Capture) -> None:
    args = ["--vary=data.context_size=3,2", "--vary", "trainer.max_steps=4", "--seeds=2", "--jobs=2"]
    assert main(["sweep", "--config", "c.yaml", *args]) == 0
    folder = Path("runs/c/sweep_0")
    names = [f"context_size={size},seed={seed}" for size in (2, 3) for seed in (5, 6)]
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == names
    assert {"config.yaml", "data.context_size.png", "sweep.csv"} <= {p.name for p in folder.iterdir()}
    rows = rows_of(str(folder))
    assert [row["folder"] for row in rows] == names
    assert [row["dev_loss"] for row in rows] == ["2.500000", "2.600000", "3.500000", "3.600000"]
    assert (rows[0]["mean_dev_loss"], rows[0]["std_dev_loss"], rows[0]["weights"]) == ("2.550000", "0.070711", "2000")
    out, err = capsys.readouterr()
    assert re.search(r"^2 +2\.5500 ± 0\.0707  2,000 +1\.5 +2 +emma\*, emma, ", out, re.MULTILINE)
    assert sorted(re.sub("^./4 ", "", line) for line in err.splitlines()) == [
        f"{name}: dev loss {loss:.4f}" for name, loss in zip(names, (2.5, 2.6, 3.5, 3.6), strict=True)
    ]


@pytest.mark.parametrize(("jobs", "threads"), [(2, "4"), (1, None)])
@pytest.mark.usefixtures("workplace")
def test_a_run_is_an_ordinary_fit_that_leaves_test_unread_and_has_its_share_of_the_cores(
    jobs: int, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)), raising=False)
    assert main([*SWEEP, "data.context_size=3", "--seeds=2", f"--jobs={jobs}"]) == 0
    flags = ["--config", "s/config.yaml", "--data.context_size=3"]
    for i, call in zip((5, 6), sorted(calls(), key=lambda call: str(call["args"])), strict=True):
        assert call["args"] == [*flags, f"--seed_everything={i}", "--report_test=false", f"--run_dir=s/seed={i}"]
        assert call["threads"] == threads
    assert Path("s/config.yaml").read_text() == Path("c.yaml").read_text()


@pytest.mark.usefixtures("workplace")
def test_finished_runs_are_recognised_by_their_settings_and_not_run_again(corpus_file: Path, capsys: Capture) -> None:
    assert started("data.context_size=2,3") == ["s/context_size=2,seed=5", "s/context_size=3,seed=5"]
    assert started("data.context_size=2,3,4") == ["s/context_size=4,seed=5"]
    assert "2 of 3 runs have finished before" in capsys.readouterr().err
    assert started("data.context_size=2,3", "--vary=model.learning_rate=0.006") == []  # the default
    assert [row["dev_loss"] for row in rows_of("s")] == ["2.500000", "3.500000"]
    assert started("data.context_size=2,4", "--vary=model.hidden_dim=8") == [
        "s/context_size=2,seed=5,2",
        "s/context_size=4,seed=5,2",
    ]
    Path("mine.txt").write_text(corpus_file.read_text() + "abba\n")
    assert started("data.context_size=2", "--vary=data.path=mine.txt") == ["s/seed=5"]


@pytest.mark.usefixtures("workplace")
def test_a_half_finished_run_is_resumed_if_its_checkpoint_loads_and_else_started_again(best: Path) -> None:
    sizes = "data.context_size=2,3,4"
    folders = started(sizes)
    for folder in folders:
        Path(folder, "report.json").unlink()
        Path(folder, "events").touch()
    last = Path(folders[0], "checkpoints", "last.ckpt")
    shutil.copy(best, last)
    Path(folders[1], "checkpoints", "last.ckpt").write_bytes(best.read_bytes()[:-100])
    assert started(sizes) == [str(last), *folders[1:]]
    kept = ["context_size=2,seed=5", "context_size=3,seed=5,aside_1"]  # nothing with a checkpoint is deleted
    assert sorted(path.parent.name for path in Path("s").glob("*/events")) == kept


@pytest.mark.usefixtures("workplace")
def test_a_failed_run_ends_nothing_but_itself_and_can_be_tried_again(capsys: Capture) -> None:
    assert main([*SWEEP, "data.context_size=13,3"]) == 2
    out, err = capsys.readouterr()
    assert "failed: context_size=13,seed=5: train loss is nan at step 5; try less" in out.splitlines()
    assert "1/2 context_size=13,seed=5: train loss is nan at step 5; try less" in err
    assert [row["status"] for row in rows_of("s")] == ["finished", "failed"]
    *_, last = err.splitlines()
    assert last.startswith("mlp_lm sweep: error: 1 of 2 runs failed, see the table; to try them again: ")
    assert started("data.context_size=13,3", expected=2) == ["s/context_size=13,seed=5"]


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.usefixtures("workplace")
def test_a_signal_ends_the_runs_and_keeps_what_is_finished(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        main([*SWEEP, "data.context_size=2,99,3"])
    assert end.value.code == 128 + signal.SIGINT
    assert [row["status"] for row in rows_of("s")] == ["finished", "not finished", "not finished"]
    again = "sweep --config c.yaml --vary=data.context_size=2,99,3 --seeds=1 --jobs=1 --sweep_dir=s"
    assert capsys.readouterr().err.splitlines()[-1] == f"stopped; to resume: python -m mlp_lm {again}"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("--vary=model.hiden_dim=1,2", ["vary: unknown setting 'model.hiden_dim'; did you mean model.hidden_dim?"]),
        ("--vary=model.context_size=2,3", ["unknown setting 'model.context_size'; did you mean data.context_size?"]),
        (
            "--vary=data.context_size=2,0,x --vary=model.dropout=2",
            ["data.context_size must be", "data.context_size: found 'x', expected int", "model.dropout must be"],
        ),
        ("--vary=model.dropout=0,0.0", ["--model.dropout=0 and --model.dropout=0.0 are the same settings"]),
        ("--vary=data.path=nowhere.txt,neither.txt", ["nowhere.txt: no such file", "neither.txt: no such file"]),
        ("--vary=seed_everything=4294967295 --seeds=2", ["seed_everything must be", "(got 4294967296)"]),
        ("", ["vary: missing, so that nothing varies"]),
        ("--vary=data.context_size=2 --sweep_dir=other", ["sweep_dir: other is not empty and holds no sweep"]),
        ("--vary=data.context_size=2 --sweep_dir=damaged", ["damaged/sweep.json: damaged"]),
        ("--vary=data.context_size=2 --sweep_dir=locked", ["another sweep is at work in locked"]),
        ("--vary=data.context_size=2 --config=wrong.yaml", ["model.hiden", "wrong.yaml"]),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_bad_input_is_one_line_before_the_first_run(args: str, expected: list[str], capsys: Capture) -> None:
    for name in ("other", "damaged", "locked"):
        Path(name).mkdir()
    Path("other/thesis.txt").touch()
    Path("damaged/sweep.json").write_text('{"../elsewhere": {}}')
    Path("wrong.yaml").write_text("model:\n  hiden: 3")
    with FileLock("locked/.lock"):
        before = sorted(Path().rglob("*"))
        error = error_of(["sweep", "--config=c.yaml", *args.split()], capsys)
        assert sorted(Path().rglob("*")) == before
    for text in expected:
        assert text in error


@pytest.mark.slow
def test_a_real_sweep(corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [*SMALL, f"--data.path={corpus_file}", "--trainer.max_steps=4"]
    assert main(["sweep", *(f"--vary={flag.removeprefix('--')}" for flag in flags)]) == 0
    losses = {row["data.context_size"]: row["dev_loss"] for row in rows_of("runs/items/sweep_0")}
    alone = fit(corpus_file, tmp_path / "alone", "--trainer.max_steps=4", "--data.batch_size=1024")
    loss = json.loads((alone / "report.json").read_text())["losses"]["dev"]["nats_per_token"]
    assert losses["3"] == f"{loss:.6f}"
    (report,) = Path("runs/items/sweep_0").glob("*/report.json")
    assert [*json.loads(report.read_text())["losses"]] == ["dev"]
