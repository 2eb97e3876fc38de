"""What a range test makes of losses: smoothing, marks, and when to suggest nothing."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from mlp_lm.errors import TrainingError
from mlp_lm.training.range_test import (
    BLOW_UP,
    DIVISOR,
    Floats,
    evaluate,
    exponential_rates,
    num_tried,
    smooth,
    smoothing_width,
    two_digits,
)

STEPS = 1000
RATES = exponential_rates(1e-4, 10, STEPS)


def through(*points: tuple[int, float], noise: float = 0.02) -> Floats:
    """Losses of STEPS steps on straight lines between points (step, loss), with noise from a seed."""
    steps, losses = zip(*points, strict=True)
    line = np.interp(np.arange(STEPS), steps, losses)
    return np.asarray(line + noise * np.random.default_rng(1).standard_normal(STEPS))


def test_the_rate_grows_by_the_same_factor() -> None:
    assert exponential_rates(0.001, 10, 5) == pytest.approx([0.001, 0.01, 0.1, 1, 10])


# -- smoothing ---------------------------------------------------------------------------------------------------


def test_one_loss_spreads_to_both_sides_like_a_gaussian() -> None:
    losses = np.ones(101)
    losses[50] = 2.0
    smoothed = smooth(losses, 4.0) - 1
    assert smoothed.argmax() == 50 and smoothed == pytest.approx(smoothed[::-1])
    assert smoothed[[54, 58]] / smoothed[50] == pytest.approx([np.exp(-0.5), np.exp(-2)])
    assert smoothed.sum() == pytest.approx(1)
    assert (smoothed > 1e-9).sum() == 25  # three widths on either side


@pytest.mark.parametrize("num_losses", [1, 5, 100])  # fewer than the weights, too
def test_what_is_constant_stays_so_at_both_ends(num_losses: int) -> None:
    assert smooth(np.full(num_losses, 2.5), 4.0) == pytest.approx(np.full(num_losses, 2.5))


def test_a_valley_stays_where_it_is() -> None:
    assert smooth(through((0, 3.0), (600, 1.0), (999, 2.33), noise=0), 20.0).argmin() == 600


def test_huge_losses_do_not_reach_far_back() -> None:
    losses = through((0, 3.0), (999, 2.0), noise=0)
    losses[600:] = 1e30
    smoothed = smooth(losses, 20.0)
    assert smoothed[560] == pytest.approx(losses[560], abs=0.5)  # two widths before


# -- marks -------------------------------------------------------------------------------------------------------


def test_the_marks_of_a_curve_that_falls_and_blows_up() -> None:
    test = evaluate(RATES, through((0, 3.3), (300, 3.2), (400, 2.6), (600, 2.2), (700, 2.4), (800, 20.0), (999, 90.0)))
    assert 300 < test.steepest < 400
    assert 580 < test.minimum < 620
    assert test.blow_up is not None and 700 < test.blow_up < 750
    assert test.smoothed[test.blow_up - 1] <= BLOW_UP * test.smoothed[test.minimum] < test.smoothed[test.blow_up]
    assert test.problem is None
    assert test.suggestion == pytest.approx(RATES[test.minimum] / DIVISOR)


def test_a_fall_after_the_minimum_is_not_the_steepest_descent() -> None:
    test = evaluate(RATES, through((0, 3.3), (400, 2.8), (600, 2.2), (700, 4.0), (740, 2.4), (999, 3.0)))
    assert test.steepest < test.minimum < 620


def test_what_comes_after_blow_up_changes_nothing() -> None:
    losses = through((0, 3.3), (300, 2.2), (400, 20.0), (999, 20.0))
    tried = num_tried(losses, smoothing_width(STEPS))
    assert 300 < tried < 450
    whole = evaluate(RATES, losses)
    for cut in (losses[:tried], np.append(losses[:tried], [np.nan, 0.0, np.inf])):
        other = evaluate(RATES, cut)
        assert np.array_equal(other.smoothed, whole.smoothed)
        assert (other.steepest, other.minimum, other.blow_up) == (whole.steepest, whole.minimum, whole.blow_up)


def test_a_loss_that_suddenly_is_no_number_has_blown_up_there() -> None:
    losses = through((0, 3.3), (600, 2.2), (999, 2.0))
    losses[700:] = np.nan
    test = evaluate(RATES, losses)
    assert (len(test.losses), test.blow_up, test.problem) == (700, 699, None)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (through((0, 3.3), (999, 3.3)), "never falls by more than its noise; raise --max"),
        (through((0, 3.3), (999, 3.3), noise=0), "never falls by more than its noise; raise --max"),
        (through((0, 3.3), (500, 9.0), (999, 9.0)), "never falls by more than its noise; lower --min"),
        (through((0, 3.3), (999, 4.5)), "never falls by more than its noise; lower --min"),
        (through((0, 3.3), (999, 2.5)), "does not rise again, so the minimum may lie further on; raise --max"),
    ],
)
def test_a_curve_without_a_valley_suggests_nothing(losses: Floats, expected: str) -> None:
    test = evaluate(RATES, losses)
    assert test.suggestion is None and test.problem is not None and expected in test.problem


@pytest.mark.parametrize("finite", [1, 60])
@pytest.mark.parametrize("high", [np.nan, np.inf, 90.0])
def test_losses_that_blow_up_from_the_start(finite: int, high: float) -> None:
    losses = through((0, 3.3), (999, 2.5))
    losses[finite:] = high
    with pytest.raises(TrainingError, match=r"blown up or is no finite number at step .* learning rate of .*--min"):
        evaluate(RATES, losses)


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_never_taken_for_a_valley(seed: int) -> None:
    losses = 3.3 + 0.15 * np.random.default_rng(seed).standard_normal(STEPS)
    assert evaluate(RATES, losses).problem is not None


@pytest.mark.parametrize(
    ("rate", "text"), [(0.0998, "0.1"), (0.0731, "0.073"), (5.04e-5, "0.00005"), (12.34, "12"), (123.4, "120")]
)
def test_a_suggestion_has_two_digits_and_is_a_number_in_yaml(rate: float, text: str) -> None:
    assert two_digits(rate) == text
    assert yaml.safe_load(text) == pytest.approx(rate, rel=0.05)


def test_start_weights_whose_loss_is_no_number() -> None:
    with pytest.raises(TrainingError, match=r"at step 0, at a learning rate of 0\.0001"):
        evaluate(RATES, np.full(3, np.nan))
