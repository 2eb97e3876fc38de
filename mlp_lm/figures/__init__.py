"""Arrays to figures. matplotlib is imported when the first is drawn."""

from __future__ import annotations

from mlp_lm.figures.canvas import draw_panels, new_figure, save, to_image
from mlp_lm.figures.curves import draw_orders, draw_range_test, draw_varied, loss_curves
from mlp_lm.figures.networks import (
    GROUP_COLOURS,
    activation_histograms,
    draw_embeddings,
    drawable,
    embedding_map,
    label_images,
    next_token_map,
    panel_side,
)

__all__ = [
    "GROUP_COLOURS",
    "activation_histograms",
    "draw_embeddings",
    "draw_orders",
    "draw_panels",
    "draw_range_test",
    "draw_varied",
    "drawable",
    "embedding_map",
    "label_images",
    "loss_curves",
    "new_figure",
    "next_token_map",
    "panel_side",
    "save",
    "to_image",
]
