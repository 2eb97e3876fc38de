"""How fast a corpus becomes windows, and how much memory that takes.

    python scripts/benchmarks/benchmark_data.py [--path names.txt] [--megabytes 100]

First: vocabulary, splits and windows of one file (the bundled names unless told) against the lecture's loops, in
turn, medians of --repeats. Then the same at context 8 for generated files of --megabytes, each in a process of its
own: items of mean length 7, made unique; running text of characters; and running text of words, 100,000 different ones
by Zipf's law. Seconds, and the peak of memory above that of a process that has only imported what is needed, in bytes a
token.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlp_lm.text.corpus import SPLITS, CorpusSettings, load_corpus
from mlp_lm.text.datasets import resolve_path
from mlp_lm.text.windows import Windows

BIG: dict[str, dict[str, Any]] = {
    "items, unique": {},
    "running text, characters": {"layout": "text"},
    "running text, words": {"layout": "text", "tokens": "words"},
}


def ours(path: str, context_size: int, **settings: Any) -> list[int]:
    """Numbers of windows of the three splits."""
    corpus = load_corpus(CorpusSettings(path=path, **settings))
    return [len(Windows(getattr(corpus, split), context_size)) for split in SPLITS]


def lecture(path: str, context_size: int) -> list[int]:
    """The same with the loops that the lecture describes: for each word, for each character, append."""
    words = Path(path).read_text().splitlines()
    ids = {c: i + 1 for i, c in enumerate(sorted(set("".join(words))))}
    random.seed(42)
    random.shuffle(words)
    cuts = int(0.8 * len(words)), int(0.9 * len(words))
    counts = []
    for part in (words[: cuts[0]], words[cuts[0] : cuts[1]], words[cuts[1] :]):
        rows, targets = [], []
        for word in part:
            context = [0] * context_size
            for i in [*(ids[c] for c in word), 0]:
                rows.append(context)
                targets.append(i)
                context = [*context[1:], i]
        counts.append(len(torch.tensor(rows)) if len(torch.tensor(targets)) else 0)
    return counts


def seconds(call: Callable[[], list[int]]) -> tuple[float, list[int]]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def compare(path: str, repeats: int) -> None:
    times: dict[str, list[float]] = {"ours": [], "lecture": []}
    for _ in range(repeats):
        elapsed, our_counts = seconds(lambda: ours(path, 3, unique=False))
        times["ours"].append(elapsed)
        elapsed, their_counts = seconds(lambda: lecture(path, context_size=3))
        times["lecture"].append(elapsed)
        assert our_counts == their_counts
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"{path}: {our_counts} windows at context 3")
    print(f"  ours {median['ours'] * 1e3:.1f} ms, the lecture's loops {median['lecture'] * 1e3:.1f} ms", end="")
    print(f", ratio {median['ours'] / median['lecture']:.3f} (medians of {repeats})")


def write_items(path: Path, megabytes: float) -> None:
    """A file of random items with lengths around 7 (Poisson, at least 2)."""
    rng = np.random.default_rng(1)
    letters = np.frombuffer(b"aaabcdeeeefghiiijklmnnoooprstuvwxyz", np.uint8)
    with path.open("wb") as file:
        while file.tell() < megabytes * 1e6:
            lengths = np.maximum(rng.poisson(7, 200_000), 2)
            block = rng.choice(letters, int((lengths + 1).sum()))
            block[np.cumsum(lengths + 1) - 1] = ord("\n")
            file.write(block.tobytes())


def write_words(path: Path, megabytes: float) -> None:
    """A file of sentences of ten words, each with a full stop."""
    rng = np.random.default_rng(1)
    letters = np.array([*"aaabcdeeeefghiiijklmnnoooprstuvwxyz"])
    words = np.array(["".join(rng.choice(letters, max(2, length))) for length in rng.poisson(5, 100_000)])
    weights = 1 / np.arange(1, len(words) + 1)
    with path.open("w") as file:
        while file.tell() < megabytes * 1e6:
            sentences = rng.choice(words, (20_000, 10), p=weights / weights.sum())
            file.write("".join(f"{' '.join(sentence)}.\n" for sentence in sentences))


def measure_alone(path: str, kind: str) -> None:
    """Read one big file and print seconds, tokens and peak memory above the bare process, as JSON."""
    Windows(np.array([1, 0], np.uint8), 8)[:]  # whatever is loaded on first use
    bare = peak_memory()
    elapsed, counts = seconds(lambda: ours(path, 8, **BIG[kind]))
    print(json.dumps({"seconds": elapsed, "tokens": sum(counts), "bytes": peak_memory() - bare}))


def peak_memory() -> int:
    """The most bytes that this process has had in memory; that of `resource` includes its parent's."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default=str(resolve_path("names")), help="file to compare on")
    parser.add_argument("--megabytes", type=float, default=100, help="size of each generated file; 0 leaves them out")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        measure_alone(*args.alone)
        return
    compare(args.path, args.repeats)
    for kind in BIG if args.megabytes else ():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text.txt"
            (write_words if kind.endswith("words") else write_items)(path, args.megabytes)
            command = [sys.executable, __file__, "--alone", str(path), kind]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{args.megabytes:g} MB, {kind}, context 8: {result['tokens']:,} tokens")
        print(f"  {result['seconds']:.1f} s, {result['bytes'] / result['tokens']:.1f} bytes a token at the peak")


if __name__ == "__main__":
    main()
