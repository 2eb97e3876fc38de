"""What `predict` writes."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mlp_lm.errors import DataError
from mlp_lm.models.metrics import token_nll
from mlp_lm.text.vocab import Vocab


def write_predictions(path: Path, batches: Iterable[Any], vocab: Vocab) -> None:
    """Write a CSV row for each window: context, target, its loss, the most probable token and its probability.

    Args:
        path: The file.
        batches: Pairs of log-probabilities (B, V) and windows (contexts (B, T), targets (B,)).
        vocab: Turns ids into visible names.
    """
    try:
        with open(path, "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["context", "target", "nats", "predicted", "probability"])
            for log_probs, (contexts, targets) in batches:
                rows.writerows(_rows(log_probs, contexts, targets, vocab))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def _rows(log_probs: Any, contexts: Any, targets: Any, vocab: Vocab) -> Iterator[list[str]]:
    best_log_probs, best = log_probs.max(-1)
    columns = contexts, targets, token_nll(log_probs, targets), best, best_log_probs.exp()
    for context, target, nats, predicted, probability in zip(*(c.tolist() for c in columns), strict=True):
        shown = "".join(map(vocab.show, context))
        yield [shown, vocab.show(target), f"{nats:.4f}", vocab.show(predicted), f"{probability:.4f}"]
