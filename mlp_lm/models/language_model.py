"""A language model: vocabulary, context size and a function from contexts to log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mlp_lm.errors import DataError
from mlp_lm.models.known_items import SPLIT_LABELS, KnownItems
from mlp_lm.models.metrics import NLL, token_nll
from mlp_lm.models.network import MLP
from mlp_lm.models.ngram import NGramModel
from mlp_lm.models.sampling import generate
from mlp_lm.settings import check
from mlp_lm.text.corpus import detokenize, encode, tokenize
from mlp_lm.text.vocab import Vocab
from mlp_lm.text.windows import Windows, eval_batch_size

MAX_LENGTH = 20_000  # tokens, unless asked for: a model that hardly ever ends an item takes 2 s for as many
TRIES_PER_NEW_ITEM = 100  # a model that knows its corpus by heart draws hardly anything new


@dataclass(frozen=True)
class Sample:
    """One generated item."""

    text: str
    cut: bool  # it reached the maximal length without an end
    where: str | None  # "train", "dev or test" or "new"; None where it is not known, or the item not complete

    @property
    def shown(self) -> str:
        """The text, with an ellipsis where it was cut."""
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
    """What samples and scores, whether the probabilities come from a network or from counts."""

    vocab: Vocab
    context_size: int
    log_probs: Callable[[Tensor], Tensor]  # contexts (B, T) int64 to log-probabilities (B, V)
    longest_item: int  # tokens of the longest item of train
    known_items: KnownItems | None = None  # None where there were too many to keep
    network: MLP | None = None  # None where there are only counts

    def __repr__(self) -> str:
        return f"LanguageModel({len(self.vocab)} tokens, context size {self.context_size})"

    def sample(
        self,
        num: int = 10,
        *,
        prompt: str = "",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        max_length: int | None = None,
        only_new: bool = False,
    ) -> list[str]:
        """Generate `num` items.

        Args:
            num: How many.
            prompt: What every item starts with.
            temperature: Below 1 more probable items, above 1 more surprising ones, 0 always the most probable.
            top_k: Draw each token from the k most probable ones only.
            top_p: Draw each token from the fewest most probable ones whose probabilities sum to at least p.
            seed: The same seed gives the same items; without it, chance decides.
            max_length: Cut an item after so many tokens; by default twice the longest item of train, at most 20,000.
            only_new: Keep only items of none of the three splits. Fewer than `num` come back where a hundred
                tries for each do not find them.

        Raises:
            SettingsError: A setting out of its range.
            DataError: A prompt with unknown tokens, or `only_new` where the items of the corpus are not known.
        """
        samples = self.generate(
            num,
            prompt=prompt,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            max_length=max_length,
            only_new=only_new,
        )
        return [sample.text for sample in samples]

    def generate(
        self,
        num: int,
        *,
        prompt: str = "",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        max_length: int | None = None,
        only_new: bool = False,
    ) -> list[Sample]:
        """`sample` with what is known of each item; the arguments are the same."""
        max_length = min(2 * self.longest_item, MAX_LENGTH) if max_length is None else max_length
        prompt_ids = self.vocab.encode(tokenize(prompt))
        check(
            {
                "num": num,
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "seed": seed,
                "max_length": max_length,
                "prompt_length": len(prompt_ids),
            }
        )
        if only_new and self.known_items is None:
            raise DataError("which items are new is not known: this model's corpus was too big to keep its items")
        generator = torch.Generator()
        _ = generator.seed() if seed is None else generator.manual_seed(seed)
        samples: list[Sample] = []
        tries = num * TRIES_PER_NEW_ITEM if only_new else num
        while len(samples) < num and tries > 0:
            # Refills ask for more than is missing, so that the last few new items do not take a call each.
            size = min(tries, max(num - len(samples), 100) if only_new else num)
            tries -= size
            for ids, cut in generate(
                self.log_probs,
                size,
                self.context_size,
                max_length=max_length,
                generator=generator,
                prompt=prompt_ids,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                batch_size=min(4096, eval_batch_size(len(self.vocab))),
            ):
                text = detokenize(self.vocab.decode(ids))
                where = self.known_items.where(text) if self.known_items and not cut else None
                if not only_new or where == "new":
                    samples.append(Sample(text, cut, where))
        return samples[:num]

    def summary(self, samples: Sequence[Sample]) -> str:
        """A line for people: how many samples there are, how many stand in the corpus already, how many were cut."""
        counts = [f"{sum(s.where == where for s in samples):,} {label}" for where, label in SPLIT_LABELS.items()]
        parts = counts if self.known_items is not None else ["which of them are new is not known"]
        cut = sum(s.cut for s in samples)
        return f"{len(samples):,} items: {', '.join(parts)}" + (f", {cut:,} cut at --max_length (…)" if cut else "")

    def score(self, items: Sequence[str]) -> list[Score]:
        """The log-probability of each item, its end included.

        Raises DataError that lists the items with unknown tokens, by their place in `items`.
        """
        if isinstance(items, str):
            raise TypeError(f"items: expected a list of strings, found the string {items!r}")
        items = [detokenize(tokenize(item.strip())) for item in items]
        problems = [
            f"item {i} {item!r} has unknown {', '.join(map(repr, unknown))}"
            for i, item in enumerate(items, start=1)
            if (unknown := self.vocab.unknown(tokenize(item)))
        ]
        if problems:
            raise DataError(f"{'; '.join(problems)}; the model knows {self.vocab.describe()}")
        if not items:
            return []
        windows = Windows(encode(items, self.vocab), self.context_size)
        nats = [value for batch in self._token_nlls(windows) for value in batch.tolist()]
        scores, first = [], 0
        for item in items:
            tokens = len(tokenize(item)) + 1
            scores.append(Score(item, tokens, 0.0 - sum(nats[first : first + tokens])))
            first += tokens
        return scores

    @torch.inference_mode()
    def _token_nlls(self, windows: Windows) -> Iterator[Tensor]:
        for contexts, targets in windows.batches(eval_batch_size(len(self.vocab))):
            yield token_nll(self.log_probs(contexts), targets)


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
