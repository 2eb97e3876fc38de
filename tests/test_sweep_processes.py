"""Several processes at a time, none of which is left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from mlp_lm.training.sweep import processes
from mlp_lm.training.sweep.processes import note_signals, run_processes

IMPORTS = "import os, pathlib, signal, sys, time; path = pathlib.Path(sys.argv[1])"
NOTE_PID = "path.with_suffix('.new').write_text(str(os.getpid())); path.with_suffix('.new').rename(path)"
AWAIT_PID = "[time.sleep(0.005) for _ in iter(path.exists, True)]"


def python(code: str, *args: object) -> list[str]:
    return [sys.executable, "-S", "-c", f"{IMPORTS}\n{code}", *map(str, args)]


def assert_ends(pid_file: Path) -> None:
    """The process is gone, or soon will be: the child of a child is collected by the system, not by us."""
    patience = time.monotonic() + 10
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < patience:
            os.kill(int(pid_file.read_text()), 0)
            time.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "POLL", 0.01)


def test_all_run_and_say_how_they_ended(tmp_path: Path) -> None:
    commands = {
        "good": python("sys.stderr.write(os.environ['OWN'])", tmp_path),
        "bad": python("sys.exit('é: no')", tmp_path),
        "killed": python("os.kill(os.getpid(), 9)", tmp_path),
    }
    ended: dict[str, tuple[int, str]] = {}
    environment = {**os.environ, "OWN": "1", "PYTHONIOENCODING": "utf-8"}
    run_processes(commands, 2, environment, [], lambda name, *end: ended.update({name: end}))
    assert ended == {"good": (0, "1"), "bad": (1, "é: no\n"), "killed": (-9, "")}


@pytest.mark.parametrize("jobs", [1, 3])
def test_so_many_run_at_a_time(tmp_path: Path, jobs: int) -> None:
    # Each says how many are at work, itself counted, and stays until it has seen as many as there can be.
    code = (
        "own = path / f'{os.getpid()}.at_work'; own.touch()\n"
        "while len(seen := [*path.glob('*.at_work')]) < int(sys.argv[2]) and not [*path.glob('*.full')]: pass\n"
        "(path / f'{len(seen)}.full').touch(); own.unlink()"
    )
    run_processes({str(i): python(code, tmp_path, jobs) for i in range(5)}, jobs, os.environ, [], lambda *_: None)
    assert max(int(found.stem) for found in tmp_path.glob("*.full")) == jobs


@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    [
        "",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "os.fork() and time.sleep(60); signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    ],
    ids=["willing", "stubborn", "with a stubborn child"],
)
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_signal_leaves_no_process_behind(start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.2)
    before = signal.getsignal(signal.SIGTERM)
    commands = {
        "long": python(f"{start}\n{NOTE_PID}; time.sleep(60)", tmp_path / "pid"),
        "tell": python(f"{AWAIT_PID}; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)", tmp_path / "pid"),
        "never started": python(NOTE_PID, tmp_path / "never"),
    }
    ended: list[str] = []
    with note_signals() as received:
        run_processes(commands, 2, os.environ, received, lambda name, *_: ended.append(name))
    assert received == [signal.SIGTERM] and ended == [] and not (tmp_path / "never").exists()
    assert_ends(tmp_path / "pid")
    assert signal.getsignal(signal.SIGTERM) is before
