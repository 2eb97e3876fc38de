"""`python -m mlp_lm inspect`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

from mlp_lm.errors import CheckpointError, SettingsError
from mlp_lm.files import check_outputs, write_json
from mlp_lm.settings import Range, refuse
from mlp_lm.terminal import display_name, pluralize
from mlp_lm.text.advice import PROSE_ADVICE, looks_like_prose
from mlp_lm.text.corpus import CorpusSettings
from mlp_lm.text.datasets import resolve_path
from mlp_lm.text.reading import parse_items, read_text
from mlp_lm.text.statistics import (
    Frequencies,
    Statistics,
    frequencies,
    histogram,
    item_windows,
    statistics,
)
from mlp_lm.text.vocab import Vocab

BAR_WIDTH = 50
MAX_CHARACTERS, MAX_ODD = 100, 20  # in the report; --json has all of them


def inspect(
    path: str,
    /,
    data: CorpusSettings,
    item: str | None = None,
    context_size: Annotated[int, Range(1, 1024)] = 8,
    nearest: str | None = None,
    json: str | None = None,
) -> None:
    """Show what is in a corpus, or which tokens are near each other in a trained network.

    Of items: lengths, alphabet, odd characters, and what dev and test repeat of train. Of words and running text: how
    often tokens occur, and how many a vocabulary leaves out.

    Args:
        path: Text file or known dataset, or, for --nearest, a checkpoint.
        data: What its tokens are, as those of fit.
        item: Show only the windows of this item, as a network would see them.
        context_size: Previous tokens in a window, as data.context_size of fit.
        nearest: Tokens, separated by commas, of whose embeddings to show the ten nearest.
        json: Write all figures to this file.
    """
    if nearest is not None:
        if (item, json, data) != (None, None, CorpusSettings(path)):
            raise SettingsError("nearest: is about a network, and goes with no flag that is about a text")
        print("\n".join(_nearest_lines(path, nearest.split(","))))
        return
    if {data.train_path, data.dev_path, data.test_path} != {None}:
        raise SettingsError("train_path, dev_path, test_path: inspect takes one text; name one of the files as PATH")
    refuse(data.conflicts())
    source = resolve_path(path)
    check_outputs([str(source)], json=(json, ()))
    of_items = data.layout == "items" and data.tokens == "characters"
    if item is not None and not of_items:
        raise SettingsError("item: shows windows of characters in items; leave out --layout and --tokens")
    if not of_items:
        counted_tokens = frequencies(data)
        print("\n".join(_frequency_lines(path, counted_tokens)))
        if json is not None:
            write_json(json, {"data": vars(data), **asdict(counted_tokens)})
        return
    text = data.tokenizer.normalize(read_text(source))
    items = parse_items(text, source)
    vocab = Vocab.build(set().union(*map(set, items)))
    windows = [] if item is None else item_windows(data.tokenizer.normalize(item.strip()), vocab, context_size)
    found = statistics(items, text, data.split_seed)
    print("\n".join(_report(path, found, vocab) if item is None else _window_lines(windows)))
    if looks_like_prose(items):
        print(f"{path}: {PROSE_ADVICE}", file=sys.stderr)
    if json is not None:
        write_json(json, {"path": path, "split_seed": data.split_seed, **asdict(found), "windows": windows})


def _frequency_lines(path: str, found: Frequencies) -> Iterator[str]:
    """The lines of a report on words or running text."""
    yield f"{path}: {pluralize(found.tokens, 'token')}, {len(found.counts):,} distinct"
    if found.coverage:
        yield from ("", "most frequent tokens, and the share of all that they make up")
        yield from (f"{size:>9,}{share:>9.2%}" for size, share in found.coverage.items())
    if found.unknown:
        yield from ("", "data.min_count, and the share of dev that is then outside the vocabulary of train")
        yield from (f"{least:>9}{share:>9.2%}" for least, share in found.unknown.items())
    tokens = [*found.counts]
    yield from ("", "the most frequent")
    for first in range(0, min(len(tokens), 30), 3):
        row = tokens[first : first + 3]
        yield "".join(f" {display_name(token)[:14]:>15}{found.counts[token]:>10,}" for token in row)
    rare = tokens[:: -max(1, len(tokens) // 200)][:10]
    yield from ("", f"some of the rarest: {', '.join(map(display_name, rare))}")


def _nearest_lines(path: str, tokens: list[str]) -> Iterator[str]:
    """For each token a line with the ten nearest."""
    from mlp_lm.models.checkpoint import load  # here: what is in a text needs no torch
    from mlp_lm.models.views import nearest

    model = load(path)
    if model.network is None:
        raise CheckpointError(f"{path}: counts have no embeddings; expected the checkpoint of a network")
    if unknown := model.vocab.unknown(tokens):
        raise SettingsError(f"nearest: {', '.join(map(repr, unknown))} not in the vocabulary of {path}")
    for token in tokens:
        found = nearest(model.network, model.vocab.ids[token], 10)
        yield f"{token}: " + ", ".join(f"{model.vocab.show(i)} {cosine:.2f}" for i, cosine in found)


def _report(path: str, found: Statistics, vocab: Vocab) -> Iterator[str]:
    """The lines of the report."""
    items = pluralize(found.items, "item")
    yield f"{path}: {items}, {found.distinct_items:,} distinct; a vocabulary of {len(vocab):,} with the boundary"
    yield f"first     {_listed(found.first_items)}"
    yield f"shortest  {_listed(found.shortest)} ({pluralize(min(found.lengths), 'token')} and the boundary)"
    yield f"longest   {_listed(found.longest)} ({pluralize(max(found.lengths), 'token')} and the boundary)"
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
    yield from ("", f"{pluralize(repeated, 'repeated item')}{'; fit drops repeats' if repeated else ''}")
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
    yield f"{pluralize(len(windows), 'token')} with the boundary"
    wide = any(len(token) > 1 for context, _ in windows for token in context)  # words would run together
    yield from (f"{(' ' if wide else '').join(context)} -> {target}" for context, target in windows)
