"""The README's tables of losses on names, and the race to three of them, each made by one command.

    python scripts/benchmarks/figures.py [names.yaml microgpt …] [--splits lecture,unique] [--all] [--path names.txt]
        [--readme]
    python scripts/benchmarks/figures.py --race [--repeats 5] [--path names.txt] [--readme]

The first measures the rows of the table that are named (else all that take less than a minute, or with `--all` all) on
the splits named, one after the other: configs, several of them together, and the peers of `peers.py`. It
takes dev and test of `best.ckpt`, reloaded, beside the counts of the order that is best on dev, and beside the mixture
with these, whose weights are best on dev; of a peer, its last or best weights, and the time of its loop. Where no item
is in two splits, it also measures how much of its probability a model gives to the items of train. The second measures
how long it takes from the start of a process to the first dev loss that is low enough, with the rivals beside, in turn.
Figures of all calls are kept in `figures.json`; `--readme` writes them into the README.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import benchmark
import peers
import torch
import torch.nn.functional as F

from mlp_lm import load
from mlp_lm.errors import DataError
from mlp_lm.models import mixture, model_file
from mlp_lm.models.language_model import CorpusFacts, LanguageModel
from mlp_lm.models.ngram import NGramModel, count, modified_kneser_ney
from mlp_lm.text.corpus import Corpus, CorpusSettings, load_corpus
from mlp_lm.text.datasets import resolve_path
from mlp_lm.text.windows import Windows

ROOT = Path(__file__).resolve().parents[2]
FIGURES, README = Path(__file__).with_name("figures.json"), ROOT / "README.md"
SPLITS = ("bundled", "lecture", "unique")
ORDERS = range(3, 9)  # of counts; the best one on dev is among them, on all three splits
Row = dict[str, Any]
LOOP = "the lecture's loop"


# -- losses ------------------------------------------------------------------------------------------------------------


def settings_of(split: str, path: str) -> CorpusSettings:
    """A split of the bundled names, or of `path`, the lecture's names.txt."""
    return CorpusSettings(path="names" if split == "bundled" else path, unique=split != "lecture")


@functools.cache
def corpus_and_counts(settings: CorpusSettings) -> tuple[Corpus, LanguageModel]:
    """A corpus, and its count model of the order that is best on dev."""
    corpus = load_corpus(settings)
    size = len(corpus.vocab)
    models = [NGramModel(modified_kneser_ney(count(corpus.train, size, order))[0], size) for order in ORDERS]
    best = min(models, key=lambda model: float(model.nats(*Windows(corpus.dev, model.context_size)[:]).mean()))
    return corpus, LanguageModel.of_counts(best, corpus.vocab, CorpusFacts.of(corpus))


@functools.cache
def trained(config: str, split: str, path: str, *flags: str) -> tuple[Row, LanguageModel]:
    """Train a config; its length and time, and its network."""
    settings = settings_of(split, path)
    with tempfile.TemporaryDirectory() as folder:
        data = [f"--data.path={settings.path}", f"--data.unique={str(settings.unique).lower()}"]
        begin = time.perf_counter()
        run("fit", f"--config=configs/{config}.yaml", f"--run_dir={folder}", *data, *flags)
        seconds, report = time.perf_counter() - begin, read_json(f"{folder}/report.json")
        row = {"steps": report["best_step"], "seconds": seconds, "threads": report["threads"]}
        return {"weights": report["weights"], **row}, load(folder)


def with_counts(networks: Sequence[LanguageModel], split: str, path: str) -> tuple[Row, LanguageModel]:
    """The losses of a network, of the counts, and of the mixture of all networks and the counts, which comes back."""
    corpus, counts = corpus_and_counts(settings_of(split, path))
    parts, weights = [*networks, counts], torch.empty(0)
    row: Row = {}
    for name in ("dev", "test"):
        stream = getattr(corpus, name)
        probs = torch.stack([mixture.target_probs(part, Windows(stream, part.context_size)) for part in parts])
        weights = mixture.best_weights(probs) if name == "dev" else weights
        found = {"counts": probs[-1], "mixture": weights @ probs}
        if len(networks) == 1:
            found["network"] = probs[0]
        row |= {f"{kind}_{name}": -of_kind.log().mean().item() for kind, of_kind in found.items()}
    mixed = mixture.mix(parts, weights.tolist())
    if corpus.settings.unique:
        models = {"network": networks[0], "counts": counts} if len(networks) == 1 else {"mixture": mixed}
        for kind, model in models.items():
            row |= memorised(model, kind, corpus, row)
    return row, mixed


def memorised(model: LanguageModel, kind: str, corpus: Corpus, known: Row) -> Row:
    """The probability of all items of train together, and the losses on dev and test of the model without them.

    Where no item is in two splits, these are the losses given that an item is new: without the items of train, the
    probabilities of all others are divided by their sum.
    """
    share = sum(math.exp(score.log_prob) for score in model.score(corpus.items("train")))
    row = {f"{kind}_in_train": share}
    for name in ("dev", "test"):
        tokens_per_item = len(getattr(corpus, name)) / len(corpus.items(name))
        row[f"{kind}_new_{name}"] = known[f"{kind}_{name}"] + math.log1p(-share) / tokens_per_item
    return row


def measure(configs: Sequence[str], flags: Sequence[str], split: str, path: str) -> Row:
    """A config's network, or those of several together."""
    rows, networks = zip(*(trained(config, split, path, *flags) for config in configs), strict=True)
    sums = {name: sum(row[name] for row in rows) for name in ("weights", "steps", "seconds")}
    return sums | {"threads": rows[0]["threads"]} | with_counts(networks, split, path)[0]


def measure_taught(teachers: Sequence[str], flags: Sequence[str], split: str, path: str) -> Row:
    """The network of `taught.yaml`, whose teacher is the mixture of some configs' networks and counts.

    Its time is that of all networks.
    """
    rows, networks = zip(*(trained(config, split, path, *flags) for config in teachers), strict=True)
    with tempfile.TemporaryDirectory() as folder:
        model_file.save(teacher := f"{folder}/teacher.safetensors", with_counts(networks, split, path)[1])
        row, network = trained("taught", split, path, f"--data.teacher={teacher}", *flags)
    seconds = row["seconds"] + sum(teacher_row["seconds"] for teacher_row in rows)
    return row | {"seconds": seconds} | with_counts([network], split, path)[0]


def measure_lecture(corpus: Corpus) -> Row:
    """The lecture's loop."""
    torch.manual_seed(42)
    torch.set_num_threads(1)  # two make it no faster
    parameters = peers.lecture_parameters(len(corpus.vocab))
    windows = {name: Windows(getattr(corpus, name), 3)[:] for name in ("train", "dev", "test")}
    begin, steps = time.perf_counter(), 200_000
    peers.train_lecture(parameters, *windows["train"], steps)
    seconds = time.perf_counter() - begin
    row: Row = {"weights": sum(p.numel() for p in parameters), "steps": steps, "seconds": seconds, "threads": 1}
    with torch.no_grad():
        for name in ("dev", "test"):
            x, y = windows[name]
            row[f"network_{name}"] = F.cross_entropy(peers.lecture_logits(parameters, x), y).item()
    return row


def measure_gpt(train: Callable[[int, peers.Items, peers.Items], peers.GPT], steps: int, corpus: Corpus) -> Row:
    """One of the transformers."""
    items = {name: [*map(corpus.vocab.encode, corpus.items(name))] for name in ("train", "dev", "test")}
    torch.manual_seed(42)
    begin = time.perf_counter()
    model = train(len(corpus.vocab), items["train"], items["dev"])
    seconds = time.perf_counter() - begin
    row: Row = {"weights": sum(p.numel() for p in model.parameters()), "steps": steps, "seconds": seconds}
    row |= {f"network_{name}": peers.gpt_loss(model, items[name]) for name in ("dev", "test")}
    return {**row, "threads": torch.get_num_threads()}


def microgpt(steps: int, corpus: Corpus) -> Row:
    """microgpt's sizes and recipe for so many steps of one name."""
    torch.set_num_threads(1)
    return measure_gpt(lambda size, items, dev: peers.train_microgpt(size, items, steps), steps, corpus)


def makemore(corpus: Corpus) -> Row:
    """makemore.py's transformer."""
    torch.set_num_threads(os.cpu_count() or 1)
    return measure_gpt(lambda size, items, dev: peers.train_makemore(size, items, dev, 20_000), 20_000, corpus)


def peer(train: Callable[[Corpus], Row]) -> Callable[[str, str], Row]:
    """Another program's model, as a row."""
    return lambda split, path: train(corpus_and_counts(settings_of(split, path))[0])


BFLOAT16 = ["--trainer.precision=bf16-mixed"]  # slow on a CPU without instructions for it
ROWS: dict[str, Callable[[str, str], Row]] = {
    **{f"{name}.yaml": partial(measure, [name], []) for name in ("names", "lecture", "lecture_fast", "best", "deep")},
    "best.yaml and deep.yaml": partial(measure, ["best", "deep"], []),
    "taught.yaml, by names.yaml": partial(measure_taught, ["names"], []),
    "taught.yaml, by best.yaml and deep.yaml": partial(measure_taught, ["best", "deep"], []),
    "best.yaml, bfloat16": partial(measure, ["best"], BFLOAT16),
    "best.yaml and deep.yaml, bfloat16": partial(measure, ["best", "deep"], BFLOAT16),
    "taught.yaml, by names.yaml, bfloat16": partial(measure_taught, ["names"], BFLOAT16),
    "taught.yaml, by best.yaml and deep.yaml, bfloat16": partial(measure_taught, ["best", "deep"], BFLOAT16),
    LOOP: peer(measure_lecture),
    "microgpt": peer(partial(microgpt, 1000)),
    "microgpt, longer": peer(partial(microgpt, 100_000)),
    "makemore.py's transformer": peer(makemore),
}
REMEMBERING = ("names.yaml", "best.yaml", "best.yaml and deep.yaml", "taught.yaml, by best.yaml and deep.yaml")
QUICK = ("names.yaml", "lecture.yaml", "lecture_fast.yaml", "microgpt")  # the others take minutes


def losses(kept: Row, names: Sequence[str], splits: Sequence[str], path: str) -> None:
    """Measure what is named, row by row, into `kept`."""
    for name in names:
        for split in splits:
            if split != "bundled" or name == "names.yaml":
                row = ROWS[name](split, path) | {"machine": machine()}
                kept.setdefault("losses", {})[f"{name}, {split}"] = row
                print(f"{name}, {split}: dev {row.get('network_dev', row.get('mixture_dev')):.4f}", file=sys.stderr)
                keep(kept)


def machine() -> str:
    """What the seconds are of."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{os.cpu_count()} cores of {next(names, platform.processor())}, torch {torch.__version__}"


def measured_on(rows: Iterable[Row]) -> list[str]:
    """The lines below a table that name the machines of its seconds."""
    return ["", f"Measured on {'; '.join(sorted({row['machine'] for row in rows}))}."]


def config_label(name: str) -> str:
    """The name of a row in Markdown."""
    return re.sub(r"\w+\.yaml", r"`\g<0>`", name)


def losses_table(kept: Row) -> list[str]:
    """The table of all losses that are kept."""
    columns = [f"{kind} {split}" for kind in ("network", "counts", "mixture") for split in ("dev", "test")]
    lines = [" | ".join(["| model", "split", "weights", "best step", "s", "threads", *columns]) + " |"]
    lines.append("|---" * (6 + len(columns)) + "|")
    for name in ROWS:
        for split in SPLITS:
            if row := kept["losses"].get(f"{name}, {split}"):
                cells = [config_label(name), split, f"{row['weights']:,}", f"{row['steps']:,}"]
                cells += [f"{row['seconds']:.0f}", str(row["threads"])]
                cells += [f"{row[key]:.3f}" if (key := c.replace(" ", "_")) in row else "–" for c in columns]
                lines.append(f"| {' | '.join(cells)} |")
    return [*lines, *measured_on(kept["losses"].values())]


def memory_table(kept: Row) -> list[str]:
    """What some models of the unique split have memorised, and what they know about new items."""
    lines = ["| model | in train | dev | test | dev, if new | test, if new |", "|---" * 6 + "|"]
    rows = {name: row for name in REMEMBERING if (row := kept["losses"].get(f"{name}, unique"))}
    shown = [(config_label(name), "network" if "network_dev" in row else "mixture", row) for name, row in rows.items()]
    counted = [("counts", "counts", row) for row in rows.values() if "counts_in_train" in row]
    for label, kind, row in [*shown, *counted[:1]]:
        losses = (f"{row[f'{kind}_{column}']:.3f}" for column in ("dev", "test", "new_dev", "new_test"))
        label += ", with counts" if kind == "mixture" else ""
        lines.append(f"| {label} | {100 * row[f'{kind}_in_train']:.0f} % | {' | '.join(losses)} |")
    return lines


# -- the race ----------------------------------------------------------------------------------------------------------

RACES = {  # dev losses on the lecture split, and what gets there; the lecture's loop ends at the first
    2.166: ["fit --config configs/race/2.166.yaml", "ngram --orders 4", LOOP],
    2.1: ["fit --config configs/race/2.10.yaml", "ngram --orders 4"],
    2.0: ["fit --config configs/race/2.00.yaml", "ngram --orders 6"],
}


def race(kept: Row, repeats: int, path: str) -> None:
    """Let all race in turn, `repeats` times, and keep the medians."""
    times: dict[tuple[float, str], list[tuple[float, float]]] = {}
    for repeat in range(repeats):
        for target, racers in RACES.items():
            for racer in racers:
                found = times.setdefault((target, racer), [])
                found.append(time_to(target, racer, path))
                print(f"{repeat + 1}/{repeats} {racer}, {target}: {found[-1][0]:.2f} s", file=sys.stderr)
    kept["race"] = []
    for (target, racer), seconds in times.items():
        process, loop = map(statistics.median, zip(*seconds, strict=True))
        kept["race"].append({"loss": target, "racer": racer, "process": process, "loop": loop, "machine": machine()})
    keep(kept)


def time_to(target: float, racer: str, path: str) -> tuple[float, float]:
    """Seconds from the start of a process, and of its loop, to the first dev loss of at most `target`."""
    # Reads from disk what all racers import, which a long race may have pushed out of memory.
    run("fit", "--print_schema")
    if racer == LOOP:
        result = benchmark.start("lecture", path, 200_000, evaluations=40, threads=1)
        loop = min(first(result["curve"], target), result["seconds"])  # some runs end a little above it
        return loop + result["process"] - result["seconds"], loop
    command, *flags = racer.split()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.time()
        if command == "ngram":
            run(command, path, "--unique=false", *flags, f"--json={folder}/report.json")
            end = time.time()
            (order,) = read_json(f"{folder}/report.json")["orders"]
            curve, seconds = [(end - begin, order["dev"])], order["seconds"]
        else:
            run(command, *flags, f"--data.path={path}", "--data.unique=false", f"--run_dir={folder}")
            curve, seconds = benchmark.dev_curve(folder, begin), read_json(f"{folder}/report.json")["seconds"]
    return first(curve, target), seconds


def first(curve: Sequence[tuple[float, float]], target: float) -> float:
    """Seconds of the first point (seconds, loss) of at most `target`; infinite if there is none."""
    return next((seconds for seconds, loss in curve if loss <= target), math.inf)


def race_table(kept: Row) -> list[str]:
    """The race that is kept, as a table."""
    lines = ["| dev loss | reached by | from the start of the process, s | of the loop, s |", "|---|---|---|---|"]
    for row in kept["race"]:
        racer = row["racer"] if row["racer"] == LOOP else f"`{row['racer']}`"
        lines.append(f"| {row['loss']:.3f} | {racer} | {row['process']:.1f} | {row['loop']:.2f} |")
    return [*lines, *measured_on(kept["race"])]


# -- what is kept ------------------------------------------------------------------------------------------------------

TABLES: dict[str, tuple[str, Callable[[Row], list[str]]]] = {  # by its marker: what it is made of, and by what
    "losses": ("losses", losses_table),
    "memory": ("losses", memory_table),
    "race": ("race", race_table),
}


def run(*words: str) -> None:
    """Run a command as a user does, without its output."""
    subprocess.run([sys.executable, "-m", "mlp_lm", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def read_json(path: str | Path) -> Row:
    """The content of a JSON file."""
    content: Row = json.loads(Path(path).read_text(encoding="utf-8"))
    return content


def keep(kept: Row) -> None:
    """Write all figures to `figures.json`."""
    FIGURES.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def with_tables(text: str, kept: Row) -> str:
    """`text` with each table between its marker lines."""
    for name, (source, table) in TABLES.items():
        start, end = f"<!-- {name}: scripts/benchmarks/figures.py -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(start)
        if source in kept and end in rest:
            text = before + start + "\n".join([*table(kept), end]) + rest.partition(end)[2]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows of the table")
    parser.add_argument("--all", action="store_true", help="those that take minutes, too")
    parser.add_argument("--splits", default=",".join(SPLITS), help="of bundled, lecture, unique")
    parser.add_argument("--race", action="store_true", help="measure the race, not the losses")
    parser.add_argument("--repeats", type=int, default=5, help="of the race")
    parser.add_argument("--path", default="makemore", help="names.txt of the lecture; by default fetched once")
    parser.add_argument("--readme", action="store_true", help="write what is kept into the README")
    args = parser.parse_args()
    splits = args.splits.split(",")
    if unknown := [*({*args.names} - {*ROWS}), *({*splits} - {*SPLITS})]:
        parser.error(f"{unknown[0]}: expected some of {'; '.join(ROWS)}, and splits among {', '.join(SPLITS)}")
    kept = read_json(FIGURES) if FIGURES.exists() else {}
    try:
        if args.race:
            race(kept, args.repeats, str(resolve_path(args.path).resolve()))
        elif not args.readme or args.names or args.all:
            chosen = args.names or [*(ROWS if args.all else QUICK)]
            losses(kept, chosen, splits, str(resolve_path(args.path).resolve()))
    except DataError as error:
        parser.error(str(error))
    if args.readme:
        README.write_text(with_tables(README.read_text(encoding="utf-8"), kept), encoding="utf-8")
    tables = (table(kept) for source, table in TABLES.values() if source in kept)
    print(*("\n".join(["", *lines]) for lines in tables), sep="\n")


if __name__ == "__main__":
    main()
