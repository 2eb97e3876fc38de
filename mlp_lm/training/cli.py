"""Commands on LightningCLI: our parser, our checks, one way to run them."""

from __future__ import annotations

import argparse
import logging
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mlp_lm import runs
from mlp_lm.errors import Interrupted, SettingsError
from mlp_lm.models import checkpoint
from mlp_lm.parsing import OneLineErrors, check_config_file, configs_first, flag_values
from mlp_lm.settings import SEED, Settings, check
from mlp_lm.training.datamodule import TextDataModule
from mlp_lm.training.module import MLPModule
from mlp_lm.training.schema import SECTIONS, add_seed, section_ranges
from mlp_lm.training.trainer import NOT_OURS, Trainer, report_lost_process

# Of Trainer's methods that are not flags: the checkpoint's path has a flag of ours, the others are always the same.
METHOD_ARGUMENTS = {"ckpt_path", "weights_only", "verbose", "return_predictions"}
LECTURE = {  # its words, and those of other code that followed it
    "block_size": "data.context_size",
    "n_embd": "model.embedding_dim",
    "n_hidden": "model.hidden_dim",
    "lr": "model.learning_rate",
    "epochs": "trainer.max_steps",
}
set_parsing_settings(config_read_mode_fsspec_enabled=False)  # Lightning lets a setting be the URL of more settings


class Parser(OneLineErrors, LightningArgumentParser):
    """LightningCLI's parser with our one-line errors."""

    reasons = NOT_OURS | {word: f"did you mean --{ours}?" for word, ours in LECTURE.items()}


class CLI(LightningCLI):
    """One command on the triple Trainer, MLPModule, TextDataModule: its flags, its checks, and the order of its steps.

    `fit`, `evaluation` and `lr_find` each have a subclass, which says what is its own and does the work.
    """

    trainer: Trainer
    model: MLPModule
    datamodule: TextDataModule
    trained_with: Settings  # of the checkpoint, if there is one

    def __init__(
        self, args: list[str], description: str = "", method: str | None = None, callbacks: Sequence[Callback] = ()
    ) -> None:
        """Parse and run a command.

        Args:
            args: Those of the command line, the command first.
            description: Of the command, for its help.
            method: The Trainer's method that the command is a kind of, if it has another name.
            callbacks: Beside those of the config, which does not show them.
        """
        self.name, self.method = args[0], method or args[0]
        self.checkpoint = self.find_checkpoint(args)
        args = self.complete(args)
        self.content = None if self.checkpoint is None else checkpoint.read(self.checkpoint)
        super().__init__(
            MLPModule,
            TextDataModule,
            trainer_class=Trainer,
            trainer_defaults={"callbacks": [*callbacks]},
            parser_class=Parser,
            parser_kwargs={self.method: {"description": description}},
            args=[self.method, *args[1:]],
            save_config_callback=None,  # fit saves it once the run has a folder
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # our settings are plain: what `__init__` receives is enough
        )

    def find_checkpoint(self, args: list[str]) -> Path | None:
        """The checkpoint whose settings are the defaults, if any; it is needed before anything is parsed."""
        return None

    def complete(self, args: list[str]) -> list[str]:
        """The arguments with those that the checkpoint adds."""
        return args

    # -- parsing -------------------------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one method that was asked for, and its arguments that are not flags."""
        return {self.method: LightningCLI.subcommands()[self.method] | METHOD_ARGUMENTS}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links, our own flags, and a checkpoint's settings as defaults: config and command line win."""
        assert isinstance(parser, Parser)
        self.subparser = parser
        parser.link_arguments("data.context_size", "model.context_size")
        parser.link_arguments("data.vocab_size", "model.vocab_size", apply_on="instantiate")
        self.allowed = {"seed_everything": SEED}
        self.add_own_flags(parser)
        self.allowed |= section_ranges()
        parser.show_ranges(self.allowed)
        parser.hide(lambda name: name in SECTIONS or self.ignores(name.removesuffix(".help")))
        if self.content is not None:
            defaults = dict(parser.get_defaults().items())
            found = {k: v for k, v in checkpoint.settings(self.content).items() if k in defaults}
            parser.set_defaults(found)
            self.trained_with = {**defaults, **found}  # what an older checkpoint lacks was as its default is

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The seed: a number, where LightningCLI would take booleans too."""
        add_seed(parser)

    def add_own_flags(self, parser: LightningArgumentParser) -> None:
        """The flags beside those of trainer, model and data: at least what the config.yaml of a run has."""
        parser.add_argument("--report_test", type=bool, default=True, help=argparse.SUPPRESS)

    def ignores(self, name: str) -> bool:
        """Whether a setting makes no difference to the command, so that its help leaves it out."""
        return False

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, then check all settings at once, before anything is seeded or read."""
        self.subparser.prog = f"python -m mlp_lm {self.name}"
        self.subparser.usage = "%(prog)s [options]"
        for section in SECTIONS:
            if flag_values(args, f"--{section}"):  # jsonargparse would read a file of settings, unchecked
                raise SettingsError(
                    f"--{section} does not take a file; set its options one by one or use --config FILE"
                )
        configs = flag_values(args, "--config", "-c")
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
        self.options = self.config[self.method]
        # Out of LightningCLI's sight, which would let the checkpoint's settings win.
        self.options.pop("ckpt_path", None)
        self.check_settings()

    def check_settings(self) -> None:
        """Raise SettingsError that names all settings which are out of range, at odds, or fixed by the checkpoint."""
        settings = {f"{section}.{name}": v for section in SECTIONS for name, v in self.options[section].items()}
        settings |= {name: self.options[name] for name in self.allowed if name in self.options}
        settings.pop("model.context_size", None)  # the same as that of the data
        check(settings, self.allowed)
        self.settings = settings
        if self.checkpoint is not None and (problems := [*self.problems_with_checkpoint()]):
            raise SettingsError("; ".join(problems))

    def problems_with_checkpoint(self) -> Iterator[str]:
        """What of the settings does not go with the checkpoint."""
        yield from ()

    def after_instantiate_classes(self) -> None:
        """Check the data before Lightning loads weights of perhaps another size; start the other processes, if any."""
        if self.content is not None and self.checkpoint is not None:
            checkpoint.check_same_data(self.checkpoint, self.content[checkpoint.DATA_KEY], self.datamodule.corpus)
        self.trainer.start_processes()

    def run_name(self) -> str:
        """The name of the folder in `runs`."""
        return runs.run_name(str((self.options["config"] or [""])[0]), self.options["data"]["path"])


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
    # Evaluation writes no checkpoints; Lightning 2.6 calls what torch 2.13 deprecates; our losses are means over all
    # processes before they are logged.
    for message in (
        r".*callbacks used to create the checkpoint need to be provided",
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        r"It is recommended to use `self\.log\(",
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


def run(cli: Callable[..., CLI], args: list[str], description: str, method: str | None = None) -> CLI:
    """Run a command, which is done when `cli` has made a `CLI`; see there."""
    silence()
    try:
        with report_lost_process(), torch_as_before():
            return cli([args[0], *configs_first(args[1:])], description, method)
    except MisconfigurationException as error:  # of a callback, for one
        raise SettingsError(str(error)) from error
    except ModuleNotFoundError as error:
        if error.name is not None:  # an import that failed; Lightning's own say what to install
            raise
        raise SettingsError(str(error)) from error
    except RuntimeError as error:
        if "which is not available" in str(error):  # what EarlyStopping monitors
            raise SettingsError(f"trainer.callbacks: {error}") from error
        raise
    except SIGTERMException:  # where `StopOnSignal` is not at work
        raise Interrupted("SIGTERM: ended", exit_code=128 + signal.SIGTERM) from None
