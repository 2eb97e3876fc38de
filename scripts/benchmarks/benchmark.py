"""The lecture's recipe through `fit` against the lecture's own loop and against plain Lightning.

    python scripts/benchmarks/benchmark.py --path names.txt [--repeats 5] [--json benchmark.json]

Everything runs in processes of its own, in turn, on the lecture split of names.txt, on the CPU:

    lecture      the loop that the lecture describes, in plain PyTorch: draw 32 indices, index the tensors,
                 cross-entropy, backward, SGD by hand, note every loss
    lightning    what a user would first write: DataLoader over a TensorDataset, automatic optimization, self.log,
                 StepLR, the default bar, logger and checkpoints
    ours         `fit --config configs/lecture.yaml`: validation, checkpoints, TensorBoard, as shipped
    ours, K = 1  the same in Lightning's own loop, one step a call, through autograd

Rivals run with one thread and with all cores, and the better median counts; ours chooses for itself. Times of a loop
are from its first step to its last, those of ours from the call of Trainer.fit to its return; whole processes are timed
from outside. At last, names.yaml with all that TensorBoard shows against the same with nothing logged. Time to a loss
is raced by `figures.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Result = dict[str, Any]  # seconds, steps and, where dev was evaluated, curve: [(seconds since the loop began, loss)]


# -- the rivals; each runs in a process of its own ------------------------------------------------------------------


def lecture(path: str, steps: int, evaluations: int) -> Result:
    """The lecture's loop, with its hyperparameters and its initialisation."""
    import random

    import torch
    import torch.nn.functional as F
    from peers import lecture_logits, lecture_parameters, train_lecture

    words = Path(path).read_text().splitlines()
    stoi = {c: i + 1 for i, c in enumerate(sorted(set("".join(words))))}
    random.seed(42)
    random.shuffle(words)

    def dataset(part: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        rows, targets = [], []
        for word in part:
            context = [0, 0, 0]
            for i in [*(stoi[c] for c in word), 0]:
                rows.append(context)
                targets.append(i)
                context = [*context[1:], i]
        return torch.tensor(rows), torch.tensor(targets)

    train_x, train_y = dataset(words[: int(0.8 * len(words))])
    dev_x, dev_y = dataset(words[int(0.8 * len(words)) : int(0.9 * len(words))])
    parameters, curve = lecture_parameters(27), []
    interval = steps // evaluations if evaluations else 0
    start = time.perf_counter()

    def evaluate(step: int) -> None:
        if step % interval == 0:
            with torch.no_grad():
                curve.append(
                    (time.perf_counter() - start, F.cross_entropy(lecture_logits(parameters, dev_x), dev_y).item())
                )

    train_lecture(parameters, train_x, train_y, steps, evaluate if interval else None)
    return {"seconds": time.perf_counter() - start, "steps": steps, "curve": curve}


def lightning(path: str, steps: int, evaluations: int) -> Result:
    """Plain Lightning around the lecture's network."""
    import lightning.pytorch as pl
    import torch
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, TensorDataset

    from mlp_lm.text.corpus import CorpusSettings, load_corpus
    from mlp_lm.text.windows import Windows

    corpus = load_corpus(CorpusSettings(path=path, unique=False))
    train, dev = (TensorDataset(*Windows(ids, 3)[:]) for ids in (corpus.train, corpus.dev))

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            layers = nn.Embedding(27, 10), nn.Flatten(), nn.Linear(30, 200), nn.Tanh(), nn.Linear(200, 27)
            self.network = nn.Sequential(*layers)

        def training_step(self, batch: list[Tensor]) -> Tensor:
            loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
            self.log("train_loss", loss, prog_bar=True)
            return loss

        def validation_step(self, batch: list[Tensor]) -> None:
            self.log("dev_loss", nn.functional.cross_entropy(self.network(batch[0]), batch[1]), prog_bar=True)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, steps // 2, 0.1)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    class Clock(pl.Callback):
        def on_train_start(self, *_: Any) -> None:
            self.start = time.perf_counter()

        def on_train_end(self, *_: Any) -> None:
            self.seconds = time.perf_counter() - self.start

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(max_steps=steps, accelerator="cpu", callbacks=[clock], default_root_dir=folder)
        trainer.fit(Module(), DataLoader(train, 32, shuffle=True), DataLoader(dev, 1024))
    return {"seconds": clock.seconds, "steps": steps, "curve": []}


def ours(path: str, steps: int, evaluations: int, flags: tuple[str, ...] = (), config: str = "lecture") -> Result:
    """`fit` as a user calls it; only Trainer.fit is timed."""
    from mlp_lm.cli import main
    from mlp_lm.training.trainer import Trainer

    clock = {}
    fit = Trainer.fit

    def timed_fit(self: Trainer, *args: Any, **kwargs: Any) -> None:
        clock["wall"], start = time.time(), time.perf_counter()
        fit(self, *args, **kwargs)
        clock["seconds"] = time.perf_counter() - start

    Trainer.fit = timed_fit  # type: ignore[method-assign,assignment]
    with tempfile.TemporaryDirectory() as folder:
        run = ["fit", "--config", str(ROOT / "configs" / f"{config}.yaml"), "--data.path", path, "--run_dir", folder]
        extra = [f"--trainer.max_steps={steps}", "--trainer.accelerator=cpu", *flags]
        if evaluations:
            extra.append(f"--trainer.val_check_interval={steps // evaluations}")
        if main([*run, *extra]) != 0:
            raise SystemExit("fit failed")
        curve = dev_curve(folder, clock["wall"]) if evaluations else []
    return {"seconds": clock["seconds"], "steps": steps, "curve": curve}


def dev_curve(run_dir: str, start: float) -> list[tuple[float, float]]:
    """Dev losses of a run, each with the seconds since `start`, a `time.time()`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    events = EventAccumulator(run_dir)
    events.Reload()
    return [(event.wall_time - start, event.value) for event in events.Scalars("dev/loss")]


def ours_with(*flags: str, config: str = "lecture") -> Callable[[str, int, int], Result]:
    """`ours` with further flags or another config."""
    return lambda path, steps, evaluations: ours(path, steps, evaluations, flags, config)


RIVALS: dict[str, Callable[[str, int, int], Result]] = {
    "lecture": lecture,
    "lightning": lightning,
    "ours": ours,
    "ours, K = 1": ours_with("--data.steps_per_execution=1"),
    "names": ours_with(config="names"),
    "names, nothing logged": ours_with("--trainer.logger=false", config="names"),
}


def run_alone(rival: str, path: str, steps: int, evaluations: int, threads: int) -> None:
    """Run one rival in this process and print its result as JSON, after a marker."""
    if threads:
        import torch

        torch.set_num_threads(threads)
    result = RIVALS[rival](path, steps, evaluations)
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("\nRESULT" + json.dumps(result))


# -- the driver ----------------------------------------------------------------------------------------------------


def start(rival: str, path: str, steps: int, evaluations: int = 0, threads: int = 0) -> Result:
    """Run one rival in a new process; adds `process`, its seconds from outside."""
    command = [sys.executable, __file__, "--path", path, "--rival", rival, "--steps", str(steps)]
    command += ["--evaluations", str(evaluations), "--threads", str(threads)]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    elapsed = time.perf_counter() - begin
    if done.returncode != 0:
        raise SystemExit(f"{rival} failed:\n{done.stderr[-3000:]}")
    result: Result = json.loads(done.stdout.split("RESULT")[-1])
    return {**result, "process": elapsed}


def alternate(rivals: dict[str, dict[str, Any]], path: str, repeats: int, **common: int) -> dict[str, list[Result]]:
    """Run all rivals in turn, `repeats` times; of each the options of `start`, `rival` where it is not its name."""
    results: dict[str, list[Result]] = {name: [] for name in rivals}
    for repeat in range(repeats):
        for name, options in rivals.items():
            results[name].append(start(**{"rival": name, "path": path, **common, **options}))
            print(f"  {repeat + 1}/{repeats} {name}: {results[name][-1]['seconds']:.2f} s", file=sys.stderr)
    return results


def median(results: list[Result], key: str) -> float:
    return statistics.median(float(result[key]) for result in results)


def loops(path: str, repeats: int, steps: int, lightning_steps: int) -> dict[str, Result]:
    """µs a step and peak memory of every loop; the rivals with one thread and with all cores."""
    rivals: dict[str, dict[str, Any]] = {}
    for threads in sorted({1, os.cpu_count() or 1}):
        rivals[f"lecture, {threads} threads"] = {"rival": "lecture", "threads": threads}
        rivals[f"lightning, {threads} threads"] = {"rival": "lightning", "threads": threads, "steps": lightning_steps}
    rivals |= {name: {} for name in RIVALS if name.startswith("ours")}
    return {
        name: {
            "µs_per_step": median(results, "seconds") / results[0]["steps"] * 1e6,
            "peak_mib": median(results, "peak_mib"),
        }
        for name, results in alternate(rivals, path, repeats, steps=steps).items()
    }


def whole(path: str, repeats: int, threads: int) -> dict[str, Result]:
    """Seconds of the lecture's 200,000 steps."""
    results = alternate({"lecture": {"threads": threads}, "ours": {}}, path, repeats, steps=200_000)
    return {name: {"loop_s": median(r, "seconds"), "process_s": median(r, "process")} for name, r in results.items()}


def extras(repeats: int) -> dict[str, Result]:
    """Seconds of names.yaml with all that TensorBoard shows, and with nothing logged."""
    results = alternate({"names": {}, "names, nothing logged": {}}, "names", repeats, steps=3000)
    return {name: {"loop_s": median(r, "seconds"), "process_s": median(r, "process")} for name, r in results.items()}


def benchmark(path: str, repeats: int, loop_steps: int, lightning_steps: int) -> Result:
    """All measurements."""
    report: Result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "repeats": repeats,
        "loop": (loop := loops(path, repeats, loop_steps, lightning_steps)),
    }
    times = {name: of_loop["µs_per_step"] for name, of_loop in loop.items()}
    theirs = ("lecture", "lightning")
    best = {rival: min((n for n in times if n.startswith(rival)), key=times.__getitem__) for rival in theirs}
    threads = int(best["lecture"].split()[1])
    report["whole"] = runs = whole(path, repeats, threads)
    report["extras"] = shown = extras(repeats)
    report["ratios"] = {
        "ours ÷ lecture's loop, loop": times["ours"] / times[best["lecture"]],
        "ours ÷ lecture's loop, loop of 200,000 steps": runs["ours"]["loop_s"] / runs["lecture"]["loop_s"],
        "ours ÷ lecture's loop, whole process": runs["ours"]["process_s"] / runs["lecture"]["process_s"],
        "ours ÷ plain Lightning, loop": times["ours"] / times[best["lightning"]],
        "names.yaml with all that TensorBoard shows ÷ with nothing logged, loop": shown["names"]["loop_s"]
        / shown["names, nothing logged"]["loop_s"],
    }
    return report


def render(report: Result) -> str:
    """The report as Markdown tables."""
    lines = [f"{report['machine']}; medians of {report['repeats']}", ""]
    lines += ["| loop, batch 32 | µs a step | peak MiB |", "|---|---|---|"]
    lines += [f"| {n} | {v['µs_per_step']:.0f} | {v['peak_mib']:.0f} |" for n, v in report["loop"].items()]
    for title, part in (("200,000 steps", "whole"), ("names.yaml", "extras")):
        lines += ["", f"| {title} | loop, s | whole process, s |", "|---|---|---|"]
        lines += [f"| {n} | {v['loop_s']:.1f} | {v['process_s']:.1f} |" for n, v in report[part].items()]
    lines += ["", "| ratio | |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in report["ratios"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, help="names.txt of the lecture")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--loop_steps", type=int, default=20_000, help="steps of the loops that are compared")
    parser.add_argument(
        "--lightning_steps", type=int, default=5_000, help="the same for plain Lightning, which is slow"
    )
    parser.add_argument("--json", help="file for all figures")
    parser.add_argument("--rival", choices=RIVALS, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--evaluations", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rival:
        run_alone(args.rival, args.path, args.steps, args.evaluations, args.threads)
        return
    report = benchmark(args.path, args.repeats, args.loop_steps, args.lightning_steps)
    print(render(report))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
