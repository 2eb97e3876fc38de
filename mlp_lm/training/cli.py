"""Commands on LightningCLI: parse the settings, check them, build trainer, module and data from them."""

from __future__ import annotations

import logging
import re
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mlp_lm.errors import Interrupted, SettingsError
from mlp_lm.parsing import OneLineErrors, check_config_file, configs_first, flag_values
from mlp_lm.settings import SEED, Range, Settings, check, ranges, refuse
from mlp_lm.text.corpus import CorpusSettings
from mlp_lm.training.datamodule import TextDataModule
from mlp_lm.training.module import MLPModule, conflicts
from mlp_lm.training.resuming import flatten
from mlp_lm.training.trainer import UNSUPPORTED_ARGUMENTS, Trainer, report_lost_process

LECTURE = {  # its words, and those of other code that followed it
    "block_size": "data.context_size",
    "n_embd": "model.embedding_dim",
    "n_hidden": "model.hidden_dim",
    "lr": "model.learning_rate",
    "epochs": "trainer.max_epochs",
}
SECTIONS = {"data": (TextDataModule, CorpusSettings), "model": (MLPModule,), "trainer": (Trainer,)}
set_parsing_settings(config_read_mode_fsspec_enabled=False)  # Lightning lets a setting be the URL of more settings


def section_ranges() -> dict[str, Range]:
    """The ranges of all settings of a config, by name: `model.dropout`, …"""
    return {n: r for section, owners in SECTIONS.items() for owner in owners for n, r in ranges(owner, section).items()}


def add_seed(parser: ArgumentParser) -> None:
    """The seed of a run."""
    parser.add_argument("--seed_everything", type=int, default=42, help="Seed of weights, examples and samples")


def add_fit_flags(parser: ArgumentParser) -> None:
    """Add the flags that only `fit` has."""
    parser.add_argument("--run_dir", type=str | None, help="Folder of the run (default: runs/<config name>/version_N)")
    parser.add_argument(
        "--report_test", type=bool, default=True, help="Report the test loss too; false leaves test unread"
    )


class Parser(OneLineErrors, LightningArgumentParser):
    """LightningCLI's parser with our one-line errors."""

    reasons = UNSUPPORTED_ARGUMENTS | {word: f"did you mean --{ours}?" for word, ours in LECTURE.items()}


class CLI(LightningCLI):
    """LightningCLI that parses the settings of trainer, module and data, and leaves it to `build` to make them."""

    def __init__(
        self,
        command: str,
        args: list[str],
        *,
        description: str = "",
        add_flags: Callable[[LightningArgumentParser], Mapping[str, Range]] = lambda parser: {},
        has_effect: Callable[[str], bool] = lambda name: True,
        base: Settings | None = None,
    ) -> None:
        """Parse a command line.

        Args:
            command: Its name, for messages.
            args: Its arguments.
            description: For the help.
            add_flags: Adds the flags of this command; returns the ranges of their values.
            has_effect: Whether a setting makes a difference to this command; the help leaves out the others, and as
                flags they are refused.
            base: Settings of a checkpoint, nested as in a config, which configs and flags override.

        Raises:
            SettingsError: Arguments or settings are invalid.
        """
        self.command, self.args = command, configs_first(args)
        self.add_flags, self.has_effect = add_flags, has_effect
        if base and any(arg.startswith("--trainer.callbacks") for arg in args):
            # In place of those of the checkpoint: a job that is started again with `+=` would have them twice.
            base = {**base, "trainer": {n: v for n, v in base.get("trainer", {}).items() if n != "callbacks"}}
        stored = [f"--config={yaml.safe_dump(dict(base))}"] if base else []
        super().__init__(
            MLPModule,
            TextDataModule,
            trainer_class=Trainer,
            parser_class=Parser,
            parser_kwargs={
                "prog": f"python -m mlp_lm {command}",
                "usage": "%(prog)s [options]",
                "description": description,
            },
            args=[*stored, *self.args],
            run=False,  # commands run the trainer themselves
            save_config_callback=None,  # fit saves the config once the run has a folder
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # our settings are plain: what `__init__` receives is enough
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the seed: a number, where LightningCLI would take booleans too."""
        add_seed(parser)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what follows from the data, and add the flags of the command."""
        parser.link_arguments("data.context_size", "model.context_size")
        parser.link_arguments("data.vocab_size", "model.vocab_size", apply_on="instantiate")
        self.allowed = {"seed_everything": SEED, **self.add_flags(parser), **section_ranges()}
        assert isinstance(parser, Parser)
        parser.show_ranges(self.allowed)
        parser.hide(lambda name: name in SECTIONS or not self.has_effect(name.removesuffix(".help")))

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and check the ranges of all settings at once, before anything is seeded or read."""
        for section in SECTIONS:
            if flag_values(self.args, f"--{section}"):  # jsonargparse would read a file of settings, unchecked
                raise SettingsError(
                    f"--{section} does not take a file; set its options one by one or use --config FILE"
                )
        configs = flag_values(self.args, "--config")
        for path in configs:
            check_config_file(path)
        try:
            self.config = parser.parse_args(args)
            try:
                parser.validate(self.config, False)  # `parse_args` takes a null in a config for any type
            except (TypeError, ValueError) as error:
                parser.error(str(error))
        except SettingsError as error:
            of_config = re.search("no such setting|Key must be a string|found null", str(error))
            blame = f" (in {', '.join(configs)})" if configs and of_config else ""
            raise SettingsError(f"{error}{blame}") from error
        flags = [arg[2:].partition("=")[0].rstrip("+") for arg in self.args if arg.startswith("--")]
        if idle := [f"--{name}" for name in flags if not self.has_effect(name)]:
            raise SettingsError(f"{', '.join(idle)}: no effect on {self.command}; leave it out")
        check(self.settings, self.allowed)
        data, model = ({n.removeprefix(s): v for n, v in self.settings.items()} for s in ("data.", "model."))
        refuse([*CorpusSettings.of(data).conflicts(), *conflicts(model)])

    @property
    def settings(self) -> dict[str, Any]:
        """All settings by their full names, `model.dropout`, but those that follow from the data."""
        return {name: value for name, value in self.config.items() if name != "model.context_size"}

    def trained_with(self, base: Settings) -> dict[str, Any]:
        """The settings of a checkpoint by their full names; what an older one lacks was as its default is."""
        return {**dict(self.parser.get_defaults().items()), **flatten(base)}

    def instantiate_classes(self) -> None:
        """Leave it to `build`: a command may have more to check, and to complete what is left open."""


def build(
    cli: CLI, complete: Callable[[TextDataModule], Mapping[str, Any]] = lambda data: {}
) -> tuple[Trainer, MLPModule, TextDataModule]:
    """Make what the settings describe; `complete` has settings of the trainer that follow from the data."""
    try:
        objects = cli.parser.instantiate(cli.config)
    except ValueError as error:
        # jsonargparse wraps what a callback or logger has raised; in a list of several, the text only.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        missing = re.search("Requirement .* not met.*", str(error))
        raise SettingsError(f"trainer: {missing[0] if missing else cause}") from error
    data: TextDataModule = objects.data
    return Trainer(**{**objects.trainer, **complete(data)}), objects.model, data


@contextmanager
def lightning_session() -> Iterator[None]:
    """Run Lightning quietly, leave torch's settings as they were, and turn what users cause into our errors."""
    silence()
    try:
        with report_lost_process(), torch_as_before():
            yield
    except (MisconfigurationException, ModuleNotFoundError, RuntimeError, ValueError) as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not isinstance(error, MisconfigurationException) and not frame.f_globals["__name__"].startswith(
            "lightning."
        ):
            raise
        raise SettingsError(f"trainer: {error}") from error  # which Lightning itself has raised: a setting is wrong
    except SIGTERMException:  # where `StopOnSignal` is not at work
        raise Interrupted("SIGTERM: ended", exit_code=128 + signal.SIGTERM) from None


def silence() -> None:
    """Silence what Lightning prints and our own lines or config.yaml already say."""
    for name in (
        "fabric.utilities.distributed",
        "fabric.utilities.seed",
        "pytorch.accelerators.cuda",
        "pytorch.trainer.connectors.signal_connector",
        "pytorch.utilities.rank_zero",
    ):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    # Evaluation writes no checkpoints and logs nothing; Lightning 2.6 calls what torch 2.13 deprecates; a text may have
    # fewer batches than the logging interval, which counts across epochs; batches are made where they are used.
    for message in (
        r"You called `self\.log\(.*but have no logger configured",
        r".*callbacks used to create the checkpoint need to be provided",
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        r"The number of training batches \(\d+\) is smaller than the logging interval",
        r"The '\w+' does not have many workers",
    ):
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def torch_as_before() -> Iterator[None]:
    """Give back the settings of torch that a Trainer changes: another command in this process must not inherit them."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark
