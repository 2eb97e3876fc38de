"""`python -m mlp_lm inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlp_lm.errors import DataError
from mlp_lm.files import check_outputs, write_json
from mlp_lm.settings import check
from mlp_lm.text.corpus import parse_items, read_text, tokenize
from mlp_lm.text.datasets import resolve_path
from mlp_lm.text.statistics import Statistics, histogram, statistics, windows_of
from mlp_lm.text.vocab import Vocab

BAR_WIDTH = 50
SHOWN_CHARACTERS, SHOWN_ODD = 100, 20  # --json has all of them

ShownWindows = list[tuple[list[str], str]]


def inspect(
    path: str, item: str | None = None, context_size: int = 3, split_seed: int = 42, json: str | None = None
) -> None:
    """What is in a corpus: items, lengths, alphabet, characters that look odd, and what dev and test repeat of train.

    Args:
        path: Text file with one item a line, or the name of a known dataset, as data.path of fit.
        item: Show every window of this item, as a network would see it.
        context_size: Previous tokens in a window, as data.context_size of fit, which is 8 there unless told.
        split_seed: Seed of the shuffle before the split.
        json: Write all figures to this file.
    """
    check({"data.context_size": context_size, "data.split_seed": split_seed})
    source = resolve_path(path)
    check_outputs([str(source)], json=(json, ()))
    text = read_text(source)
    items = parse_items(text, source)
    vocab = Vocab.build(set().union(*map(tokenize, items)))
    windows = None if item is None else _windows(path, item.strip(), vocab, context_size)
    found = statistics(items, text, split_seed)
    print("\n".join([*_report(path, found, vocab), *_window_lines(windows or [])]))
    if json is not None:
        write_json(json, _as_json(path, found, split_seed, windows))


def _windows(path: str, item: str, vocab: Vocab, context_size: int) -> ShownWindows:
    if unknown := vocab.unknown(tokenize(item)):
        raise DataError(f"item: {item!r} has unknown {', '.join(map(repr, unknown))}; {path} has {vocab.describe()}")
    return windows_of(item, vocab, context_size)


def _report(path: str, found: Statistics, vocab: Vocab) -> Iterator[str]:
    """The lines of the report."""
    counts = f"{found.num_items:,} items, {found.num_different:,} different"
    yield f"{path}: {counts}, {len(vocab):,} tokens with the boundary"
    yield f"first     {_listed(found.first_items)}"
    yield f"shortest  {_listed(found.shortest)} ({min(found.lengths):,} tokens)"
    yield f"longest   {_listed(found.longest)} ({max(found.lengths):,} tokens)"
    yield from ("", "length       items")
    rows = histogram(found.lengths)
    most = max(count for _, _, count in rows)
    for low, high, count in rows:
        length = f"{low}" if low == high else f"{low}-{high}"
        yield f"{length:<9}{count:>9,}  {'#' * -(-count * BAR_WIDTH // most)}".rstrip()
    yield from ("", "characters, how often, share")
    yield from _character_lines(found, vocab)
    yield ""
    yield from _odd_lines(found)
    yield ""
    yield from _repeat_lines(found)


def _listed(items: list[str]) -> str:
    """Items side by side, cut where they are long, with escapes for what a terminal would not show."""
    cut = [item if len(item) <= 60 else f"{item[:60]}…" for item in items]
    return ", ".join(item if item.isprintable() else repr(item) for item in cut)


def _character_lines(found: Statistics, vocab: Vocab) -> Iterator[str]:
    total = sum(found.characters.values())
    cells = [
        f" {vocab.show(vocab.encode([character])[0]):>8} {count:>9,} {count / total:>6.2%}"
        for character, count in list(found.characters.items())[:SHOWN_CHARACTERS]
    ]
    for first in range(0, len(cells), 3):  # fits into 80 columns
        yield "".join(cells[first : first + 3])
    if (more := len(found.characters) - SHOWN_CHARACTERS) > 0:
        yield f"and {more:,} rarer ones (--json FILE lists all)"


def _odd_lines(found: Statistics) -> Iterator[str]:
    if not found.odd_characters:
        yield "no character looks odd"
        return
    yield "characters that look odd, how often, where first"
    for odd in found.odd_characters[:SHOWN_ODD]:
        yield f"  {odd.code_point:<8} {odd.count:>8,}  line {odd.line:<8,} {odd.why}: {odd.name}"
    if (more := len(found.odd_characters) - SHOWN_ODD) > 0:
        yield f"  and {more:,} more (--json FILE lists all)"


def _repeat_lines(found: Statistics) -> Iterator[str]:
    dropped = found.num_items - found.num_different
    if not dropped:
        yield "no item is repeated: dev and test share none with train"
        return
    yield f"{dropped:,} lines repeat an earlier one; fit drops them unless --data.unique false"
    for split, (repeated, total) in (found.repeats or {}).items():
        share = f"{repeated:,} of {total:,} {split} items ({repeated / total:.1%})"
        yield f"with --data.unique false, {share} stand in train too"


def _window_lines(windows: ShownWindows) -> list[str]:
    """Every window as `... -> e`."""
    wide = any(len(token) > 1 for context, _ in windows for token in context)  # words would run together
    lines = [f"{(' ' if wide else '').join(context)} -> {target}" for context, target in windows]
    return ["", *lines] if lines else []


def _as_json(path: str, found: Statistics, split_seed: int, windows: ShownWindows | None) -> dict[str, Any]:
    total = sum(found.characters.values())
    return {
        "path": path,
        "items": found.num_items,
        "different_items": found.num_different,
        "first_items": found.first_items,
        "shortest": {"length": min(found.lengths), "examples": found.shortest},
        "longest": {"length": max(found.lengths), "examples": found.longest},
        "lengths": [{"length": length, "items": count} for length, count in found.lengths.items()],
        "characters": [
            {"character": character, "count": count, "share": count / total}
            for character, count in found.characters.items()
        ],
        "odd_characters": [vars(odd) for odd in found.odd_characters],
        "repeats_of_train_unless_unique": None
        if found.repeats is None
        else {
            "split_seed": split_seed,
            **{split: {"repeated": repeated, "items": total} for split, (repeated, total) in found.repeats.items()},
        },
        "windows": None if windows is None else [{"context": context, "target": target} for context, target in windows],
    }
