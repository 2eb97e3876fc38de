"""`python -m mlp_lm validate`, `test` and `predict`: the losses and predictions of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from mlp_lm import runs
from mlp_lm.errors import CheckpointError, SettingsError
from mlp_lm.files import write_csv
from mlp_lm.models import checkpoint
from mlp_lm.models.metrics import NLL
from mlp_lm.parsing import flag_values
from mlp_lm.settings import FIXED_BY_WEIGHTS, changed
from mlp_lm.text.windows import Batch
from mlp_lm.training import cli

MATTERS = (
    r"help|config|ckpt_path|data\.\w*path|trainer\.(accelerator|devices|enable_progress_bar|limit_\w+_batches|num_nodes|"
    r"num_threads|precision|profiler|strategy)"
)


class Evaluation(cli.CLI):
    """Evaluates a checkpoint on the data that it was trained on."""

    def find_checkpoint(self, args: list[str]) -> Path | None:
        """The checkpoint that was named, `best.ckpt` of a run folder; only the help does without."""
        if given := flag_values(args, "--ckpt_path"):
            return checkpoint.resolve(given[-1])
        if {"-h", "--help"} & {*args}:
            return None
        hint = f"; did you mean --ckpt_path {args[1]}?" if args[1:] and not args[1].startswith("-") else ""
        raise CheckpointError(f"--ckpt_path: missing; {self.name} needs the checkpoint of a trained model{hint}")

    def add_own_flags(self, parser: LightningArgumentParser) -> None:
        """The checkpoint."""
        does = "Checkpoint or run folder; a checkpoint's settings are the defaults"
        parser.add_argument("--ckpt_path", type=str | None, help=does)
        super().add_own_flags(parser)

    def ignores(self, name: str) -> bool:
        """Nearly everything comes from the checkpoint."""
        return not re.fullmatch(MATTERS, name)

    def check_settings(self) -> None:
        """Leave out the length of a run, which no schedule has to reach."""
        self.options["trainer"]["max_steps"] = None
        super().check_settings()

    def problems_with_checkpoint(self) -> Iterator[str]:
        """Sizes that are not those of the weights."""
        yield from changed(self.settings, self.trained_with, FIXED_BY_WEIGHTS)

    def before_instantiate_classes(self) -> None:
        """Losses are printed; Lightning would write them to ./lightning_logs, too."""
        if self.options["trainer"]["logger"] is True:
            self.options["trainer"]["logger"] = False

    def after_instantiate_classes(self) -> None:
        """Refuse several processes where one has to write a file."""
        if self.method == "predict" and self.trainer.world_size > 1:
            raise SettingsError("trainer.devices: predict writes one file, in order, and takes one process on one node")
        super().after_instantiate_classes()

    def validate(self, **kwargs: Any) -> None:
        """Print the dev loss."""
        self.trainer.validate(**kwargs, ckpt_path=self.checkpoint, verbose=False, weights_only=True)
        self._print_loss("dev")

    def test(self, **kwargs: Any) -> None:
        """Print the test loss."""
        self.trainer.test(**kwargs, ckpt_path=self.checkpoint, verbose=False, weights_only=True)
        self._print_loss("test")

    def _print_loss(self, split: str) -> None:
        if not self.trainer.is_global_zero:
            return
        nll = NLL(self.trainer.callback_metrics[f"{split}/loss"].item(), tokens=1)
        (evaluated,) = self.trainer.num_val_batches if split == "dev" else self.trainer.num_test_batches
        batches, tokens = len(self.datamodule.batches(split)), len(self.datamodule.windows(split))
        part = f"{tokens:,} tokens" if evaluated == batches else f"{evaluated:,} of {batches:,} batches"
        print(f"{split}: {nll}, {part}")

    def predict(self, **kwargs: Any) -> None:
        """Write predictions.csv into the run folder: a row for each window of dev."""
        assert self.checkpoint is not None
        predicted = self.trainer.predict(**kwargs, ckpt_path=self.checkpoint, weights_only=True) or []
        path = runs.run_folder(self.checkpoint) / "predictions.csv"
        header = ["context", "target", "nats", "predicted", "probability"]
        batches = zip(predicted, self.datamodule.predict_dataloader(), strict=False)  # fewer if limited
        write_csv(path, chain([header], self._prediction_rows(batches)))
        print(f"predictions for {sum(len(nats) for nats, *_ in predicted):,} windows of dev: {path}")

    def _prediction_rows(self, batches: Iterable[tuple[Any, Batch]]) -> Iterator[list[str]]:
        text = self.datamodule.corpus.vocab.tokens.__getitem__  # the boundary is the empty string
        join = self.datamodule.settings.tokenizer.join
        for predicted, windows in batches:
            columns: Sequence[Tensor] = (*windows, *predicted)
            for context, target, nats, best, probability in zip(*(c.tolist() for c in columns), strict=True):
                yield [
                    join(filter(None, map(text, context))),
                    text(target),
                    f"{nats:.4f}",
                    text(best),
                    f"{probability:.4f}",
                ]


def run(args: list[str], description: str) -> None:
    """Run one of the commands; `args` starts with its name, `description` is for the help."""
    cli.run(Evaluation, args, description)
