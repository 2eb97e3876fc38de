"""Batched generation from any function of contexts to log-probabilities. B items at once, T context, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from mlp_lm.errors import DataError
from mlp_lm.settings import COUNT, Range, check, ranges
from mlp_lm.text.vocab import BOUNDARY

MAX_BATCH_TOKENS = 2**22  # 32 MB of ids


@dataclass(frozen=True)
class Sampling:
    """How items or texts are drawn.

    Args:
        prompt: What every item starts with.
        temperature: Values below 1 favour probable items, above 1 surprising ones; 0 always takes the most probable
            token.
        top_k: Draw each token from the k most probable ones only (Fan et al. 2018).
        top_p: Draw each token from the fewest most probable ones whose probabilities sum to at least p (nucleus
            sampling, Holtzman et al. 2020).
        seed: The same seed gives the same items; null draws a new one.
        max_length: Cut an item after this many tokens; null means twice the longest item of train, at most 20,000.
        only_new: Keep only items that are in none of train, dev and test.
        num_tokens: Of running text: how many tokens to draw; null means 200.
        allow_unk: Draw <unk> too, the token for words outside the vocabulary.

    Raises:
        SettingsError: A value is out of its range.
    """

    prompt: str = ""
    temperature: Annotated[float, Range(0, 1_000_000)] = 1.0
    top_k: Annotated[int, COUNT] | None = None
    top_p: Annotated[float, Range(0, 1, above=True)] | None = None
    seed: Annotated[int, Range(0, 2**63 - 1)] | None = None
    max_length: Annotated[int, Range(1, 1_000_000)] | None = None
    only_new: bool = False
    num_tokens: Annotated[int, Range(1, 1_000_000)] | None = None
    allow_unk: bool = False

    def __post_init__(self) -> None:
        check(vars(self), ranges(Sampling))


def truncate(log_probs: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Log-probabilities (B, V) with all but the most probable tokens at -inf; not normalised again.

    Args:
        log_probs: Log-probabilities (B, V).
        top_k: Keep exactly this many tokens; of equally probable ones those with the lower id.
        top_p: Keep the fewest most probable tokens whose probabilities sum to at least this, measured on what `top_k`
            leaves.
    """
    ranked, ids = log_probs.sort(dim=-1, descending=True, stable=True)  # (B, V) each; stable: ties by id
    if top_k is not None:
        ranked[:, top_k:] = -torch.inf
    if top_p is not None and top_p < 1:
        probs = ranked.double().softmax(-1)  # in float32 the sum of ten tenths is off
        before = probs.cumsum(-1) - probs  # mass of the tokens that are more probable
        before[:, 0] = 0.0  # rounding must not drop the first
        ranked[before >= top_p] = -torch.inf
    return torch.empty_like(ranked).scatter_(-1, ids, ranked)


@torch.inference_mode()
def generate(
    log_probs: Callable[[Tensor], Tensor],
    num: int,
    context_size: int,
    sampling: Sampling,
    *,
    max_length: int,
    generator: torch.Generator,
    prompt: Sequence[int] = (),
    banned: Sequence[int] = (),
    batch_size: int = 4096,
) -> list[tuple[list[int], bool]]:
    """Draw `num` items token by token.

    Args:
        log_probs: Contexts (B, T) int64 to log-probabilities (B, V), on the generator's device.
        num: Number of items.
        context_size: T.
        sampling: Its temperature, top_k and top_p.
        max_length: An item that has this many tokens without a boundary is cut there.
        generator: Source of randomness; the same state gives the same items.
        prompt: Ids of the tokens that every item starts with; they count towards `max_length`.
        banned: Ids that are never drawn; what they would have had is shared out among the others.
        batch_size: How many items to draw at once, fewer if `max_length` is large; bounds the memory.

    Returns:
        For each item its ids, prompt included and boundary not, and whether it was cut.
    """

    def allowed_log_probs(contexts: Tensor) -> Tensor:
        found = log_probs(contexts)
        found[:, list(banned)] = -torch.inf
        return found

    items: list[tuple[list[int], bool]] = []
    batch_size = max(1, min(batch_size, MAX_BATCH_TOKENS // (context_size + max_length)))
    while len(items) < num:
        # One row an item: T boundaries, the prompt, then what is drawn; the context is a slice of the row.
        size = min(batch_size, num - len(items))
        rows = torch.full((size, context_size + max_length), BOUNDARY, device=generator.device)
        rows[:, context_size : context_size + len(prompt)] = torch.tensor(prompt, dtype=torch.int64)
        step = allowed_log_probs if banned else log_probs
        items += _fill(rows, step, context_size, sampling, len(prompt), generator)
    return items


def _fill(
    rows: Tensor,
    log_probs: Callable[[Tensor], Tensor],
    context_size: int,
    sampling: Sampling,
    prompt_length: int,
    generator: torch.Generator,
) -> list[tuple[list[int], bool]]:
    """Draw what follows the prompt in each of `rows` (B, T + maximal length), in place; returns as `generate` does."""
    size, max_length = len(rows), rows.shape[1] - context_size
    lengths = torch.full((size,), max_length, device=rows.device)
    cut = torch.ones(size, dtype=torch.bool, device=rows.device)
    alive = torch.arange(size, device=rows.device)  # items without a boundary yet; the others are computed no further
    for length in range(prompt_length, max_length + 1):
        next_ids = _draw(log_probs(rows[alive, length : length + context_size]), sampling, generator)
        ended = alive[next_ids == BOUNDARY]
        lengths[ended], cut[ended] = length, False
        alive, next_ids = alive[next_ids != BOUNDARY], next_ids[next_ids != BOUNDARY]
        if length == max_length or not len(alive):
            break
        rows[alive, context_size + length] = next_ids
    drawn = rows[:, context_size : context_size + int(lengths.max())].tolist()
    return [(ids[:length], was_cut) for ids, length, was_cut in zip(drawn, lengths.tolist(), cut.tolist(), strict=True)]


def _draw(log_probs: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """One token id (B,) from each row of log-probabilities (B, V)."""
    most_probable = log_probs.amax(-1, keepdim=True)  # (B, 1)
    if most_probable.isneginf().any():  # counts without smoothing, after a context that they have never seen
        raise DataError("no token can follow; the model has never seen what is there, as its counts are not smoothed")
    if not most_probable.isfinite().all():  # weights so large that they overflow
        raise DataError("the model's probabilities are NaN; its training diverged, or the file is damaged")
    if sampling.temperature == 0:
        return log_probs.argmax(-1)
    # The most probable token stays at 0, however small the temperature; float32 has no number below 1e-38.
    log_probs = (log_probs - most_probable) / max(sampling.temperature, 1e-30)
    if sampling.top_k is not None or sampling.top_p is not None:
        log_probs = truncate(log_probs, sampling.top_k, sampling.top_p)
    return torch.multinomial(log_probs.softmax(-1), 1, generator=generator).squeeze(-1)
