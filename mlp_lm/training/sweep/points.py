"""A process that checks the settings of many runs as `fit` does, before the first starts: JSON in, JSON out.

`sweep` runs it, as `python -m mlp_lm.training.sweep.points`, because parsing the settings of `fit` takes Lightning.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from mlp_lm.errors import CheckpointError, DataError, MlpLmError, SettingsError
from mlp_lm.models import checkpoint
from mlp_lm.parsing import did_you_mean
from mlp_lm.text.corpus import CorpusSettings, load_corpus
from mlp_lm.training.cli import silence
from mlp_lm.training.fit import Fit

PATHS = ("data.path", "data.train_path", "data.dev_path", "data.test_path")
NO_CORPUS = ("data.context_size", "data.batch_size", "data.steps_per_execution")  # they change nothing of the corpus


class Points(Fit):
    """The settings of many runs of `fit`; runs none, but builds trainer, data and model of the first."""

    def __init__(self, varied: Sequence[str], lines: Sequence[list[str]]) -> None:
        """`varied`: the settings that must exist; `lines`: the arguments of `fit` for each run."""
        self.varied, self.lines = varied, lines
        super().__init__(["fit", *lines[0]])

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Refuse to vary what is no setting. Raises SettingsError with the nearest one's name."""
        super().add_arguments_to_parser(parser)
        sections = ("data.", "model.", "trainer.", "seed_everything")
        known = {name for name in parser.get_defaults().keys() if name.startswith(sections)}  # noqa: SIM118
        unknown = [name for name in self.varied if name not in known]
        if unknown:
            raise SettingsError("; ".join(f"vary: unknown setting {n!r}{did_you_mean(n, known)}" for n in unknown))

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse and check all, with all problems in one error."""
        points: list[dict[str, Any]] = []
        problems: dict[str, None] = {}
        for line in reversed(self.lines):  # so that Lightning is left with the first
            try:
                super().parse_arguments(parser, ["fit", *line])
                points.insert(0, self.settings)
            except SettingsError as error:
                problems[str(error)] = None
        if problems:
            raise SettingsError("; ".join(reversed(problems)))
        self.described = describe(points)

    def after_instantiate_classes(self) -> None:
        """Start no other processes."""

    def fit(self, **kwargs: Any) -> None:
        """The first run would start now; enough."""


def describe(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each point its `settings`, and its `identity`: the same with what the data is instead of where it lies.

    Raises DataError with all that is wrong with any corpus.
    """
    fingerprints: dict[str, str] = {}
    problems: dict[str, None] = {}
    described = []
    for settings in points:
        data = {name: value for name, value in settings.items() if name.startswith("data.") and name not in NO_CORPUS}
        key = json.dumps(data)
        if key not in fingerprints:
            try:
                corpus = load_corpus(CorpusSettings.of({k.removeprefix("data."): v for k, v in data.items()}))
                fingerprints[key] = corpus.fingerprint
            except DataError as error:
                fingerprints[key] = ""
                problems[str(error)] = None
        identity = {name: value for name, value in settings.items() if name not in PATHS}
        described.append({"settings": settings, "identity": identity | {"data": fingerprints[key]}})
    if problems:
        raise DataError("; ".join(problems))
    return described


def loads(path: str) -> bool:
    """Whether a checkpoint can be continued."""
    try:
        checkpoint.load_network(checkpoint.read(path))
    except CheckpointError:
        return False
    return True


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The `points` that `describe` makes of `varied` and `lines`; those of `checkpoints` that load. Or an `error`."""
    try:
        points = Points(request["varied"], request["lines"]).described
    except MlpLmError as error:
        return {"error": str(error)}
    return {"points": points, "checkpoints": [path for path in request["checkpoints"] if loads(path)]}


if __name__ == "__main__":
    silence()
    print(json.dumps(answer(json.load(sys.stdin)), default=str))
