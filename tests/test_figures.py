"""What figures show."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Annotation
from matplotlib.textpath import TextPath

from mlp_lm.figures import curves, networks
from mlp_lm.figures.labels import drawable, spread, width_in_ems

NOWHERE = "\U0010fffe"  # never to be assigned
NO_FONT = "\nU+…: no installed font has these characters; the Noto fonts have most"
ALPHABET = [".", "a", "b", "é", "ø", "y", "'.'", "1", "桜", "ə"]


def placed(figure: Figure) -> dict[str, tuple[float, float]]:
    """Which point each label names."""
    return {text.get_text(): text.xy for text in figure.axes[0].texts if isinstance(text, Annotation)}


def legend(axes: Axes) -> list[str]:
    """The texts of a legend."""
    found = axes.get_legend()
    assert found is not None
    return [text.get_text() for text in found.get_texts()]


@pytest.mark.parametrize(
    ("table", "places"),
    [
        ([[0, 1], [2, 3], [4, 5]], [(0, 1), (2, 3), (4, 5)]),
        ([[0], [0], [0]], [(0, 0), (0, 1), (0, 2)]),  # spread over the height
        ([[1, 1, 1]] * 3, [(0, 0), (0, 0), (0, 0)]),  # no variance
    ],
)
def test_every_token_is_drawn_at_the_place_of_its_embedding(
    table: list[list[float]], places: list[tuple[float, float]]
) -> None:
    figure = networks.draw_embeddings(np.array(table, np.float32), [".", "a", "b"])
    assert sorted(placed(figure).values()) == places


def test_more_dimensions_become_principal_components() -> None:
    table = np.array([[3.0, 0, 0, 5], [-3, 0, 0, 5], [0, 1, 0, 5], [0, -1, 0, 5]])  # variances 18 : 2
    figure = networks.draw_embeddings(table, [".", "a", "b", "c"])
    assert figure.axes[0].get_xlabel() == "principal component 1 (90.0% of the variance)"
    assert figure.axes[0].get_ylabel() == "principal component 2 (10.0% of the variance)"
    title = "Embeddings of 4 tokens\nthe two main directions of 4: 100% of the variance, the rest is not shown"
    assert figure.axes[0].get_title(loc="left") == title
    assert np.abs(placed(figure)["."]) == pytest.approx([3, 0], abs=1e-12)
    places = np.array([*placed(figure).values()])
    assert places.max(0) == pytest.approx([3, 1])  # the sign: what lies farthest out lies on the positive side


def test_kinds_of_tokens_are_coloured_and_named() -> None:
    figure = networks.draw_embeddings(np.eye(10), ALPHABET)
    colours = {text.get_text(): text.get_color() for text in figure.axes[0].texts}
    kinds = {"vowel": ["a", "é", "ø", "ə"], "consonant": ["b", "y"], "boundary": ["."], "other": ["'.'", "1"]}
    for kind, labels in kinds.items():
        assert {colours[label] for label in labels} == {networks.GROUP_COLOURS[kind]}
    assert {*legend(figure.axes[0])} == set(kinds)


@pytest.mark.parametrize(
    ("label", "text", "font"),
    [
        ("a", "a", "DejaVuSans"),
        ("ش", "ش", "DejaVuSans"),
        ("'.'", "'.'", "DejaVuSans"),
        ("\u0301", "\u25cc\u0301", "DejaVuSans"),  # a combining accent
        ("\U0001d49c", "\U0001d49c", ""),  # a script A, which DejaVu Sans lacks, but STIX or another font has
        (NOWHERE, "U+10FFFE", "DejaVuSans"),  # what no font has
        (f"a{NOWHERE}", "U+0061 U+10FFFE", "DejaVuSans"),
    ],
)
def test_a_label_is_drawn_with_a_font_that_has_it_or_named_by_code_points(label: str, text: str, font: str) -> None:
    shown, properties = drawable(label)
    file = Path(str(findfont(properties)))
    assert shown == text and {*map(ord, text)} <= {*get_font(file).get_charmap()} and file.name.startswith(font)


@pytest.mark.parametrize(("label", "note"), [(NOWHERE, NO_FONT), ("U+0041", ""), ("\u0301", "")])
def test_an_embedding_map_explains_code_points(label: str, note: str) -> None:
    figure = networks.draw_embeddings(np.eye(3)[:, :2], [".", "a", label])
    assert figure.axes[0].get_title(loc="left") == f"Embeddings of 3 tokens{note}"


def test_labels_part_along_the_shorter_way_and_no_farther_than_needed() -> None:
    places = [[0, 0], [4, 1], [20, 0], [20, 0]]  # of 5 x 3: the first two overlap by 1 x 2, the last two lie together
    sizes = np.tile([5.0, 3.0], (4, 1))
    expected = [[-0.5, 0], [4.5, 1], [20, -1.5], [20, 1.5]]
    np.testing.assert_allclose(spread(np.array(places), sizes), expected, atol=0.01)


@pytest.mark.parametrize("text", ["e", "the", "olivia", "multiplication"])
def test_the_estimated_width_of_a_label_is_a_little_more_than_its_real_one(text: str) -> None:
    bold = FontProperties(family="DejaVu Sans", weight="bold")
    real = TextPath((0, 0), text, size=1, prop=bold).get_extents().width
    assert real <= width_in_ems(text) <= 1.3 * real
    assert width_in_ems("桜") > 1  # a square of one em


def test_a_hundred_crowded_labels_end_apart() -> None:
    places = np.random.default_rng(1).normal(0, 60, (100, 2))
    sizes = np.tile([9.0, 11.0], (100, 1))
    apart = abs((found := spread(places, sizes))[:, None] - found)
    assert (apart[np.triu_indices(100, 1)] >= [8.999, 10.999]).any(-1).all()
    assert np.median(np.hypot(*(found - places).T)) < 9


def test_a_label_pushed_off_its_point_is_joined_to_it_by_a_line() -> None:
    figure = networks.draw_embeddings(np.zeros((5, 2)), [".", "a", "b", "c", "d"])
    joined = {text.get_text(): text.arrow_patch is not None for text in figure.axes[0].texts}  # type: ignore[attr-defined]
    assert joined == {".": True, "a": False, "b": False, "c": False, "d": True}  # side by side


def test_loss_curves_name_the_lowest_dev_loss_and_say_what_was_measured_how() -> None:
    axes = curves.new_figure(4, 4).subplots()
    losses = {"train/loss": [(5, 3.0)], "dev/loss": [(10, 2.5), (2000, 2.25), (3000, 2.5)]}
    curves.loss_curves(axes, losses, dropout=0.25)
    assert axes.get_title(loc="left") == "Loss: lowest dev loss 2.2500 nats/token at step 2,000"
    assert [np.asarray(line.get_xdata()).tolist() for line in axes.get_lines()] == [[5], [10, 2000, 3000]]
    assert [line.get_marker() for line in axes.get_lines()] == ["o", "o"]  # one point would not show as a line
    assert legend(axes) == [
        "train: mean over the steps since the last point, with dropout 0.25",
        "dev: all of dev after that step, without dropout",
    ]
    axes.clear()
    curves.loss_curves(axes, losses, dropout=0)
    assert not any("dropout" in text for text in legend(axes))


@pytest.mark.parametrize(
    ("losses", "title", "axis"),
    [
        ([[2.010], [2.014]], "Dev loss of each run, one run a point", (1.962, 2.062)),
        ([[2.010, 2.014], [2.012]], "Dev loss of each run; the line joins means", (1.962, 2.062)),
        ([[2.0], [3.0]], "Dev loss of each run, one run a point", (1.95, 3.05)),
    ],
)
def test_a_sweep_does_not_magnify_small_differences_and_speaks_of_means_where_there_are_some(
    losses: list[list[float]], title: str, axis: tuple[float, float]
) -> None:
    (axes,) = curves.draw_varied("data.context_size", {3: losses[0], 8: losses[1]}).axes
    assert axes.get_title() == title
    assert axes.get_ylim() == pytest.approx(axis)


@pytest.mark.parametrize(
    ("values", "axis", "scale", "ticks"),
    [
        ([2, 3, 4, 5], "choices", "linear", ["2", "3", "4", "5"]),
        ([0.001, 0.01, 0.1], "choices", "log", ["0.001", "0.01", "0.1"]),
        ([0.0, 1e-4, 1e-2], "choices", "symlog", ["0", "0.0001", "0.01"]),
        (["sgd", "adamw"], "choices", "linear", ["sgd", "adamw"]),
        (["null", 100, 1000], "choices", "linear", ["null", "100", "1000"]),
        ([64, 100], "log", "log", None),
        ([0.001, 0.9], "linear", "linear", None),
    ],
)
def test_the_axis_of_choices_follows_from_their_values_and_dots_of_a_range_are_not_joined(
    values: list[float | str], axis: Literal["choices", "linear", "log"], scale: str, ticks: list[str] | None
) -> None:
    (axes,) = curves.draw_varied("key", {value: [2.0, 2.5] for value in values}, axis).axes
    assert axes.get_xscale() == scale
    assert next(line.get_linestyle() for line in axes.get_lines()) == ("-" if axis == "choices" else "None")
    assert ticks is None or [label.get_text() for label in axes.get_xticklabels()] == ticks


def test_a_next_token_map_says_what_it_shows_and_what_is_unknown() -> None:
    figure = curves.new_figure(4, 4)
    axes = figure.subplots()
    networks.next_token_map(axes, np.array([[0.5, 0.5], [np.nan, np.nan]]), [".", NOWHERE], "over two items")
    assert axes.get_title(loc="left") == f"P(next token | last token)\nover two items{NO_FONT}"
    assert [label.get_text() for label in axes.get_yticklabels()] == [".", "U+10FFFE"]
    assert axes.get_ylabel() == "last token" and figure.axes[1].get_ylabel() == "probability (grey: unknown)"


def test_activation_histograms_give_the_saturated_share_of_each_layer() -> None:
    axes = curves.new_figure(4, 4).subplots()
    networks.activation_histograms(axes, [(np.ones(4) / 4, 0.125), (np.ones(4) / 4, 0.5)], 0.97, "over dev")
    assert legend(axes) == ["layer 1: 12.5% saturated", "layer 2: 50.0% saturated"]


def test_a_range_test_names_its_marks_and_leaves_out_losses_far_above() -> None:
    rates, losses = [0.001, 0.01, 0.1, 1.0], [3.0, 2.5, 2.0, 1e9]
    (axes,) = curves.draw_range_test(rates, losses, losses, {"minimum": 0.1, "blow-up": 1.0}).axes
    assert legend(axes) == ["loss of each step", "smoothed", "minimum: 0.1", "blow-up: 1"]
    marked = [float(np.asarray(line.get_xdata())[0]) for line in axes.get_lines()[2:]]
    assert marked == [0.1, 1.0]
    assert axes.get_xscale() == "log"
    low, high = axes.get_ylim()
    assert low < 2.0 and 3.0 < high < 6.0
