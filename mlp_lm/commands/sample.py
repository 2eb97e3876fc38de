"""`python -m mlp_lm sample`."""

from __future__ import annotations

import sys
from typing import Annotated

from mlp_lm.models.checkpoint import load
from mlp_lm.models.language_model import ATTEMPTS_PER_NEW_ITEM
from mlp_lm.models.sampling import Sampling
from mlp_lm.settings import Range
from mlp_lm.terminal import escape, escape_lines
from mlp_lm.text.vocab import UNKNOWN


def sample(file: str, sampling: Sampling, num: Annotated[int, Range(1, 100_000_000)] | None = None) -> None:
    """Generate new items, one a line, or running text from a checkpoint.

    An item that is cut at the maximal length ends with an ellipsis. Prints to stderr how many of them are already in
    the corpus.

    Args:
        file: Checkpoint, count model or mixture to generate from; a run folder stands for its best.ckpt.
        sampling: How items or texts are drawn.
        num: Number of items or texts; null means 20 items, or one text.
    """
    model = load(file)
    num = num or (1 if model.is_of_text else 20)
    if unknown := model.unknown(sampling.prompt) if UNKNOWN in model.vocab else []:
        print(f"prompt: {', '.join(map(repr, unknown))} outside the vocabulary, read as {UNKNOWN}", file=sys.stderr)
    samples = model.sample(num, sampling)
    show = escape if sys.stdout.isatty() else str  # a file gets what was generated, a terminal nothing to obey
    if model.is_of_text:
        show = escape_lines if sys.stdout.isatty() else str
    sys.stdout.writelines(f"{show(str(s))}\n" for s in samples)
    sys.stdout.flush()
    print(model.summary(samples), file=sys.stderr)
    if len(samples) < num:
        print(
            f"found only {len(samples):,} of the {num:,} requested new items after {ATTEMPTS_PER_NEW_ITEM} attempts "
            "each; raise --temperature",
            file=sys.stderr,
        )
