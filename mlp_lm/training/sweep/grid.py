"""The points of a sweep: which settings vary over which values, which combinations run, and what a run is called."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import yaml

from mlp_lm.errors import SettingsError
from mlp_lm.settings import as_written

MAX_RUNS = 10_000  # of one sweep; more is a slip of the hand
Point = dict[str, str]  # setting to value, as written on the command line


def parse_vary(texts: Sequence[str]) -> dict[str, list[str]]:
    """The values of each varied setting, as written in `KEY=V1,V2,...`: YAML scalars, quoted where one holds a comma.

    Raises SettingsError that names everything that is wrong.
    """
    varied: dict[str, list[str]] = {}
    problems = []
    for text in texts:
        key, _, listed = text.partition("=")
        name = key.strip().replace("-", "_")
        try:
            values = yaml.load(f"[{listed}]", yaml.BaseLoader)  # scalars stay as written: fit's own parser reads them
        except yaml.YAMLError:
            values = None
        if not name or not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            problems.append(f"found {text!r}, expected KEY=V1,V2,...")
        elif not values:
            problems.append(f"{name}: no values, which makes an empty grid; expected {name}=V1,V2,...")
        elif name in varied:
            problems.append(f"{name}: found twice, expected all its values in one --vary")
        else:
            varied[name] = values
    if len(varied.get("seed_everything", ())) > 1:
        problems.append("seed_everything: found several values; expected the first one, and how many as --seeds")
    if problems:
        raise SettingsError("; ".join(f"vary: {problem}" for problem in problems))
    return varied


def choose_points(varied: Mapping[str, Sequence[str]], number: int | None, random_seed: int, seeds: int) -> list[Point]:
    """All points of the grid, the last setting varying fastest, or `number` distinct ones drawn with `random_seed`.

    Raises SettingsError where the grid has fewer points than that, or `seeds` runs of each are too many runs.
    """
    total = math.prod(map(len, varied.values()))
    if number is not None and number > total:
        raise SettingsError(f"random: found {number:,}, but the grid has {total:,} points; leave it out to run all")
    if (runs := (total if number is None else number) * seeds) > MAX_RUNS:
        raise SettingsError(f"vary: a grid of {runs:,} runs, expected at most {MAX_RUNS:,}; --random N runs a part")
    if number is None:
        return [_point(varied, index) for index in range(total)]
    rng, chosen = random.Random(random_seed), set[int]()
    while len(chosen) < number:  # not rng.sample, for which a grid can be too large
        chosen.add(rng.randrange(total))
    return [_point(varied, index) for index in sorted(chosen)]


def _point(varied: Mapping[str, Sequence[str]], index: int) -> Point:
    point = {}
    for name in reversed([*varied]):
        index, position = divmod(index, len(varied[name]))
        point[name] = varied[name][position]
    return {name: point[name] for name in varied}


def short_names(settings: Sequence[str]) -> dict[str, str]:
    """`context_size` for `data.context_size`, unless another of `settings` ends alike."""
    last = {name: name.split(".")[-1] for name in settings}
    return {name: end if [*last.values()].count(end) == 1 else name for name, end in last.items()}


def run_name(values: Mapping[str, Any], seed: int, taken: Collection[str]) -> str:
    """`context_size=3,seed=1`: a folder's name that every file system takes, and that none of `taken` is."""
    parts = [*(f"{name}={as_written(value)}" for name, value in values.items()), f"seed={seed}"]
    name = ",".join(re.sub(r"[^\w.+=-]", "_", part, flags=re.ASCII) for part in parts)[-120:].lstrip(".,")
    folded = {other.casefold() for other in taken}  # some file systems do not tell a from A
    number, unique = 1, name
    while unique.casefold() in folded:
        number += 1
        unique = f"{name},{number}"
    return unique
