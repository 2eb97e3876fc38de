"""Empty figures, and what becomes of full ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlp_lm.errors import SettingsError
from mlp_lm.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, which belongs to no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: str) -> None:
    """Write a figure as a PNG or SVG file. Raises SettingsError where it cannot be written."""
    try:
        # The format by name: matplotlib, which sees no ending in ".svg" alone, would add one of its own.
        write_atomically(path, lambda file: figure.savefig(file, dpi=150, format=path.rpartition(".")[2]))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot be written ({error})") from error


def to_image(figure: Figure) -> npt.NDArray[np.uint8]:
    """The pixels (height, width, 4) of a figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


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
