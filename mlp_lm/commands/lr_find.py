"""`python -m mlp_lm lr-find`: the learning-rate range test (Smith 2017, section 3.3).

A short fit from the config's own start weights whose learning rate grows by the same factor at each step, until the
loss blows up. The rate at the lowest smoothed loss is about the highest that the config can take.
"""

from __future__ import annotations

import re
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
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
from mlp_lm.parsing import flag_values
from mlp_lm.settings import Range
from mlp_lm.training.cli import CLI, build, lightning_session
from mlp_lm.training.datamodule import TextDataModule

Floats = npt.NDArray[np.float64]

IGNORED_SETTINGS = (  # of a whole fit
    r"model\.(learning_rate|lr_\w+)|data\.steps_per_execution|trainer\.(callbacks|default_root_dir|"
    r"enable_\w+|limit_\w+|log_every_n_steps|logger|max_\w+|min_\w+|model_registry|num_sanity_val_steps|"
    r"overfit_batches|plugins|sync_batchnorm|(check_)?val_\w+|fast_dev_run|inference_mode)(\..*)?|report_test"
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
        rates: Learning rates of all planned steps.
        losses: Losses of the steps taken; fewer if the loss blew up.
        width: Standard deviation of the smoothing, in steps.
        divisor: What the rate at the minimum is divided by.

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

    A running mean only looks back, which shifts the minimum towards higher rates; a weighted mean of both sides leaves
    the points at both ends, where one side is missing (local linear regression; Fan 1992).
    """
    reach = round(3 * width)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / width) ** 2)
    capped = np.minimum(losses, CEILING * losses[0])  # else losses of millions would raise the curve long before

    def sums(values: Floats, power: int) -> Floats:
        """Sums over all steps of weight · (its step - this step)^power · value, at each step."""
        return np.convolve(values, kernel * (-offsets.astype(float)) ** power)[reach : reach + len(values)]

    ones = np.ones_like(capped)
    s0, s1, s2 = (sums(ones, power) for power in (0, 1, 2))
    s2 += 1e-9  # a single step has no slope
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


def add_flags(parser: LightningArgumentParser) -> Mapping[str, Range]:
    """Add the rates and the folder of the results."""
    parser.add_argument("--min", type=float, default=1e-4, help="Learning rate of the first step")
    parser.add_argument("--max", type=float, default=10.0, help="Learning rate of the last step")
    parser.add_argument("--steps", type=int, default=300, help="Steps from the first to the last")
    folder = "Folder of the results (default: runs/<config name>/lr_find_N)"
    parser.add_argument("--output_dir", type=str | None, help=folder)
    parser.add_argument("--report_test", type=bool, default=True, help=SUPPRESS)  # in the config.yaml of a run
    positive = Range(0, 1e35, above=True)
    return {"min": positive, "max": positive, "steps": Range(100, 100_000)}


def has_effect(name: str) -> bool:
    """Whether a setting makes a difference to the range test: its length, schedule and output are its own."""
    return re.fullmatch(IGNORED_SETTINGS, name) is None


def run(args: list[str], description: str) -> None:
    """Run the test, write its files, print minimum and suggestion."""
    with lightning_session():
        cli = CLI("lr-find", args[1:], description=description, add_flags=add_flags, has_effect=has_effect)
        low, high, steps = cli.config.min, cli.config.max, cli.config.steps
        if low >= high:
            raise SettingsError(f"min must be below --max, {high:g} (got {low:g})")
        test, data = range_test(cli, np.geomspace(low, high, steps).tolist())
        configs = flag_values(cli.args, "--config")
        name = runs.run_name(configs[0] if configs else "", cli.config.data.path)
        folder = runs.output_folder(cli.config.output_dir, name, "lr_find", "output_dir")
        write_files(test, folder)
        early = ", until the loss blew up" if len(test.losses) < steps else ""
        print(f"{data.source}: {len(test.losses):,} of {steps:,} steps{early}")
        print(render(test, folder, cli.config.model.optimizer))


def range_test(cli: CLI, rates: Sequence[float]) -> tuple[RangeTest, TextDataModule]:
    """Train one step at each of the rates, until the loss blows up."""
    config = cli.config
    config.data.steps_per_execution = 1
    # No callbacks: those of a config may need dev, or write files.
    for name in ("logger", "callbacks", "max_epochs", "max_time", "min_steps", "min_epochs", "val_check_interval"):
        config.trainer[name] = None
    length = {"max_steps": len(rates), "log_every_n_steps": 1, "logger": False, "limit_val_batches": 0}  # no dev
    trainer, module, data = build(cli, lambda data: length)
    if trainer.world_size > 1:
        raise SettingsError("trainer.devices: lr-find takes one process; expected 1 on 1 node")
    recorder = LossRecorder(trainer, width=WIDTH * len(rates))
    trainer.loggers = [recorder]
    trainer.set_threads(data.hparams["batch_size"], module.network.count_weights())
    module.lr_override = lambda step: rates[min(step, len(rates) - 1)]  # the scheduler asks for one more
    try:
        trainer.fit(module, data)
    except TrainingError:  # NaN or infinite
        if not recorder.losses:
            raise
    return evaluate(rates, recorder.losses, recorder.width, DIVISORS[config.model.optimizer]), data


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
