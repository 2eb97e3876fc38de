"""`python -m mlp_lm sample`."""

from __future__ import annotations

import sys
from typing import Annotated

from mlp_lm.models.checkpoint import load
from mlp_lm.models.language_model import ATTEMPTS_PER_NEW_ITEM
from mlp_lm.models.sampling import Sampling
from mlp_lm.settings import Range
from mlp_lm.text.vocab import printable


def sample(file: str, sampling: Sampling, num: Annotated[int, Range(1, 100_000_000)] = 20) -> None:
    """Generate new items from a checkpoint, one a line.

    An item that is cut at the maximal length ends with an ellipsis. Prints to stderr how many of them are already in
    the corpus.

    Args:
        file: Checkpoint or count model to generate from; a run folder stands for its best.ckpt.
        sampling: How items are drawn.
        num: Number of items.
    """
    model = load(file)
    samples = model.sample(num, sampling)
    show = printable if sys.stdout.isatty() else str  # a file gets what was generated, a terminal nothing to obey
    sys.stdout.writelines(f"{show(str(s))}\n" for s in samples)
    sys.stdout.flush()
    print(model.summary(samples), file=sys.stderr)
    if len(samples) < num:
        print(
            f"found only {len(samples):,} of the {num:,} requested new items after {ATTEMPTS_PER_NEW_ITEM} attempts "
            "each; raise --temperature",
            file=sys.stderr,
        )
