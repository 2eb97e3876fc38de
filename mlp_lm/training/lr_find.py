"""`python -m mlp_lm lr-find`: a short fit whose learning rate grows until the loss blows up."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LightningArgumentParser
from torch.utils.tensorboard import SummaryWriter

from mlp_lm.errors import SettingsError, TrainingError
from mlp_lm.figures import curves
from mlp_lm.files import write_csv
from mlp_lm.parsing import configs_first, flag_values
from mlp_lm.training import runs
from mlp_lm.training.datamodule import TextDataModule
from mlp_lm.training.interrupt import sigterm_reported
from mlp_lm.training.lightning_cli import CLI
from mlp_lm.training.module import MLPModule
from mlp_lm.training.quiet import silence
from mlp_lm.training.range_test import (
    DIVISOR,
    Floats,
    RangeTest,
    evaluate,
    exponential_rates,
    num_tried,
    smoothing_width,
    two_digits,
)
from mlp_lm.training.trainer import Trainer

OF_FIT = ("--ckpt_path", "--run_dir", "--report_test")  # flags of fit, which the config.yaml of a run holds too


class RangeTestModule(MLPModule):
    """Trains as `MLPModule` does, but at given learning rates, and no longer than until the loss has blown up."""

    rates: list[float]  # of each step
    _looked_at = 0  # losses

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.rates[step]

    def losses(self) -> Floats:
        """The mean loss of each step so far, before the step."""
        return torch.cat(self._losses).double().numpy()

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop where the loss has blown up."""
        step, width = self.global_step, smoothing_width(len(self.rates))
        if step - self._looked_at >= width:  # a look takes time, and a later one sees the same
            self._looked_at = step
            self.trainer.should_stop = num_tried(self.losses(), width) < step


class RangeTestTrainer(Trainer):
    """A Trainer with the method that LightningCLI makes a command of."""

    def lr_find(
        self,
        model: RangeTestModule,
        datamodule: TextDataModule,
        min: float = 1e-4,
        max: float = 10.0,
        steps: int = 1000,
    ) -> RangeTest:
        """Train from the start weights while the learning rate grows, until the loss blows up.

        Args:
            model: Module with its start weights; it is trained in place.
            datamodule: Its data.
            min: Learning rate of the first step.
            max: Learning rate of the last step.
            steps: Steps from the first to the last; the learning rate grows by the same factor at each.
        """
        rates = exponential_rates(min, max, steps)
        model.rates = rates.tolist()
        self.limit_val_batches = 0  # dev is not read
        self.fit(model, datamodule=datamodule)
        return evaluate(rates, model.losses())


class LrFindCLI(CLI):
    """The command: the range test of a config, its files and its suggestion."""

    module_class = RangeTestModule
    trainer_class = RangeTestTrainer
    other_settings = ("seed_everything", "min", "max", "steps")
    needs_one_process: Mapping[str, str] = {"lr_find": "lr-find"}
    trainer: RangeTestTrainer

    def __init__(self, args: list[str]) -> None:
        """Parse `args`, the command's name first, and run it."""
        for flag in OF_FIT:
            if flag_values(args, flag):
                instead = "name a folder with --output_dir" if flag == "--run_dir" else "leave it out"
                raise SettingsError(f"{flag}: goes with fit; lr-find starts from new weights and keeps none; {instead}")
        super().__init__(args)

    # -- parsing -------------------------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The method of `RangeTestTrainer`, and its arguments that are no flags."""
        return {self.command: {"model", "datamodule"}}

    def add_own_flags(self, parser: LightningArgumentParser) -> None:
        """The folder of the results; and, out of sight, what the config.yaml of a run holds."""
        parser.add_argument(
            "--output_dir", type=str | None, help="Folder of the results (default: runs/<config name>/lr_find_N)"
        )
        for flag in OF_FIT:
            parser.add_argument(flag, type=Any, help=argparse.SUPPRESS)

    def before_instantiate_classes(self) -> None:
        """Make the steps of the test those of the trainer, where nothing but K shortens a chunk."""
        config = self.config[self.command]
        config["trainer"]["max_steps"] = config["trainer"]["val_check_interval"] = config["steps"]
        config["trainer"]["log_every_n_steps"] = config["steps"] + 1  # never: the module forgets what it has logged
        config["model"]["cuda_graph"] = False  # it pays where learning rates come back

    # -- running -------------------------------------------------------------------------------------------------

    def lr_find(self, **kwargs: Any) -> None:
        """Run the test, write its files, print marks and suggestion."""
        self.trainer.set_threads(self.datamodule.settings["batch_size"], self.model.network.count_weights())
        config = self.config[self.command]
        folder = self._folder(config["output_dir"])
        try:
            test = self.trainer.lr_find(**kwargs)
        except BaseException:  # Ctrl-C, too, leaves no empty folder behind
            folder.rmdir()
            raise
        write_files(test, folder, with_events=config["trainer"]["logger"])
        print(f"{self.datamodule.source}: {len(test.rates):,} of {config['steps']:,} steps")
        print(render(test, folder))
        if test.problem:
            raise TrainingError(f"no suggestion: {test.problem}")

    def _folder(self, chosen: str | None) -> Path:
        if chosen is not None:
            return runs.empty_folder(chosen, "output_dir")
        return runs.new_folder(self.run_name(), "lr_find", "output_dir")


def write_files(test: RangeTest, folder: Path, with_events: bool) -> None:
    """Write lr_find.csv, lr_find.png and, if asked for, TensorBoard events."""
    rates, losses, smoothed = test.rates.tolist(), test.losses.tolist(), test.smoothed.tolist()
    rows = list(zip(range(len(rates)), rates, losses, smoothed, strict=True))
    write_csv(folder / "lr_find.csv", [("step", "rate", "loss", "smoothed"), *rows])
    figure = curves.draw_range_test(rates, losses, smoothed, _marked_rates(test))
    curves.save(figure, str(folder / "lr_find.png"))
    if with_events:
        with SummaryWriter(str(folder)) as events:
            for step, *values in rows:
                for name, value in zip(("lr", "loss", "smoothed"), values, strict=True):
                    events.add_scalar(f"lr_find/{name}", value, step)


def render(test: RangeTest, folder: Path) -> str:
    """Marks, suggestion and files as text for the terminal."""
    lines = ["                  learning rate  loss, nats/token, smoothed"]
    steps = {"start": 0, "steepest descent": test.steepest, "minimum": test.minimum, "blow-up": test.blow_up}
    for name, step in steps.items():
        if step is not None:
            lines.append(f"  {name:<16}{two_digits(test.rates[step]):>15}{test.smoothed[step]:>10.4f}")
    if test.suggestion is not None:
        rate = two_digits(test.suggestion)
        lines += [f"suggestion, the minimum divided by {DIVISOR:g}:", "", "model:", f"  learning_rate: {rate}", ""]
    lines += [f"files: {folder / 'lr_find.csv'}, {folder / 'lr_find.png'}", "next:"]
    return "\n".join([*lines, f"  tensorboard --logdir {shlex.quote(str(folder))}"])


def _marked_rates(test: RangeTest) -> dict[str, float]:
    rates = {"steepest descent": float(test.rates[test.steepest]), "minimum": float(test.rates[test.minimum])}
    if test.blow_up is not None:
        rates["blow-up"] = float(test.rates[test.blow_up])
    if test.suggestion is not None:
        rates["suggestion"] = test.suggestion
    return rates


def run(args: list[str]) -> None:
    """Run the command; `args` starts with its name as typed."""
    silence()
    with sigterm_reported():
        LrFindCLI(["lr_find", *configs_first(args[1:])])
