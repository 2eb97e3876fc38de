"""Count models: the probability of a token after the last n - 1, from how often that was seen in train.

Shapes: B contexts, V vocabulary; n is the order, k = 1 … n a level, and a k-gram is k - 1 context tokens and a target.
All smoothings have the form

    p_k(w | h) = probs(hw) + backoff(h) p_(k-1)(w | h without its first token),    p_0 = 1 / V

where an unseen k-gram has probs 0 and an unseen context backoff 1. Items are sentences: the boundary that ends an item
is predicted, and a single boundary precedes its first token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlp_lm.text.tokenizer import Ids
from mlp_lm.text.vocab import BOUNDARY

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Smoothing = Literal["mkn", "add_k", "none"]

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # of lmplz --discount_fallback, if counts of counts give no estimate


@dataclass(frozen=True)
class Counts:
    """The G distinct k-grams of train, sorted by key.

    The key of a k-gram is the place of its context among the (k-1)-grams, times V, plus its target. Places are at most
    as many as the tokens of train, so keys stay exact where V to the power of k would not. At level 1, every token of
    the vocabulary has its place, seen or not.
    """

    keys: Ints  # (G,)
    counts: Ints  # (G,): how often it was seen
    preceded: Ints  # (G,): by how many distinct tokens; unknown, and 0, at the last level counted
    begins: Bools  # (G,): whether its first token is the boundary before an item
    contexts: Ints  # (G,): place of its context among the (k-1)-grams
    num_contexts: int  # how many (k-1)-grams there are


@dataclass(frozen=True)
class Level:
    """The probabilities of the k-grams, and the backoffs of their contexts."""

    keys: Ints  # (G,)
    probs: Floats  # (G,)
    backoff: Floats  # (number of (k-1)-grams,)


def count(stream: Ids, vocab_size: int, order: int) -> list[Counts]:
    """Count the k-grams, k = 1 … order, of a token stream (N,), in which each item is ended by the boundary."""
    # The boundary that ends an item precedes the next one, too.
    tokens: Ints = np.concatenate([[BOUNDARY], stream]).astype(np.int64)
    valid: Bools = np.ones(len(tokens), bool)  # whether a k-gram ends at each position
    valid[0] = False
    places: Ints = tokens  # its place among the k-grams; those of level 1 are the tokens themselves
    levels: list[Counts] = []
    for k in range(1, order + 1):
        if k > 2:  # a boundary may begin a k-gram or end it, nothing else
            valid = _shift(valid & (tokens != BOUNDARY))
        at = np.flatnonzero(valid)
        if k == 1:
            contexts: Ints = np.zeros(vocab_size, np.int64)
            keys: Ints = np.arange(vocab_size)
            counts: Ints = np.bincount(tokens[at], minlength=vocab_size)
            first: Ints = at[:0]
        else:
            key = _shift(places)[at] * vocab_size + tokens[at]
            keys, first, inverse, counts = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
            contexts, first = keys // vocab_size, at[first]
            # The last k - 1 tokens of each distinct k-gram are a (k-1)-gram that one more token precedes.
            preceded = np.bincount(places[first], minlength=len(levels[-1].keys))
            levels[-1] = replace(levels[-1], preceded=preceded)
            places = np.zeros(len(tokens), np.int64)
            places[at] = inverse
        begins = tokens[first - k + 1] == BOUNDARY if k > 1 else np.zeros(vocab_size, bool)
        num_contexts = len(levels[-1].keys) if levels else 1
        levels.append(Counts(keys, counts, np.zeros(len(keys), np.int64), begins, contexts, num_contexts))
    return levels


def _shift(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Each position's value one position later; 0 at the first."""
    return np.concatenate([values[:1] * 0, values[:-1]])


class NGramModel:
    """A count model of order n."""

    def __init__(self, levels: Sequence[Level], vocab_size: int) -> None:
        self.levels = list(levels)
        self.vocab_size = vocab_size

    @property
    def order(self) -> int:
        """n: the largest number of tokens in a k-gram, its target included."""
        return len(self.levels)

    @property
    def context_size(self) -> int:
        """T, at least 1, as windows have a context."""
        return max(self.order - 1, 1)

    def count_parameters(self) -> int:
        """Number of parameters that the model stores: a probability for each k-gram, a backoff for each context."""
        return sum(len(level.probs) + len(level.backoff) for level in self.levels)

    def log_probs(self, contexts: Tensor) -> Tensor:
        """Log-probabilities (B, V), float64, of the token after each of the `contexts` (B, T), int64."""
        return torch.from_numpy(self.probs(contexts.numpy())).log()

    def probs(self, contexts: npt.NDArray[Any]) -> Floats:
        """Probabilities (B, V) of the token after each of the `contexts` (B, T)."""
        num_tokens = contexts.shape[1]
        base = self.levels[0].probs + self.levels[0].backoff[0] / self.vocab_size  # (V,)
        probs = np.tile(base, (len(contexts), 1))  # (B, V)
        for k in range(2, min(self.order, num_tokens + 1) + 1):
            level = self.levels[k - 1]
            places, seen = self._places(contexts[:, num_tokens - k + 1 :])
            rows, places = np.flatnonzero(seen), places[seen]
            probs[rows] *= level.backoff[places, None]
            first = np.searchsorted(level.keys, places * self.vocab_size)
            lengths = np.searchsorted(level.keys, (places + 1) * self.vocab_size) - first
            # The k-grams of the first context, then those of the second, and so on: (sum of lengths,)
            grams = np.arange(lengths.sum()) + np.repeat(first - np.cumsum(lengths) + lengths, lengths)
            probs[np.repeat(rows, lengths), level.keys[grams] % self.vocab_size] += level.probs[grams]
        return probs

    def nats(self, contexts: Tensor, targets: Tensor) -> Tensor:
        """The negative log-probabilities (B,), float64, of `targets` (B,) after `contexts` (B, T), both int64."""
        context, target = contexts.numpy(), targets.numpy()
        num_tokens = context.shape[1]
        probs = self.levels[0].probs[target] + self.levels[0].backoff[0] / self.vocab_size  # (B,)
        for k in range(2, min(self.order, num_tokens + 1) + 1):
            level = self.levels[k - 1]
            places, seen = self._places(context[:, num_tokens - k + 1 :])
            probs[seen] *= level.backoff[places[seen]]
            grams, found = _find(level.keys, places * self.vocab_size + target)
            found &= seen
            probs[found] += level.probs[grams[found]]
        return -torch.from_numpy(probs).log()

    def grams(self) -> Iterator[tuple[Ints, Floats]]:
        """Level by level, the ids (G, k) of the k-grams and the probabilities p_k (G,) of their targets."""
        targets = self.levels[0].keys
        ids = targets[:, None]  # (G, 1)
        probs = self.levels[0].probs + self.levels[0].backoff[0] / self.vocab_size
        shorter = np.zeros(len(targets), np.int64)  # place of a k-gram without its first token among the (k-1)-grams
        yield ids, probs
        for below, level in pairwise(self.levels):
            contexts, targets = np.divmod(level.keys, self.vocab_size)
            shorter, _ = _find(below.keys, shorter[contexts] * self.vocab_size + targets)
            ids = np.column_stack([ids[contexts], targets])  # (G, k)
            probs = level.probs + level.backoff[contexts] * probs[shorter]
            yield ids, probs

    def _places(self, contexts: npt.NDArray[Any]) -> tuple[Ints, Bools]:
        """The place of each context (B, k - 1) among the (k-1)-grams, and whether it occurs there at all."""
        places, seen = contexts[:, 0].astype(np.int64), np.ones(len(contexts), bool)
        for level, tokens in zip(self.levels[1:], contexts.T[1:], strict=False):
            places, found = _find(level.keys, places * self.vocab_size + tokens)
            seen &= found
        return places, seen


def _find(keys: Ints, wanted: Ints) -> tuple[Ints, Bools]:
    """The place of each of `wanted` (B,) among sorted `keys`, and whether it is there."""
    if not len(keys):  # no item of train is that long
        return np.zeros_like(wanted), np.zeros(len(wanted), bool)
    order = np.argsort(wanted)  # in which searches stay in the cache: a third of the time for many keys
    places = np.empty_like(order)
    places[order] = np.minimum(np.searchsorted(keys, wanted[order]), len(keys) - 1)
    return places, keys[places] == wanted


# -- smoothing ---------------------------------------------------------------------------------------------------------


def modified_kneser_ney(counts: Sequence[Counts]) -> tuple[list[Level], list[int]]:
    """Interpolated modified Kneser-Ney (Chen and Goodman 1998, section 3), as kenlm's lmplz estimates it.

    Discounts D(1), D(2), D(3 or more) at each level. Below the last, the count of a k-gram is the number of distinct
    tokens that precede it, unless it begins an item.

    Returns:
        The levels, and the k of those whose discounts could not be estimated and are the fallback.
    """
    levels, fallbacks = [], []
    for k, level in enumerate(counts, start=1):
        c = level.counts if level is counts[-1] else np.where(level.begins, level.counts, level.preceded)
        discounts, estimated = _discounts(np.bincount(np.minimum(c, 5), minlength=6)[1:5])
        if not estimated:
            fallbacks.append(k)
        discount = np.array([0.0, *discounts])[np.minimum(c, 3)]
        totals = np.bincount(level.contexts, c, minlength=level.num_contexts)
        taken = np.bincount(level.contexts, discount, minlength=level.num_contexts)
        backoff = np.divide(taken, totals, out=np.ones(level.num_contexts), where=totals > 0)
        levels.append(Level(level.keys, (c - discount) / totals[level.contexts], backoff))
    return levels, fallbacks


def _discounts(counts_of_counts: Ints) -> tuple[tuple[float, float, float], bool]:
    """D(1), D(2), D(3+) from the numbers of k-grams with a count of 1, 2, 3, 4 (equation 17), or the fallback."""
    n1, n2, n3, n4 = (int(n) for n in counts_of_counts)
    if min(n1, n2, n3) > 0:
        y = n1 / (n1 + 2 * n2)
        discounts = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
        if all(0 <= discount <= c for c, discount in enumerate(discounts, start=1)):
            return discounts, True
    return FALLBACK_DISCOUNTS, False


def add_k(counts: Sequence[Counts], vocab_size: int, k: float) -> list[Level]:
    """Add k to every count of the last level; 0 leaves relative frequencies, for which unseen events are impossible.

    Levels below the last serve only the start of an item, where the context is too short for the last one.
    """
    levels = []
    for level in counts:
        is_last = level is counts[-1]
        c = level.counts if is_last else np.where(level.begins, level.counts, 0)
        totals = np.bincount(level.contexts, c, minlength=level.num_contexts)
        sums = totals + k * vocab_size
        # What no level has seen is left to p_0: uniform, or impossible if nothing is added.
        unseen = 0.0 if k == 0 and level is counts[0] else 1.0
        backoff = np.divide(k * vocab_size, sums, out=np.full(level.num_contexts, unseen), where=totals > 0)
        probs = np.divide(c, sums[level.contexts], out=np.zeros(len(c)), where=c > 0)
        levels.append(Level(level.keys, probs, backoff))
    return levels
