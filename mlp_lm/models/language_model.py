"""A language model: vocabulary, context size and a function from contexts to log-probabilities."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mlp_lm.errors import DataError, SettingsError
from mlp_lm.models.metrics import NLL, token_nll
from mlp_lm.models.network import MLP
from mlp_lm.models.ngram import NGramModel
from mlp_lm.models.sampling import Sampling, generate
from mlp_lm.text.corpus import SPLITS, Corpus, detokenize, encode, item_lengths, tokenize
from mlp_lm.text.vocab import Vocab, counted, name_unknown
from mlp_lm.text.windows import Windows, eval_batch_size

MAX_KNOWN_ITEMS = 1_000_000  # of all splits together: beyond it, a checkpoint would grow by more than 8 MB
MAX_LENGTH = 20_000  # tokens, by default: a model that hardly ever ends an item takes 2 s for that many
ATTEMPTS_PER_NEW_ITEM = 100  # a model that has memorised its corpus draws hardly anything new

SeenIn = Literal["train", "dev or test", "new"]


@dataclass(frozen=True)
class Sample:
    """One generated item."""

    text: str
    cut: bool  # it reached the maximal length before its end
    seen_in: SeenIn | None  # None if it is cut, or if the items of the corpus are not known

    def __str__(self) -> str:
        """The text, with an ellipsis if it was cut."""
        return f"{self.text}…" if self.cut else self.text


@dataclass(frozen=True)
class Score:
    """One scored item."""

    item: str
    tokens: int  # boundary counted
    log_prob: float  # nats

    @property
    def nats_per_token(self) -> float:
        """The item's own loss."""
        return -self.log_prob / self.tokens


@dataclass(frozen=True, repr=False)
class LanguageModel:
    """What samples and scores, whether the probabilities come from a network, from counts or from both."""

    vocab: Vocab
    context_size: int
    log_probs: Callable[[Tensor], Tensor]  # contexts (B, T) int64 to log-probabilities (B, V)
    facts: CorpusFacts
    network: MLP | None = None  # None if there are only counts

    def __repr__(self) -> str:
        return f"LanguageModel({len(self.vocab)} tokens, context size {self.context_size})"

    def sample(self, num: int = 10, sampling: Sampling | None = None) -> list[Sample]:
        """Generate `num` items; with `only_new` fewer, if a hundred attempts for each do not find them.

        Raises:
            SettingsError: A prompt longer than an item may be.
            DataError: A prompt with unknown characters, or `only_new` if the items of the corpus are not known.
        """
        sampling = sampling or Sampling()
        prompt = self.vocab.encode(tokenize(sampling.prompt))
        max_length = sampling.max_length or max(min(2 * self.facts.longest_item, MAX_LENGTH), len(prompt))
        if len(prompt) > max_length:
            raise SettingsError(
                f"max_length must be at least {len(prompt)}, the length of the prompt (got {max_length})"
            )
        if sampling.only_new and self.facts.item_hashes is None:
            raise DataError("only_new: which items are new is not known; the model's corpus was too large to keep them")
        generator = torch.Generator()
        _ = generator.seed() if sampling.seed is None else generator.manual_seed(sampling.seed)
        samples: list[Sample] = []
        attempts = num * ATTEMPTS_PER_NEW_ITEM if sampling.only_new else num
        while len(samples) < num and attempts > 0:
            # Refills ask for more than is missing, so that the last few new items do not take a call each.
            size = min(attempts, max(num - len(samples), 100) if sampling.only_new else num)
            attempts -= size
            for ids, cut in generate(
                self.log_probs,
                size,
                self.context_size,
                sampling,
                max_length=max_length,
                generator=generator,
                prompt=prompt,
                batch_size=min(4096, eval_batch_size(len(self.vocab))),
            ):
                text = detokenize(self.vocab.decode(ids))
                seen_in = None if cut else self.facts.find(text)
                if not sampling.only_new or seen_in == "new":
                    samples.append(Sample(text, cut, seen_in))
        return samples[:num]

    def summary(self, samples: Sequence[Sample]) -> str:
        """A line for people: how many samples there are, how many of them the corpus has, how many were cut."""
        seen = [sample.seen_in for sample in samples]
        counts = (
            f"{seen.count('train'):,} in train, {seen.count('dev or test'):,} in dev or test, {seen.count('new'):,} new"
        )
        known = counts if self.facts.item_hashes is not None else "which of them are new is not known"
        cut = sum(sample.cut for sample in samples)
        return f"{counted(len(samples), 'item')}: {known}" + (f", {cut:,} cut at --max_length (…)" if cut else "")

    def score(self, items: Sequence[str]) -> list[Score]:
        """The log-probability of each item, its end included.

        Raises DataError that lists the items with unknown characters, by their place in `items`.
        """
        if isinstance(items, str):
            raise TypeError(f"items: expected a list of strings, found the string {items!r}")
        items = [detokenize(tokenize(item.strip())) for item in items]
        problems = [
            f"item {i} {item!r} has the {name_unknown(unknown)}"
            for i, item in enumerate(items, start=1)
            if (unknown := self.vocab.unknown(tokenize(item)))
        ]
        if problems:
            raise DataError(f"{'; '.join(problems)}; the model knows {self.vocab.describe()}")
        if not items:
            return []
        windows, nats = Windows(encode(items, self.vocab), self.context_size), []
        with torch.inference_mode():
            for contexts, targets in windows.batches(eval_batch_size(len(self.vocab))):
                nats += token_nll(self.log_probs(contexts), targets).tolist()
        if any(math.isnan(value) for value in nats):
            raise DataError("the model's probabilities are NaN; its training diverged, or the file is damaged")
        scores, first = [], 0
        for item in items:
            tokens = len(tokenize(item)) + 1
            scores.append(Score(item, tokens, 0.0 - sum(nats[first : first + tokens])))
            first += tokens
        return scores


class Mixture:
    """weight · network + (1 - weight) · counts, of probabilities, as in Bengio et al. (2003, section 4)."""

    def __init__(self, network: MLP, context_size: int, counts: NGramModel, weight: float) -> None:
        """`context_size`: T of the network; contexts may be longer, as the counts need them."""
        self.network, self.context_size, self.counts, self.weight = network, context_size, counts, weight

    def log_probs(self, contexts: Tensor) -> Tensor:
        """Log-probabilities (B, V), float64, of the token after each of the `contexts` (B, T or more)."""
        network = self.network.log_probs(contexts[:, -self.context_size :]).double().exp()
        counts = torch.from_numpy(self.counts.probs(contexts.numpy()))
        return (self.weight * network + (1 - self.weight) * counts).log()


def total(scores: Sequence[Score]) -> NLL:
    """The loss of all scored items together."""
    return NLL(-sum(score.log_prob for score in scores), sum(score.tokens for score in scores))


# -- what a model keeps of its corpus ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CorpusFacts:
    """What a model keeps of its corpus."""

    longest_item: int  # of train, in tokens
    item_hashes: Mapping[str, Tensor] | None  # of each split, sorted int64; None beyond MAX_KNOWN_ITEMS

    @classmethod
    def of(cls, corpus: Corpus) -> CorpusFacts:
        """The facts of a corpus."""
        lengths = {split: item_lengths(getattr(corpus, split)) for split in SPLITS}
        few = sum(map(len, lengths.values())) <= MAX_KNOWN_ITEMS
        hashes = {split: hash_items(corpus.items(split)) for split in SPLITS} if few else None
        return cls(int(lengths["train"].max()), hashes)

    def find(self, item: str) -> SeenIn | None:
        """Where an item occurs; None if that is not known."""
        return self._seen_in.get(_item_hash(item), "new") if self.item_hashes is not None else None

    @cached_property
    def _seen_in(self) -> dict[int, SeenIn]:
        assert self.item_hashes is not None
        seen_in: dict[int, SeenIn] = {}
        for split, where in (("dev", "dev or test"), ("test", "dev or test"), ("train", "train")):
            seen_in |= dict.fromkeys(self.item_hashes[split].tolist(), where)
        return seen_in


def hash_items(items: Iterable[str]) -> Tensor:
    """The sorted, distinct hashes of `items`, int64."""
    return torch.from_numpy(np.unique(np.fromiter(map(_item_hash, items), np.int64)))


def _item_hash(item: str) -> int:
    """64 bits of BLAKE2b, signed. Two of a million items share a hash once in some 40 million corpora."""
    return int.from_bytes(hashlib.blake2b(item.encode(), digest_size=8).digest(), "little", signed=True)
