"""What a setting may be: its range, read from its signature, and what settings ask of each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from mlp_lm.errors import SettingsError

Settings = Mapping[str, Any]  # by name as in a config: `data.path`, `model.hidden_dim`, …


@dataclass(frozen=True)
class Range:
    """The finite numbers between `low` and `high`, both included unless `above` or `below` is set.

    Written in a signature, `dropout: Annotated[float, Range(0, 1, below=True)]`, from which checks, help texts and the
    JSON schema take it.
    """

    low: float
    high: float = math.inf
    above: bool = False  # low itself is excluded
    below: bool = False  # high itself is excluded

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -math.inf < value < math.inf:
            return False
        return (value > self.low if self.above else value >= self.low) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        if not self.above and not self.below and self.high < math.inf:
            return f"between {self.low:,} and {self.high:,}"
        low = f"above {self.low:,}" if self.above else f"at least {self.low:,}"
        high = "" if self.high == math.inf else f" and {'below' if self.below else 'at most'} {self.high:,}"
        return low + high

    def as_schema(self) -> dict[str, float]:
        """The keywords of a JSON schema that say the same."""
        low = {"exclusiveMinimum" if self.above else "minimum": self.low}
        return low if self.high == math.inf else {**low, "exclusiveMaximum" if self.below else "maximum": self.high}


COUNT = Range(1, 10**9)
SEED = Range(0, 2**32 - 1)


def ranges(function: Callable[..., object], section: str = "") -> dict[str, Range]:
    """The range of each parameter of a function or class that has one, by name as in a section of a config."""
    signature = vars(function)["__init__"] if isinstance(function, type) else function
    hints = get_type_hints(signature, include_extras=True)
    return {
        f"{section}.{name}" if section else name: metadata
        for name, hint in hints.items()
        for part in (hint, *get_args(hint))  # `Annotated[int, Range(1)]` or `Annotated[int, Range(1)] | None`
        for metadata in getattr(part, "__metadata__", ())
        if isinstance(metadata, Range)
    }


def check(settings: Settings, allowed: Mapping[str, Range]) -> None:
    """Raise SettingsError that names every setting which is out of its range or at odds with another."""
    problems = [
        f"{name} must be {allowed[name]} (got {value!r})"
        for name, value in settings.items()
        if name in allowed and value is not None and value not in allowed[name]
    ]
    if problems := problems or [*conflicts(settings)]:
        raise SettingsError("; ".join(problems))


def check_section(section: str, values: Settings, *owners: Callable[..., object]) -> None:
    """`check` for the values of one section of a config, which the signatures of its `owners` describe."""
    allowed = {name: limits for owner in owners for name, limits in ranges(owner, section).items()}
    check({f"{section}.{name}": value for name, value in values.items()}, allowed)


def as_written(value: object) -> str:
    """The value of a setting as one would write it in a config."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


# -- what a checkpoint fixes -------------------------------------------------------------------------------------------

FIXED_BY_WEIGHTS = dict.fromkeys(
    (
        "data.context_size",
        "model.embedding_dim",
        "model.hidden_dim",
        "model.num_layers",
        "model.residual",
        "model.direct",
        "model.tied",
    ),
    "its weights were trained with that",
)
FIXED_ON_RESUME = FIXED_BY_WEIGHTS | {
    "seed_everything": "the order of its examples follows from it",
    "data.batch_size": "its position in the data depends on the batch size",
    **{
        f"data.{name}": "its tokens follow from it"
        for name in ("layout", "tokens", "newlines", "lowercase", "min_count", "max_vocab_size", "vocab_from")
    },
    "data.unique": "its split follows from it",
    "data.split_seed": "its split follows from it",
    "data.teacher": "its targets follow from it",
    "data.teacher_items": "what it trains on follows from it",
    "model.optimizer": "its optimizer has a state",
    "model.momentum": "its optimizer has a state",
    "model.weight_decay": "a different value would make it a different run",
    "model.decay_all": "a different value would make it a different run",
    "model.dropout": "a different value would make it a different run",
    "model.embedding_dropout": "a different value would make it a different run",
    "trainer.precision": "a different value would make it a different run",
}


def changed(settings: Settings, trained_with: Settings, fixed: Mapping[str, str]) -> Iterator[str]:
    """What is wrong, and why, with each setting in `fixed` that is not as the checkpoint has it."""
    for name, reason in fixed.items():
        if settings[name] != trained_with[name]:
            yield (
                f"{name}: found {settings[name]!r}, but the checkpoint has {trained_with[name]!r} ({reason}); "
                "leave it out"
            )


# -- what settings ask of each other -----------------------------------------------------------------------------------


def conflicts(settings: Settings) -> Iterator[str]:
    """What is wrong with settings that are each in range."""
    paths = ("data.train_path", "data.dev_path", "data.test_path")
    missing = [name for name in paths if settings.get(name) is None]
    if 0 < len(missing) < len(paths):
        yield f"{', '.join(missing)}: missing, expected all of {', '.join(paths)} or none of them"
    if settings.get("data.train_path") is not None and settings.get("data.path", "names") != "names":
        yield "data.path: found beside data.train_path, expected one file to split or three that are split"
    if settings.get("data.tokens", "characters") == "characters":
        for name, default in (("max_vocab_size", None), ("min_count", 2), ("vocab_from", "train")):
            if (value := settings.get(f"data.{name}", default)) != default:
                yield f"data.{name}: applies only to words (got {value!r}); of characters, all are in the vocabulary"
    if settings.get("data.layout", "items") == "items" and settings.get("data.newlines", "keep") == "drop":
        yield "data.newlines: applies only to data.layout text; of items, each has a line of its own"
    if settings.get("model.momentum") and settings.get("model.optimizer", "sgd") != "sgd":
        yield f"model.momentum: applies only to model.optimizer sgd (got {settings['model.momentum']!r})"
    if settings.get("model.residual") and settings.get("model.num_layers", 1) == 1:
        yield "model.residual: applies only to model.num_layers above 1"
    if settings.get("model.tied") and settings.get("model.direct"):
        yield "model.direct: does not go with model.tied, whose output layer sees E numbers; choose one"
    if settings.get("model.hidden_dim") == 0 and not settings.get("model.direct"):
        yield "model.hidden_dim: found 0, which needs --model.direct true"
    if settings.get("model.hidden_dim") == 0 and settings.get("model.num_layers", 1) > 1:
        yield f"model.num_layers: found {settings['model.num_layers']}, but model.hidden_dim 0 leaves no tanh layer"
    horizon, max_steps = settings.get("model.lr_decay_steps"), settings.get("trainer.max_steps")
    ends_at_zero = settings.get("model.lr_schedule") == "cosine" and settings.get("model.lr_end_factor") == 0
    if ends_at_zero and horizon is not None and max_steps is not None and max_steps > horizon:
        yield (
            f"trainer.max_steps: found {max_steps:,}, but the learning rate is 0 from step {horizon:,} on; "
            f"raise --model.lr_decay_steps to {max_steps} as well"
        )
