"""Arrays to figures. matplotlib is imported when the first is drawn."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlp_lm.errors import SettingsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FloatArray = npt.NDArray[np.floating[Any]]
GROUP_COLOURS = {"vowel": "#c1272d", "consonant": "#0b5fa5", "other": "#3f3f3f", "boundary": "#1a7f37"}
CENTRED: dict[str, Any] = {"ha": "center", "va": "center", "parse_math": False}  # a label may have dollar signs
MOST_LABELS = 1000  # of an embedding map; more would hide each other, and take minutes to draw
MOST_TICKS = 12  # of one axis; more would touch


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, which belongs to no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: str) -> None:
    """Write a figure as a PNG or SVG file. Raises SettingsError where it cannot be written."""
    try:
        # The format by name: matplotlib, which sees no ending in ".svg" alone, would add one of its own.
        figure.savefig(path, dpi=150, format=path.rpartition(".")[2])
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot be written ({error})") from error


def to_image(figure: Figure) -> npt.NDArray[np.uint8]:
    """The pixels (height, width, 4) of a figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def label_images(labels: Sequence[str], size: int = 40) -> npt.NDArray[np.uint8]:
    """A small picture (3, size, size) of each of V labels, (V, 3, size, size): what the embedding projector shows."""
    from matplotlib.font_manager import findfont
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(findfont("DejaVu Sans"), size * 2 // 3)
    pictures = []
    for label in labels:
        picture = Image.new("RGB", (size, size), "white")
        draw = ImageDraw.Draw(picture)
        fitting = font.font_variant(size=int(font.size * min(1.0, size / draw.textlength(label, font))))
        draw.text((size / 2, size / 2), label, "black", fitting, anchor="mm")
        pictures.append(np.asarray(picture).transpose(2, 0, 1))
    return np.stack(pictures)


def draw_orders(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Dev loss, and contexts possible and seen, over the order of count models.

    `rows`: of each order `order`, `dev` (nats/token), `contexts_possible` and `contexts_seen`.
    """
    orders = [row["order"] for row in rows]
    figure = new_figure(9, 4)
    left, right = figure.subplots(1, 2)
    left.plot(orders, [row["dev"] for row in rows], "o-")
    left.set(xlabel="order", ylabel="dev loss, nats/token", title="Dev loss")
    right.plot(orders, [row["contexts_possible"] for row in rows], "o--", label="possible")
    right.plot(orders, [row["contexts_seen"] for row in rows], "o-", label="seen in train")
    right.set(xlabel="order", ylabel="contexts", yscale="log", title="Contexts")
    right.legend()
    for axes in (left, right):
        axes.set_xticks(orders)
        axes.grid(alpha=0.3)
    return figure


def draw_embeddings(table: FloatArray, labels: Sequence[str]) -> Figure:
    """An embedding map: every token where its embedding lies, of thousands of tokens the points alone.

    Two dimensions are drawn as they are. Of more, the two principal components that explain most of the variance,
    from a singular value decomposition of the centred table. One dimension is spread over the height of the picture.

    Args:
        table: The embedding table (V, E).
        labels: Visible names of the V tokens, the boundary first.
    """
    return draw_panels([partial(embedding_map, table=table, labels=labels)], side=panel_side(len(labels)))


def draw_panels(panels: Sequence[Callable[[Axes], None]], side: float) -> Figure:
    """One or several plots, two in a row, each `side` inches high and a little wider."""
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = new_figure(columns * side * 1.15, rows * side)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(grid, panels, strict=False):
        panel(axes)
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure


def panel_side(num_labels: int) -> float:
    """Inches of a plot in which so many labels can be told apart."""
    return min(max(8.0, 0.14 * num_labels), 11.0)


def embedding_map(axes: Axes, table: FloatArray, labels: Sequence[str]) -> None:
    """See `draw_embeddings`."""
    points, names = _in_the_plane(np.asarray(table, np.float64))
    size = 16 if len(labels) <= 60 else 11 if len(labels) <= 200 else 8
    groups = [_group(label, i) for i, label in enumerate(labels)]
    latin = {"vowel", "consonant"} & set(groups)
    for group, colour in GROUP_COLOURS.items():
        chosen = [i for i, name in enumerate(groups) if name == group]
        if chosen:
            name = "token" if group == "other" and not latin else group
            xs, ys = points[chosen].T
            axes.scatter(xs, ys, s=1.2 * size**2, color=colour, alpha=0.15, linewidths=0, label=name)
        for i in (
            chosen if len(labels) <= MOST_LABELS else ()
        ):  # the label is the mark; the pale disc behind it only catches the eye
            x, y = points[i]
            text = drawable(labels[i])
            axes.text(x, y, text, color=colour, size=size if len(text) == 1 else 0.6 * size, weight="bold", **CENTRED)
    legend = axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, markerscale=0.5)  # where it hides no label
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.set_title(f"Embeddings of {len(labels):,} tokens", loc="left")
    axes.margins(0.06)
    axes.grid(alpha=0.2)


def _in_the_plane(table: FloatArray) -> tuple[FloatArray, tuple[str, str]]:
    """Points (V, 2) for a table (V, E), and what their two axes are."""
    num_tokens, width = table.shape
    if width == 1:
        return np.column_stack([table[:, 0], np.arange(num_tokens)]), ("dimension 1", "token id (to tell labels apart)")
    if width == 2:
        return table, ("dimension 1", "dimension 2")
    left, sizes, _ = np.linalg.svd(table - table.mean(0), full_matrices=False)
    points = left[:, :2] * sizes[:2]
    points *= np.where(points[np.abs(points).argmax(0), [0, 1]] < 0, -1, 1)  # else the signs would be chance
    shares = sizes[:2] ** 2 / max((sizes**2).sum(), np.finfo(float).tiny)
    first, second = (f"principal component {i + 1} ({share:.1%} of the variance)" for i, share in enumerate(shares))
    return points, (first, second)


def _group(label: str, token_id: int) -> str:
    """What kind of token a label stands for; y counts as a consonant."""
    if token_id == 0:
        return "boundary"
    words = unicodedata.name(label, "").partition(" WITH ")[0].split() if len(label) == 1 and label.isalpha() else []
    if words[:1] != ["LATIN"]:
        return "other"
    letter = words[-1]  # of LATIN SMALL LETTER DOTLESS I, say
    return "vowel" if set(letter) <= set("AEIOU") or letter == "SCHWA" else "consonant"


def drawable(label: str) -> str:
    """`label`, or its code points where the font would only draw empty boxes."""
    known = _font_characters()
    return label if all(ord(c) in known for c in label) else " ".join(f"U+{ord(c):04X}" for c in label)


@cache
def _font_characters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def loss_curves(axes: Axes, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Train and dev loss over steps; `curves`: (step, nats/token) by name, those that there are."""
    for name, style in (("train/loss", "-"), ("dev/loss", "o-")):
        if points := curves.get(name):
            steps, losses = zip(*points, strict=True)
            axes.plot(steps, losses, style, markersize=4, label=name.partition("/")[0])
    title = "Loss"
    if points := curves.get("dev/loss"):
        step, lowest = min(points, key=lambda point: point[1])
        title += f": lowest dev loss {lowest:.4f} nats/token at step {step:,}"
    axes.set(xlabel="step", ylabel="nats/token")
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.3)
    axes.legend()


def next_token_map(axes: Axes, probs: FloatArray, labels: Sequence[str], note: str) -> None:
    """A heat map of P(next token | last token).

    Args:
        axes: Where to draw.
        probs: Probabilities (V, V), a row for each last token; NaN in rows that are not known.
        labels: Visible names of the V tokens.
        note: Over which contexts the rows are averaged.
    """
    from matplotlib.colors import PowerNorm

    # Squeezed, since most probabilities are small: 0.01 would look like 0.
    image = axes.imshow(probs, cmap="viridis", norm=PowerNorm(0.5, 0, float(np.nanmax(probs))), interpolation="nearest")
    axes.set_facecolor("0.85")  # what is not known shows it
    names = [drawable(label) for label in labels]
    size = 12 if len(names) <= 40 else 8 if len(names) <= 70 else 6
    turned = 90 if max(map(len, names)) > 3 else 0
    axes.set_xticks(range(len(names)), names, fontsize=size, rotation=turned, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)
    axes.set(xlabel="next token", ylabel="last token")
    axes.set_title(f"P(next token | last token)\n{note}", loc="left")
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


def draw_varied(key: str, series: Mapping[str, Sequence[tuple[float | str, Sequence[float]]]]) -> Figure:
    """Dev loss over the values of a setting: a run is a dot, and a line joins the means of a series.

    Args:
        key: The setting.
        series: By label, "" for none: values of the setting, numbers or words, and the dev losses (nats/token) of the
            runs with each.
    """
    values = list(dict.fromkeys(value for points in series.values() for value, _ in points))
    numbers = [value for value in values if not isinstance(value, str)]
    numeric = len(numbers) == len(values)  # a word among them makes categories of all, in their order
    place = dict(zip(values, numbers if numeric else range(len(values)), strict=True))
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    for label, points in series.items():
        dots = sorted((place[value], losses) for value, losses in points)
        means = [sum(losses) / len(losses) for _, losses in dots]
        (line,) = axes.plot([x for x, _ in dots], means, "-", label=label)
        runs = [(x, loss) for x, losses in dots for loss in losses]
        axes.plot(*zip(*runs, strict=True), "o", color=line.get_color(), alpha=0.6)
    axes.set(xlabel=key, ylabel="dev loss, nats/token", title="Dev loss of each run; lines join means")
    if numeric:
        _spread(axes, numbers)
    else:
        axes.set_xlim(-0.5, len(values) - 0.5)
    if not numeric or len(values) <= MOST_TICKS:
        axes.set_xticks([*place.values()], labels=[f"{v:g}" if isinstance(v, float) else str(v) for v in values])
        axes.minorticks_off()
    if any(series):
        axes.legend()
    axes.grid(alpha=0.3)
    return figure


def _spread(axes: Axes, values: Sequence[float]) -> None:
    """Make the x axis logarithmic where its `values` span a decade or more; zero keeps a place beside them."""
    positive = [value for value in values if value > 0]
    if positive and min(values) >= 0 and max(positive) >= 10 * min(positive):
        if len(positive) == len(values):
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=min(positive))


def draw_range_test(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], marks: Mapping[str, float]
) -> Figure:
    """Loss over the learning rate, of each step and smoothed, with a line at each rate of `marks`, by its name."""
    figure = new_figure(9, 5)
    axes = figure.subplots()
    axes.plot(rates, losses, ".", color="0.75", markersize=3, label="loss of each step")
    axes.plot(rates, smoothed, color="black", label="smoothed")
    for number, (name, rate) in enumerate(marks.items()):
        axes.axvline(rate, color=f"C{number}", linestyle="--", label=f"{name}: {rate:.2g}")
    # What lies far above the start, after blow-up, would leave no room for the valley.
    axes.set_ylim(min(losses) - 0.05 * smoothed[0], min(max(losses), 1.5 * smoothed[0]) + 0.05 * smoothed[0])
    axes.set(xscale="log", xlabel="learning rate", ylabel="train loss, nats/token", title="Learning-rate range test")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
