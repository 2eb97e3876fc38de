"""`python -m mlp_lm ngram`: what counting reaches on the split that `fit` trains on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlp_lm.errors import CheckpointError, SettingsError
from mlp_lm.models import checkpoint, count_file
from mlp_lm.models.files import is_one_of, write_atomically
from mlp_lm.models.known_items import facts_of, hash_items
from mlp_lm.models.language_model import Mixture
from mlp_lm.models.metrics import NLL, evaluate, token_nll
from mlp_lm.models.ngram import (
    Counts,
    Level,
    NGramModel,
    Smoothing,
    add_k,
    count,
    modified_kneser_ney,
    witten_bell,
)
from mlp_lm.settings import check
from mlp_lm.text.corpus import SPLITS, Corpus, corpus_of
from mlp_lm.text.windows import Windows, eval_batch_size

ADDED = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # the k that add_k chooses from, on dev


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
    remark: str  # what the smoothing chose


def ngram(
    path: str | None = None,
    /,
    orders: str = "1,2,3,4,5,6",
    smoothing: Smoothing = "mkn",
    unique: bool | None = None,
    split_seed: int | None = None,
    train_path: str | None = None,
    dev_path: str | None = None,
    test_path: str | None = None,
    max_item_length: int | None = None,
    test: bool = False,
    mix: str | None = None,
    save: str | None = None,
    plot: str | None = None,
    json: str | None = None,
) -> None:
    """Count models of several orders on the split that fit would train on, or mixed with a trained network.

    One row an order: contexts possible and seen, numbers stored, nats/token and perplexity on train and dev, seconds.

    Args:
        path: Text file or known dataset, as data.path of fit; names unless given. With --mix, the checkpoint's own.
        orders: Orders n, from 1 to 12, separated by commas.
        smoothing: mkn is interpolated modified Kneser-Ney; add_k adds the same k, chosen on dev; interpolated is
            Witten-Bell; none leaves relative frequencies, for which unseen events are impossible.
        unique: Drop repeated items before the split; true unless given.
        split_seed: Seed of the shuffle before the split; 42 unless given.
        train_path: File of the train split, together with dev_path and test_path.
        dev_path: File of the dev split.
        test_path: File of the test split.
        max_item_length: Longest item allowed, in characters; 10,000 unless given.
        test: Report the test split too, for the order that is best on dev.
        mix: Checkpoint of a network: take corpus and split from it, and mix it with the order that is best on dev.
        save: Write the order that is best on dev, or the mixture, to this .npz file; sample and score read it.
        plot: Draw dev loss and contexts over the order into this PNG or SVG file.
        json: Write all figures to this file.
    """
    numbers = _orders(orders)
    given = {"path": path, "unique": unique, "split_seed": split_seed, "max_item_length": max_item_length}
    given |= {"train_path": train_path, "dev_path": dev_path, "test_path": test_path}
    _check_outputs([path, train_path, dev_path, test_path, mix], save=save, plot=plot, json=json)
    content = checkpoint.read(mix) if mix is not None else None
    data = _data_settings(content, given)
    check({f"data.{name}": value for name, value in data.items()})
    corpus = corpus_of(data)
    if content is not None and mix is not None:
        _check_same_data(mix, content, corpus)
    models, rows = _table(corpus, numbers, smoothing)
    best = min(range(len(rows)), key=lambda i: rows[i].dev)
    report: dict[str, Any] = {"data": data, "smoothing": smoothing, "orders": [asdict(row) for row in rows]}
    mixture = None
    if content is not None and mix is not None:
        mixture, report["mixture"] = _mix(mix, content, models[best], rows[best].order, corpus)
    elif test:
        nll = _evaluate(models[best].log_probs, corpus, "test", rows[best].order - 1)
        report["test"] = {"order": rows[best].order, "test": nll.nats_per_token}
        print(f"test, order {rows[best].order}: {_figures(nll.nats_per_token)}")
    if save is not None:
        count_file.save(save, models[best], corpus.vocab, facts_of(corpus), mixture)
        print(f"saved: {save}")
    if plot is not None:
        from mlp_lm.figures import plot_orders

        plot_orders(plot, [asdict(row) for row in rows])
    if json is not None:
        _write_text(json, dumps(_finite(report), indent=2, allow_nan=False) + "\n")


def _orders(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(1 <= n <= 12 for n in numbers):
        raise SettingsError(f"orders: found {text!r}, expected whole numbers from 1 to 12, separated by commas")
    return sorted(set(numbers))


def _check_outputs(inputs: list[str | None], **outputs: str | None) -> None:
    """Before any work: raise SettingsError for an output that cannot be written or would overwrite what is read."""
    taken: dict[Path, str] = {}
    for name, value in outputs.items():
        if value is None:
            continue
        path = Path(value)
        suffixes = {"save": (".npz",), "plot": (".png", ".svg")}.get(name, ())
        if suffixes and path.suffix not in suffixes:
            raise SettingsError(f"{name}: found {value!r}, expected a file that ends in {' or '.join(suffixes)}")
        if not value or path.is_dir() or not path.absolute().parent.is_dir():
            raise SettingsError(f"{name}: {value!r} cannot be written; expected a file in a folder that exists")
        if is_one_of(path, filter(None, inputs)):
            raise SettingsError(f"{name}: {value} is an input too; name another file")
        if path.resolve() in taken:
            raise SettingsError(f"{name}: {value} is {taken[path.resolve()]} too; name another file")
        taken[path.resolve()] = f"--{name}"


def _data_settings(content: dict[str, Any] | None, given: dict[str, Any]) -> dict[str, Any]:
    """What is given on the command line, over the checkpoint's or the usual settings."""
    usual = {"path": "names", "unique": True, "split_seed": 42, "max_item_length": 10_000}
    usual |= {"train_path": None, "dev_path": None, "test_path": None}
    own = content[checkpoint.DATA_KEY]["settings"] if content is not None else {}
    known = {name: own.get(name, value) for name, value in usual.items()}
    return known | {name: value for name, value in given.items() if value is not None}


def _check_same_data(mix: str, content: dict[str, Any], corpus: Corpus) -> None:
    """Raise CheckpointError that says what of the data is not as the checkpoint has it."""
    theirs = content[checkpoint.DATA_KEY]
    if theirs["fingerprint"] == corpus.fingerprint:
        return
    hashes = theirs["item_hashes"]
    if theirs["vocab"] != corpus.vocab.tokens:
        what = "has other characters"
    elif hashes is not None and set(torch.cat([*hashes.values()]).tolist()) == _all_hashes(corpus):
        what = "has the same items, but split in another way (--unique, --split_seed)"
    else:
        what = "has other items"
    raise CheckpointError(f"{mix}: the data {what} than the checkpoint was trained with")


def _all_hashes(corpus: Corpus) -> set[int]:
    return {h for split in SPLITS for h in hash_items(corpus.items(split)).tolist()}


def _table(corpus: Corpus, orders: list[int], smoothing: Smoothing) -> tuple[list[NGramModel], list[Row]]:
    """Train and evaluate all orders, printing a row for each as it is ready."""
    vocab_size, models, rows = len(corpus.vocab), [], []
    print("order  contexts possible       seen  parameters   train     ppl     dev     ppl  seconds")
    for order in orders:
        start = time.perf_counter()
        counts = count(corpus.train, vocab_size, order)
        levels, remark = _smooth(counts, corpus, smoothing)
        model = NGramModel(levels, vocab_size)
        seconds = time.perf_counter() - start
        train, dev = (_evaluate(model.log_probs, corpus, split, order - 1).nats_per_token for split in ("train", "dev"))
        seen = len(np.unique(counts[-1].contexts))
        row = Row(order, vocab_size ** (order - 1), seen, model.count_parameters(), train, dev, seconds, remark)
        print(
            f"{order:>5}{_wide(row.contexts_possible):>19}{seen:>11,}{row.parameters:>12,}{train:>8.4f}{np.exp(train):>8.3f}"
            f"{dev:>8.4f}{np.exp(dev):>8.3f}{seconds:>9.2f}  {remark}".rstrip()
        )
        models.append(model)
        rows.append(row)
    return models, rows


def _wide(number: int) -> str:
    return f"{number:,}" if number < 10**13 else f"{float(number):.3g}"


def _smooth(counts: Sequence[Counts], corpus: Corpus, smoothing: Smoothing) -> tuple[list[Level], str]:
    vocab_size = len(corpus.vocab)
    if smoothing == "mkn":
        levels, fallbacks = modified_kneser_ney(counts)
        named = ", ".join(map(str, fallbacks))
        return levels, f"discounts 0.5, 1, 1.5 at level {named}: too few counts" if fallbacks else ""
    if smoothing == "interpolated":
        return witten_bell(counts), ""
    if smoothing == "none":
        return add_k(counts, vocab_size, 0.0), ""

    def dev_loss(k: float) -> float:
        model = NGramModel(add_k(counts, vocab_size, k), vocab_size)
        return _evaluate(model.log_probs, corpus, "dev", len(counts) - 1).nats_per_token

    best = min(ADDED, key=dev_loss)
    return add_k(counts, vocab_size, best), f"k = {best:g}, chosen on dev"


def _evaluate(log_probs: Callable[[Tensor], Tensor], corpus: Corpus, split: str, context_size: int) -> NLL:
    windows = Windows(getattr(corpus, split), max(context_size, 1))
    return evaluate(log_probs, windows.batches(eval_batch_size(len(corpus.vocab))))


def _mix(
    path: str, content: dict[str, Any], counts: NGramModel, order: int, corpus: Corpus
) -> tuple[Mixture, dict[str, Any]]:
    """The mixture whose weight is best on dev, and its figures; prints them beside those of its parts."""
    network, own_context = checkpoint.load_network(path, content)
    context_size = max(own_context, order - 1)

    def only(weight: float) -> Mixture:
        return Mixture(network, own_context, counts, weight)

    def target_probs(model: Mixture) -> Tensor:
        batches = Windows(corpus.dev, context_size).batches(eval_batch_size(len(corpus.vocab)))
        return torch.cat([-token_nll(model.log_probs(contexts), targets) for contexts, targets in batches]).exp()

    with torch.inference_mode():
        by_network, by_counts = target_probs(only(1.0)), target_probs(only(0.0))
        losses = [-(w * by_network + (1 - w) * by_counts).log().mean().item() for w in np.linspace(0, 1, 101)]
    mixture = only(int(np.argmin(losses)) / 100)
    figures: dict[str, Any] = {"weight": mixture.weight, "order": order}
    print(f"\nmixture: {mixture.weight:.2f} network + {1 - mixture.weight:.2f} counts of order {order}, chosen on dev")
    for name, model in {"network": only(1.0), "counts": only(0.0), "mixture": mixture}.items():
        dev, test = (
            _evaluate(model.log_probs, corpus, split, context_size).nats_per_token for split in ("dev", "test")
        )
        figures[name] = {"dev": dev, "test": test}
        print(f"  {name:<8} dev {_figures(dev)}; test {_figures(test)}")
    return mixture, figures


def _write_text(path: str, text: str) -> None:
    try:
        write_atomically(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written ({error.strerror})") from error


def _finite(value: Any) -> Any:
    """`value` with null for what is not finite, which JSON cannot say."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _figures(nats_per_token: float) -> str:
    return f"{nats_per_token:.4f} nats/token, perplexity {np.exp(nats_per_token):.3f}"
