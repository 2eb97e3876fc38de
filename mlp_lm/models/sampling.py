"""Batched generation from any function of contexts to log-probabilities. B items at once, T context, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mlp_lm.errors import DataError
from mlp_lm.text.vocab import BOUNDARY

MAX_BATCH_TOKENS = 2**22  # 32 MB of ids


def truncate(log_probs: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Log-probabilities (B, V) with all but the most probable tokens at -inf; not normalised again.

    Args:
        log_probs: Log-probabilities (B, V).
        top_k: Keep exactly so many tokens (Fan et al. 2018); of equally probable ones the lower id.
        top_p: Keep the fewest most probable tokens whose probabilities sum to at least this
            (nucleus sampling, Holtzman et al. 2020), measured on what `top_k` leaves.
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
    *,
    max_length: int,
    generator: torch.Generator,
    prompt: Sequence[int] = (),
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    batch_size: int = 4096,
) -> list[tuple[list[int], bool]]:
    """Draw `num` items token by token.

    Args:
        log_probs: Contexts (B, T) int64 to log-probabilities (B, V), on the generator's device.
        num: How many items.
        context_size: T.
        max_length: An item that has so many tokens without a boundary is cut there.
        generator: Source of chance; the same state gives the same items.
        prompt: Ids of the tokens that every item starts with; they count towards `max_length`.
        temperature: Divides the log-probabilities; below 1 sharper, above 1 flatter, 0 always the most probable.
        top_k: See `truncate`.
        top_p: See `truncate`.
        batch_size: How many items to draw at once, fewer where `max_length` is large; bounds the memory.

    Returns:
        For each item its ids, prompt included and boundary not, and whether it was cut.
    """
    items: list[tuple[list[int], bool]] = []
    batch_size = max(1, min(batch_size, MAX_BATCH_TOKENS // (context_size + max_length)))
    while len(items) < num:
        size = min(batch_size, num - len(items))
        items += _generate_batch(
            log_probs, size, context_size, max_length, generator, prompt, temperature, top_k, top_p
        )
    return items


def _generate_batch(
    log_probs: Callable[[Tensor], Tensor],
    size: int,
    context_size: int,
    max_length: int,
    generator: torch.Generator,
    prompt: Sequence[int],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> list[tuple[list[int], bool]]:
    device = generator.device
    # One row an item: T boundaries, the prompt, then what is drawn; the context is a slice of the row.
    rows = torch.full((size, context_size + max_length), BOUNDARY, device=device)
    rows[:, context_size : context_size + len(prompt)] = torch.tensor(prompt, dtype=torch.int64, device=device)
    lengths = torch.full((size,), max_length, device=device)
    cut = torch.ones(size, dtype=torch.bool, device=device)
    alive = torch.arange(size, device=device)  # items without a boundary yet; the others are computed no further
    for length in range(len(prompt), max_length + 1):
        next_ids = _draw(log_probs(rows[alive, length : length + context_size]), temperature, top_k, top_p, generator)
        ended = alive[next_ids == BOUNDARY]
        lengths[ended], cut[ended] = length, False
        alive, next_ids = alive[next_ids != BOUNDARY], next_ids[next_ids != BOUNDARY]
        if length == max_length or not len(alive):
            break
        rows[alive, context_size + length] = next_ids
    drawn = rows[:, context_size : context_size + int(lengths.max())].tolist()
    return [(ids[:length], was_cut) for ids, length, was_cut in zip(drawn, lengths.tolist(), cut.tolist(), strict=True)]


def _draw(
    log_probs: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> Tensor:
    """One token id (B,) from each row of log-probabilities (B, V)."""
    most_probable = log_probs.amax(-1, keepdim=True)  # (B, 1)
    if most_probable.isneginf().any():  # counts without smoothing, after what they have never seen
        raise DataError("no token has a chance after this prompt; the model has never seen it")
    if not most_probable.isfinite().all():  # weights so large that they overflow
        raise DataError("the model's probabilities are no numbers; its training went wrong, or the file is damaged")
    if temperature == 0:
        return log_probs.argmax(-1)
    # The most probable token stays at 0, however small the temperature; float32 has no number below 1e-38.
    log_probs = (log_probs - most_probable) / max(temperature, 1e-30)
    if top_k is not None or top_p is not None:
        log_probs = truncate(log_probs, top_k, top_p)
    return torch.multinomial(log_probs.softmax(-1), 1, generator=generator).squeeze(-1)
