"""Numbers to pictures. matplotlib is imported when the first is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlp_lm.errors import SettingsError


def plot_orders(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Dev loss, and contexts possible and seen, over the order of count models, as a PNG or SVG file.

    Args:
        path: The file.
        rows: Of each order `order`, `dev` (nats/token), `contexts_possible` and `contexts_seen`.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError("plot: matplotlib is missing; install it with pip install 'mlp_lm[plot]'") from error
    orders = [row["order"] for row in rows]
    figure = Figure(figsize=(9, 4), layout="constrained")
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
    try:
        # The format by name: matplotlib, which sees no ending in ".svg" alone, would add one of its own.
        figure.savefig(path, dpi=150, format=path.rpartition(".")[2])
    except (OSError, ValueError) as error:
        raise SettingsError(f"plot: {path} cannot be written ({error})") from error
