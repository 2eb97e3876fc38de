"""`python -m mlp_lm score`."""

from __future__ import annotations

import csv
import sys
from typing import TextIO

from mlp_lm.errors import DataError, SettingsError
from mlp_lm.files import is_one_of
from mlp_lm.models.checkpoint import load
from mlp_lm.models.language_model import Score, total
from mlp_lm.text.corpus import find, read_items, tokenize
from mlp_lm.text.vocab import Vocab


def score(file: str, items: str, output: str | None = None, skip_unknown: bool = False) -> None:
    """Log-probability of each item of a text file.

    One CSV row an item: item, tokens (the boundary that ends it counted), log_prob (nats) and nats_per_token.
    The last row, whose item is empty, sums up the file.

    Args:
        file: Checkpoint to score with.
        items: Text file with one item a line, or the name of a known dataset.
        output: CSV file to write instead of standard output.
        skip_unknown: Leave out items with characters that the model does not know.
    """
    source = find(items)
    if output is not None and is_one_of(output, (file, source)):
        raise SettingsError(f"output: {output} is one of the files to read; name another")
    model = load(file)
    lines = read_items(source)
    known = _known_lines(lines, model.vocab, items, skip_unknown)
    scores = model.score(known)
    if output is None:
        _write_rows(sys.stdout, scores)
    else:
        try:
            with open(output, "w", encoding="utf-8", newline="") as target:
                _write_rows(target, scores)
        except OSError as error:
            raise DataError(f"{output}: cannot be written ({error.strerror})") from error
    sys.stdout.flush()
    loss = total(scores)
    skipped = len(lines) - len(known)
    print(
        f"{len(scores):,} items, {loss.tokens:,} tokens: {loss.nats_per_token:.4f} nats/token, "
        f"perplexity {loss.perplexity:.3f}, {loss.bits_per_token:.4f} bits/token"
        + (f"; {skipped:,} items with unknown characters left out" if skipped else ""),
        file=sys.stderr,
    )


def _known_lines(lines: list[str], vocab: Vocab, path: str, skip_unknown: bool) -> list[str]:
    unknown = {i: vocab.unknown(tokenize(line)) for i, line in enumerate(lines)}
    problems = [f"{lines[i]!r} ({', '.join(map(repr, tokens))})" for i, tokens in unknown.items() if tokens]
    if problems and not skip_unknown:
        listed = "; ".join(problems[:20]) + (f" and {len(problems) - 20:,} more" if len(problems) > 20 else "")
        raise DataError(
            f"{path}: {len(problems):,} items with unknown characters: {listed}; "
            f"the model knows {vocab.describe()}; --skip_unknown leaves them out"
        )
    known = [line for i, line in enumerate(lines) if not unknown[i]]
    if not known:
        raise DataError(f"{path}: unknown characters in every item; the model knows {vocab.describe()}")
    return known


def _write_rows(target: TextIO, scores: list[Score]) -> None:
    rows = csv.writer(target, lineterminator="\n")
    rows.writerow(["item", "tokens", "log_prob", "nats_per_token"])
    for s in scores:
        rows.writerow([s.item, s.tokens, f"{s.log_prob:.6f}", f"{s.nats_per_token:.6f}"])
    loss = total(scores)
    rows.writerow(["", loss.tokens, f"{-loss.nats:.6f}", f"{loss.nats_per_token:.6f}"])
