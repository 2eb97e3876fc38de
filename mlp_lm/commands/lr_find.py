"""`python -m mlp_lm lr-find`: the learning-rate range test (Smith 2017, section 3.3).

A short fit from the config's own start weights whose learning rate grows by the same factor at each step, until the
loss blows up. The rate at the lowest smoothed loss is about the highest that the config can take.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from mlp_lm import runs
from mlp_lm.errors import SettingsError, TrainingError
from mlp_lm.figures import curves
from mlp_lm.files import write_csv
from mlp_lm.settings import Range
from mlp_lm.training import cli

Floats = npt.NDArray[np.float64]

OF_A_WHOLE_FIT = (
    r"model\.(learning_rate|lr_\w+)|data\.steps_per_execution|trainer\.(callbacks|default_root_dir|devices|"
    r"enable_\w+|limit_\w+|log_every_n_steps|logger|max_\w+|min_\w+|model_registry|num_nodes|plugins|strategy|"
    r"sync_batchnorm|val_check_interval)"
)
WIDTH = 1 / 25  # standard deviation of the smoothing as a share of all steps
BLOW_UP = 2.0  # the loss blows up when its running mean exceeds this multiple of its lowest value so far
CEILING = 1.5  # losses beyond this multiple of the first are smoothed as that much
# By optimizer: by how much the rate at the minimum is divided, to be the highest of a whole fit under the schedule of
# its config. Minimum in 300 steps, and dev losses of whole fits by their rate, around the best:
#   lecture.yaml       0.26    0.22 2.118, 0.15 2.108, 0.1 2.100, 0.075 2.103, 0.05 2.101
#   lecture_fast.yaml  0.021   0.03 2.102, 0.02 2.094, 0.014 2.095, 0.01 2.101
#   best.yaml          0.0037  0.0075 1.960, 0.0038 1.953, 0.002 1.949, 0.001 1.959 (unique, 9,000 steps, dropout 0.35)
#   names.yaml         0.0051  0.011 2.162, 0.008 2.163, 0.0056 2.167, 0.0042 2.168, 0.003 2.171
DIVISORS = {"sgd": 2.0, "adamw": 1.0}


@dataclass(frozen=True)
class RangeTest:
    """The curve of a range test of S steps, and the step of its minimum."""

    rates: Floats  # (S,)
    losses: Floats  # (S,), nats/token, each before its step
    smoothed: Floats  # (S,)
    minimum: int
    divisor: float

    @property
    def suggestion(self) -> float:
        """The rate at the minimum, divided."""
        return float(self.rates[self.minimum]) / self.divisor


def evaluate(rates: Sequence[float], losses: Sequence[float], width: float, divisor: float) -> RangeTest:
    """The minimum of the smoothed losses.

    Args:
        rates: Of all steps that were planned.
        losses: Of those that were taken; fewer if the loss blew up.
        width: Standard deviation of the smoothing, in steps.
        divisor: Of the rate at the minimum.

    Raises:
        TrainingError: The lowest loss is at an end of the curve, where it says little.
    """
    smoothed = smooth(np.asarray(losses), width)
    minimum = int(smoothed.argmin())
    if minimum < width:
        raise TrainingError(
            "no suggestion: the loss never falls; lower --min, or raise --max if it does not rise either"
        )
    if minimum >= len(losses) - width:
        raise TrainingError(
            "no suggestion: the loss does not rise again, so its minimum may lie further on; raise --max"
        )
    return RangeTest(np.asarray(rates[: len(losses)]), np.asarray(losses), smoothed, minimum, divisor)


def smooth(losses: Floats, width: float) -> Floats:
    """At each step the value (S,) of a line through the losses (S,) around it, with Gaussian weights over the steps.

    A running mean looks back alone, which shifts the minimum towards higher rates; a weighted mean of both sides leaves
    the points at both ends, where one side is missing (local linear regression; Fan 1992).
    """
    reach = round(3 * width)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / width) ** 2)
    capped = np.minimum(losses, CEILING * losses[0])  # else losses of millions would raise the curve long before

    def sums(values: Floats, power: int) -> Floats:
        """Of weight · (its step - this step)^power · value over all steps, at each step."""
        return np.convolve(values, kernel * (-offsets.astype(float)) ** power)[reach : reach + len(values)]

    ones = np.ones_like(capped)
    s0, s1, s2 = (sums(ones, power) for power in (0, 1, 2))
    s2 += 1e-9  # one step alone has no slope
    return np.asarray((s2 * sums(capped, 0) - s1 * sums(capped, 1)) / (s2 * s0 - s1**2))


class LossRecorder(Logger):
    """Keeps the loss of each step (there is a log point after every one), and ends training once it blows up."""

    name, version = "lr_find", None

    def __init__(self, trainer: Trainer, width: float) -> None:
        """`width`: of the running mean that tells whether the loss blows up, in steps."""
        super().__init__()
        self.trainer, self.width = trainer, width
        self.losses: list[float] = []
        self.mean = self.lowest = 0.0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep the loss of a step."""
        loss = metrics["train/loss"]
        if not self.losses:
            self.mean = self.lowest = loss
        self.losses.append(loss)
        self.mean += (loss - self.mean) / self.width
        self.lowest = min(self.lowest, self.mean)
        self.trainer.should_stop = self.mean > BLOW_UP * self.lowest

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Keep no settings."""


class LrFind(cli.CLI):
    """The range test of a config, its files and its suggestion."""

    def add_own_flags(self, parser: LightningArgumentParser) -> None:
        """The rates, and the folder of the results."""
        positive = Range(0, 1e35, above=True)
        parser.add_argument("--min", type=float, default=1e-4, help="Learning rate of the first step")
        parser.add_argument("--max", type=float, default=10.0, help="Learning rate of the last step")
        parser.add_argument("--steps", type=int, default=300, help="Steps from the first to the last")
        parser.add_argument(
            "--output_dir", type=str | None, help="Folder of the results (default: runs/<config name>/lr_find_N)"
        )
        super().add_own_flags(parser)
        self.allowed |= {"min": positive, "max": positive, "steps": Range(100, 100_000)}

    def ignores(self, name: str) -> bool:
        """Length, schedule and all that accompanies training play no part."""
        return re.fullmatch(OF_A_WHOLE_FIT, name) is not None

    def check_settings(self) -> None:
        """The rates as well."""
        super().check_settings()
        if self.options["min"] >= self.options["max"]:
            raise SettingsError(f"min must be below --max, {self.options['max']:g} (got {self.options['min']:g})")

    def before_instantiate_classes(self) -> None:
        """A log point after every step, and no callbacks: those of the config may need dev, or write files."""
        trainer = self.options["trainer"]
        trainer["max_steps"] = trainer["val_check_interval"] = self.options["steps"]
        trainer["log_every_n_steps"] = 1
        trainer["logger"], trainer["callbacks"] = False, None
        trainer["max_time"] = trainer["min_steps"] = None

    def after_instantiate_classes(self) -> None:
        """Refuse several processes before they start."""
        if self.trainer.world_size > 1:
            raise SettingsError("trainer.devices: lr-find takes one process; expected 1 on 1 node")
        super().after_instantiate_classes()

    def fit(self, **kwargs: Any) -> None:
        """Run the test, write its files, print minimum and suggestion."""
        steps = self.options["steps"]
        rates = np.geomspace(self.options["min"], self.options["max"], steps).tolist()
        recorder = LossRecorder(self.trainer, width=WIDTH * steps)
        self.trainer.loggers = [recorder]
        self.trainer.limit_val_batches = 0  # dev is not read
        self.trainer.set_threads(self.datamodule.hparams["batch_size"], self.model.network.count_weights())
        self.model.rates, self.model.hparams["lr_decay_steps"] = rates, steps
        try:
            self.trainer.fit(**kwargs)
        except TrainingError:  # NaN or infinite
            if not recorder.losses:
                raise
        optimizer = self.model.hparams["optimizer"]
        test = evaluate(rates, recorder.losses, recorder.width, DIVISORS[optimizer])
        folder = runs.output_folder(self.options["output_dir"], self.run_name(), "lr_find", "output_dir")
        write_files(test, folder)
        early = ", until the loss blew up" if len(test.losses) < steps else ""
        print(f"{self.datamodule.source}: {len(test.losses):,} of {steps:,} steps{early}")
        print(render(test, folder, optimizer))


def write_files(test: RangeTest, folder: Path) -> None:
    """Write lr_find.csv and lr_find.png."""
    rates, losses, smoothed = test.rates.tolist(), test.losses.tolist(), test.smoothed.tolist()
    rows = zip(range(len(rates)), rates, losses, smoothed, strict=True)
    write_csv(folder / "lr_find.csv", [("step", "rate", "loss", "smoothed"), *rows])
    marks = {"minimum": rates[test.minimum], "suggestion": test.suggestion}
    marks = marks if test.divisor != 1 else {"minimum and suggestion": test.suggestion}
    curves.save(curves.draw_range_test(rates, losses, smoothed, marks), str(folder / "lr_find.png"))


def render(test: RangeTest, folder: Path, optimizer: str) -> str:
    """Minimum, suggestion and files as text for the terminal."""
    lines = ["           learning rate  loss, nats/token, smoothed"]
    for name, step in {"start": 0, "minimum": test.minimum, "end": len(test.losses) - 1}.items():
        lines.append(f"  {name:<9}{two_digits(test.rates[step]):>13}{test.smoothed[step]:>10.4f}")
    rule = "the rate at the minimum" + (f" divided by {test.divisor:g}" if test.divisor != 1 else "")
    lines += [f"suggestion for {optimizer}: {rule}", "", "model:"]
    lines += [f"  learning_rate: {two_digits(test.suggestion)}", ""]
    return "\n".join([*lines, f"files: {folder / 'lr_find.csv'}, {folder / 'lr_find.png'}"])


def two_digits(rate: float) -> str:
    """A learning rate rounded to two significant digits, in a notation that every YAML reader takes for a number."""
    return np.format_float_positional(rate, precision=2, unique=False, fractional=False, trim="-")


def run(args: list[str], description: str) -> None:
    """Run the command; `args` starts with its name, `description` is for the help."""
    cli.run(LrFind, args, description, method="fit")
