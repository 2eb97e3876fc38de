"""A run that is killed at any moment is resumed from its last checkpoint and ends as if nothing had happened.

    python scripts/benchmarks/kill_test.py [--kills 50] [--seed 1]

Trains once without interruption. Then trains the same again, ends the process with SIGKILL at a random time, checks
what it left behind, resumes from `last.ckpt`, and so on. After each kill: every file under a final name loads, and
`last.ckpt` is no older than the checkpoint interval. At the end: weights, optimizer and curves are bit for bit those
of the run that was left alone. Where a small file system can be mounted (Linux, as root), a full disk is tried too.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mlp_lm import load
from mlp_lm.cli import main as mlp_lm
from mlp_lm.runs import read_curves

INTERVAL, STEPS = 20, 3000
SETTINGS = [
    "--data.batch_size=256",
    "--model.hidden_dim=256",
    f"--trainer.max_steps={STEPS}",
    f"--trainer.val_check_interval={INTERVAL}",
    f"--trainer.log_every_n_steps={INTERVAL}",
    "--trainer.accelerator=cpu",
    "--trainer.num_threads=1",
    "--report_test=false",
]
RECIPES = {  # which take turns
    "AdamW with dropout": [],
    "averaged weights, clipping, accumulation": [
        "--trainer.callbacks+=EMAWeightAveraging",
        "--trainer.gradient_clip_val=0.1",
        "--trainer.accumulate_grad_batches=2",
    ],
    "fast lane": ["--model.optimizer=sgd", "--model.dropout=0", "--data.steps_per_execution=5"],
}


def train(progress: Path, args: list[str]) -> int:
    """`fit` in this process, noting each finished call's step in a file, which a killed process leaves."""
    from mlp_lm.training.fast_lane import FastLane
    from mlp_lm.training.module import MLPModule

    file = os.open(progress, os.O_WRONLY | os.O_CREAT)

    def note_steps(kind: type[MLPModule]) -> None:
        training_step = kind.training_step

        def noted(module: MLPModule, batch: Any) -> Any:
            loss = training_step(module, batch)
            os.pwrite(file, module.global_step.to_bytes(8, "little"), 0)
            return loss

        kind.training_step = noted  # type: ignore[method-assign,assignment]

    note_steps(MLPModule)
    note_steps(FastLane)
    return mlp_lm(args)


def start(progress: Path, args: list[str]) -> subprocess.Popen[str]:
    """`train` in a process of its own."""
    progress.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--child", str(progress), *args]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def kill_at_random(process: subprocess.Popen[str], progress: Path, rng: random.Random, longest: float) -> bool:
    """SIGKILL within `longest` seconds from the first step on, or at times before. False where it ended first."""
    if rng.random() < 0.1:
        time.sleep(rng.uniform(1.0, 4.0))
    else:
        while not progress.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, longest))
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def check(run: Path, progress: Path) -> str:
    """What a killed process left, on a line. Raises where it is not as promised."""
    files = sorted((run / "checkpoints").glob("*")) if run.exists() else []
    assert {file.name for file in files if not file.name.startswith(".")} <= {"best.ckpt", "last.ckpt"}
    for file in files:
        if not file.name.startswith("."):
            load(file)
    reached = int.from_bytes(progress.read_bytes(), "little") if progress.exists() else 0
    last = run / "checkpoints" / "last.ckpt"
    if not last.exists():
        assert reached == 0, f"step {reached} without a checkpoint"
        return "before the first checkpoint"
    saved = step_of(last)
    # The call after the one that was noted may have been under way.
    assert reached - saved <= INTERVAL, f"killed after step {reached}, but last.ckpt is of step {saved}"
    return f"after step {reached:,}, last.ckpt of step {saved:,}"


def step_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


def state(run: Path) -> dict[str, Any]:
    """What must be the same in the end."""
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    optimizer = content["optimizer_states"][0]["state"]
    moments = {f"{i}.{name}": torch.as_tensor(v) for i, of_one in optimizer.items() for name, v in of_one.items()}
    return {**content["state_dict"], **content.get("current_model_state", {}), **moments}


def kill_test(folder: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    progress = folder / "progress"
    begin = time.perf_counter()
    for name, flags in RECIPES.items():
        assert start(progress, ["fit", *SETTINGS, *flags, f"--run_dir={folder / name}"]).wait() == 0
    longest = 3 * (time.perf_counter() - begin) / max(kills, 10)  # so that each recipe has its turn
    killed = runs = 0
    while killed < kills:  # a run that comes to its end is followed by another
        name = [*RECIPES][runs % len(RECIPES)]
        run = folder / f"killed_{runs}"
        last = run / "checkpoints" / "last.ckpt"
        runs += 1
        while killed < kills:
            if run.exists() and not last.exists():  # killed before the first checkpoint: nothing was lost
                shutil.rmtree(run)
            args = (
                ["fit", f"--ckpt_path={last}"]
                if last.exists()
                else ["fit", *SETTINGS, *RECIPES[name], f"--run_dir={run}"]
            )
            if not kill_at_random(start(progress, args), progress, rng, longest):
                break
            killed += 1
            print(f"{killed}/{kills} {name}: killed {check(run, progress)}", flush=True)
        if not (run / "report.json").exists():
            process = start(progress, ["fit", f"--ckpt_path={last}"])
            _, err = process.communicate()
            assert process.returncode == 0, err
        compare(folder / name, run)
    print(f"{killed} kills in {runs} runs: weights, optimizer and curves are those of one left alone")


def compare(whole: Path, run: Path) -> None:
    """Raise where a run that was killed has ended other than the one that was not."""
    theirs, ours = state(whole), state(run)
    assert theirs.keys() == ours.keys()
    different = [name for name in theirs if not torch.equal(theirs[name], ours[name])]
    assert not different, f"not the same: {different}"
    assert read_curves(whole) == read_curves(run), "the curves differ"


def full_disk(folder: Path) -> None:
    """A run on a file system of 6 MB ends with a line and leaves good checkpoints."""
    small = folder / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        print("full disk: not tried, a file system cannot be mounted here")
        return
    try:
        run = small / "run"
        # Two checkpoints of 1.1 MB fit beside a third that is being written; the filler grows until they do not.
        process = start(folder / "progress", ["fit", *SETTINGS, f"--run_dir={run}"])
        last = run / "checkpoints" / "last.ckpt"
        while not last.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(1)
        with open(small / "filler", "wb") as filler:
            try:
                while True:
                    filler.write(bytes(1 << 16))
                    filler.flush()
            except OSError:
                pass
        _, err = process.communicate(timeout=120)
        assert process.returncode == 2, f"exit code {process.returncode}: {err}"
        *_, line = err.splitlines()
        assert line.endswith("last.ckpt is unchanged") and "Traceback" not in err, err
        for file in (run / "checkpoints").glob("*.ckpt"):
            load(file)
        print(f"full disk: {line}; last.ckpt of step {step_of(last):,} is good")
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        sys.exit(train(Path(sys.argv[2]), sys.argv[3:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1, help="of the times")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kill_test(Path(folder), args.kills, args.seed)
        full_disk(Path(folder))


if __name__ == "__main__":
    main()
