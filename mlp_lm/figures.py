"""Arrays to figures. matplotlib is imported when the first is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlp_lm.errors import SettingsError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, which belongs to no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: str) -> None:
    """Write a figure as a PNG or SVG file. Raises SettingsError where it cannot be written."""
    try:
        figure.savefig(path, dpi=150)
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
    left.set(xlabel="order", ylabel="dev loss, nats/token", title="Dev loss")
    right.plot(orders, [row["contexts_possible"] for row in rows], "o--", label="possible")
    right.plot(orders, [row["contexts_seen"] for row in rows], "o-", label="seen in train")
    right.set(xlabel="order", ylabel="contexts", yscale="log", title="Contexts")
    right.legend()
    for axes in (left, right):
        axes.set_xticks(orders)
        axes.grid(alpha=0.3)
    return figure
