"""A language model: vocabulary, context size and a function from contexts to log-probabilities."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from mlp_lm.errors import DataError, SettingsError
from mlp_lm.models.metrics import NLL, token_nll
from mlp_lm.models.network import MLP
from mlp_lm.models.sampling import Sampling, generate
from mlp_lm.terminal import format_unknown, pluralize
from mlp_lm.text.corpus import SPLITS, Corpus, CorpusSettings, item_lengths
from mlp_lm.text.tokenizer import Tokenizer
from mlp_lm.text.vocab import BOUNDARY, UNKNOWN, Vocab
from mlp_lm.text.windows import Windows, eval_batch_size

if TYPE_CHECKING:  # what a network does without
    from mlp_lm.models.ngram import NGramModel

MAX_KNOWN_ITEMS = 1_000_000  # of all splits together: beyond it, a checkpoint would grow by more than 8 MB
MAX_LENGTH = 20_000  # tokens, by default: a model that hardly ever ends an item takes 2 s for that many
NUM_TOKENS = 200  # of generated running text, by default
ATTEMPTS_PER_NEW_ITEM = 100  # a model that has memorised its corpus draws hardly anything new

ModelKind = Literal["network", "counts", "cache", "mixture"]
SeenIn = Literal["train", "dev or test", "new"]


@dataclass(frozen=True)
class Sample:
    """One generated item, or running text."""

    text: str
    cut: bool  # it reached the maximal length before its end
    seen_in: SeenIn | None  # None if it is cut, or if the items of the corpus are not known, as of running text

    def __str__(self) -> str:
        """The text, with an ellipsis if it was cut."""
        return f"{self.text}…" if self.cut else self.text


@dataclass(frozen=True)
class Score:
    """One scored item, or one line of running text."""

    item: str
    tokens: int  # of an item with the boundary, of a line with its end if that is a token
    log_prob: float  # nats
    unknown: int = 0  # how many tokens are `<unk>`

    @property
    def nats_per_token(self) -> float:
        """The item's own loss; NaN for a line without tokens."""
        return -self.log_prob / self.tokens if self.tokens else math.nan


@dataclass(frozen=True, repr=False)
class LanguageModel:
    """What samples and scores, whether the probabilities come from a network, from counts or from both."""

    vocab: Vocab
    context_size: int
    log_probs: Callable[[Tensor], Tensor]  # contexts (B, T) int64 to log-probabilities (B, V)
    facts: CorpusFacts
    # Contexts (B, T) and targets (B,) to nats (B,), where that is faster than to take them from `log_probs`.
    target_nats: Callable[[Tensor, Tensor], Tensor] | None = None
    network: MLP | None = None  # of a mixture, its first one
    counts: NGramModel | None = None
    kind: ModelKind = "network"
    mixed: Sequence[tuple[float, LanguageModel]] = ()  # of a mixture, the weights and the parts

    @classmethod
    def of_network(cls, network: MLP, context_size: int, vocab: Vocab, facts: CorpusFacts) -> LanguageModel:
        """The language model of a network that is ready to predict."""
        return cls(vocab, context_size, network.log_probs, facts, network=network, kind="network")

    @classmethod
    def of_counts(cls, counts: NGramModel, vocab: Vocab, facts: CorpusFacts) -> LanguageModel:
        """The language model of counts."""
        return cls(vocab, counts.context_size, counts.log_probs, facts, counts.nats, counts=counts, kind="counts")

    @property
    def parts(self) -> Sequence[tuple[float, LanguageModel]]:
        """Weights and parts of a mixture; of another model, itself with weight 1."""
        return self.mixed or [(1.0, self)]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """What a token is."""
        return CorpusSettings.of(self.facts.settings).tokenizer

    def __repr__(self) -> str:
        return f"LanguageModel({len(self.vocab)} tokens, context size {self.context_size})"

    @property
    def is_of_text(self) -> bool:
        """Whether it is a model of running text, not of items."""
        return self.tokenizer.line_ends != "items"

    def nats(self, contexts: Tensor, targets: Tensor) -> Tensor:
        """The negative log-probabilities (B,) of `targets` (B,) after `contexts` (B, T)."""
        if self.target_nats is not None:
            return self.target_nats(contexts, targets)
        return token_nll(self.log_probs(contexts), targets)

    def sample(self, num: int = 10, sampling: Sampling | None = None) -> list[Sample]:
        """Generate `num` items, or texts; with `only_new` fewer, if a hundred attempts for each do not find them.

        Raises:
            SettingsError: A prompt longer than an item may be; a setting of items for a model of running text, or the
                other way round.
            DataError: A prompt with unknown characters, or `only_new` if the items of the corpus are not known.
        """
        sampling = sampling or Sampling()
        prompt = self.vocab.encode(self.tokenizer.split(sampling.prompt))
        if self.is_of_text:
            if sampling.only_new or sampling.max_length is not None:
                raise SettingsError("only_new and max_length are for items; the model is one of running text")
            max_length = len(prompt) + (sampling.num_tokens or NUM_TOKENS)
        elif sampling.num_tokens is not None:
            raise SettingsError("num_tokens is for running text; the model is one of items, which end by themselves")
        else:
            max_length = sampling.max_length or max(min(2 * self.facts.longest_item, MAX_LENGTH), len(prompt))
        banned = [BOUNDARY] if self.is_of_text else []  # a text has no end
        if UNKNOWN in self.vocab and not sampling.allow_unk:
            banned.append(self.vocab.ids[UNKNOWN])
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
                banned=banned,
                batch_size=min(4096, eval_batch_size(len(self.vocab))),
            ):
                text = self.tokenizer.join(self.vocab.decode(ids))
                cut = cut and not self.is_of_text
                seen_in = None if cut or self.is_of_text else self.facts.find(text)
                if not sampling.only_new or seen_in == "new":
                    samples.append(Sample(text, cut, seen_in))
        return samples[:num]

    def summary(self, samples: Sequence[Sample]) -> str:
        """A line for people: how many samples there are, how many of them the corpus has, how many were cut."""
        if self.is_of_text:
            return pluralize(len(samples), "text")
        seen = [sample.seen_in for sample in samples]
        counts = (
            f"{seen.count('train'):,} in train, {seen.count('dev or test'):,} in dev or test, {seen.count('new'):,} new"
        )
        known = counts if self.facts.item_hashes is not None else "which of them are new is not known"
        cut = sum(sample.cut for sample in samples)
        return f"{pluralize(len(samples), 'item')}: {known}" + (f", {cut:,} cut at --max_length (…)" if cut else "")

    def score(self, items: Sequence[str]) -> list[Score]:
        """The log-probability of each item, its end included; of a model of running text, of each as a line of its own.

        Raises DataError that lists the items with unknown characters, by their place in `items`.
        """
        if isinstance(items, str):
            raise TypeError(f"items: expected a list of strings, found the string {items!r}")
        if self.is_of_text:
            return [self.score_text([item])[0] for item in items]
        items = [self.tokenizer.normalize(item.strip()) for item in items]
        problems = [
            f"item {i} {item!r} has the {format_unknown(unknown)}"
            for i, item in enumerate(items, start=1)
            if (unknown := self.unknown(item)) and UNKNOWN not in self.vocab
        ]
        if problems:
            raise DataError(f"{'; '.join(problems)}; the model knows {self.vocab.describe()}")
        if not items:
            return []
        return self._score(items, [[*self.vocab.encode(self.tokenizer.split(item)), BOUNDARY] for item in items])

    def score_text(self, lines: Sequence[str]) -> list[Score]:
        """The log-probability of each line of a running text, in the context of the lines before it.

        Raises DataError if the model is one of characters and does not know some.
        """
        end = "" if self.unknown("\n") and UNKNOWN not in self.vocab else "\n"  # a text may have had one line alone
        return self._score(lines, [self.vocab.encode(self.tokenizer.split(f"{line}{end}")) for line in lines])

    def _score(self, items: Sequence[str], rows: Sequence[Sequence[int]]) -> list[Score]:
        """The scores of items or lines; `rows`: of each its ids, of an item the boundary too."""
        stream, nats = np.array([*chain(*rows), BOUNDARY]), []  # one more, which ends a text
        batch_size = eval_batch_size(max(len(self.vocab), self.context_size))
        with torch.inference_mode():
            for contexts, targets in Windows(stream, self.context_size).batches(batch_size):
                nats += self.nats(contexts, targets).tolist()
        if any(math.isnan(value) for value in nats):
            raise DataError("the model's probabilities are NaN; its training diverged, or the file is damaged")
        scores, first, unknown = [], 0, self.vocab.ids.get(UNKNOWN)
        for item, ids in zip(items, rows, strict=True):
            log_prob = 0.0 - sum(nats[first : first + len(ids)])
            scores.append(Score(item, len(ids), log_prob, sum(i == unknown for i in ids)))
            first += len(ids)
        return scores

    def seen_in(self, item: str) -> SeenIn | None:
        """Where an item occurs, as the vocabulary has it; None if that is not known."""
        return self.facts.find(self.tokenizer.join(self.vocab.decode(self.vocab.encode(self.tokenizer.split(item)))))

    def unknown(self, text: str) -> list[str]:
        """The distinct tokens of an item or a line that the vocabulary does not have."""
        return self.vocab.unknown(self.tokenizer.split(text))


def total(scores: Sequence[Score]) -> NLL:
    """The loss of all scored items together."""
    return NLL(-sum(score.log_prob for score in scores), sum(score.tokens for score in scores))


# -- what a model keeps of its corpus ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CorpusFacts:
    """What a model keeps of its corpus."""

    longest_item: int  # of train, in tokens
    item_hashes: Mapping[str, Tensor] | None  # of each split, sorted int64; None beyond MAX_KNOWN_ITEMS
    fingerprint: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)  # `CorpusSettings` by name; files by their absolute paths

    @classmethod
    def of(cls, corpus: Corpus) -> CorpusFacts:
        """The facts of a corpus."""
        settings = corpus.settings
        lengths = {split: item_lengths(getattr(corpus, split)) for split in SPLITS}
        few = sum(map(len, lengths.values())) <= MAX_KNOWN_ITEMS and settings.layout == "items"
        hashes = {split: hash_items(corpus.items(split)) for split in SPLITS} if few else None
        return cls(int(lengths["train"].max()), hashes, corpus.fingerprint, vars(settings))

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
