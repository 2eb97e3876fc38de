"""`sweep` from the command line, on a small corpus."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from filelock import FileLock
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from mlp_lm.cli import main
from mlp_lm.commands.study import PRUNERS, Sweep, take_up
from mlp_lm.commands.sweep import best_text, importances, space_of, table_text
from tests.conftest import LOGGED, SMALL, Capture, assert_same_run, before_step, error_of, fit, report, scalars, stop_at

SWEEP = ["sweep", "--config=c.yaml", "--sweep_dir=s"]
TWO = ["--vary=model.hidden_dim=8,16"]
RESUME = ["sweep", "--sweep_dir=s"]
LONG = {
    "data": {"batch_size": 64},
    "trainer": {"max_steps": 12, "val_check_interval": 5, "log_every_n_steps": 1, "logger": False},
}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus_file: Path) -> None:
    """A working folder with the config of short runs, those of `conftest.fit`."""
    monkeypatch.chdir(tmp_path)
    config: dict[str, dict[str, object]] = {"data": {"path": str(corpus_file)}, "model": {}, "trainer": {}}
    for flag in SMALL:
        name, _, value = flag[2:].partition("=")
        section, _, setting = name.partition(".")
        config[section][setting] = yaml.safe_load(value)
    Path("c.yaml").write_text(yaml.safe_dump({key: {**config[key], **LONG.get(key, {})} for key in config}))


def rows(folder: str = "s") -> list[dict[str, str]]:
    with open(Path(folder) / "sweep.csv", encoding="utf-8", newline="") as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def begin_sweep(*args: str) -> optuna.Study:
    """The study of a sweep in the folder `s`, whose workers are all stopped before the first step."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(0, signal.SIGINT, patch)
        assert main([*SWEEP, *args]) == 130
    return Sweep(Path("s"), None).study


def last_error(capsys: Capture) -> str:
    return capsys.readouterr().err.splitlines()[-1]


# -- what varies -------------------------------------------------------------------------------------------------------


ASKED = {"seeds": None, "sampler": None, "trials": None}


def test_choices_stay_as_written_and_ranges_are_numbers() -> None:
    vary = [
        "data.context-size=2,03",
        'data.path="a,b.txt",../c.txt',
        "model.learning_rate=1e-3..3e-2:log",
        "model.hidden_dim=64..1024:int:log",
        "model.dropout=0..0.5:0.25",
        "data.batch_size=32..100:int:32",  # from which 96 is the last
    ]
    assert space_of({**ASKED, "vary": vary, "trials": 1}) == {
        "data.context_size": CategoricalDistribution(["2", "03"]),
        "data.path": CategoricalDistribution(["a,b.txt", "../c.txt"]),
        "model.learning_rate": FloatDistribution(0.001, 0.03, log=True),
        "model.hidden_dim": IntDistribution(64, 1024, log=True),
        "model.dropout": FloatDistribution(0, 0.5, step=0.25),
        "data.batch_size": IntDistribution(32, 96, step=32),
    }


def test_a_grid_has_every_combination_and_a_sampler_fills_points() -> None:
    settings = ["--vary=data.context_size=2,3", "--vary=model.dropout=0,0.1"]
    queued = [trial.system_attrs["fixed_params"].values() for trial in begin_sweep(*settings).get_trials()[:4]]
    assert [[*values] for values in queued] == [["2", "0"], ["2", "0.1"], ["3", "0"], ["3", "0.1"]]
    shutil.rmtree("s")
    assert [t.system_attrs["fixed_params"] for t in begin_sweep(*settings, "--trials=2").get_trials()[:2]] == [{}, {}]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("--vary=model.hiden_dim=1,2", ["--model.hiden_dim=1; did you mean --model.hidden_dim?"]),
        ("--vary=data.context_size=", ["vary: found 'data.context_size=', expected KEY=V1,... or KEY=LOW..HIGH"]),
        ("--vary=run_dir=a,b --vary=data.path=[a]", ["'run_dir' is not in data, model or trainer", "'data.path=[a]'"]),
        ("--vary=data.context_size=2 --vary=data.context_size=3", ["(set twice)"]),
        ("--vary=model.dropout=0.5..0.1 --trials=2", ["vary: found 'model.dropout=0.5..0.1'"]),
        (
            "--vary=data.context_size=2,0,x --vary=model.dropout=2",
            ["data.context_size must be", "data.context_size: found 'x', expected int", "model.dropout must be"],
        ),
        (
            "--vary=model.dropout=0.5..1.5 --vary=model.hidden_dim=-1..9:int --vary=data.batch_size=8,0 --trials=9",
            ["model.dropout must be", "(got 1.5)", "model.hidden_dim must be", "(got -1)", "data.batch_size must be"],
        ),
        ("--vary=data.path=nowhere.txt,neither.txt", ["nowhere.txt: no such file", "neither.txt: no such file"]),
        ("--vary=trainer.devices=2", ["trainer.devices: a run of a sweep takes one process"]),
        ("", ["vary: missing; expected --vary KEY=..."]),
        ("--vary=model.dropout=0..0.5", ["trials: missing; ranges, random and tpe need a number"]),
        (
            "--vary=model.dropout=0..0.5 --sampler=grid",
            ["sampler: grid takes choices, not ranges; leave --sampler out"],
        ),
        ("--vary=model.dropout=0,0.1 --sampler=grid --trials=1", ["trials: found 1; a grid runs all combinations"]),
        ("--vary=data.teacher=nobody.ckpt", ["nobody.ckpt: no such file"]),
        ("--vary=model.hidden_dim=4..16:int:2:4 --trials=2", ["expected KEY=V1,... or KEY=LOW..HIGH", "2:4"]),
        ("--vary=model.dropout=0,0.1 --sweep_dir=other", ["sweep_dir: other is not empty"]),
        ("--sweep_dir=missing", ["vary: missing; expected --vary KEY=..., --seeds above 1, or the sweep_dir"]),
        ("--vary=model.dropout=0,0.1 --storage=sqlite:///a.db", ["sweep_dir"]),
        (
            "--vary=model.dropout=0,0.1 --storage=nonsense --sweep_dir=s",
            ["sweep_dir or storage: cannot be used (Could not parse"],
        ),
        ("--vary=model.dropout=0,0.1 --config=wrong.yaml", ["model.hiden", "wrong.yaml"]),
    ],
)
def test_bad_input_is_one_line_before_the_first_run(args: str, expected: list[str], capsys: Capture) -> None:
    Path("other").mkdir()
    Path("other/thesis.txt").touch()
    Path("wrong.yaml").write_text("model:\n  hiden: 3")
    before = sorted(Path().rglob("*"))
    error = error_of(["sweep", "--config=c.yaml", *args.split()], capsys)
    assert sorted(Path().rglob("*")) == before
    for text in expected:
        assert text in error


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_sweep_leaves_runs_a_csv_a_table_and_a_picture(capsys: Capture) -> None:
    args = ["--vary=data.context_size=3,2", "--vary", "trainer.max_steps=4", "--seeds=2"]
    assert main(["sweep", "--config=c.yaml", *args]) == 0
    folder = Path("runs/c/sweep_0")
    runs = [folder / f"trial_{point}/seed_{seed}" for point in (0, 1) for seed in (42, 43)]
    reports = [report(run) for run in runs]
    assert [[*content["losses"]] for content in reports] == [["dev"]] * 4  # test stays unread
    assert [content["settings"]["data"]["context_size"] for content in reports] == [3, 3, 2, 2]
    assert [yaml.safe_load((run / "config.yaml").read_text())["seed_everything"] for run in runs] == [42, 43] * 2
    assert {"config.yaml", "data.context_size.png", "sweep.csv"} <= {path.name for path in folder.iterdir()}
    losses = [content["losses"]["dev"]["nats_per_token"] for content in reports]
    found = sorted(rows(str(folder)), key=lambda row: row["folder"])
    assert [float(row["dev_loss"]) for row in found] == pytest.approx(
        [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2], abs=1e-6
    )
    assert [len(row["dev_losses"].split()) for row in found] == [2, 2]
    assert found[0]["samples"].count(", ") == 9
    out, err = capsys.readouterr()
    assert re.match(r"data\.context_size +dev_loss +std_dev_loss +dev_losses +best_step +weights +seconds +status", out)
    assert [re.sub(r"\d\.\d+", "L", line) for line in err.splitlines()] == [
        "1/2 trial_0: dev loss L",
        "2/2 trial_1: dev loss L",
    ]


def test_runs_of_one_process_have_the_bits_of_fit(corpus_file: Path) -> None:
    # The first has small steps, for which fit takes one thread; the second must not.
    flags = ["--data.batch_size=512", "--trainer.max_steps=3", "--trainer.log_every_n_steps=1"]
    sizes, before = ("8", "256"), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for size in sizes[::-1]:
            fit(corpus_file, Path(size), LOGGED, f"--model.hidden_dim={size}", *flags)
        more = ["--vary=trainer.logger=true", *(f"--vary={flag[2:]}" for flag in flags)]
        assert main([*SWEEP, f"--vary=model.hidden_dim={','.join(sizes)}", *more]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    for number, size in enumerate(sizes):
        assert_same_run(Path(size), Path(f"s/trial_{number}/seed_42"))


def test_what_a_sampler_chooses_follows_from_the_seed_and_is_run_once() -> None:
    vary = ["--vary=model.learning_rate=1e-3..1e-1:log", "--trials=2"]
    Path("other.yaml").write_text(f"seed_everything: 7\n{Path('c.yaml').read_text()}")
    for folder, config in {"a": "c.yaml", "b": "c.yaml", "c": "other.yaml"}.items():
        assert main(["sweep", f"--config={config}", *vary, f"--sweep_dir={folder}"]) == 0
    assert rows("a") == rows("b")
    assert len({row["model.learning_rate"] for row in rows("a") + rows("c")}) == 4
    assert main([*SWEEP, "--vary=model.hidden_dim=4,8", "--sampler=random", "--trials=4"]) == 0
    assert len([*Path("s").glob("*/seed_42")]) == len(rows()) == 2


def test_a_pruned_point_says_so_keeps_its_curve_and_leaves_out_its_other_seeds(capsys: Capture) -> None:
    vary = "--vary=model.learning_rate=1e-9,0.1,0.2,0.3,0.4,0.5"  # the median needs five others
    begun = begin_sweep(vary, "--seeds=2", "--prune", "--vary=trainer.logger=true")
    for _ in range(5):
        losses = {"dev": {"nats_per_token": 2.0}}
        run = {"losses": losses, "best_step": 5, "weights": 9, "seconds": 1.0, "samples": []}
        trial = begun.ask()
        trial.report(2.0, 1)
        trial.set_user_attr("runs", [run] * 2)
        begun.tell(trial, 2.0)
    assert main(RESUME) == 0
    assert [row["status"] for row in rows()] == ["finished"] * 5 + ["pruned"]
    assert [path.name for path in Path("s/trial_0").iterdir() if path.is_dir()] == ["seed_42"]
    assert [step for step, _ in scalars(Path("s/trial_0/seed_42"))["dev/loss"]] == [5]
    assert "6/6 trial_0: pruned" in capsys.readouterr().err


def test_a_pruned_point_stays_so_where_the_pruner_would_not_say_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Once(optuna.pruners.BasePruner):
        asked = 0

        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:  # as hyperband does
            self.asked += 1
            return self.asked == 1

    monkeypatch.setitem(PRUNERS, "hyperband", Once)
    assert main([*SWEEP, *TWO, "--seeds=2", "--prune=hyperband"]) == 0
    assert [(row["folder"], row["status"]) for row in rows()] == [("trial_1", "finished"), ("trial_0", "pruned")]


def test_a_pruned_run_that_was_killed_is_still_ended_and_reported() -> None:
    begin_sweep(*TWO, "--prune").ask().set_user_attr("pruned", True)  # as a worker does that is killed now
    assert main(RESUME) == 0
    assert [row["status"] for row in rows()] == ["finished", "pruned"] and rows()[1]["dev_loss"]


def test_a_failed_point_ends_nothing_but_itself_and_can_be_tried_again(capsys: Capture) -> None:
    vary = ["--vary=model.optimizer=sgd", "--vary=model.learning_rate=1e30,0.1"]
    for command in ([*SWEEP, *vary], RESUME):
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert [row["status"] for row in rows()] == ["finished", "failed"]
        assert "train loss is nan at step" in rows()[1]["problem"] or "loss is" in rows()[1]["problem"]
        assert re.search(r"^trial_0 failed: \w+ loss is ", out, re.MULTILINE)
        assert re.search(r"^./2 trial_0: \w+ loss is ", err, re.MULTILINE)
        assert err.splitlines()[-1] == (
            "mlp_lm sweep: error: 1 of 2 points failed, 0 are not done; "
            "to resume: python -m mlp_lm sweep --sweep_dir=s --jobs=1"
        )
    assert "trial_1:" not in err  # finished points stay


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def undisturbed() -> list[dict[str, str]]:
    """The rows of a sweep that nobody has stopped."""
    assert main(["sweep", "--config=c.yaml", *TWO, "--sweep_dir=undisturbed"]) == 0
    return rows("undisturbed")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_signal_saves_the_run_and_the_same_sweep_goes_on(
    undisturbed: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    with monkeypatch.context() as patch:
        stop_at(7, signal.SIGINT, patch)
        assert main([*SWEEP, *TWO]) == 130
    assert [row["status"] for row in rows()] == ["waiting", "waiting"]  # and the table so far is there
    assert last_error(capsys) == "mlp_lm sweep: stopped; to resume: python -m mlp_lm sweep --sweep_dir=s --jobs=1"
    assert not Path("s/trial_0/seed_42/report.json").exists()
    Path("c.yaml").unlink()
    assert main(RESUME) == 0
    assert rows() == undisturbed
    assert report(Path("s/trial_0/seed_42"))["first_step"] == 8
    events = [path.stat().st_mtime_ns for path in Path("s").glob("*/*/report.json")]
    assert main(RESUME) == 0
    assert [path.stat().st_mtime_ns for path in Path("s").glob("*/*/report.json")] == events  # nothing is run again


def test_the_point_of_a_dead_worker_is_taken_up_and_that_of_a_living_one_left_alone(
    undisturbed: list[dict[str, str]], capsys: Capture
) -> None:
    begun = begin_sweep(*TWO)
    begun.ask()  # as a worker does that is killed now
    with FileLock("s/.trial_1.lock"):
        assert main(RESUME) == 0
    assert [row["status"] for row in rows()] == ["finished", "running"]
    assert last_error(capsys).startswith("1 of 2 points are still at work elsewhere; to resume: ")
    assert main(RESUME) == 0
    assert rows() == undisturbed
    states = [trial.state.name for trial in begun.get_trials()]
    assert sorted(states) == ["COMPLETE", "COMPLETE", "FAIL", "FAIL"]


def test_a_worker_that_slept_so_long_that_its_point_was_taken_up_goes_on(
    undisturbed: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_up_elsewhere() -> None:
        study = Sweep(Path("s"), None).study
        if len(study.get_trials()) == 2:
            study.tell(0, state=TrialState.FAIL)
            take_up(study, study.get_trials()[0])

    with monkeypatch.context() as patch:
        before_step(7, take_up_elsewhere, patch)
        assert main([*SWEEP, *TWO]) == 0
    assert rows() == undisturbed


def test_a_sweep_goes_on_with_the_settings_that_it_began_with(corpus_file: Path, capsys: Capture) -> None:
    assert main([*SWEEP, "--vary=model.hidden_dim=8,16", "--vary=data.path=mine.txt"]) == 2
    Path("mine.txt").write_bytes(corpus_file.read_bytes())
    command = [*SWEEP, "--vary=model.hidden_dim=8,16", "--vary=data.path=mine.txt"]
    assert main(command) == main(command) == 0
    capsys.readouterr()
    assert "seeds: 2: not as when the sweep began" in error_of([*command, "--seeds=2"], capsys)
    Path("c.yaml").write_text(Path("c.yaml").read_text().replace("lr_warmup_steps: 2", "lr_warmup_steps: 1"))
    assert "config: lr_warmup_steps: 1: not as when" in error_of(command, capsys)
    Path("mine.txt").write_text(corpus_file.read_text() + "abba\n")
    assert "config: # corpus " in error_of(RESUME, capsys)


# -- what came out -----------------------------------------------------------------------------------------------------

RATE, SIZE = "model.learning_rate", "model.hidden_dim"


def row(rate: float, losses: list[float], std: float | None = None, status: str = "finished") -> dict[str, Any]:
    figures = {"dev_loss": sum(losses) / len(losses) if losses else None, "std_dev_loss": std, "dev_losses": losses}
    rest = {"best_step": [5], "weights": 99, "seconds": 1.5, "status": status, "folder": "trial_7", "problem": None}
    return {RATE: rate, SIZE: "8", **figures, **rest}


def test_the_table_has_the_losses_of_seeds_and_gaps_where_there_is_nothing() -> None:
    rows = [row(0.00123456, [2.0, 2.5], 0.353553), row(1e-5, [], status="waiting")]
    assert table_text(rows, [RATE]).splitlines() == [
        "model.learning_rate  dev_loss  std_dev_loss  dev_losses  best_step  weights  seconds  status    folder",
        "0.0012346            2.25      0.35355       2 2.5       5          99       1.5      finished  trial_7",
        "1e-05                                                    5          99       1.5      waiting   trial_7",
    ]


@pytest.mark.parametrize(
    ("std", "sure"), [(0.04, "standard error over seeds 0.0354"), (None, "no spread to compare it with: one seed each")]
)
def test_the_best_settings_are_lines_of_a_config_and_the_ranking_says_how_sure_it_is(
    std: float | None, sure: str, capsys: Capture
) -> None:
    both = [row(1e-5, [2.0, 2.0], std and 0.03), row(1.0, [2.1, 2.1], std)]
    config, _, ranking = best_text(both, [RATE, SIZE]).partition("\nthe second ")
    assert ranking == f"is 0.1000 nats/token behind; {sure}"
    Path("best.yaml").write_text(config.removeprefix("best settings, of trial_7:\n"))
    with pytest.raises(SystemExit):
        main(["fit", "--config=best.yaml", "--print_config"])
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    assert (float(model["learning_rate"]), model["hidden_dim"]) == (1e-5, 8)
    assert best_text([row(1.0, [], status="failed")], [RATE]) == ""


def test_importances_are_shown_from_twenty_points_on() -> None:
    study = optuna.create_study(sampler=RandomSampler(seed=1))
    study.optimize(lambda trial: trial.suggest_float(RATE, 0, 1) + 0 * trial.suggest_float(SIZE, 0, 1), n_trials=19)
    assert importances(study, [RATE, SIZE]) == ""
    study.optimize(lambda trial: trial.suggest_float(RATE, 0, 1) + 0 * trial.suggest_float(SIZE, 0, 1), n_trials=11)
    expected = rf"importances \(PED-ANOVA\): {RATE} [01]\.\d\d, {SIZE} [01]\.\d\d"
    assert re.fullmatch(expected, importances(study, [RATE, SIZE]))


# -- many workers ------------------------------------------------------------------------------------------------------


MANY = ["--vary=trainer.max_steps=300", "--vary=trainer.val_check_interval=100"]


def start(*args: str) -> subprocess.Popen[bytes]:
    """A sweep in a process of its own, in whose group the other workers are."""
    return subprocess.Popen([sys.executable, "-m", "mlp_lm", *args], start_new_session=True, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_workers_that_are_killed_leave_nothing_undone_and_nothing_done_twice() -> None:
    command = ["sweep", "--vary=model.hidden_dim=8,12,16", "--seeds=2", *MANY]
    assert main([*command, "--config=c.yaml", "--sweep_dir=undisturbed"]) == 0
    process = start(*command, "--config=c.yaml", "--sweep_dir=s", "--jobs=2")
    deadline = time.monotonic() + 60
    while not [*Path("s").glob("*/*/checkpoints/last.ckpt")] and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    begun = [*Path("s").glob("*/*/checkpoints/last.ckpt")]
    assert main(RESUME) == 0
    assert begun and rows() == rows("undisturbed")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_while_workers_still_import_ends_them_in_silence() -> None:
    command = [sys.executable, "-m", "mlp_lm", *SWEEP, *TWO, "--vary=trainer.max_steps=1000000", "--jobs=2"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while not Path("s/config.yaml").exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    assert (
        process.communicate()[1] == "mlp_lm sweep: stopped; to resume: python -m mlp_lm sweep --sweep_dir=s --jobs=2\n"
    )
    assert process.returncode == 130


def test_of_machines_that_begin_a_sweep_at_once_one_queues_its_points() -> None:
    machines = [Sweep(folder, "sqlite:///a.db") for folder in (Path("one/a/s"), Path("two/a/s"))]
    for machine in machines:
        machine.folder.mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        asked: dict[str, Any] = {"trials": 20, "config": "", "space": {}}
        assert [*pool.map(Sweep.begin, machines, [asked, asked])] == [None, None]
    assert [trial.user_attrs for trial in machines[0].study.get_trials()] == [
        {"folder": f"trial_{i}"} for i in range(20)
    ]


def test_a_mistake_leaves_nothing_on_a_database(capsys: Capture) -> None:
    error_of([*SWEEP, "--vary=model.dropout=2", "--storage=sqlite:///a.db"], capsys)
    assert optuna.get_all_study_names("sqlite:///a.db") == []


@pytest.fixture
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server that is started here."""
    pytest.importorskip("psycopg", reason="no driver for PostgreSQL")
    if not (shutil.which("initdb") and shutil.which("postgres")):
        pytest.skip("no PostgreSQL server is installed")
    folder = tmp_path_factory.mktemp("postgres")
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # as whom it does not run
        user = {"user": "nobody"}
        for path in (folder, *folder.parents[:3]):
            shutil.chown(path, "nobody") if path == folder else path.chmod(0o755)
    data, address = str(folder / "data"), ["-c", f"unix_socket_directories={folder}", "-c", "listen_addresses="]
    subprocess.run(["initdb", "-D", data, "-U", "me", "-A", "trust"], check=True, stdout=subprocess.DEVNULL, **user)
    server = subprocess.Popen(["postgres", "-D", data, *address], stderr=subprocess.DEVNULL, cwd="/", **user)
    try:
        while not [*folder.glob(".s.PGSQL.*")]:
            assert server.poll() is None
            time.sleep(0.05)
        yield f"postgresql+psycopg://me@/postgres?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)  # whose clients need not end first
        server.wait()


@pytest.mark.slow
def test_two_machines_share_a_sweep_on_a_database(database: str) -> None:
    vary = ["--config=c.yaml", "--vary=model.hidden_dim=8,12,16", *MANY]
    assert main(["sweep", *vary, "--sweep_dir=alone/s"]) == 0
    command = ["sweep", *vary, f"--storage={database}"]
    machines = [
        start(*command, f"--sweep_dir={place}/one/s", f"--jobs={jobs}")  # whose name on the database is one/s
        for place, jobs in (("here", 2), ("there", 1))
    ]
    told = [machine.communicate()[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], told
    assert b"".join(told).count(b": dev loss ") == 3
    assert main(["sweep", "--sweep_dir=elsewhere/one/s", f"--storage={database}"]) == 0
    assert rows("elsewhere/one/s") == rows("alone/s") and not [*Path("elsewhere/one/s").glob("trial_*")]
