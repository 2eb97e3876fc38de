"""What is in a corpus: lengths, characters and which of them look odd, and how far dev and test repeat train."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from mlp_lm.text.corpus import MIN_ITEMS, split_items, tokenize
from mlp_lm.text.vocab import Vocab

RARE_SCRIPT = 0.01  # the share of all letters below which a script looks out of place
ODD_CATEGORIES = {  # of Unicode
    "Cc": "control",
    "Cf": "zero-width",
    "Cn": "unassigned",
    "Co": "private use",
    "Zl": "line separator",
    "Zp": "paragraph separator",
    "Zs": "unusual space",
}
# Invisible, too, though letters or marks by their category: fillers and variation selectors.
ZERO_WIDTH = {*"\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u3164\uffa0", *map(chr, range(0xFE00, 0xFE10))}


@dataclass(frozen=True)
class OddCharacter:
    """A character that few corpora mean to have."""

    character: str
    code_point: str  # U+200B
    name: str
    why: str
    count: int
    line: int  # of the file, the first one that has it


@dataclass(frozen=True)
class Statistics:
    """What is in a corpus. Lengths are in tokens, the boundary not counted."""

    num_items: int
    num_different: int
    first_items: list[str]
    lengths: dict[int, int]  # how many items have each length, shortest first
    shortest: list[str]  # up to three different ones
    longest: list[str]
    characters: dict[str, int]  # how often each occurs, the most frequent first
    odd_characters: list[OddCharacter]
    repeats: dict[str, tuple[int, int]] | None  # see `repeats_of_train`; None where items are too few to split


def statistics(items: Sequence[str], text: str, split_seed: int) -> Statistics:
    """Describe a corpus.

    Args:
        items: Its items, in the order of the file.
        text: What the file says, for line numbers.
        split_seed: Seed of the split.
    """
    length_of = {item: len(tokenize(item)) for item in items}
    lengths = Counter(length_of[item] for item in items)
    low, high = min(lengths), max(lengths)
    characters = Counter("".join(items))
    return Statistics(
        num_items=len(items),
        num_different=len(length_of),
        first_items=list(items[:10]),
        lengths=dict(sorted(lengths.items())),
        shortest=[item for item, length in length_of.items() if length == low][:3],
        longest=[item for item, length in length_of.items() if length == high][:3],
        characters=dict(sorted(characters.items(), key=lambda entry: (-entry[1], entry[0]))),
        odd_characters=odd_characters(characters, text),
        repeats=repeats_of_train(items, split_seed) if len(items) >= MIN_ITEMS else None,
    )


def odd_characters(characters: Mapping[str, int], text: str) -> list[OddCharacter]:
    """Those of `characters` that look odd, the most frequent first; `text` tells on which line each stands."""
    scripts: Counter[str] = Counter()
    for character, count in characters.items():
        scripts[script(character)] += count
    num_letters = scripts.total() - scripts[""]
    why: dict[str, str] = {}
    for character in characters:
        own = script(character)
        rare = f"{own} letter among others" if own and scripts[own] < RARE_SCRIPT * num_letters else ""
        if reason := _oddity(character) or rare:
            why[character] = reason
    lines = _first_lines(why.keys(), text)
    odd = [
        OddCharacter(c, f"U+{ord(c):04X}", unicodedata.name(c, repr(c)), reason, characters[c], lines[c])
        for c, reason in why.items()
    ]
    return sorted(odd, key=lambda o: (-o.count, o.character))


def _first_lines(wanted: Set[str], text: str) -> dict[str, int]:
    """The number of the first line of `text` that has each of the `wanted` characters."""
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n") if wanted else [], start=1):
        for character in wanted & set(line):
            lines.setdefault(character, number)
    return lines


def script(character: str) -> str:
    """The script of a letter as the first word of its Unicode name, LATIN or CJK; "" for all that is no letter.

    Modifier letters, such as the prolonged sound mark of both Japanese syllabaries, belong to several scripts.
    """
    is_letter = unicodedata.category(character) in ("Lu", "Ll", "Lt", "Lo")
    return unicodedata.name(character, "").partition(" ")[0] if is_letter else ""


def _oddity(character: str) -> str:
    if character == " ":
        return ""
    if character == "\ufffd":
        return "left by a wrong encoding"
    return "zero-width" if character in ZERO_WIDTH else ODD_CATEGORIES.get(unicodedata.category(character), "")


def repeats_of_train(items: Sequence[str], split_seed: int) -> dict[str, tuple[int, int]]:
    """Of dev and test: how many of their items stand in train too, and how many items there are.

    The split is that of `unique: false`; without repeated items the splits share none.
    """
    train, dev, test = split_items(list(items), split_seed, "items")
    known = set(train)
    return {name: (sum(item in known for item in part), len(part)) for name, part in (("dev", dev), ("test", test))}


def histogram(lengths: Mapping[int, int], max_rows: int = 20) -> list[tuple[int, int, int]]:
    """How many items are how long, in rows that fit into a terminal: (shortest, longest, items).

    Rows are equally wide up to the length that 99 % of the items do not exceed; the last one takes the few others.
    """
    total, seen, usual = sum(lengths.values()), 0, max(lengths)
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= 0.99 * total:
            usual = length
            break
    low, high = min(lengths), max(lengths)
    if high - low < max_rows:
        usual = high
    width = -(-(usual - low + 1) // max_rows)
    starts = list(range(low, usual + 1, width))
    ends = [start + width - 1 for start in starts]
    if ends[-1] < high:
        starts.append(ends[-1] + 1)
        ends.append(high)
    return [
        (start, end, sum(n for length, n in lengths.items() if start <= length <= end))
        for start, end in zip(starts, ends, strict=True)
    ]


def windows_of(item: str, vocab: Vocab, context_size: int) -> list[tuple[list[str], str]]:
    """The windows of an item as visible names: (context, target). Raises DataError where it has unknown tokens."""
    return [
        ([vocab.show(i) for i in context], vocab.show(target))
        for context, target in vocab.windows(tokenize(item), context_size)
    ]
