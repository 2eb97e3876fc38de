"""What a trained model looks like: embeddings, next tokens, activations. V vocabulary, E embedding."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mlp_lm.figures.curves import new_figure
from mlp_lm.figures.labels import FloatArray, drawable, explain_code_points, spread, width_in_ems

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GROUP_COLOURS = {"vowel": "#c1272d", "consonant": "#0b5fa5", "other": "#3f3f3f", "boundary": "#1a7f37"}
CENTRED: dict[str, Any] = {"ha": "center", "va": "center", "parse_math": False}  # a label may have dollar signs
MAX_LABELS = 1000  # of an embedding map; more would hide each other, and take minutes to draw
MAX_SPREAD = 300  # of them to push apart; more leave no room to go to
MARGIN = 0.06  # of a map, as a share of its width and height


def draw_panels(panels: Sequence[Callable[[Axes], None]], side: float) -> Figure:
    """A figure of one or several plots, two in a row, each `side` inches high and a little wider."""
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = new_figure(columns * side * 1.15, rows * side)
    for number, panel in enumerate(panels, start=1):
        panel(figure.add_subplot(rows, columns, number))
    return figure


def draw_embeddings(table: FloatArray, labels: Sequence[str]) -> Figure:
    """An embedding map: every token at the place of its embedding, labelled unless there are thousands.

    Two dimensions are drawn as they are. Of more, the two principal components that explain most of the variance,
    from a singular value decomposition of the centred table. One dimension is spread over the height of the picture.

    Args:
        table: The embedding table (V, E).
        labels: Visible names of the V tokens, the boundary first.
    """
    return draw_panels([partial(embedding_map, table=table, labels=labels)], side=panel_side(len(labels)))


def panel_side(num_labels: int) -> float:
    """Inches of a plot in which so many labels can be told apart."""
    return min(max(8.0, 0.14 * num_labels), 11.0)


def embedding_map(axes: Axes, table: FloatArray, labels: Sequence[str]) -> None:
    """See `draw_embeddings`."""
    points, names, note = in_the_plane(np.asarray(table, np.float64))
    size = 16 if len(labels) <= 60 else 11 if len(labels) <= 200 else 8
    of_words = _are_words(labels)
    groups = ["other" if of_words and i else _group(label, i) for i, label in enumerate(labels)]
    latin = {"vowel", "consonant"} & set(groups)
    for group, colour in GROUP_COLOURS.items():
        chosen = [i for i, name in enumerate(groups) if name == group]
        if chosen:
            name = "token" if group == "other" and not latin else group
            xs, ys = points[chosen].T
            axes.scatter(xs, ys, s=1.2 * size**2, color=colour, alpha=0.15, linewidths=0, label=name)
    axes.margins(MARGIN)
    # The label is the mark; the pale disc behind it shows the place, from where it may have been pushed away.
    if len(labels) <= MAX_LABELS:
        note += _label_points(axes, points, [GROUP_COLOURS[group] for group in groups], labels, size)
    # Below the axis and its name, where it hides nothing.
    legend = axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4, ncols=4, markerscale=0.5)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
    axes.set_xlabel(names[0], loc="left")
    axes.set_ylabel(names[1])
    axes.set_title(f"Embeddings of {len(labels):,} tokens{note}", loc="left")
    axes.grid(alpha=0.2)


def _label_points(axes: Axes, points: FloatArray, colours: Sequence[str], labels: Sequence[str], size: float) -> str:
    """Write each label at its point (V, 2), or near it with a line to it; `size` in typographic points.

    Returns a line for the title, see `explain_code_points`.
    """
    drawn = [drawable(label, "bold") for label in labels]
    # Smaller: code points and escapes, where tokens are characters.
    of_words = _are_words(labels)
    sizes = [size if of_words or len(text) <= 3 else 0.6 * size for text, _ in drawn]
    pushed = np.zeros_like(points)
    if len(labels) <= MAX_SPREAD:
        assert axes.figure is not None
        box = np.array([axes.bbox.width, axes.bbox.height]) * 72 / axes.figure.dpi
        width = np.ptp(points, axis=0)
        scale = box / ((1 + 2 * MARGIN) * np.where(width > 0, width, np.inf))
        extents = [(width_in_ems(text) * size, size) for (text, _), size in zip(drawn, sizes, strict=True)]
        pushed = spread(points * scale, np.array(extents)) - points * scale
    for point, (text, font), colour, text_size, offset in zip(points, drawn, colours, sizes, pushed, strict=True):
        line = {"arrowstyle": "-", "color": colour, "alpha": 0.5, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(
            text,
            point,
            offset,
            textcoords="offset points",
            color=colour,
            fontproperties=font,
            fontsize=text_size,
            arrowprops=line if np.hypot(*offset) > text_size else None,
            **CENTRED,
        )
    return explain_code_points(labels, [text for text, _ in drawn])


def _are_words(labels: Sequence[str]) -> bool:
    return sum(len(label) > 1 for label in labels) > len(labels) / 2


def in_the_plane(table: FloatArray) -> tuple[FloatArray, tuple[str, str], str]:
    """Points (V, 2) for a table (V, E), the names of the two axes, and how much of the table they show."""
    num_tokens, width = table.shape
    if width == 1:
        points = np.column_stack([table[:, 0], np.arange(num_tokens)])
        return points, ("dimension 1", "token id (to tell labels apart)"), ""
    if width == 2:
        return table, ("dimension 1", "dimension 2"), ""
    left, sizes, _ = np.linalg.svd(table - table.mean(0), full_matrices=False)
    points = left[:, :2] * sizes[:2]
    points *= np.where(points[np.abs(points).argmax(0), [0, 1]] < 0, -1, 1)  # otherwise the signs would be arbitrary
    shares = sizes[:2] ** 2 / max((sizes**2).sum(), np.finfo(float).tiny)
    first, second = (f"principal component {i + 1} ({share:.1%} of the variance)" for i, share in enumerate(shares))
    note = f"\nthe two main directions of {width}: {shares.sum():.0%} of the variance, the rest is not shown"
    return points, (first, second), note


def _group(label: str, token_id: int) -> str:
    """What kind of token a label stands for; y counts as a consonant."""
    if token_id == 0:
        return "boundary"
    words = unicodedata.name(label, "").partition(" WITH ")[0].split() if len(label) == 1 and label.isalpha() else []
    if words[:1] != ["LATIN"]:
        return "other"
    letter = words[-1]  # of LATIN SMALL LETTER DOTLESS I, say
    return "vowel" if set(letter) <= set("AEIOU") or letter == "SCHWA" else "consonant"


def next_token_map(axes: Axes, probs: FloatArray, labels: Sequence[str], note: str) -> None:
    """A heat map of P(next token | last token).

    Args:
        axes: Where to draw.
        probs: Probabilities (V, V), a row for each last token; NaN in unknown rows.
        labels: Visible names of the V tokens.
        note: Over which contexts the rows are averaged.
    """
    from matplotlib.colors import PowerNorm

    # The square root of the scale, since most probabilities are small: 0.01 would look like 0.
    image = axes.imshow(probs, cmap="viridis", norm=PowerNorm(0.5, 0, float(np.nanmax(probs))), interpolation="nearest")
    axes.set_facecolor("0.85")  # seen where a row is unknown
    names, fonts = zip(*map(drawable, labels), strict=True)
    size = 12 if len(names) <= 40 else 8 if len(names) <= 70 else 6
    axes.set_xticks(range(len(names)), names, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    for tick, font in zip([*axes.get_xticklabels(), *axes.get_yticklabels()], fonts * 2, strict=True):
        tick.set(fontproperties=font, fontsize=size)
    for tick in axes.get_xticklabels():
        tick.set_rotation(90 if len(tick.get_text()) > 3 else 0)
    axes.set(xlabel="next token", ylabel="last token")
    axes.set_title(f"P(next token | last token)\n{note}{explain_code_points(labels, names)}", loc="left")
    assert axes.figure is not None
    unknown = " (grey: unknown)" if np.isnan(probs).any() else ""
    axes.figure.colorbar(image, ax=axes, shrink=0.8, label=f"probability{unknown}")


def activation_histograms(axes: Axes, layers: Sequence[tuple[FloatArray, float]], threshold: float, note: str) -> None:
    """Histograms of the tanh outputs of each layer.

    Args:
        axes: Where to draw.
        layers: Of each layer, the share of its outputs in each of equally wide bins from -1 to 1, and the share
            that is saturated.
        threshold: The |h| beyond which an output counts as saturated.
        note: What the network was given.
    """
    for number, (shares, saturated) in enumerate(layers, start=1):
        edges = np.linspace(-1, 1, len(shares) + 1)
        axes.stairs(shares, edges, fill=len(layers) == 1, label=f"layer {number}: {saturated:.1%} saturated")
    for side in (-threshold, threshold):
        axes.axvline(side, color="0.4", linestyle=":")
    axes.set(xlabel="tanh output h", ylabel="share of outputs")
    axes.set_title(f"Activations: saturated beyond |h| = {threshold}\n{note}", loc="left")
    axes.grid(alpha=0.3)
    axes.legend()
