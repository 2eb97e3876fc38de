"""Count models against kenlm's figures on names.txt, exported ones against kenlm, and how fast counting is.

    python scripts/benchmarks/check_counts.py names.txt [--text shakespeare.txt] [--tokens 10000000] [--lmplz PATH]

With kenlm's lmplz on the PATH, or named, the large corpus is given to it, too. Ends with exit code 1 where a loss is
off by more than 0.0005 nats/token, a log-probability by more than 0.0001, or a limit is passed.
"""

from __future__ import annotations

import argparse
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from mlp_lm.exports import arpa
from mlp_lm.exports.info import ExportInfo
from mlp_lm.models.language_model import CorpusFacts, LanguageModel
from mlp_lm.models.metrics import evaluate
from mlp_lm.models.ngram import NGramModel, count, modified_kneser_ney
from mlp_lm.text.corpus import Corpus, CorpusSettings, load_corpus
from mlp_lm.text.windows import Windows

# lmplz --discount_fallback: (unique, order) to dev and test, nats/token
KENLM = {
    (False, 4): (2.0564, 2.0579),
    (True, 4): (2.0659, 2.0748),
    (False, 6): (1.975, 1.978),  # of these, three places are known
    (True, 6): (2.004, 2.013),
}
NUM_ITEMS, NUM_WORDS = 1_000, 20_000  # of an exported model, to compare with kenlm
MAX_LOG10 = 1e-4  # kenlm computes with 32 bits
# A child's peak includes that of its parent, so a small process starts it.
PEAK_OF = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)
MAX_SECONDS, MAX_GIB = 60, 4  # for ten million tokens at order 5


def check_losses(path: str) -> bool:
    """Compare with kenlm; prints a line for each figure."""
    good = True
    for (unique, order), expected in KENLM.items():
        corpus = load_corpus(CorpusSettings(path=path, unique=unique))
        levels, _ = modified_kneser_ney(count(corpus.train, len(corpus.vocab), order))
        model = NGramModel(levels, len(corpus.vocab))
        for split, loss in zip(("dev", "test"), expected, strict=True):
            found = evaluate(model.nats, Windows(getattr(corpus, split), order - 1).batches()).nats_per_token
            near = abs(round(found, 4) - loss) <= 0.0005
            good &= near
            name = "unique" if unique else "lecture"
            print(f"{name} split, order {order}, {split}: {found:.4f}, kenlm {loss:.4f}{'' if near else '  WRONG'}")
    return good


def check_exports(names: str, text: str | None) -> bool:
    """Compare the ARPA files of models, read by kenlm, with the models; prints a line for each."""
    try:
        kenlm = import_module("kenlm")
    except ImportError:
        print("ARPA files are not compared with kenlm, which is not installed: pip install kenlm")
        return True
    differences = {"names of characters, order 6": _largest_of_items(kenlm, load_corpus(CorpusSettings(path=names)))}
    if text is not None:
        corpus = load_corpus(CorpusSettings(path=text, layout="text", tokens="words"))
        differences["text of words, order 5"] = _largest_of_text(kenlm, corpus)
    for name, difference in differences.items():
        wrong = "" if difference <= MAX_LOG10 else "  WRONG"
        print(f"{name}, exported: log10 of probabilities differ from kenlm's by at most {difference:.1e}{wrong}")
    return max(differences.values()) <= MAX_LOG10


def _largest_of_items(kenlm: ModuleType, corpus: Corpus) -> float:
    """The largest difference between kenlm's log10 of the probability of a whole item and ours."""
    model, exported = _export(kenlm, corpus, 6)
    items = list(islice(corpus.items("dev"), NUM_ITEMS))
    differences: list[float] = [
        abs(exported.score(" ".join(map(arpa.escape, score.item))) - score.log_prob / math.log(10))
        for score in model.score(items)
    ]
    return max(differences)


def _largest_of_text(kenlm: ModuleType, corpus: Corpus) -> float:
    """The largest difference between kenlm's log10 of the probability of a word of running text and ours."""
    model, exported = _export(kenlm, corpus, 5)
    words, stream = arpa.words_of(model.vocab), np.append(corpus.dev[:NUM_WORDS], 0)
    nats = model.nats(*Windows(stream, model.context_size)[:]).tolist()
    before, after = kenlm.State(), kenlm.State()
    exported.BeginSentenceWrite(before)
    largest = 0.0
    for token_id, nat in zip(stream.tolist(), nats, strict=True):
        largest = max(largest, abs(exported.BaseScore(before, words[token_id], after) + nat / math.log(10)))
        before, after = after, before
    return largest


def _export(kenlm: ModuleType, corpus: Corpus, order: int) -> tuple[LanguageModel, Any]:
    """A model with modified Kneser-Ney smoothing, and what kenlm makes of its ARPA file."""
    levels, _ = modified_kneser_ney(count(corpus.train, len(corpus.vocab), order))
    model = LanguageModel.of_counts(NGramModel(levels, len(corpus.vocab)), corpus.vocab, CorpusFacts.of(corpus))
    with tempfile.TemporaryDirectory() as folder:
        arpa.write(model, ExportInfo("model"), Path(folder) / "model.arpa")
        return model, kenlm.Model(f"{folder}/model.arpa")


def zipf_items(num_tokens: int, vocab_size: int) -> npt.NDArray[np.int32]:
    """Items of nine independent tokens with Zipf's frequencies, which have more n-grams than text has."""
    rng = np.random.default_rng(1)
    weights = 1 / np.arange(1, vocab_size)
    stream = 1 + np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(num_tokens))
    stream = np.minimum(stream, vocab_size - 1)
    stream[9::10] = 0
    return stream.astype(np.int32)


def measure(stream: npt.NDArray[np.int32], vocab_size: int, order: int) -> bool:
    """Count and smooth.

    Prints seconds, and the peak of the whole process, corpus and interpreter included. Returns whether both are within
    their limits.
    """
    start = time.perf_counter()
    levels, _ = modified_kneser_ney(count(stream, vocab_size, order))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grams = sum(len(level.keys) for level in levels)
    print(
        f"{len(stream):,} tokens, V = {vocab_size:,}, order {order}: {grams:,} n-grams, "
        f"{seconds:.1f} s, {peak / 2**20:.2f} GiB at the peak of the process"
    )
    return seconds < MAX_SECONDS and peak / 2**20 < MAX_GIB


def measure_lmplz(lmplz: str, stream: npt.NDArray[np.int32], order: int) -> None:
    """Let lmplz do the same from a text file to an ARPA file; prints its seconds, and its peak."""
    with tempfile.TemporaryDirectory() as folder:
        text, model = Path(folder) / "text", Path(folder) / "model.arpa"
        text.write_text(" ".join(map(str, stream.tolist())).replace(" 0 ", "\n").removesuffix(" 0") + "\n")
        start = time.perf_counter()
        options = ["-o", str(order), "-S", f"{MAX_GIB}G", "-T", folder, "--text", str(text), "--arpa", str(model)]
        command = [sys.executable, "-c", PEAK_OF, lmplz, "--discount_fallback", *options]
        peak = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
        seconds = time.perf_counter() - start
        with model.open() as lines:
            grams = sum(int(line.split("=")[1]) for line in islice(lines, 1, order + 1))
    print(f"lmplz, from text to an ARPA file: {grams:,} n-grams, {seconds:.1f} s, {peak / 2**20:.2f} GiB at its peak")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="names.txt of the lecture")
    parser.add_argument("--text", help="running text, whose words are compared with kenlm, too")
    parser.add_argument("--tokens", type=int, default=10_000_000, help="of the large corpus; 0 leaves it out")
    parser.add_argument("--lmplz", default=shutil.which("lmplz"), help="path of kenlm's program that estimates models")
    args = parser.parse_args()
    good = check_losses(args.path)
    good &= check_exports(args.path, args.text)
    if args.tokens:
        stream = zipf_items(args.tokens, 100_000)
        good &= measure(stream, 100_000, 5)
        if args.lmplz:
            measure_lmplz(args.lmplz, stream, 5)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
