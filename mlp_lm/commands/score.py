"""`python -m mlp_lm score`."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlp_lm.errors import DataError, SettingsError
from mlp_lm.files import check_outputs, write_csv
from mlp_lm.models.checkpoint import load, resolve
from mlp_lm.models.language_model import LanguageModel, Score, total
from mlp_lm.models.metrics import NLL
from mlp_lm.terminal import pluralize
from mlp_lm.text.datasets import resolve_path
from mlp_lm.text.reading import decode_text, parse_items, read_text
from mlp_lm.text.vocab import UNKNOWN

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
    """Log-probability of each item of a text, or of each line of a running text in the context of those before it.

    One CSV row for each item or line: item, tokens (the boundary that ends an item counted), unknown (how many of them
    are <unk>; of words alone), log_prob (nats) and nats_per_token. The last row, whose item is empty, sums up all rows.

    Args:
        file: Checkpoint, count model or mixture to score with; a run folder stands for its best.ckpt.
        text: Text file, the name of a known dataset, or - for standard input.
        item: An item to score instead of a text (repeatable).
        output: CSV file to write instead of standard output.
        lowercase: Turn the text into lower case.
        skip_unknown: Leave out items with characters that the model does not know.
    """
    if (text is None) == (not item):
        raise SettingsError("score one thing: a text file, - for standard input, or --item ITEM")
    source = None if text is None else STDIN if text == "-" else resolve_path(text)
    file = str(resolve(file))
    check_outputs([file, None if source is None else str(source)], output=(output, ()))
    model = load(file)
    if source is None:
        lines = [part.strip() for part in item]
    else:
        content = _read(source)
        # Not splitlines, for which a form feed, a token like others, ends a line.
        text_lines = content.removesuffix("\n").split("\n") if content else []
        lines = text_lines if model.is_of_text else parse_items(content, source)
    if lowercase:
        lines = [line.lower() for line in lines]
    where = "item" if source is None else str(source)
    known = lines if UNKNOWN in model.vocab else _known_lines(lines, model, where, skip_unknown)
    scores = model.score_text(known) if model.is_of_text and source is not None else model.score(known)
    loss = total(scores)
    if not loss.tokens:
        raise DataError(f"{where}: found no token; expected text")
    rows = _rows(scores, loss, of_words=UNKNOWN in model.vocab)
    if output is not None:
        write_csv(output, rows)
    else:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
        sys.stdout.flush()
    noun = "line" if model.is_of_text else "item"
    skipped = len(lines) - len(known)
    in_train = sum(model.seen_in(s.item) == "train" for s in scores)
    bits_per_byte = loss.nats / math.log(2) / sum(len(line.encode()) + 1 for line in known)
    print(
        f"{pluralize(len(scores), noun)}, {pluralize(loss.tokens, 'token')}: {loss}"
        + (f", {bits_per_byte:.4f} bits/byte" if model.is_of_text else "")
        + (f"; {sum(s.unknown for s in scores) / loss.tokens:.2%} {UNKNOWN}" if UNKNOWN in model.vocab else "")
        + (f"; {in_train:,} of them {'is' if in_train == 1 else 'are'} in the training set" if in_train else "")
        + (f"; {pluralize(skipped, noun)} with unknown characters left out" if skipped else ""),
        file=sys.stderr,
    )


def _read(source: Path) -> str:
    if source is not STDIN:
        return read_text(source)
    return decode_text(b"" if sys.stdin is None else sys.stdin.buffer.read(), source)  # a shell may close it: `<&-`


def _known_lines(lines: list[str], model: LanguageModel, where: str, skip_unknown: bool) -> list[str]:
    """The lines without unknown characters; raises DataError if there are others, unless those are to be skipped."""
    unknown = [model.unknown(line) for line in lines]
    problems = [(line, tokens) for line, tokens in zip(lines, unknown, strict=True) if tokens]
    if problems and not skip_unknown:
        listed = "; ".join(f"{line!r} ({', '.join(map(repr, tokens))})" for line, tokens in problems[:20])
        more = f" and {len(problems) - 20:,} more" if len(problems) > 20 else ""
        helped = any(not model.unknown(line.lower()) for line, _ in problems)
        raise DataError(
            f"{where}: {pluralize(len(problems), 'item')} with unknown characters: {listed}{more}; the model knows "
            f"{model.vocab.describe()}; {'--lowercase turns all items into lower case, ' if helped else ''}"
            "--skip_unknown leaves such items out"
        )
    known = [line for line, tokens in zip(lines, unknown, strict=True) if not tokens]
    if not known:
        raise DataError(f"{where}: unknown characters in every item; the model knows {model.vocab.describe()}")
    return known


def _rows(scores: list[Score], loss: NLL, of_words: bool) -> Iterator[list[object]]:
    yield ["item", "tokens", *["unknown"] * of_words, "log_prob", "nats_per_token"]
    for s in scores:
        yield [s.item, s.tokens, *[s.unknown] * of_words, f"{s.log_prob:.6f}", f"{s.nats_per_token:.6f}"]
    unknown = sum(s.unknown for s in scores)
    yield ["", loss.tokens, *[unknown] * of_words, f"{-loss.nats:.6f}", f"{loss.nats_per_token:.6f}"]
