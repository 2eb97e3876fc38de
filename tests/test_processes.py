"""Several processes at a time, none of which is left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from mlp_lm.training import processes
from mlp_lm.training.processes import note_signals, run_processes

NOTE = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); "


def python(code: str, *args: object) -> list[str]:
    return [sys.executable, "-S", "-c", code, *map(str, args)]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "POLL", 0.01)


def test_all_run_and_say_how_they_ended() -> None:
    commands = {
        "good": python("import os; print(os.environ['OWN'])"),
        "bad": python("import sys; sys.exit('é: no')"),
        "killed": python("import os; os.kill(os.getpid(), 9)"),
    }
    ended: dict[str, tuple[int, str]] = {}
    environment = {**os.environ, "OWN": "1", "PYTHONIOENCODING": "utf-8"}
    run_processes(commands, 2, environment, [], lambda name, *end: ended.update({name: end}))
    assert {name: (status, text.strip()) for name, (status, text) in ended.items()} == {
        "good": (0, ""),
        "bad": (1, "é: no"),
        "killed": (-9, ""),
    }


@pytest.mark.parametrize("jobs", [1, 3])
def test_so_many_run_at_a_time(tmp_path: Path, jobs: int) -> None:
    # Each says how many are at work, itself counted, and stays until it has seen as many as there can be.
    code = (
        "import os, pathlib, sys, time; folder, jobs = pathlib.Path(sys.argv[1]), int(sys.argv[2])\n"
        "(folder / f'{os.getpid()}.at_work').touch()\n"
        "while len(seen := [*folder.glob('*.at_work')]) < jobs and not [*folder.glob('*.full')]: time.sleep(0.005)\n"
        "(folder / f'{len(seen)}.full').touch(); (folder / f'{os.getpid()}.at_work').unlink()"
    )
    commands = {str(i): python(code, tmp_path, jobs) for i in range(5)}
    run_processes(commands, jobs, os.environ, [], lambda *_: None)
    assert max(int(path.stem) for path in tmp_path.glob("*.full")) == jobs


@pytest.mark.parametrize(
    "code",
    [
        NOTE + "time.sleep(60)",
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + NOTE + "time.sleep(60)",  # a stubborn one
        "import os, signal, time; os.fork() or signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        + NOTE
        + "time.sleep(60)",
    ],
    ids=["willing", "stubborn", "with a stubborn child"],
)
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_signal_leaves_no_process_behind(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.2)
    before = signal.getsignal(signal.SIGTERM)
    commands = {str(i): python(code, tmp_path / str(i)) for i in range(2)}
    commands["and tell"] = python(
        "import os, pathlib, signal, sys, time\n"
        "while not all(pathlib.Path(p).exists() for p in sys.argv[1:]): time.sleep(0.005)\n"
        "time.sleep(0.05); os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)",
        tmp_path / "0",
        tmp_path / "1",
    )
    commands["never started"] = python(NOTE, tmp_path / "never")
    ended: list[str] = []
    with note_signals() as received:
        run_processes(commands, 3, os.environ, received, lambda name, *_: ended.append(name))
    assert received == [signal.SIGTERM] and ended == [] and not (tmp_path / "never").exists()
    patience = time.monotonic() + 10
    while any(is_running(int((tmp_path / i).read_text())) for i in "01") and time.monotonic() < patience:
        time.sleep(0.01)  # the child of a child is collected by the system, not by us
    assert [i for i in "01" if is_running(int((tmp_path / i).read_text()))] == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_error_of_our_own_leaves_no_process_behind(tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("ours")

    wait = "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.005)"
    commands = {
        "long": python(NOTE + "time.sleep(60)", tmp_path / "pid"),
        "short": python(f"import pathlib, sys, time\n{wait}", tmp_path / "pid"),
    }
    with pytest.raises(RuntimeError, match="ours"):
        run_processes(commands, 2, os.environ, [], fail)
    assert not is_running(int((tmp_path / "pid").read_text()))
