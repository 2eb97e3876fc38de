"""Labels that can be read: a font that has their characters, and positions where they do not overlap."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.font_manager import FontProperties

FloatArray = npt.NDArray[np.floating[Any]]
ROUNDS = 200  # of pushing labels apart; a hundred need some fifty


def drawable(label: str, weight: str = "normal") -> tuple[str, FontProperties]:
    """Return what to draw for a label, and its font: the label itself if an installed font has it, else code points."""
    from matplotlib.font_manager import FontProperties

    # A combining accent is drawn on a dotted circle, as in Unicode's own tables.
    text = f"\u25cc{label}" if label and unicodedata.combining(label[0]) else label
    for path in _font_files(weight):
        if {*map(ord, text)} <= _characters(path):
            return text, FontProperties(fname=path)
    return " ".join(f"U+{ord(c):04X}" for c in label), FontProperties(family="DejaVu Sans", weight=weight)


def explain_code_points(labels: Sequence[str], texts: Sequence[str]) -> str:
    """Return a line for the title of a plot whose `labels` are drawn as `texts`; empty if each is drawn as itself."""
    if not any(text.startswith("U+") and text != label for label, text in zip(labels, texts, strict=True)):
        return ""
    return "\nU+…: no installed font has these characters; the Noto fonts have most"


def _font_files(weight: str) -> Iterator[str]:
    """Yield matplotlib's own font, then the others that are installed, except those made for missing characters."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager

    yield findfont(FontProperties(family="DejaVu Sans", weight=weight))
    others = [font for font in fontManager.ttflist if "Last Resort" not in font.name]
    yield from (font.fname for font in sorted(others, key=lambda f: (f.style != "normal", f.weight != 400, f.fname)))


@cache
def _characters(font_file: str) -> frozenset[int]:
    from matplotlib.font_manager import get_font

    try:
        font = get_font(font_file)
    except (OSError, RuntimeError):  # uninstalled since, or of a kind that matplotlib cannot draw
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()  # emoji may be bitmaps


def width_in_ems(text: str) -> float:
    """Estimate the width of bold text from its characters: 0.6 em each, or 1 em for wide ones, and a margin."""
    return 0.15 + sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.6 for c in text)


def spread(places: FloatArray, sizes: FloatArray) -> FloatArray:
    """Push overlapping labels apart, no farther than needed, until none overlap or for a fixed number of rounds.

    Args:
        places: The centres (V, 2) where labels belong.
        sizes: Their widths and heights (V, 2), in the same unit.

    Returns:
        The new centres (V, 2), which depend on nothing else.
    """
    places = np.array(places, np.float64)
    reach = (sizes[:, None] + sizes) / 2  # (V, V, 2)
    later = np.tri(len(places), k=-1) - np.tri(len(places), k=-1).T  # (V, V): which way labels in one place part
    for _ in range(ROUNDS):
        apart = places[:, None] - places  # (V, V, 2)
        overlap = reach - abs(apart)
        colliding = (overlap > 1e-6).all(-1) & (later != 0)
        if not colliding.any():
            break
        # Half of the overlap each, along the axis where it is smaller.
        along = np.eye(2)[overlap.argmin(-1)] * colliding[..., None]
        way = np.where(apart == 0, later[..., None], np.sign(apart))
        places += (along * way * (overlap / 2 + 1e-3)).sum(1)
    return places
