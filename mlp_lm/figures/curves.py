"""Losses over orders, steps, settings and learning rates; new and saved figures. matplotlib is imported on use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mlp_lm.errors import SettingsError
from mlp_lm.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_TICKS = 12  # of one axis; more would touch
MIN_SPAN = 0.1  # nats/token, of a sweep's axis: what two seeds differ by should look small


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; `width` and `height` in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: str) -> None:
    """Write a figure as a PNG or SVG file. Raises SettingsError if it cannot be written."""
    try:
        # The format is explicit because matplotlib sees an open file, not its name.
        write_atomically(path, lambda file: figure.savefig(file, dpi=150, format=path.rpartition(".")[2]))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot be written ({error})") from error


def draw_orders(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Dev loss, and contexts possible and seen, over the order of count models.

    `rows`: of each order `order`, `dev` (nats/token), `contexts_possible` and `contexts_seen`.
    """
    orders = [row["order"] for row in rows]
    figure = new_figure(9, 4)
    left, right = figure.subplots(1, 2)
    left.plot(orders, [row["dev"] for row in rows], "o-")
    left.set(xlabel="order (previous tokens + 1)", ylabel="loss on all of dev, nats/token", title="Dev loss")
    right.plot(orders, [row["contexts_possible"] for row in rows], "o--", label="possible")
    right.plot(orders, [row["contexts_seen"] for row in rows], "o-", label="seen in train")
    right.set(xlabel="order (previous tokens + 1)", ylabel="distinct contexts", yscale="log", title="Contexts")
    right.legend()
    for axes in (left, right):
        axes.set_xticks(orders)
        axes.grid(alpha=0.3)
    return figure


def loss_curves(axes: Axes, curves: Mapping[str, Sequence[tuple[int, float]]], dropout: float) -> None:
    """Train and dev loss over steps; `curves`: (step, nats/token) by name; `dropout`: of the network in training."""
    with_dropout = f", with dropout {dropout:g}" if dropout else ""
    meaning = {
        "train/loss": f"train: mean over the steps since the last point{with_dropout}",
        "dev/loss": f"dev: all of dev after that step{', without dropout' if dropout else ''}",
    }
    for name, style in (("train/loss", "-"), ("dev/loss", "o-")):
        if points := curves.get(name):
            steps, losses = zip(*points, strict=True)
            style = style if len(points) > 1 else "o"  # one point is no line
            axes.plot(steps, losses, style, markersize=4, label=meaning[name])
    title = "Loss"
    if points := curves.get("dev/loss"):
        step, lowest = min(points, key=lambda point: point[1])
        title += f": lowest dev loss {lowest:.4f} nats/token at step {step:,}"
    axes.set(xlabel="step", ylabel="loss, nats/token")
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.3)
    axes.legend()


def draw_varied(
    key: str,
    losses: Mapping[float | str, Sequence[float]],
    axis: Literal["choices", "linear", "log"] = "choices",
) -> Figure:
    """Dev loss over the values of a setting: a run is a dot, and for choices, a line joins the means.

    Args:
        key: The setting.
        losses: By its values, numbers or words, the dev losses (nats/token) of the runs.
        axis: That of choices follows from the values; those of a range are linear or log.
    """
    numbers = [value for value in losses if not isinstance(value, str)]
    numeric = len(numbers) == len(losses)  # if one is a word, all are categories
    places = dict(zip(losses, numbers if numeric else range(len(losses)), strict=True))
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    means = sorted((places[value], sum(several) / len(several)) for value, several in losses.items())
    axes.plot(*zip(*means, strict=True), linestyle="-" if axis == "choices" else "none")
    runs = [(places[value], loss) for value, several in losses.items() for loss in several]
    axes.plot(*zip(*runs, strict=True), "o", color="C0", alpha=0.6)
    joined = "; the line joins means" if axis == "choices" else ""
    title = "Dev loss of each run" + (joined if len(runs) > len(losses) else ", one run a point")
    axes.set(xlabel=key, ylabel="lowest loss on all of dev, nats/token", title=title)
    low, high = axes.get_ylim()
    if (missing := MIN_SPAN - (high - low)) > 0:
        axes.set_ylim(low - missing / 2, high + missing / 2)
    positive = [number for number in numbers if number > 0]
    if axis != "choices":
        axes.set_xscale(axis)
    elif not numeric:
        axes.set_xlim(-0.5, len(losses) - 0.5)
    elif positive and min(numbers) >= 0 and max(positive) >= 10 * min(positive):  # logarithmic over a decade or more
        if min(numbers) > 0:
            axes.set_xscale("log")
        else:  # which has a place for zero
            axes.set_xscale("symlog", linthresh=min(positive))
    if axis == "choices" and (not numeric or len(losses) <= MAX_TICKS):
        axes.set_xticks([*places.values()], labels=[f"{v:g}" if isinstance(v, float) else str(v) for v in losses])
        axes.minorticks_off()
    axes.grid(alpha=0.3)
    return figure


def draw_range_test(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], marks: Mapping[str, float]
) -> Figure:
    """Loss (nats/token) over the learning rate, of each step and smoothed; `marks`: rates to mark, by name."""
    figure = new_figure(9, 5)
    axes = figure.subplots()
    axes.plot(rates, losses, ".", color="0.75", markersize=3, label="loss of each step")
    axes.plot(rates, smoothed, color="black", label="smoothed")
    for number, (name, rate) in enumerate(marks.items()):
        axes.axvline(rate, color=f"C{number}", linestyle="--", label=f"{name}: {rate:.2g}")
    # Losses far above the first one, after blow-up, would leave no room for the valley.
    axes.set_ylim(min(losses) - 0.05 * smoothed[0], min(max(losses), 1.5 * smoothed[0]) + 0.05 * smoothed[0])
    axes.set(xscale="log", xlabel="learning rate", ylabel="train loss, nats/token", title="Learning-rate range test")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
