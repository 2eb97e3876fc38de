"""Hostile input through the command line: corpora, configs, checkpoints, count files, names of outputs, numbers.

    python scripts/fuzz.py [--cases 10000] [--seed 1] [--only 137]

Every case must succeed or end with exit code 2 and one line on stderr, within 10 s and 2 GiB, without running code that
the input holds, and without leaving or changing a file that was not asked for. Cases run one after the other in a
process that this one watches; one that dies or hangs is reported, and a new process goes on with the next case.
Case number N of a seed is always the same: `--seed S --only N` repeats it and prints what it prints. POSIX only.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import fuzz_cases
from fuzz_fixed import FIXED

from mlp_lm.cli import main as mlp_lm

MAX_SECONDS, MAX_BYTES = 10, 2 << 30
PATIENCE = 30, 600  # seconds until a process counts as hanging: with a usual case, with a large corpus
NOTES = ("fused SGD step:", "UserWarning", "warnings.warn")  # what may stand on stderr before the one line


@dataclass
class Outcome:
    """What became of a case."""

    number: int
    kind: str
    problem: str  # empty where all is well
    code: int | None = None
    seconds: float = 0.0
    peak: int = 0  # bytes, of the process so far
    args: list[str] = field(default_factory=list)


def prepare(folder: Path) -> None:
    """Make the well-formed files that cases damage, and read them into `fuzz_cases.GOOD`."""
    rng = random.Random(1)
    items = ["".join(rng.choices("abcdeinor", k=rng.randint(3, 7))) for _ in range(200)]
    with working_folder(folder), contextlib.redirect_stdout(io.StringIO()):
        Path("items.txt").write_text("\n".join(items) + "\n")
        commands = [
            ["fit", "--data.path=items.txt", "--run_dir=run", *fuzz_cases.TINY],
            ["ngram", "items.txt", "--orders=1,3", "--save=counts.npz"],
            ["ngram", "--mix=run/checkpoints/best.ckpt", "--orders=3", "--save=mixture.npz"],
        ]
        for command in commands:
            assert mlp_lm(command) == 0, command
        shutil.copy("run/checkpoints/best.ckpt", "good.ckpt")
        for name in fuzz_cases.GOOD:
            fuzz_cases.GOOD[name] = Path(name).read_bytes()


@contextlib.contextmanager
def working_folder(folder: Path) -> Any:
    """Work in `folder` for a while (contextlib has the same from Python 3.11 on)."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def snapshot(root: Path) -> dict[Path, str]:
    """What stands under `root`: a digest of each file, and folders."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else "no file"
        for path in root.rglob("*")
    }


def changed(before: dict[Path, str], after: dict[Path, str], asked: list[Path]) -> list[Path]:
    """Files and folders that are new, gone or other than before, but those asked for and what they hold or stand in."""
    touched = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
    return [p for p in touched if not any(a == p or a in p.parents or p in a.parents for a in asked)]


# -- one case ------------------------------------------------------------------------------------------------------


def run_case(number: int, seed: int, root: Path, streams: list[Path]) -> Outcome:
    """Run one case in a folder of its own, two levels below `root`, with stdout and stderr already in `streams`."""
    rng = random.Random(f"{seed}/{number}")
    fixed = number < len(FIXED)
    maker = FIXED[number] if fixed else rng.choice(fuzz_cases.MAKERS)
    kind = maker.__name__
    folder = root / "a" / "b"
    folder.mkdir(parents=True)
    with working_folder(folder):
        for name, data in fuzz_cases.GOOD.items():
            Path(name).write_bytes(data)
        case = maker(rng)
        before = snapshot(root)
        for descriptor in (1, 2):
            os.ftruncate(descriptor, 0)
        start = time.perf_counter()
        code, problem = call(case.args)
        seconds = time.perf_counter() - start
        sys.stdout.flush()
        sys.stderr.flush()
        problem = problem or judge(code, 0 if case.large else seconds, streams[1].read_text(errors="replace"))
        stray = changed(before, snapshot(root), [Path(os.path.abspath(asked)) for asked in case.asked])
        if not problem and stray:
            problem = f"left or changed {', '.join(str(p.relative_to(root)) for p in stray)}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if not problem and peak > MAX_BYTES:
        problem = f"{peak / 2**30:.1f} GiB"
    shutil.rmtree(root)
    return Outcome(number, kind, problem, code, seconds, peak, case.args)


def call(args: list[str]) -> tuple[int | None, str]:
    """The exit code of a command line, and the traceback that it must not end with."""
    try:
        return mlp_lm(args), ""
    except SystemExit as end:  # help
        return (end.code, "") if isinstance(end.code, int) else (None, f"SystemExit {end.code!r}")
    except BaseException:
        return None, traceback.format_exc()[-1200:]


def judge(code: int | None, seconds: float, stderr: str) -> str:
    """What is wrong with how a command ended."""
    lines = [line for line in stderr.split("\n") if line and not any(note in line for note in NOTES)]
    if code not in (0, 2):
        return f"exit code {code}: {stderr[-500:]}"
    if code == 2 and (len(lines) != 1 or not lines[0].startswith("mlp_lm")):
        return f"{len(lines)} lines on stderr: {stderr[:1000]}"
    if "Traceback" in stderr or "weights_only" in stderr or "add_safe_globals" in stderr or "allow_pickle" in stderr:
        return f"stderr: {stderr[:1000]}"
    if code == 2 and len(stderr) > 10_000:
        return f"a line of {len(stderr):,} characters"
    return f"{seconds:.1f} s" if seconds > MAX_SECONDS else ""


# -- processes -----------------------------------------------------------------------------------------------------


def work(numbers: list[int], seed: int, folder: Path, pipe: Connection) -> None:
    """Run cases, announcing the number of each before and sending its outcome after it."""
    streams = [folder / f"{os.getpid()}.{name}" for name in ("out", "err")]
    for descriptor, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_RDWR | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ["HOME"] = str(folder / "root" / "home")
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    limit = pages * resource.getpagesize() + MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit) if pages else resource.getrlimit(resource.RLIMIT_AS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 30, 4 << 30))
    for number in numbers:
        pipe.send(number)
        outcome = run_case(number, seed, folder / "root", streams)
        pipe.send(outcome)
        if outcome.peak > MAX_BYTES:  # which a process never gets rid of
            break
    pipe.send(None)


def run_cases(numbers: list[int], seed: int, folder: Path) -> list[Outcome]:
    """All outcomes; a process that dies or hangs is replaced."""
    outcomes: list[Outcome] = []
    fork = multiprocessing.get_context("fork")
    while numbers:
        shutil.rmtree(folder / "root", ignore_errors=True)
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=work, args=(numbers, seed, folder, sender))
        process.start()
        sender.close()
        problem, number = "", numbers[0]
        while True:
            try:
                patience = PATIENCE[number < len(FIXED)]
                if not receiver.poll(patience):
                    problem = f"hangs for {patience} s"
                    break
                message = receiver.recv()
            except EOFError:
                process.join()
                problem = f"the process died with exit code {process.exitcode}"
                break
            if message is None:
                break
            if isinstance(message, Outcome):
                outcomes.append(message)
                show(message)
            else:
                number = message
        if problem:
            process.kill()
            process.join()
            outcomes.append(Outcome(number, "?", problem))
            show(outcomes[-1])
        numbers = [n for n in numbers if n > number]
    return outcomes


def show(outcome: Outcome) -> None:
    """Print a case that went wrong, and a sign of life every thousand cases."""
    if outcome.problem:
        args = " ".join(arg if len(arg) < 100 else arg[:100] + "…" for arg in outcome.args)
        print(f"case {outcome.number} ({outcome.kind}): {args!r}\n{outcome.problem}\n", flush=True)
    if (outcome.number + 1) % 1000 == 0:
        print(f"… {outcome.number + 1:,} cases", flush=True)


def report(outcomes: list[Outcome], seconds: float) -> None:
    """Print how many cases of each kind went how, and which took longest."""
    print("kind                 cases  success  refused  wrong")
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.kind == kind]
        codes = Counter(o.code for o in own)
        print(f"{kind:<20}{len(own):>6,}{codes[0]:>9,}{codes[2]:>9,}{sum(bool(o.problem) for o in own):>7,}")
    slowest = max(outcomes, key=lambda o: o.seconds)
    print(
        f"{len(outcomes):,} cases in {seconds:.0f} s; the slowest, case {slowest.number} ({slowest.kind}), took "
        f"{slowest.seconds:.1f} s; {max(o.peak for o in outcomes) / 2**20:,.0f} MiB at the peak"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="number of the one case to run")
    args = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        prepare(folder)
        numbers = list(range(args.cases)) if args.only is None else [args.only]
        outcomes = run_cases(numbers, args.seed, folder)
        if args.only is not None:
            print(
                outcomes[0].args, *(path.read_text(errors="replace") for path in sorted(folder.glob("*.*r*"))), sep="\n"
            )
    report(outcomes, time.perf_counter() - start)
    sys.exit(1 if any(outcome.problem for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
