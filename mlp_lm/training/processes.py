"""Several processes at a time, none of which outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO

POLL, GRACE = 0.1, 10.0  # seconds between two looks at the processes; seconds that they get to end by themselves
ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
OF_THEIR_OWN = os.name == "posix"  # children lead a process group: Ctrl-C reaches us alone, and we end the whole group

Running = dict[str, tuple[subprocess.Popen[bytes], IO[bytes]]]


@contextmanager
def note_signals() -> Iterator[list[int]]:
    """Collect the signals that ask this process to end, instead of ending. Only the main thread can."""
    received: list[int] = []
    before = {number: signal.signal(number, lambda got, _: received.append(got)) for number in ENDING}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_processes(
    commands: Mapping[str, Sequence[str]],
    jobs: int,
    environment: Mapping[str, str],
    received: Sequence[int],
    on_end: Callable[[str, int, str], None],
) -> None:
    """Run `commands`, `jobs` at a time, until all have ended or a signal has come; then end those that still run.

    Args:
        commands: By name.
        jobs: How many run at a time.
        environment: Their environment.
        received: What `note_signals` yields.
        on_end: Called with name, exit status and standard error of each that ended by itself.
    """
    waiting = deque(commands)
    running: Running = {}
    try:
        while (waiting or running) and not received:
            while waiting and len(running) < jobs:
                name = waiting.popleft()
                running[name] = _start(commands[name], environment)
            time.sleep(POLL)
            for name, (process, stderr) in [*running.items()]:
                if process.poll() is not None:
                    del running[name]
                    with stderr:
                        stderr.seek(0)
                        on_end(name, process.returncode, stderr.read().decode(errors="replace"))
    finally:
        _end(running)


def _start(command: Sequence[str], environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed when the process has ended
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env=environment,
        start_new_session=OF_THEIR_OWN,
    )
    return process, stderr


def _end(running: Running) -> None:
    """Ask all to end, wait for them together, kill those that do not."""
    for process, _ in running.values():
        _signal(process, "SIGTERM")
    deadline = time.monotonic() + GRACE
    for process, stderr in running.values():
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        _signal(process, "SIGKILL")  # and what it may have started itself
        process.wait()
        stderr.close()


def _signal(process: subprocess.Popen[bytes], name: str) -> None:
    if OF_THEIR_OWN:
        with suppress(ProcessLookupError, PermissionError):  # all have ended; the second is what a Mac says then
            os.killpg(process.pid, getattr(signal, name))
    else:
        process.terminate()  # which is the same as kill on Windows
