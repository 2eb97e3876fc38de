"""The learning-rate range test (Smith 2017, section 3.3): what the losses of a growing learning rate say. No torch.

The rate grows by the same factor from step to step. Of the steps that were planned, the test looks at the first S: up
to the first loss that is not finite, or to blow-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlp_lm.errors import TrainingError

Floats = npt.NDArray[np.float64]

WIDTH = 1 / 25  # standard deviation of the smoothing as a share of all steps: 0.2 decades where there are five
REACH = 3  # standard deviations beyond which a neighbour does not count
CEILING = 2.5  # a loss beyond so many times the first one is smoothed as that much
BLOW_UP = 2.0  # blown up is a smoothed loss of so many times its lowest value before
NOISE = 5.0  # standard errors of the smoothed loss that a fall or a rise must exceed, and
CHANGE = 1e-3  # the share of the loss at the start that it must, too
# Of the rate at the minimum, which on lecture.yaml is 0.15: fits at 0.15, 0.1, 0.075 reach dev 2.108, 2.100, 2.103.
DIVISOR = 1.5


@dataclass(frozen=True)
class RangeTest:
    """The curve and its marks, which are steps counted from 0."""

    rates: Floats  # (S,)
    losses: Floats  # (S,), nats/token
    smoothed: Floats  # (S,)
    steepest: int  # where the smoothed loss falls fastest
    minimum: int
    blow_up: int | None  # None where the loss stays low
    problem: str | None  # why there is no suggestion

    @property
    def suggestion(self) -> float | None:
        """The rate at the minimum divided by DIVISOR, where the minimum means something."""
        return None if self.problem else float(self.rates[self.minimum]) / DIVISOR


def exponential_rates(low: float, high: float, steps: int) -> Floats:
    """`steps` learning rates from `low` to `high`, each the same multiple of the one before."""
    return np.geomspace(low, high, steps)


def evaluate(rates: Floats, losses: Floats) -> RangeTest:
    """The marks of a range test. Raises TrainingError where the loss blows up too soon to have any.

    Args:
        rates: Of every step that was planned.
        losses: Of those that were taken; the ones that the test does not look at change nothing.
    """
    width, planned = smoothing_width(len(rates)), len(rates)
    tried = num_tried(losses, width)
    if tried <= _reach(width):
        where = f"at step {tried:,}, at a learning rate of {rates[tried]:.2g}"
        raise TrainingError(f"the loss has blown up or is no finite number {where}; lower --min")
    rates, losses = rates[:tried], losses[:tried]
    smoothed = smooth(losses, width)
    minimum = int(smoothed.argmin())
    blow_up = _first_beyond(smoothed)
    if blow_up is None and tried < planned:  # low, and at the next step no number
        blow_up = tried - 1
    steepest = int(np.diff(smoothed[: minimum + 1]).argmin()) if minimum else 0
    problem = _problem(losses, smoothed, minimum, blow_up is not None, width)
    return RangeTest(rates, losses, smoothed, steepest, minimum, blow_up, problem)


def smoothing_width(steps: int) -> float:
    """Standard deviation of the smoothing, in steps, for a test of `steps` steps."""
    return WIDTH * steps


def smooth(losses: Floats, width: float) -> Floats:
    """Weighted means (S,) of each loss and its neighbours on both sides, the weights a Gaussian over the steps.

    The usual running average looks back alone, which shifts the minimum towards higher rates. At either end, the
    weights of the neighbours that are there add up to 1. Without a ceiling, losses of millions would raise the curve
    long before blow-up.

    Args:
        losses: Of each step (S,), S > 0.
        width: Standard deviation of the Gaussian, in steps.
    """
    return _average(losses, width, ahead=_reach(width))


def num_tried(losses: Floats, width: float) -> int:
    """S: how many losses stand before the first that is not finite, or up to blow-up of the average that looks back."""
    finite = np.isfinite(losses)
    num_finite = len(losses) if finite.all() else int(finite.argmin())
    # Looking back alone, so that no further loss changes the answer: it must not depend on when the question is asked.
    blow_up = _first_beyond(_average(losses[:num_finite], width, ahead=0)) if num_finite else None
    return num_finite if blow_up is None else blow_up + 1


def two_digits(rate: float) -> str:
    """A learning rate rounded to two significant digits, in a notation that every YAML reader takes for a number."""
    return np.format_float_positional(rate, precision=2, unique=False, fractional=False, trim="-")


def _reach(width: float) -> int:
    return round(REACH * width)


def _average(losses: Floats, width: float, ahead: int) -> Floats:
    """See `smooth`; `ahead`: how many neighbours count on the right."""
    capped = np.minimum(losses, CEILING * losses[0])
    kernel = np.exp(-0.5 * (np.arange(-ahead, _reach(width) + 1) / width) ** 2)
    sums, weights = (np.convolve(values, kernel)[ahead:][: len(losses)] for values in (capped, np.ones_like(losses)))
    return np.asarray(sums / weights)


def _first_beyond(smoothed: Floats) -> int | None:
    """The first step that counts as blown up."""
    blown_up = smoothed > BLOW_UP * np.minimum.accumulate(smoothed)
    return int(blown_up.argmax()) if blown_up.any() else None


def _problem(losses: Floats, smoothed: Floats, minimum: int, blown_up: bool, width: float) -> str | None:
    """Why the minimum means nothing, or None: it must lie clearly below both ends of the curve."""
    deviation = (losses - smoothed)[: minimum + 1].std()
    standard_error = deviation / math.sqrt(2 * math.sqrt(math.pi) * width)  # so many losses make up a smoothed one
    first, lowest, last = smoothed[[0, minimum, -1]]
    clear = max(NOISE * standard_error, CHANGE * first)
    rises = blown_up or last - lowest > clear
    if first - lowest <= clear:
        return f"the loss never falls by more than its noise; {'lower --min' if rises else 'raise --max'}"
    return None if rises else "the loss does not rise again, so the minimum may lie further on; raise --max"
