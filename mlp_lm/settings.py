"""The range of every setting and what settings ask of each other, for `fit`, the commands and the Python API alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import cast

from mlp_lm.errors import SettingsError
from mlp_lm.ranges import COUNT, SEED, Choice, Range, Text

Settings = Mapping[str, object]


RANGES: dict[str, Range | Choice | Text] = {
    "seed_everything": SEED,
    "run_dir": Text(optional=True),
    "data.path": Text(),
    "data.train_path": Text(optional=True),
    "data.dev_path": Text(optional=True),
    "data.test_path": Text(optional=True),
    "data.unique": Choice((True, False)),
    "data.context_size": Range(1, 1024, whole=True),
    "data.batch_size": COUNT,
    "data.steps_per_execution": Range(1, 100_000, whole=True),
    "data.split_seed": SEED,
    "data.max_item_length": COUNT,
    "model.vocab_size": Range(2, 2**31 - 1, whole=True),
    "model.context_size": Range(1, 1024, whole=True),
    "model.embedding_dim": Range(1, 65_536, whole=True),
    "model.hidden_dim": Range(1, 65_536, whole=True),
    "model.num_layers": Range(1, 1_000, whole=True),
    "model.dropout": Range(0, 1, below=True),
    "model.decay_all": Choice((True, False)),
    "model.fused": Choice((True, False)),
    "model.optimizer": Choice(("sgd", "adamw")),
    "model.learning_rate": Range(0, 1e35, above=True),  # its product with weight decay is a float32, too
    "model.momentum": Range(0, 1, below=True),
    "model.weight_decay": Range(0, 1000),
    "model.lr_schedule": Choice(("constant", "step", "cosine")),
    "model.cuda_graph": Choice(("auto", True, False)),
    "model.lr_warmup_steps": Range(0, 2**31 - 1, whole=True),
    "model.lr_decay_steps": Range(1, 2**31 - 1, whole=True, optional=True),
    "model.lr_drop_at": Range(0, 1),
    "model.lr_end_factor": Range(0, 1),
    "trainer.max_steps": COUNT,
    "trainer.devices": Range(1, 1024, whole=True),  # of one machine, where they are a number
    "trainer.num_nodes": Range(1, 10_000, whole=True),
    "trainer.num_threads": Range(1, 1024, whole=True, optional=True),
    "trainer.val_check_interval": COUNT,
    "trainer.log_every_n_steps": COUNT,
    "trainer.precision": Choice(("32-true", "64-true", "bf16-mixed")),
    "num": Range(1, 100_000_000, whole=True),
    "temperature": Range(0, 1e6),
    "top_k": Range(1, 2**31 - 1, whole=True, optional=True),
    "top_p": Range(0, 1, above=True, optional=True),
    "seed": Range(0, 2**63 - 1, whole=True, optional=True),
    "max_length": Range(1, 1_000_000, whole=True),
    "seeds": Range(1, 1_000, whole=True),
    "jobs": Range(1, 1_024, whole=True),
    "random": Range(1, 10_000, whole=True, optional=True),
    "random_seed": SEED,
    "min": Range(0, 1e35, above=True),
    "max": Range(0, 1e35, above=True),
    "steps": Range(100, 100_000, whole=True),  # fewer leave nothing to average; of more, the averages take minutes
}


def shown(value: object) -> str:
    """A value as an error message shows it, however long it is."""
    try:
        text = repr(value)
    except ValueError:  # which is how Python refuses to write it out
        return "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:200]}…"


def as_written(value: object) -> str:
    """The value of a setting as one would write it in a config."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def check(settings: Settings) -> None:
    """Raise SettingsError that names every setting which is out of its range or at odds with another.

    `settings` maps names, as in a config (`data.context_size`), to values; only what is there is checked.
    """
    check_ranges(settings)  # values out of range would only cause nonsense in what follows
    if problems := [problem for cross_check in CROSS_CHECKS if (problem := cross_check(settings))]:
        raise SettingsError("; ".join(problems))


def check_ranges(settings: Settings) -> None:
    """The part of `check` that looks at each setting by itself, and not at this machine."""
    problems = [
        f"{name}: found {shown(value)}, expected {RANGES[name]}"
        for name, value in settings.items()
        if name in RANGES and value not in RANGES[name]
    ]
    if problems:
        raise SettingsError("; ".join(problems))


def check_section(section: str, values: Mapping[str, object]) -> None:
    """`check` for the settings of one section of a config, such as `model`."""
    check({f"{section}.{name}": value for name, value in values.items()})


# What a checkpoint may hold: what a run is, never where and how it is run.
STORED = {name for name in RANGES if name.startswith(("data.", "model."))} | {
    "seed_everything",
    "trainer.max_steps",
    "trainer.val_check_interval",
    "trainer.log_every_n_steps",
    "trainer.precision",
}
# What a checkpoint fixes, and why: for whatever reads it, and for a run that goes on from it.
SHAPE = dict.fromkeys(
    ("data.context_size", "model.embedding_dim", "model.hidden_dim", "model.num_layers"), "its weights have that shape"
)
RUN = SHAPE | {
    "seed_everything": "the order of its examples follows from it",
    "data.batch_size": "its place in the data is counted in batches of that size",
    "data.unique": "its split follows from it",
    "data.split_seed": "its split follows from it",
    "model.optimizer": "its optimizer has a state",
    "model.momentum": "its optimizer has a state",
    "model.weight_decay": "one run is trained in one way",
    "model.decay_all": "one run is trained in one way",
    "model.dropout": "one run is trained in one way",
    "trainer.precision": "one run is trained in one way",
}


def check_unchanged(settings: Settings, trained_with: Settings, fixed: Mapping[str, str]) -> None:
    """Raise SettingsError, with the reason, for each name in `fixed` whose setting is not as the checkpoint has it."""
    problems = [
        f"{name}: found {shown(settings[name])}, but the checkpoint has {shown(trained_with[name])} ({reason}); "
        "leave it out"
        for name, reason in fixed.items()
        if settings[name] != trained_with[name]
    ]
    if problems:
        raise SettingsError("; ".join(problems))


def _split_paths_go_together(settings: Settings) -> str | None:
    names = ("data.train_path", "data.dev_path", "data.test_path")
    missing = [name for name in names if settings.get(name) is None]
    if 0 < len(missing) < len(names):
        return f"{', '.join(missing)}: missing, expected all of {', '.join(names)} or none of them"
    return None


def _one_source_of_data(settings: Settings) -> str | None:
    if settings.get("data.train_path") is not None and settings.get("data.path", "names") != "names":
        return "data.path: found beside data.train_path, expected one file to split or three that are split"
    return None


def _momentum_goes_with_sgd(settings: Settings) -> str | None:
    if settings.get("model.momentum") and settings.get("model.optimizer", "sgd") != "sgd":
        return f"model.momentum: found {settings['model.momentum']!r}, which goes with model.optimizer sgd alone"
    return None


def _training_ends_with_the_cosine(settings: Settings) -> str | None:
    horizon, max_steps = settings.get("model.lr_decay_steps"), settings.get("trainer.max_steps")
    ends_at_zero = settings.get("model.lr_schedule") == "cosine" and settings.get("model.lr_end_factor") == 0
    if ends_at_zero and isinstance(horizon, int) and isinstance(max_steps, int) and max_steps > horizon:
        return (
            f"trainer.max_steps: found {max_steps:,}, but the learning rate is 0 from step {horizon:,} on "
            "(model.lr_decay_steps), so raise that too"
        )
    return None


def _min_is_below_max(settings: Settings) -> str | None:
    low, high = settings.get("min"), settings.get("max")
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low >= high:
        return f"min: found {low:g}, expected a learning rate below --max, {high:g}"
    return None


def _prompt_is_shorter_than_items(settings: Settings) -> str | None:
    length, limit = settings.get("prompt_length"), settings.get("max_length")
    if isinstance(length, int) and isinstance(limit, int) and length > limit:
        return f"max_length: found {limit}, expected at least the {length} tokens of the prompt"
    return None


def _network_fits_into_memory(settings: Settings) -> str | None:
    sizes = [settings.get(f"model.{name}") for name in ("embedding_dim", "hidden_dim", "num_layers")]
    vocab_size = settings.get("model.vocab_size", 2)  # known once the data is read
    context_size = settings.get("model.context_size", settings.get("data.context_size"))
    if not hasattr(os, "sysconf") or not all(isinstance(size, int) for size in (vocab_size, context_size, *sizes)):
        return None
    v, t, e, h, layers = (cast(int, size) for size in (vocab_size, context_size, *sizes))
    num_weights = v * e + t * e * h + (layers - 1) * h * h + v * h
    training = "model.optimizer" in settings  # a gradient for each weight, and two averages under adamw
    needed = num_weights * 4 * (1 if not training else 2 if settings["model.optimizer"] == "sgd" else 4)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed <= memory:
        return None
    return (
        f"model.hidden_dim: a network of {num_weights:,} weights takes {needed / 2**30:,.1f} GiB, this machine has "
        f"{memory / 2**30:,.1f}, so lower model.hidden_dim, num_layers or embedding_dim"
        + (f", or use a text of fewer than {v:,} different characters" if v > 1000 else "")
    )


CROSS_CHECKS: tuple[Callable[[Settings], str | None], ...] = (
    _split_paths_go_together,
    _one_source_of_data,
    _momentum_goes_with_sgd,
    _training_ends_with_the_cosine,
    _min_is_below_max,
    _prompt_is_shorter_than_items,
    _network_fits_into_memory,
)
