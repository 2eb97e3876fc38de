"""`python -m mlp_lm sample`."""

from __future__ import annotations

import sys

from mlp_lm.models.checkpoint import load
from mlp_lm.models.language_model import TRIES_PER_NEW_ITEM as TRIES
from mlp_lm.text.vocab import printable


def sample(
    file: str,
    num: int = 20,
    prompt: str = "",
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    max_length: int | None = None,
    only_new: bool = False,
) -> None:
    """Generate new items from a checkpoint, one a line.

    An item that is cut at the maximal length ends with an ellipsis. How many items stand in the corpus already
    is said on stderr.

    Args:
        file: Checkpoint to generate from.
        num: How many items.
        prompt: What every item starts with.
        temperature: Below 1 more probable items, above 1 more surprising ones, 0 always the most probable.
        top_k: Draw each token from the k most probable ones only.
        top_p: Draw each token from the fewest most probable ones whose probabilities sum to at least p.
        seed: The same seed gives the same items; without it, chance decides.
        max_length: Cut an item after so many tokens; by default twice the longest item of train, at most 20,000.
        only_new: Print only items that stand in none of train, dev and test.
    """
    model = load(file)
    samples = model.generate(
        num,
        prompt=prompt,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        max_length=max_length,
        only_new=only_new,
    )
    show = printable if sys.stdout.isatty() else str  # a file gets what was generated, a terminal nothing to obey
    sys.stdout.writelines(f"{show(s.shown)}\n" for s in samples)
    sys.stdout.flush()
    print(model.summary(samples), file=sys.stderr)
    if len(samples) < num:
        print(f"found {len(samples):,} of {num:,} new items in {TRIES} tries for each", file=sys.stderr)
