"""`python -m mlp_lm ngram`: the losses of count models on the split that `fit` trains on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from mlp_lm.errors import SettingsError
from mlp_lm.figures import curves
from mlp_lm.files import PICTURES, check_outputs, write_json
from mlp_lm.models import checkpoint
from mlp_lm.models.language_model import CorpusFacts, Mixture
from mlp_lm.models.metrics import NLL, evaluate, token_nll
from mlp_lm.models.network import MLP
from mlp_lm.models.ngram import Counts, Level, NGramModel, Smoothing, add_k, count, modified_kneser_ney
from mlp_lm.settings import COUNT, SEED, check
from mlp_lm.text.corpus import DEFAULTS, Corpus, corpus_from_settings
from mlp_lm.text.windows import Windows, eval_batch_size

ADDED = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # values of k that add_k tries on dev


@dataclass(frozen=True)
class Row:
    """One order of the table."""

    order: int
    contexts_possible: int  # V^(n-1)
    contexts_seen: int
    parameters: int
    train: float  # nats/token
    dev: float
    seconds: float
    added: float | None  # the k that add_k chose
    fallbacks: list[int]  # levels whose discounts mkn could not estimate


def ngram(
    path: str | None = None,
    /,
    orders: str = "1,2,3,4,5,6",
    smoothing: Smoothing = "mkn",
    unique: bool | None = None,
    split_seed: Annotated[int, SEED] | None = None,
    train_path: str | None = None,
    dev_path: str | None = None,
    test_path: str | None = None,
    max_item_length: Annotated[int, COUNT] | None = None,
    test: bool = False,
    mix: str | None = None,
    save: str | None = None,
    plot: str | None = None,
    json: str | None = None,
) -> None:
    """Count models of several orders on the split that fit would train on, or mixed with a trained network.

    One row an order: contexts possible and seen, numbers stored, nats/token and perplexity on train and dev, seconds.

    Args:
        path: Text file or known dataset, as data.path of fit; default names, or with --mix the checkpoint's own.
        orders: Orders n, from 1 to 12, separated by commas.
        smoothing: mkn is interpolated modified Kneser-Ney; add_k adds the same k, chosen on dev, to every count; none
            leaves relative frequencies, for which unseen events are impossible.
        unique: Drop repeated items before the split; default true, or with --mix the checkpoint's.
        split_seed: Seed of the shuffle before the split; default 42, or with --mix the checkpoint's.
        train_path: File of the train split, together with dev_path and test_path.
        dev_path: File of the dev split.
        test_path: File of the test split.
        max_item_length: Longest item allowed, in characters; default 10,000, or with --mix the checkpoint's.
        test: Report the test split too, for the order that is best on dev, and with --mix for the mixture.
        mix: Checkpoint of a network, to mix with the order that is best on dev. Corpus and split are then the
            checkpoint's; if its text has moved, name it as path.
        save: Write the order that is best on dev, or the mixture, to this .npz file; sample and score read it.
        plot: Draw dev loss and contexts over the order into this PNG or SVG file.
        json: Write all figures to this file.
    """
    numbers = _orders(orders)
    mix = None if mix is None else str(checkpoint.resolve(mix))
    paths = {"path": path, "train_path": train_path, "dev_path": dev_path, "test_path": test_path}
    check_outputs([*paths.values(), mix], save=(save, (".npz",)), plot=(plot, PICTURES), json=(json, ()))
    split = {"unique": unique, "split_seed": split_seed, "max_item_length": max_item_length}
    given = {name: value for name, value in {**paths, **split}.items() if value is not None}
    content = None if mix is None else checkpoint.read(mix)
    data = {**DEFAULTS, **(content["datamodule_hyper_parameters"] if content else {}), **given}
    check({f"data.{name}": value for name, value in data.items()}, {})
    corpus = corpus_from_settings(data)
    if content is not None and mix is not None:
        checkpoint.check_same_data(mix, content[checkpoint.DATA_KEY], corpus)
    models, rows = _table(corpus, numbers, smoothing)
    best = min(range(len(rows)), key=lambda i: rows[i].dev)
    print(f"best on dev: order {rows[best].order}")
    report: dict[str, Any] = {"data": data, "smoothing": smoothing, "orders": [asdict(row) for row in rows]}
    splits = ["dev", "test"] if test else ["dev"]
    mixture = None
    if content is not None:
        mixture, report["mixture"] = _mix(content, models[best], corpus, splits)
    elif test:
        nll = _evaluate(models[best], corpus, "test")
        report["test"] = {"order": rows[best].order, "test": nll.nats_per_token}
        print(f"test, order {rows[best].order}: {nll}")
    if save is not None:
        checkpoint.save_counts(save, models[best], corpus.vocab, CorpusFacts.of(corpus), mixture)
        print(f"saved: {save}")
    if plot is not None:
        curves.save(curves.draw_orders([asdict(row) for row in rows]), plot)
        print(f"saved: {plot}")
    if json is not None:
        write_json(json, report)


def _orders(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(1 <= n <= 12 for n in numbers):
        raise SettingsError(f"orders: found {text!r}, expected whole numbers from 1 to 12, separated by commas")
    return sorted(set(numbers))


def _table(corpus: Corpus, orders: list[int], smoothing: Smoothing) -> tuple[list[NGramModel], list[Row]]:
    """Train and evaluate all orders, and print the row of each as soon as it is ready."""
    vocab_size, models, rows = len(corpus.vocab), [], []
    print("order  contexts possible       seen  parameters   train     ppl     dev     ppl  seconds")
    for order in orders:
        start = time.perf_counter()
        counts = count(corpus.train, vocab_size, order)
        levels, added, fallbacks = _smooth(counts, corpus, smoothing)
        model = NGramModel(levels, vocab_size)
        seconds = time.perf_counter() - start
        train, dev = (_evaluate(model, corpus, split).nats_per_token for split in ("train", "dev"))
        seen = len(np.unique(counts[-1].contexts))
        possible, parameters = vocab_size ** (order - 1), model.count_parameters()
        print(
            f"{order:>5}{_wide(possible):>19}{seen:>11,}{parameters:>12,}{train:>8.4f}{np.exp(train):>8.3f}"
            f"{dev:>8.4f}{np.exp(dev):>8.3f}{seconds:>9.2f}"
        )
        models.append(model)
        rows.append(Row(order, possible, seen, parameters, train, dev, seconds, added, fallbacks))
    _print_choices(rows)
    return models, rows


def _print_choices(rows: Sequence[Row]) -> None:
    """Print what the smoothing chose."""
    if chosen := [f"{row.added:g} for order {row.order}" for row in rows if row.added is not None]:
        print(f"k, chosen on dev: {', '.join(chosen)}")
    # Level 1 backs off to the uniform distribution, so its discounts hardly matter.
    if levels := sorted({k for row in rows for k in row.fallbacks if k > 1}):
        names = ", ".join(f"{k}-grams" for k in levels)
        print(f"the discounts of {names} cannot be estimated from this text; 0.5, 1 and 1.5 are used instead")


def _wide(number: int) -> str:
    return f"{number:,}" if number < 10**13 else f"{float(number):.3g}"


def _smooth(
    counts: Sequence[Counts], corpus: Corpus, smoothing: Smoothing
) -> tuple[list[Level], float | None, list[int]]:
    """The levels, the k that add_k chose on dev, and the levels whose discounts mkn could not estimate."""
    vocab_size = len(corpus.vocab)
    if smoothing == "mkn":
        levels, fallbacks = modified_kneser_ney(counts)
        return levels, None, fallbacks
    if smoothing == "none":
        return add_k(counts, vocab_size, 0.0), None, []

    def dev_loss(k: float) -> float:
        return _evaluate(NGramModel(add_k(counts, vocab_size, k), vocab_size), corpus, "dev").nats_per_token

    best = min(ADDED, key=dev_loss)
    return add_k(counts, vocab_size, best), best, []


def _evaluate(model: NGramModel, corpus: Corpus, split: str) -> NLL:
    windows = Windows(getattr(corpus, split), model.context_size)
    return evaluate(model.log_probs, windows.batches(eval_batch_size(len(corpus.vocab))))


def _mix(
    content: checkpoint.Content, counts: NGramModel, corpus: Corpus, splits: Sequence[str]
) -> tuple[Mixture, dict[str, Any]]:
    """The mixture whose weight is best on dev, and its losses; prints them beside those of its parts."""
    network, context_size = checkpoint.load_network(content)
    probs = {split: _target_probs(network, context_size, counts, corpus, split) for split in splits}

    def loss(split: str, weight: float) -> float:
        by_network, by_counts = probs[split]
        return -(weight * by_network + (1 - weight) * by_counts).log().mean().item()

    weight = min((i / 100 for i in range(101)), key=lambda w: loss("dev", w))
    report: dict[str, Any] = {"weight": weight, "order": counts.order}
    print(f"\nmixture: {weight:.2f} network + {1 - weight:.2f} counts of order {counts.order}, chosen on dev")
    for name, share in {"network": 1.0, "counts": 0.0, "mixture": weight}.items():
        report[name] = {split: loss(split, share) for split in splits}
        print(f"  {name:<8} " + "; ".join(f"{split} {NLL(nats, tokens=1)}" for split, nats in report[name].items()))
    return Mixture(network, context_size, counts, weight), report


@torch.inference_mode()
def _target_probs(
    network: MLP, context_size: int, counts: NGramModel, corpus: Corpus, split: str
) -> tuple[Tensor, Tensor]:
    """The probabilities (N,), float64, that the network and the counts give to the targets of a split."""
    windows = Windows(getattr(corpus, split), max(context_size, counts.context_size))
    by_network, by_counts = [], []
    for contexts, targets in windows.batches(eval_batch_size(len(corpus.vocab))):
        by_network.append(token_nll(network.log_probs(contexts[:, -context_size:]).double(), targets))
        by_counts.append(token_nll(counts.log_probs(contexts), targets))
    return (-torch.cat(by_network)).exp(), (-torch.cat(by_counts)).exp()
