"""A JSON schema of configs, for editors."""

from __future__ import annotations

import json
from typing import Any

from jsonargparse import ArgumentParser

from mlp_lm.parsing import LINKED
from mlp_lm.settings import SEED
from mlp_lm.training.cli import add_fit_flags, add_seed, section_ranges
from mlp_lm.training.datamodule import TextDataModule
from mlp_lm.training.module import MLPModule
from mlp_lm.training.trainer import Trainer


def config_schema() -> dict[str, Any]:
    """The JSON schema of a config: types, defaults, choices, descriptions and ranges of all settings."""
    parser = ArgumentParser()
    add_seed(parser)
    add_fit_flags(parser)
    parser.add_class_arguments(TextDataModule, "data")
    parser.add_class_arguments(MLPModule, "model", skip={*LINKED})
    objects = {"logger", "callbacks", "plugins", "strategy", "profiler"}  # of any class: too much to describe
    parser.add_class_arguments(Trainer, "trainer", skip=objects, fail_untyped=False)
    for name in sorted(objects):
        parser.add_argument(f"--trainer.{name}", type=Any)
    schema: dict[str, Any] = json.loads(parser.get_completion_script("jsonschema"))
    schema["properties"]["seed_everything"] |= SEED.as_schema()
    for section in schema["properties"].values():
        for setting in section.get("properties", {}).values():
            if isinstance(setting.get("type"), list):
                setting["type"].sort()  # jsonargparse's order depends on what is installed
    for name, limits in section_ranges().items():
        section, _, setting = name.partition(".")
        properties = schema["properties"][section]["properties"]
        if setting in properties:
            properties[setting] |= limits.as_schema()
    return schema
