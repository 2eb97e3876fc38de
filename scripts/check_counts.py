"""Count models against kenlm's figures on names.txt, and how fast counting is on a large corpus.

    python scripts/check_counts.py names.txt [--tokens 10000000]

Ends with exit code 1 where a loss is off by more than 0.0005 nats/token or a limit is passed.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import numpy as np

from mlp_lm.models.metrics import evaluate
from mlp_lm.models.ngram import NGramModel, count, modified_kneser_ney
from mlp_lm.text.corpus import CorpusSettings, load_corpus
from mlp_lm.text.windows import Windows

# lmplz --discount_fallback: (unique, order) to dev and test, nats/token
KENLM = {
    (False, 4): (2.0564, 2.0579),
    (True, 4): (2.0659, 2.0748),
    (False, 6): (1.975, 1.978),  # of these, three places are known
    (True, 6): (2.004, 2.013),
}
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


def measure(num_tokens: int, vocab_size: int, order: int) -> bool:
    """Count and smooth items of independent tokens with Zipf's frequencies, which have more n-grams than text has.

    Prints seconds, and the peak of the whole process, corpus and interpreter included. Returns whether both are within
    their limits.
    """
    rng = np.random.default_rng(1)
    weights = 1 / np.arange(1, vocab_size)
    stream = 1 + np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(num_tokens))
    stream = np.minimum(stream, vocab_size - 1).astype(np.int32)
    stream[9::10] = 0  # items of nine tokens
    start = time.perf_counter()
    levels, _ = modified_kneser_ney(count(stream, vocab_size, order))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grams = sum(len(level.keys) for level in levels)
    print(
        f"{num_tokens:,} tokens, V = {vocab_size:,}, order {order}: {grams:,} n-grams, "
        f"{seconds:.1f} s, {peak / 2**20:.2f} GiB at the peak of the process"
    )
    return seconds < MAX_SECONDS and peak / 2**20 < MAX_GIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="names.txt of the lecture")
    parser.add_argument("--tokens", type=int, default=10_000_000, help="of the large corpus; 0 leaves it out")
    args = parser.parse_args()
    good = check_losses(args.path)
    if args.tokens:
        good &= measure(args.tokens, 100_000, 5)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
