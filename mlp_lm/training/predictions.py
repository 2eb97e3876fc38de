"""What `predict` writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from torch import Tensor

from mlp_lm.files import write_csv
from mlp_lm.text.vocab import Vocab
from mlp_lm.text.windows import Batch


def write_predictions(path: Path, batches: Iterable[tuple[tuple[Tensor, Tensor, Tensor], Batch]], vocab: Vocab) -> None:
    """Write a CSV row for each window: context, target, its loss, the most probable token and its probability.

    Args:
        path: The file.
        batches: Pairs of what `predict_step` returns for a batch, and the batch.
        vocab: Turns ids into visible names.
    """
    rows = (row for predicted, windows in batches for row in _rows(predicted, windows, vocab))
    write_csv(path, chain([["context", "target", "nats", "predicted", "probability"]], rows))


def _rows(predicted: tuple[Tensor, Tensor, Tensor], windows: Batch, vocab: Vocab) -> Iterator[list[str]]:
    columns = (column.tolist() for column in (*windows, *predicted))
    for context, target, nats, best, probability in zip(*columns, strict=True):
        shown = "".join(map(vocab.show, context))
        yield [shown, vocab.show(target), f"{nats:.4f}", vocab.show(best), f"{probability:.4f}"]
