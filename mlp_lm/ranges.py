"""What a setting may be: a number within limits, one of a few words, a name of a file."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """The numbers between `low` and `high`, both allowed unless `above` or `below` is set."""

    low: float
    high: float = math.inf
    whole: bool = False
    above: bool = False  # low itself is not allowed
    below: bool = False  # high itself is not allowed
    optional: bool = False  # None is allowed too

    def __contains__(self, value: object) -> bool:
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (value > self.low if self.above else value >= self.low)
            and (value < self.high if self.below else value <= self.high)
        )

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low = f"above {self.low:,}" if self.above else f"from {self.low:,}"
        high = "" if self.high == math.inf else f" {'to below' if self.below else 'to'} {self.high:,}"
        return f"{kind} {low}{high}" + (", or null" if self.optional else "")


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    words: tuple[str | bool, ...]

    def __contains__(self, value: object) -> bool:
        return value in self.words

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.words))}"


@dataclass(frozen=True)
class Text:
    """A name that a file may have."""

    optional: bool = False  # None is allowed too

    def __contains__(self, value: object) -> bool:
        if value is None:
            return self.optional
        if not isinstance(value, str) or re.search("[\0\ud800-\udfff]", value):
            return False
        return not re.match(r"[A-Za-z][\w+.-]+:/", value)  # a URL; one letter is a Windows drive

    def __str__(self) -> str:
        return "the name of a file or folder on this machine" + (", or null" if self.optional else "")


COUNT = Range(1, 2**31 - 1, whole=True)
SEED = Range(0, 2**32 - 1, whole=True)
