"""`python -m mlp_lm ngram`: the losses of count models on the split that `fit` trains on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlp_lm.errors import SettingsError
from mlp_lm.figures import curves
from mlp_lm.files import PICTURES, check_outputs, write_json
from mlp_lm.models import model_file
from mlp_lm.models.checkpoint import MODEL_SUFFIX
from mlp_lm.models.language_model import CorpusFacts, LanguageModel
from mlp_lm.models.metrics import NLL, evaluate
from mlp_lm.models.ngram import Counts, Level, NGramModel, Smoothing, add_k, count, modified_kneser_ney
from mlp_lm.settings import refuse
from mlp_lm.text.corpus import Corpus, CorpusSettings, load_corpus
from mlp_lm.text.windows import Windows

TARGETS_AT_ONCE = 1 << 16  # more windows than where all V probabilities are asked for
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
    path: str = "names",
    /,
    *,
    data: CorpusSettings,
    orders: str = "1,2,3,4,5,6",
    smoothing: Smoothing = "mkn",
    test: bool = False,
    save: str | None = None,
    plot: str | None = None,
    json: str | None = None,
) -> None:
    """Count models of several orders on the split that fit would train on; `mix` weighs them against a network.

    One row an order: contexts possible and seen, numbers stored, nats/token and perplexity on train and dev, seconds.

    Args:
        path: Text file or known dataset, as data.path of fit.
        data: Its tokens and its split, as those of fit.
        orders: Orders n, from 1 to 12, separated by commas.
        smoothing: mkn is interpolated modified Kneser-Ney; add_k adds the same k, chosen on dev, to every count; none
            leaves relative frequencies, for which unseen events are impossible.
        test: Report the test split too, for the order that is best on dev.
        save: Write the order that is best on dev to this .safetensors file; sample, score and mix read it.
        plot: Draw dev loss and contexts over the order into this PNG or SVG file.
        json: Write all figures to this file.
    """
    numbers = _orders(orders)
    refuse(data.conflicts())
    check_outputs([path, *data.paths], save=(save, (MODEL_SUFFIX,)), plot=(plot, PICTURES), json=(json, ()))
    corpus = load_corpus(data.absolute())
    models, rows = _table(corpus, numbers, smoothing)
    best = min(range(len(rows)), key=lambda i: rows[i].dev)
    print(f"best on dev: order {rows[best].order}")
    report: dict[str, Any] = {"data": vars(data), "smoothing": smoothing, "orders": [asdict(row) for row in rows]}
    if test:
        nll = _evaluate(models[best], corpus, "test")
        report["test"] = {"order": rows[best].order, "test": nll.nats_per_token}
        print(f"test, order {rows[best].order}: {nll}")
    if save is not None:
        model_file.save(save, LanguageModel.of_counts(models[best], corpus.vocab, CorpusFacts.of(corpus)))
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
    print("order  contexts possible       seen  parameters   train       ppl     dev       ppl  seconds")
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
            f"{order:>5}{_wide(possible):>19}{seen:>11,}{parameters:>12,}{train:>8.4f}{np.exp(train):>10.3f}"
            f"{dev:>8.4f}{np.exp(dev):>10.3f}{seconds:>9.2f}"
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
    return evaluate(model.nats, windows.batches(TARGETS_AT_ONCE))
