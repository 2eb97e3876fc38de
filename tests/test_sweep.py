"""`sweep` from the command line; most tests let a stand-in take the place of `fit`, none that of its parser."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from mlp_lm.cli import main
from mlp_lm.commands import sweep as command
from mlp_lm.training.sweep import plan, points, processes
from tests.conftest import SMALL, fit

Capture = pytest.CaptureFixture[str]
Rows = list[dict[str, str]]

# Notes its arguments, and does what fit does with a folder. The loss is context_size + seed / 10.
STAND_IN = """
import json, os, pathlib, sys, time
flags = dict(arg[2:].split("=", 1) for arg in sys.argv[1:] if "=" in arg)
folder = pathlib.Path(flags["run_dir"] if "run_dir" in flags else flags["ckpt_path"]).absolute()
folder = folder if "run_dir" in flags else folder.parent.parent
with open("calls.txt", "a") as calls:
    call = {"flags": flags, "args": sys.argv[1:], "threads": os.environ.get("OMP_NUM_THREADS")}
    calls.write(json.dumps(call) + "\\n")
(folder / "checkpoints").mkdir(parents=True, exist_ok="ckpt_path" in flags)
size, seed = int(flags["data.context_size"]), int(flags["seed_everything"])
if size == 13:
    print("a warning\\nmlp_lm fit: error: dev loss is nan at step 5; try less", file=sys.stderr)
    sys.exit(2)
if size == 99:
    pathlib.Path("pid.txt").write_text(str(os.getpid()))
    os.kill(os.getppid(), int(pathlib.Path("signal.txt").read_text()))
    time.sleep(60)
report = {
    "losses": {"dev": {"nats_per_token": size + seed / 10}}, "weights": 1000 * size, "seconds": 1.5, "steps": 4,
    "first_step": 2 if "ckpt_path" in flags else 0,
    "samples": [{"text": f"item{size}{i}", "where": "train" if i == 1 else "new"} for i in range(10)],
}
(folder / "report.json").write_text(json.dumps(report))
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus_file: Path) -> Path:
    """A working folder with a config, where `fit` is the stand-in and its parser answers without a new process."""
    monkeypatch.chdir(tmp_path)
    Path("fit.py").write_text(STAND_IN)
    Path("c.yaml").write_text(yaml.safe_dump({"seed_everything": 5, "data": {"path": str(corpus_file)}}))
    monkeypatch.setattr(command, "FIT", [sys.executable, "-S", "fit.py"])
    monkeypatch.setattr(processes, "POLL", 0.01)

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(json.dumps(points.answer(json.loads(json.dumps(request))), default=str))
        return answer

    monkeypatch.setattr(plan, "_ask", ask)
    return tmp_path


def calls() -> list[dict[str, Any]]:
    """What the stand-in was called with since the last look."""
    path = Path("calls.txt")
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def rows_of(folder: str) -> Rows:
    with open(Path(folder) / "sweep.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


SWEEP = ["sweep", "--config", "c.yaml", "--sweep_dir", "s", "--vary"]


@pytest.mark.usefixtures("workplace")
def test_a_sweep_leaves_a_folder_a_run_a_csv_a_table_and_a_picture(capsys: Capture) -> None:
    args = ["--vary=data.context_size=3,2", "--vary", "trainer.max_steps=4", "--seeds=2", "--jobs=2"]
    assert main(["sweep", "--config", "c.yaml", *args]) == 0
    folder = "runs/c/sweep_0"
    names = ["context_size=2,seed=5", "context_size=2,seed=6", "context_size=3,seed=5", "context_size=3,seed=6"]
    assert sorted(p.name for p in Path(folder).iterdir() if p.is_dir()) == names
    assert {"config.yaml", "data.context_size.png", "sweep.csv"} <= {p.name for p in Path(folder).iterdir()}
    rows = rows_of(folder)
    assert [row["dev_loss"] for row in rows] == ["2.500000", "2.600000", "3.500000", "3.600000"]
    assert rows[0] == {
        **{"data.context_size": "2", "trainer.max_steps": "4", "seed_everything": "5", "dev_loss": "2.500000"},
        **{"mean_dev_loss": "2.550000", "std_dev_loss": "0.070711", "weights": "2000", "seconds": "1.5"},
        **{"first_step": "0", "steps": "4", "samples": "item20, item21*, item22, item23, item24"},
        **{"status": "finished", "problem": "", "folder": "context_size=2,seed=5"},
    }
    out, err = capsys.readouterr()
    assert out.splitlines()[:4] == [
        "context_size  dev loss         weights  seconds  runs  samples",
        "2             2.5500 ± 0.0707  2,000    1.5      2     item20, item21*, item22, item23, item24",
        "3             3.5500 ± 0.0707  3,000    1.5      2     item30, item31*, item32, item33, item34",
        "(* stands in train)",
    ]
    assert sorted(line.split(" ", 1)[1] for line in err.splitlines()) == [
        "context_size=2,seed=5: dev loss 2.5000",
        "context_size=2,seed=6: dev loss 2.6000",
        "context_size=3,seed=5: dev loss 3.5000",
        "context_size=3,seed=6: dev loss 3.6000",
    ]


@pytest.mark.usefixtures("workplace")
def test_a_run_is_an_ordinary_fit_that_leaves_test_unread() -> None:
    assert main([*SWEEP, "data.context_size=3", "--seeds=2"]) == 0
    first, second = calls()
    assert first["args"] == [
        *("--config", "s/config.yaml", "--data.context_size=3", "--seed_everything=5"),
        *("--report_test=false", "--run_dir=s/seed=5"),
    ]
    assert Path("s/config.yaml").read_text() == Path("c.yaml").read_text()
    assert second["flags"] == {**first["flags"], "seed_everything": "6", "run_dir": "s/seed=6"}


@pytest.mark.parametrize(
    ("own", "jobs", "expected"), [(None, 2, ["4", "4"]), ("3", 2, ["3", "3"]), (None, 1, [None] * 2)]
)
@pytest.mark.usefixtures("workplace")
def test_runs_share_the_cores(
    own: str | None, jobs: int, expected: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if own:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)), raising=False)
    assert main([*SWEEP, "data.context_size=2,3", f"--jobs={jobs}"]) == 0
    assert [call["threads"] for call in calls()] == expected


@pytest.mark.usefixtures("workplace")
def test_finished_runs_are_recognised_by_their_settings_and_not_run_again(corpus_file: Path, capsys: Capture) -> None:
    def run_again(*args: str) -> list[str]:
        calls()
        assert main([*SWEEP, *args]) == 0
        return [call["flags"]["run_dir"] for call in calls()]

    assert run_again("data.context_size=2,3") == ["s/context_size=2,seed=5", "s/context_size=3,seed=5"]
    capsys.readouterr()
    assert run_again("data.context_size=2,3") == []
    assert "2 of 2 runs have finished before" in capsys.readouterr().err
    assert run_again("data.context_size=2,3,4") == ["s/context_size=4,seed=5"]
    # 0.006 is what the other runs have without a word: the same settings under another name.
    assert run_again("data.context_size=2,3", "--vary=model.learning_rate=0.006") == []
    assert [row["dev_loss"] for row in rows_of("s")] == ["2.500000", "3.500000"]
    # Other settings, or other data in the same place, under the same name.
    assert run_again("data.context_size=2", "--vary=model.hidden_dim=7", "--seeds=2") == ["s/seed=5", "s/seed=6"]
    assert run_again("data.context_size=2,4", "--vary=model.hidden_dim=8") == [
        "s/context_size=2,seed=5,2",
        "s/context_size=4,seed=5,2",
    ]
    Path("mine.txt").write_bytes(corpus_file.read_bytes())
    assert run_again("data.context_size=2,3", "--vary=data.path=mine.txt") == []  # a copy is the same data
    Path("mine.txt").write_text(corpus_file.read_text() + "abba\n")
    assert run_again("data.context_size=2", "--vary=data.path=mine.txt") == ["s/seed=5,2"]


@pytest.mark.usefixtures("workplace")
def test_a_half_finished_run_is_continued_where_its_checkpoint_loads_and_begun_anew_where_not(best: Path) -> None:
    assert main([*SWEEP, "data.context_size=2,3,4"]) == 0
    calls()
    for size in (2, 3, 4):
        folder = Path(f"s/context_size={size},seed=5")
        (folder / "report.json").unlink()
        (folder / "events").touch()
    shutil.copy(best, "s/context_size=2,seed=5/checkpoints/last.ckpt")
    Path("s/context_size=3,seed=5/checkpoints/last.ckpt").write_bytes(best.read_bytes()[:-100])
    assert main([*SWEEP, "data.context_size=2,3,4"]) == 0
    continued, *anew = [call["flags"] for call in calls()]
    assert continued["ckpt_path"] == "s/context_size=2,seed=5/checkpoints/last.ckpt" and "run_dir" not in continued
    assert [flags["run_dir"] for flags in anew] == ["s/context_size=3,seed=5", "s/context_size=4,seed=5"]
    kept = ["context_size=2,seed=5", "context_size=3,seed=5,aside_1"]  # nothing with a checkpoint is deleted
    assert sorted(path.parent.name for path in Path("s").glob("*/events")) == kept
    assert [row["first_step"] for row in rows_of("s")] == ["2", "0", "0"]


@pytest.mark.usefixtures("workplace")
def test_a_failed_run_ends_nothing_but_itself_and_can_be_tried_again(capsys: Capture) -> None:
    assert main([*SWEEP, "data.context_size=13,3"]) == 2
    out, err = capsys.readouterr()
    assert re.search("^13 +failed +0 of 1$", out, re.MULTILINE)
    assert "failed: context_size=13,seed=5: dev loss is nan at step 5; try less" in out.splitlines()
    assert "1/2 context_size=13,seed=5: dev loss is nan at step 5; try less" in err
    last = err.splitlines()[-1]
    assert last.startswith(
        "mlp_lm sweep: error: 1 of 2 runs failed, see the table; to try them again: python -m mlp_lm "
    )
    good, bad = rows_of("s")
    assert (good["status"], bad["status"], bad["dev_loss"]) == ("finished", "failed", "")
    assert bad["problem"] == "dev loss is nan at step 5; try less"
    calls()
    assert main(last.split("python -m mlp_lm ")[1].split()) == 2
    assert [call["flags"]["data.context_size"] for call in calls()] == ["13"]


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.usefixtures("workplace")
def test_a_signal_ends_the_runs_and_keeps_what_is_finished(name: str, code: int, capsys: Capture) -> None:
    Path("signal.txt").write_text(str(getattr(signal, name).value))
    with pytest.raises(SystemExit) as end:
        main([*SWEEP, "data.context_size=2,99,3"])
    assert end.value.code == code
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("pid.txt").read_text()), 0)
    assert [row["status"] for row in rows_of("s")] == ["finished", "not finished", "not finished"]
    out, err = capsys.readouterr()
    assert "99            not finished" in out
    stopped, again = err.splitlines()[-1].split("python -m mlp_lm ")
    assert stopped == "stopped; to go on: "
    assert again.split() == [
        *("sweep", "--config", "c.yaml", "--vary=data.context_size=2,99,3", "--seeds=1", "--jobs=1", "--sweep_dir=s")
    ]


@pytest.mark.usefixtures("workplace")
def test_random_points_are_the_same_when_the_sweep_goes_on() -> None:
    args = ["data.context_size=2,3,4,5,6,7,8", "--random=3", "--random_seed=1"]
    assert main([*SWEEP, *args]) == 0
    assert len(calls()) == len(rows_of("s")) == 3
    assert main([*SWEEP, *args]) == 0
    assert calls() == []


@pytest.mark.usefixtures("workplace")
def test_on_a_terminal_there_is_a_bar_over_all_runs(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main([*SWEEP, "data.context_size=2,3"]) == 0
    err = capsys.readouterr().err
    assert "2/2" in err and "dev loss" not in err


def write_other_folder() -> None:
    Path("s").mkdir()
    Path("s/thesis.txt").write_text("precious")


def write_damaged_index(text: str) -> Callable[[], None]:
    def write() -> None:
        Path("s").mkdir()
        Path("s/sweep.json").write_text(text)

    return write


@pytest.mark.parametrize(
    ("prepare", "args", "expected"),
    [
        (None, ["model.hiden_dim=1,2"], ["vary: unknown setting 'model.hiden_dim'; did you mean model.hidden_dim?"]),
        (None, ["hidden_dim=1,2"], ["vary: unknown setting 'hidden_dim'; did you mean model.hidden_dim?"]),
        (None, ["run_dir=a,b"], ["vary: unknown setting 'run_dir'"]),
        (None, ["model.vocab_size=27"], ["vary: unknown setting 'model.vocab_size'"]),
        (None, ["print_config=a"], ["vary: unknown setting 'print_config'"]),
        (None, ["model.context_size=2,3"], ["unknown setting 'model.context_size'; did you mean data.context_size?"]),
        (
            None,
            ["data.context_size=2,0,x", "--vary=model.momentum=0.9", "--vary=model.dropout=2"],
            [
                "data.context_size: found 0, expected",
                "data.context_size: found 'x', expected int",
                "model.dropout: found 2.0",
            ],
        ),
        (None, ["model.momentum=0,0.9"], ["model.momentum: found 0.9, which goes with model.optimizer sgd alone"]),
        (None, ["model.dropout=0,0.0"], ["--model.dropout=0 and --model.dropout=0.0 are the same settings"]),
        (None, ["data.path=nowhere.txt,neither.txt"], ["nowhere.txt: no such file", "neither.txt: no such file"]),
        (None, ["trainer.accelerator=warp"], ["warp"]),
        (None, ["seed_everything=4294967295", "--seeds=2"], ["seed_everything: found 4294967296, expected"]),
        (None, ["data.context_size="], ["vary: data.context_size: no values, which makes an empty grid"]),
        (None, ["data.context_size=2,3", "--random=3"], ["random: found 3, but the grid has 2 points"]),
        (None, ["data.context_size=2", "--jobs=0", "--seeds=0"], ["seeds: found 0", "jobs: found 0"]),
        (None, ["data.context_size=2", "--job=2"], ["did you mean --jobs?"]),
        (write_other_folder, ["data.context_size=2"], ["sweep_dir: s is not empty and holds no sweep"]),
        (write_damaged_index("{"), ["data.context_size=2"], ["s/sweep.json: damaged"]),
        (write_damaged_index('{"../elsewhere": {}}'), ["data.context_size=2"], ["s/sweep.json: damaged"]),
        (lambda: Path("s").touch(), ["data.context_size=2"], ["sweep_dir: s cannot be used (Not a directory)"]),
        (lambda: Path("c.yaml").write_text("data: 3"), ["data.context_size=2"], ["c.yaml: data: found 3"]),
        (lambda: Path("c.yaml").write_text("model:\n  hiden: 3"), ["data.context_size=2"], ["model.hiden", "c.yaml"]),
        (lambda: Path("c.yaml").unlink(), ["data.context_size=2"], ["c.yaml: cannot be read"]),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_bad_input_is_one_line_before_the_first_run(
    prepare: Callable[[], object] | None, args: list[str], expected: list[str], capsys: Capture
) -> None:
    if prepare is not None:
        prepare()
    before = sorted(Path().rglob("*"))
    assert main([*SWEEP, *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("mlp_lm sweep: error: ")
    for text in expected:
        assert text in err
    assert sorted(Path().rglob("*")) == before


@pytest.mark.usefixtures("workplace")
def test_a_sweep_of_nothing(capsys: Capture) -> None:
    assert main(["sweep", "--config=c.yaml"]) == 2
    assert "vary: missing, so that nothing varies" in capsys.readouterr().err


@pytest.mark.usefixtures("workplace")
def test_two_sweeps_never_work_in_one_folder(capsys: Capture) -> None:
    assert main([*SWEEP, "data.context_size=2"]) == 0
    with FileLock("s/.lock"):
        assert main([*SWEEP, "data.context_size=2"]) == 2
    assert "another sweep is at work in s" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_sweep(corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    small = [flag.removeprefix("--") for flag in SMALL] + [f"data.path={corpus_file}", "trainer.max_steps=4"]
    small.remove("data.context_size=3")
    args = ["sweep", "--jobs=2", *(f"--vary={text}" for text in [*small, "data.context_size=2,3"])]
    assert main(args) == 0
    sweep_dir = Path("runs/items/sweep_0")
    rows = rows_of(str(sweep_dir))
    alone = fit(corpus_file, tmp_path / "alone", "--trainer.max_steps=4", "--data.batch_size=1024")
    loss = json.loads((alone / "report.json").read_text())["losses"]["dev"]["nats_per_token"]
    assert {row["data.context_size"]: row["dev_loss"] for row in rows}["3"] == f"{loss:.6f}"
    report = json.loads((sweep_dir / "context_size=3,seed=42" / "report.json").read_text())
    assert [*report["losses"]] == ["dev"]
    capfd.readouterr()
    assert main(["sweep", *args[1:], f"--sweep_dir={sweep_dir}"]) == 0
    assert "2 of 2 runs have finished before" in capfd.readouterr().err
    assert main(["sweep", "--vary=model.hiden_dim=3"]) == 2
    assert re.search("did you mean model.hidden_dim", capfd.readouterr().err)


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("name", ["..", "", ".hidden", "a/b", "/etc"])
def test_a_sweep_takes_no_name_but_its_own_from_its_file(name: str, capsys: Capture) -> None:
    assert main([*SWEEP, "data.context_size=2,3"]) == 0
    index = json.loads(Path("s/sweep.json").read_text())
    Path("s/sweep.json").write_text(json.dumps({name: next(iter(index.values()))}))
    assert main([*SWEEP, "data.context_size=2,3"]) == 2
    assert "sweep.json: damaged" in capsys.readouterr().err
    assert Path("s/context_size=2,seed=5/report.json").exists()


@pytest.mark.usefixtures("workplace")
def test_checking_the_points_starts_no_processes_for_several_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: object) -> None:
        raise AssertionError("started")

    monkeypatch.setattr("mlp_lm.training.ranks.start", start)
    flags = ["data.context_size=2", "--vary=trainer.devices=2", "--vary=trainer.accelerator=cpu", "--seeds=2"]
    assert main([*SWEEP, *flags]) == 0
