"""`fit`, `validate`, `test` and `predict`: LightningCLI with our parsers, run folders and report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import set_parsing_settings
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from mlp_lm.cli import COMMANDS, is_out_of_memory
from mlp_lm.errors import CheckpointError, MlpLmError, SettingsError
from mlp_lm.files import write_text
from mlp_lm.models import checkpoint
from mlp_lm.models.untrusted import UNFIT
from mlp_lm.parsing import OneLineErrors, check_config_file, configs_first, flag_values
from mlp_lm.settings import SHAPE, check, check_unchanged
from mlp_lm.text.corpus import SPLITS
from mlp_lm.training import ranks, runs
from mlp_lm.training.callbacks import Checkpoints
from mlp_lm.training.continuing import check_continues, continue_command
from mlp_lm.training.datamodule import TextDataModule
from mlp_lm.training.interrupt import StopOnSignal, sigterm_reported
from mlp_lm.training.module import MLPModule
from mlp_lm.training.predictions import write_predictions
from mlp_lm.training.quiet import silence
from mlp_lm.training.report import build_report, render
from mlp_lm.training.tensorboard import TensorBoardExtras
from mlp_lm.training.trainer import Trainer

# Arguments of Trainer's methods that are no flags: the path is described by our own, the rest is always the same.
NO_FLAGS = {"ckpt_path", "weights_only", "verbose", "return_predictions"}
NEEDS_CHECKPOINT = {"validate", "test", "predict"}
set_parsing_settings(config_read_mode_fsspec_enabled=False)  # Lightning lets a setting be the URL of more settings


class Parser(OneLineErrors, LightningArgumentParser):
    """LightningCLI's parser with our one-line errors."""


class SaveConfig(SaveConfigCallback):
    """Keeps the config of a new run in its folder."""

    def save_config(self, trainer: LightningTrainer, pl_module: LightningModule, stage: str) -> None:
        """Write config.yaml: with what the run was started or, in the end, continued."""
        (run_dir,) = (c.run_dir for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints))
        config = self.config.clone()
        config["ckpt_path"] = None  # which a config must not name
        write_text(run_dir / "config.yaml", self.parser.dump(config, skip_none=False))


class CLI(LightningCLI):
    """One command on the triple Trainer, MLPModule, TextDataModule."""

    module_class: type[MLPModule] = MLPModule
    trainer_class: type[Trainer] = Trainer
    other_settings: tuple[str, ...] = ("seed_everything", "run_dir")  # that have a range, beside the three sections
    needs_one_process: Mapping[str, str] = {"predict": "predict writes one file, in order, and"}
    trainer: Trainer
    model: MLPModule
    datamodule: TextDataModule
    settings: dict[str, Any]  # of the run, as in a config: `data.path`, `model.hidden_dim`, …

    def __init__(self, args: list[str]) -> None:
        """Parse `args`, the command's name first, and run it."""
        self.command, name = args[0], args[0].replace("_", "-")  # as a method and as users type it
        paths = flag_values(args, "--ckpt_path")
        self.checkpoint = paths[-1] if paths else None
        if self.checkpoint is None and self.command in NEEDS_CHECKPOINT and not {"-h", "--help"} & {*args}:
            raise CheckpointError(f"--ckpt_path: missing; {self.command} needs the checkpoint of a trained model")
        self.content = checkpoint.read(self.checkpoint) if self.checkpoint is not None else None
        if self.checkpoint is not None and self.content is not None:
            checkpoint.load_network(self.checkpoint, self.content)  # whose errors say more than Lightning's
        super().__init__(
            self.module_class,
            TextDataModule,
            trainer_class=self.trainer_class,
            parser_class=Parser,
            parser_kwargs={"prog": "python -m mlp_lm", self.command: {"description": COMMANDS[name].summary}},
            args=args,
            seed_everything_default=42,
            save_config_callback=SaveConfig if self.command == "fit" else None,
            save_config_kwargs={"save_to_log_dir": False},  # which is the working folder where there is no logger
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # our checkpoints carry their settings themselves
        )

    # -- parsing -------------------------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one command that was asked for, and the arguments of its Trainer method that are no flags."""
        return {self.command: LightningCLI.subcommands()[self.command] | NO_FLAGS}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links, our own flags, and a checkpoint's settings as defaults: config and command line win."""
        parser.link_arguments("data.context_size", "model.context_size")
        parser.link_arguments("data.vocab_size", "model.vocab_size", apply_on="instantiate")
        self.add_own_flags(parser)
        self.usual = dict(parser.get_defaults().items())
        if self.content is not None:
            parser.set_defaults({k: v for k, v in checkpoint.settings(self.content).items() if k in self.usual})

    def add_own_flags(self, parser: LightningArgumentParser) -> None:
        """The flags beside those of trainer, model and data."""
        does = "Continue the run of this checkpoint" if self.command == "fit" else "Checkpoint of the trained model"
        parser.add_argument("--ckpt_path", type=str | None, help=f"{does}; its settings are the defaults")
        if self.command == "fit":
            parser.add_argument(
                "--run_dir", type=str | None, help="Folder of the run (default: runs/<config name>/version_N)"
            )
            parser.add_argument(
                "--report_test", type=bool, default=True, help="Report the test loss too; false leaves test unread"
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, then check all settings at once, before anything is seeded or read."""
        for section in ("data", "model", "trainer"):
            if flag_values(args, f"--{section}"):  # jsonargparse would read a file of settings, unchecked
                raise SettingsError(f"--{section}: a whole section; expected its settings one by one, or --config FILE")
        configs = flag_values(args, "--config", "-c")
        for path in configs:
            check_config_file(path)
        try:
            self.config = parser.parse_args(args)
        except SettingsError as error:
            blame = f" (in {', '.join(configs)})" if configs and "does not accept option" in str(error) else ""
            raise SettingsError(f"{error}{blame}") from error
        config = self.config[self.command]
        if config["ckpt_path"] != self.checkpoint:
            raise SettingsError("ckpt_path: found in a config, expected on the command line alone")
        settings = {f"{section}.{k}": v for section in ("data", "model", "trainer") for k, v in config[section].items()}
        del settings["model.context_size"]  # data.context_size says it already
        settings |= {name: config[name] for name in self.other_settings if name in config}
        self.settings = settings
        check(settings)
        if self.checkpoint is None or self.content is None:
            return
        if self.command == "fit":
            check_continues(Path(self.checkpoint), self.content, settings)
        else:
            check_unchanged(settings, checkpoint.settings(self.content), SHAPE)

    def after_instantiate_classes(self) -> None:
        """Check the data before Lightning loads weights of perhaps another size; start the other processes, if any."""
        if self.content is not None:
            self.datamodule.load_state_dict(self.content[checkpoint.DATA_KEY])
        if self.command in self.needs_one_process and self.trainer.world_size > 1:
            why = self.needs_one_process[self.command]
            raise SettingsError(f"trainer.devices: {why} takes one process; expected 1 on 1 node")
        ranks.start(self.trainer)

    # -- running -------------------------------------------------------------------------------------------------

    def _run_dir(self) -> Path:
        config = self.config[self.command]
        if self.checkpoint is not None:
            return runs.run_dir_of(Path(self.checkpoint))
        if config["run_dir"] is not None:
            return runs.chosen_run_dir(config["run_dir"])
        return runs.new_run_dir(self.run_name())

    def run_name(self) -> str:
        """The name of the folder in `runs`."""
        config = self.config[self.command]
        return runs.run_name(str((config["config"] or [""])[0]), config["data"]["path"])

    def fit(self, **kwargs: Any) -> None:
        """Make the run folder, train, report. The other commands write no run."""
        config = self.config[self.command]
        self.datamodule.check_shares(self.trainer.world_size)
        self.run_dir = ranks.by_first(self.trainer, self._run_dir)
        checkpoints = Checkpoints(self.run_dir)
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]  # public, but not declared
        callbacks.append(checkpoints)
        if config["trainer"]["logger"]:
            # What a killed run has logged after its last checkpoint comes again.
            purge_step = self.content["global_step"] + 1 if self.content else None
            self.trainer.logger = TensorBoardLogger(
                self.run_dir, name="", version="", default_hp_metric=False, purge_step=purge_step
            )
            extras = TensorBoardExtras(self.trainer.tensorboard_extras, checkpoints)
            callbacks.append(extras)
        settings = {**self.settings, "report_test": config["report_test"]}
        callbacks.append(StopOnSignal(checkpoints, continue_command(checkpoints.last, settings, self.usual)))
        self.trainer.set_threads(self.datamodule.settings["batch_size"], self.model.network.count_weights())
        if self.trainer.is_global_zero:
            print(self._summary(), flush=True)
        with self._blaming_the_checkpoint():
            self.trainer.fit(**kwargs, ckpt_path=self.checkpoint, weights_only=True)
        if self.trainer.is_global_zero:
            # A checkpoint that was moved away from its run may have nothing left to train.
            best = checkpoints.best if checkpoints.best.exists() else Path(str(self.checkpoint))
            report = build_report(
                best,
                self.model,
                self.datamodule,
                seconds=checkpoints.seconds,
                first_step=self.content["global_step"] if self.content else 0,
                steps=self.trainer.global_step,
                with_test=config["report_test"],
                seed=config["seed_everything"],
            )
            runs.write_report(self.run_dir, report)
            print(render(report, self.run_dir, best))

    @contextmanager
    def _blaming_the_checkpoint(self) -> Iterator[None]:
        """CheckpointError for what goes wrong before a first step: Lightning's parts of a file may be damaged."""
        try:
            yield
        except UNFIT as error:
            restored = self.content is not None and self.trainer.global_step in (0, self.content["global_step"])
            if not restored or isinstance(error, MlpLmError) or is_out_of_memory(error):
                raise
            raise CheckpointError(f"{self.checkpoint}: damaged; it cannot be restored ({error})") from error

    def _summary(self) -> str:
        data = self.datamodule
        windows = " / ".join(f"{len(getattr(data.corpus, split)):,}" for split in SPLITS)
        several = f"; {self.trainer.world_size} processes" if self.trainer.world_size > 1 else ""
        text = f"{data.source}: {windows} windows in {' / '.join(SPLITS)}, {data.vocab_size} tokens; run {self.run_dir}"
        return text + several

    def validate(self, **kwargs: Any) -> None:
        """Print the dev loss."""
        with self._blaming_the_checkpoint():
            self.trainer.validate(**kwargs, ckpt_path=self.checkpoint, verbose=False, weights_only=True)
        self._print_loss("dev")

    def test(self, **kwargs: Any) -> None:
        """Print the test loss."""
        with self._blaming_the_checkpoint():
            self.trainer.test(**kwargs, ckpt_path=self.checkpoint, verbose=False, weights_only=True)
        self._print_loss("test")

    def _print_loss(self, split: str) -> None:
        if not self.trainer.is_global_zero:
            return
        loss, perplexity, bits = (
            self.trainer.callback_metrics[f"{split}/{name}"].item() for name in ("loss", "perplexity", "bits_per_token")
        )
        tokens = len(self.datamodule.windows(split))
        print(f"{split}: {loss:.4f} nats/token, perplexity {perplexity:.3f}, {bits:.4f} bits/token, {tokens:,} tokens")

    def predict(self, **kwargs: Any) -> None:
        """Write predictions.csv into the run folder."""
        assert self.checkpoint is not None
        with self._blaming_the_checkpoint():
            log_probs = self.trainer.predict(**kwargs, ckpt_path=self.checkpoint, weights_only=True)
        path = runs.run_dir_of(Path(self.checkpoint)) / "predictions.csv"
        batches = zip(log_probs or [], self.datamodule.predict_dataloader(), strict=True)
        write_predictions(path, batches, self.datamodule.corpus.vocab)
        print(f"predictions for {len(self.datamodule.windows('dev')):,} windows of dev: {path}")


def run(args: list[str]) -> None:
    """Run one of LightningCLI's commands; `args` starts with its name."""
    silence()
    with ranks.losses_reported(), sigterm_reported():
        CLI([args[0], *configs_first(args[1:])])
