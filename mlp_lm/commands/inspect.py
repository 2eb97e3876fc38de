"""`python -m mlp_lm inspect`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

from mlp_lm.files import check_outputs, write_json
from mlp_lm.settings import SEED, Range
from mlp_lm.text.corpus import parse_items, read_text
from mlp_lm.text.datasets import resolve_path
from mlp_lm.text.statistics import (
    PROSE_ADVICE,
    Statistics,
    histogram,
    item_windows,
    looks_like_prose,
    statistics,
)
from mlp_lm.text.vocab import Vocab, counted

BAR_WIDTH = 50
MAX_CHARACTERS, MAX_ODD = 100, 20  # in the report; --json has all of them


def inspect(
    path: str,
    item: str | None = None,
    context_size: Annotated[int, Range(1, 1024)] = 8,
    split_seed: Annotated[int, SEED] = 42,
    json: str | None = None,
) -> None:
    """What is in a corpus: items, lengths, alphabet, odd characters, and what dev and test repeat of train.

    Args:
        path: Text file with one item a line, or the name of a known dataset.
        item: Show only the windows of this item, as a network would see them.
        context_size: Previous tokens in a window, as data.context_size of fit.
        split_seed: Seed of the shuffle before the split.
        json: Write all figures to this file.
    """
    source = resolve_path(path)
    check_outputs([str(source)], json=(json, ()))
    text = read_text(source)
    items = parse_items(text, source)
    vocab = Vocab.build(set().union(*map(set, items)))
    windows = [] if item is None else item_windows(item.strip(), vocab, context_size)
    found = statistics(items, text, split_seed)
    print("\n".join(_report(path, found, vocab) if item is None else _window_lines(windows)))
    if looks_like_prose(items):
        print(f"{path}: {PROSE_ADVICE}", file=sys.stderr)
    if json is not None:
        write_json(json, {"path": path, "split_seed": split_seed, **asdict(found), "windows": windows})


def _report(path: str, found: Statistics, vocab: Vocab) -> Iterator[str]:
    """The lines of the report."""
    items = counted(found.items, "item")
    yield f"{path}: {items}, {found.distinct_items:,} distinct; a vocabulary of {len(vocab):,} with the boundary"
    yield f"first     {_listed(found.first_items)}"
    yield f"shortest  {_listed(found.shortest)} ({counted(min(found.lengths), 'token')} and the boundary)"
    yield f"longest   {_listed(found.longest)} ({counted(max(found.lengths), 'token')} and the boundary)"
    yield from ("", "tokens       items  (without the boundary)")
    rows = histogram(found.lengths)
    longest_bar = max(count for _, _, count in rows)
    for low, high, count in rows:
        length = f"{low}" if low == high else f"{low}-{high}"
        yield f"{length:<9}{count:>9,}  {'#' * -(-count * BAR_WIDTH // longest_bar)}".rstrip()
    yield from ("", "characters, counts, shares")
    yield from _character_lines(found, vocab)
    yield from ("", "odd characters, counts, first lines" if found.odd_characters else "no odd characters")
    for odd in found.odd_characters[:MAX_ODD]:
        yield f"  {odd.code_point:<8} {odd.count:>8,}  line {odd.first_line:<8,} {odd.kind}: {odd.name}"
    yield from _more(len(found.odd_characters) - MAX_ODD)
    repeated = found.items - found.distinct_items
    yield from ("", f"{counted(repeated, 'repeated item')}{'; fit drops repeats' if repeated else ''}")
    for split, share in found.repeats_of_train.items() if repeated else ():
        yield f"with --data.unique false, {share:.1%} of the items of {split} occur in train too"


def _listed(items: list[str]) -> str:
    """Items side by side, long ones cut, with escapes for what a terminal would not show."""
    cut = [item if len(item) <= 60 else f"{item[:60]}…" for item in items]
    return ", ".join(item if item.isprintable() else repr(item) for item in cut)


def _character_lines(found: Statistics, vocab: Vocab) -> Iterator[str]:
    total = sum(found.characters.values())
    cells = [
        f" {vocab.show(vocab.encode([character])[0]):>8} {count:>9,} {count / total:>6.2%}"
        for character, count in list(found.characters.items())[:MAX_CHARACTERS]
    ]
    for first in range(0, len(cells), 3):  # fits into 80 columns
        yield "".join(cells[first : first + 3])
    yield from _more(len(found.characters) - MAX_CHARACTERS)


def _more(number: int) -> Iterator[str]:
    if number > 0:
        yield f"and {number:,} more (--json FILE lists all)"


def _window_lines(windows: list[tuple[list[str], str]]) -> Iterator[str]:
    """Every window as `... -> e`."""
    yield f"{counted(len(windows), 'token')} with the boundary"
    wide = any(len(token) > 1 for context, _ in windows for token in context)  # words would run together
    yield from (f"{(' ' if wide else '').join(context)} -> {target}" for context, target in windows)
