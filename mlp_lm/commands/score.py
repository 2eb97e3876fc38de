"""`python -m mlp_lm score`."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlp_lm.errors import DataError, SettingsError
from mlp_lm.files import check_outputs, write_csv
from mlp_lm.models.checkpoint import load, resolve
from mlp_lm.models.language_model import Score, total
from mlp_lm.models.metrics import NLL
from mlp_lm.text.corpus import decode_text, parse_items, read_items, tokenize
from mlp_lm.text.datasets import resolve_path
from mlp_lm.text.vocab import Vocab, counted

STDIN = Path("standard input")  # in messages


def score(
    file: str,
    text: str | None = None,
    /,
    item: Sequence[str] = (),
    output: str | None = None,
    lowercase: bool = False,
    skip_unknown: bool = False,
) -> None:
    """Log-probability of each item of a text.

    One CSV row an item: item, tokens (the boundary that ends it counted), log_prob (nats) and nats_per_token.
    The last row, whose item is empty, sums up all of them.

    Args:
        file: Checkpoint, count model or mixture to score with; a run folder stands for its best.ckpt.
        text: Text file with one item a line, the name of a known dataset, or - for standard input.
        item: An item to score instead of a text (repeatable).
        output: CSV file to write instead of standard output.
        lowercase: Turn the items into lower case.
        skip_unknown: Leave out items with characters that the model does not know.
    """
    if (text is None) == (not item):
        raise SettingsError("score one thing: a text file, - for standard input, or --item ITEM")
    source = None if text is None else STDIN if text == "-" else resolve_path(text)
    file = str(resolve(file))
    check_outputs([file, None if source is None else str(source)], output=(output, ()))
    model = load(file)
    lines = [part.strip() for part in item] if source is None else _read_items(source)
    if lowercase:
        lines = [line.lower() for line in lines]
    known = _known_lines(lines, model.vocab, "item" if text is None else str(source), skip_unknown)
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


def _read_items(source: Path) -> list[str]:
    if source is not STDIN:
        return read_items(source)
    data = b"" if sys.stdin is None else sys.stdin.buffer.read()  # a shell may close it: `<&-`
    return parse_items(decode_text(data, source), source)


def _known_lines(lines: list[str], vocab: Vocab, where: str, skip_unknown: bool) -> list[str]:
    unknown = [vocab.unknown(tokenize(line)) for line in lines]
    problems = [(line, tokens) for line, tokens in zip(lines, unknown, strict=True) if tokens]
    if problems and not skip_unknown:
        listed = "; ".join(f"{line!r} ({', '.join(map(repr, tokens))})" for line, tokens in problems[:20])
        more = f" and {len(problems) - 20:,} more" if len(problems) > 20 else ""
        helped = any(not vocab.unknown(tokenize(line.lower())) for line, _ in problems)
        raise DataError(
            f"{where}: {counted(len(problems), 'item')} with unknown characters: {listed}{more}; the model knows "
            f"{vocab.describe()}; {'--lowercase turns all items into lower case, ' if helped else ''}"
            "--skip_unknown leaves such items out"
        )
    known = [line for line, tokens in zip(lines, unknown, strict=True) if not tokens]
    if not known:
        raise DataError(f"{where}: unknown characters in every item; the model knows {vocab.describe()}")
    return known


def _rows(scores: list[Score], loss: NLL) -> Iterator[list[object]]:
    yield ["item", "tokens", "log_prob", "nats_per_token"]
    for s in scores:
        yield [s.item, s.tokens, f"{s.log_prob:.6f}", f"{s.nats_per_token:.6f}"]
    yield ["", loss.tokens, f"{-loss.nats:.6f}", f"{loss.nats_per_token:.6f}"]
