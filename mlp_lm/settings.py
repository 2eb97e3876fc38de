"""The range of a setting, read from its signature; knows no setting by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
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


def refuse(problems: Iterable[str]) -> None:
    """Raise SettingsError that names all problems, if there are any."""
    if message := "; ".join(problems):
        raise SettingsError(message)


def check(settings: Settings, allowed: Mapping[str, Range]) -> None:
    """Raise SettingsError that names every setting which is out of its range."""
    refuse(
        f"{name} must be {allowed[name]} (got {value!r})"
        for name, value in settings.items()
        if name in allowed and value is not None and value not in allowed[name]
    )


def check_section(section: str, values: Settings, *owners: Callable[..., object]) -> None:
    """`check` for the values of one section of a config, which the signatures of its `owners` describe."""
    allowed = {name: limits for owner in owners for name, limits in ranges(owner, section).items()}
    check({f"{section}.{name}": value for name, value in values.items()}, allowed)
