"""`python -m mlp_lm score`."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator

from mlp_lm.errors import DataError
from mlp_lm.files import check_outputs, write_csv
from mlp_lm.models.checkpoint import load, resolve
from mlp_lm.models.language_model import Score, total
from mlp_lm.models.metrics import NLL
from mlp_lm.text.corpus import read_items, tokenize
from mlp_lm.text.datasets import resolve_path
from mlp_lm.text.vocab import Vocab, counted


def score(file: str, items: str, output: str | None = None, skip_unknown: bool = False) -> None:
    """Log-probability of each item of a text file.

    One CSV row an item: item, tokens (the boundary that ends it counted), log_prob (nats) and nats_per_token.
    The last row, whose item is empty, sums up the file.

    Args:
        file: Checkpoint, count model or mixture to score with; a run folder stands for its best.ckpt.
        items: Text file with one item a line, or the name of a known dataset.
        output: CSV file to write instead of standard output.
        skip_unknown: Leave out items with characters that the model does not know.
    """
    source = resolve_path(items)
    file = str(resolve(file))
    check_outputs([file, str(source)], output=(output, ()))
    model = load(file)
    lines = read_items(source)
    known = _known_lines(lines, model.vocab, items, skip_unknown)
    scores = model.score(known)
    loss = total(scores)
    if output is not None:
        write_csv(output, _rows(scores, loss))
    else:
        csv.writer(sys.stdout, lineterminator="\n").writerows(_rows(scores, loss))
        sys.stdout.flush()
    skipped = len(lines) - len(known)
    in_train = sum(model.facts.find(s.item) == "train" for s in scores)
    print(
        f"{counted(len(scores), 'item')}, {counted(loss.tokens, 'token')}: {loss}"
        + (f"; {in_train:,} of them {'is' if in_train == 1 else 'are'} in the training set" if in_train else "")
        + (f"; {counted(skipped, 'item')} with unknown characters left out" if skipped else ""),
        file=sys.stderr,
    )


def _known_lines(lines: list[str], vocab: Vocab, path: str, skip_unknown: bool) -> list[str]:
    unknown = {i: vocab.unknown(tokenize(line)) for i, line in enumerate(lines)}
    problems = [f"{lines[i]!r} ({', '.join(map(repr, tokens))})" for i, tokens in unknown.items() if tokens]
    if problems and not skip_unknown:
        listed = "; ".join(problems[:20]) + (f" and {len(problems) - 20:,} more" if len(problems) > 20 else "")
        raise DataError(
            f"{path}: {counted(len(problems), 'item')} with unknown characters: {listed}; "
            f"the model knows {vocab.describe()}; --skip_unknown leaves them out"
        )
    known = [line for i, line in enumerate(lines) if not unknown[i]]
    if not known:
        raise DataError(f"{path}: unknown characters in every item; the model knows {vocab.describe()}")
    return known


def _rows(scores: list[Score], loss: NLL) -> Iterator[list[object]]:
    yield ["item", "tokens", "log_prob", "nats_per_token"]
    for s in scores:
        yield [s.item, s.tokens, f"{s.log_prob:.6f}", f"{s.nats_per_token:.6f}"]
    yield ["", loss.tokens, f"{-loss.nats:.6f}", f"{loss.nats_per_token:.6f}"]
