"""Command lines and configs: help, JSON schema, and one line for whatever is wrong with them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlp_lm import Sampling, load
from mlp_lm.cli import main
from tests.conftest import ROOT, Capture, error_of


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any data: command lines and configs are checked before anything is read."""
    monkeypatch.chdir(tmp_path)


def printed(args: list[str], capsys: Capture) -> str:
    """What a flag prints that ends the command."""
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code in (0, None)
    return capsys.readouterr().out


# -- help ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "described"),
    [
        (
            "fit",
            [
                "--model.dropout",
                "each step; at least 0 and below 1",
                "Momentum of sgd; at least 0 and below 1",
                "--run_dir",
            ],
        ),
        ("test", ["--ckpt_path", "Checkpoint or run folder"]),
        ("sample", ["--prompt", "p (nucleus sampling", "above 0 and at most 1", "file Checkpoint, count model"]),
        ("score", ["--output", "--skip_unknown", "file Checkpoint", "text Text file, the name"]),
        ("sweep", ["--vary", "(repeatable)", "Runs of each point", "between 1 and 1,000", "[--prune [PRUNE]]"]),
    ],
)
def test_the_help_of_a_command_describes_its_flags_and_their_ranges(
    command: str, described: list[str], capsys: Capture
) -> None:
    text = " ".join(printed([command, "--help"], capsys).split())
    assert [part for part in described if part not in text] == []
    assert f"usage: python -m mlp_lm {command} " in text and "Range(" not in text


@pytest.mark.parametrize(
    ("command", "shown", "left_out"),
    [
        ("test", ["--data.path", "--trainer.num_threads"], ["--model", "--trainer.max_steps", "--trainer CONFIG"]),
        ("lr-find", ["--min", "--model.dropout"], ["--trainer.max_steps", "--model.learning_rate", "--trainer.logger"]),
        ("fit", ["--model.learning_rate", "--trainer.logger"], ["--model CONFIG"]),
    ],
)
def test_the_help_leaves_out_what_makes_no_difference_to_a_command(
    command: str, shown: list[str], left_out: list[str], capsys: Capture
) -> None:
    text = printed([command, "--help"], capsys)
    assert [flag for flag in [*shown, *left_out] if flag in text] == shown


# -- JSON schema ---------------------------------------------------------------------------------------------------

TYPES: dict[str, Any] = {"object": dict, "integer": int, "string": str, "boolean": bool, "null": type(None)}
TYPES["number"] = (int, float)


def faults(value: Any, schema: dict[str, Any], name: str = "") -> Iterator[str]:
    """Where a config breaks a JSON schema, as far as ours go."""
    types = schema.get("type", [])
    if types and not any(isinstance(value, TYPES[t]) for t in ([types] if isinstance(types, str) else types)):
        yield f"{name}: not of type {types}"
    elif isinstance(value, dict):
        for key, part in value.items():
            known = key in schema["properties"]
            yield from faults(part, schema["properties"][key], f"{name}.{key}") if known else [f"{name}.{key}: unknown"]
    elif "enum" in schema and value not in schema["enum"]:
        yield f"{name}: not one of {schema['enum']}"
    elif value is not None and (value < schema.get("minimum", value) or value == schema.get("exclusiveMaximum")):
        yield f"{name}: out of range"


@pytest.fixture
def schema(capsys: Capture) -> dict[str, Any]:
    assert main(["fit", "--print_schema"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_json_schema_knows_every_setting(schema: dict[str, Any]) -> None:
    model, data = (schema["properties"][section]["properties"] for section in ("model", "data"))
    assert model["dropout"] == {
        "type": "number",
        "description": "Fraction of what a tanh layer passes on that is dropped at each step.",
        "default": 0.25,
        "minimum": 0,
        "exclusiveMaximum": 1,
    }
    assert model["optimizer"]["enum"] == ["sgd", "adamw"]
    assert model["lr_decay_steps"]["type"] == ["integer", "null"] and model["lr_decay_steps"]["minimum"] == 1
    assert data["context_size"]["maximum"] == 1024
    assert "vocab_size" not in model and "context_size" not in model  # they follow from the data
    assert [name for name, part in {**model, **data}.items() if not part.get("description")] == []


def test_shipped_configs_are_valid_and_slips_are_not(schema: dict[str, Any]) -> None:
    assert schema["additionalProperties"] is schema["properties"]["model"]["additionalProperties"] is False
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert [*faults(yaml.safe_load(path.read_text(encoding="utf-8")), schema)] == [], path
    model = {"dropout": 1, "hidden_dim": "many", "optimizer": "adam"}
    wrong = {"modell": {}, "model": model, "data": {"batch_size": 0}}
    assert [fault.split(":")[0] for fault in faults(wrong, schema)] == [
        ".modell",
        ".model.dropout",
        ".model.hidden_dim",
        ".model.optimizer",
        ".data.batch_size",
    ]


# -- command lines -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["fti"], "mlp_lm: error: unknown command 'fti', expected one of fit, validate, "),
        (["fit", "--model.hiden_dim=3"], "arguments: --model.hiden_dim=3; did you mean --model.hidden_dim?"),
        (["fit", "--hidden-dim=3"], "did you mean --model.hidden_dim?"),
        (["fit", "--model.hidden_dim=many"], "fit: error: model.hidden_dim: found 'many', expected int"),
        (["fit", "--model.hidden_dim", ""], "model.hidden_dim: found '', expected int"),
        (["fit", "--model.hidden_dim=null"], "model.hidden_dim: found null, expected int"),
        (["fit", "--model.optimizer=adam"], "model.optimizer: found 'adam', expected sgd or adamw"),
        (
            ["fit", "--trainer.barebones=true"],
            "--trainer.barebones=true; a run needs the checkpoints and losses that it",
        ),
        (["fit", "--model.epochs=3"], "--model.epochs=3; did you mean --trainer.max_epochs?"),
        (["fit", "--model.lr=0.1"], "--model.lr=0.1; did you mean --model.learning_rate?"),
        (["fit", "--data.block_size", "4"], "--data.block_size 4; did you mean --data.context_size?"),
        (["fit", "--trainer.max_steps=1e3"], "trainer.max_steps: found '1e3', expected int or null"),
        (["sweep", "--data.path=mine.txt"], "--data.path=mine.txt; did you mean --vary data.path=...?"),
        (["fit", "--trainer.callbacks+=EarlyStopping"], "EarlyStopping needs monitor; add --trainer.callbacks.monitor"),
        (["fit", "--trainer=mine.yaml"], "--trainer does not take a file; set its options one by one or use --config"),
        (["fit", "mine.txt"], "unrecognized arguments: mine.txt; did you mean --data.path mine.txt?"),
        (["fit", "names.yaml"], "unrecognized arguments: names.yaml; did you mean --config names.yaml?"),
        (["fit", "--ckpt=x"], "did you mean --ckpt_path?"),
        (["fit", "--trainer=x"], "--trainer does not take a file"),
        (["test", "runs/mine"], "test needs the checkpoint of a trained model; did you mean --ckpt_path runs/mine?"),
        (["fit", "--data.context_size=0"], "fit: error: data.context_size must be between 1 and 1,024 (got 0)\n"),
        (["fit", "--ckpt_path", ""], "found '' as the name of a file; expected a checkpoint or a run folder"),
        (["fit", "--config", ""], "config: found '', expected the name of a config"),
        (["fit", "-cnone.yaml"], "none.yaml: cannot be read (No such file or directory); expected a config in YAML"),
        (["sample"], "the following arguments are required: file"),
        (["sample", "x", "--nun=3"], "unrecognized arguments: --nun=3; did you mean --num?"),
        (["sample", "x", "–num", "3"], "unrecognized arguments: –num 3; did you mean --num?"),
        (["validate"], "validate: error: --ckpt_path: missing; validate needs the checkpoint of a trained model"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(args: list[str], expected: str, capsys: Capture) -> None:
    assert expected in error_of(args, capsys)
    assert list(Path().iterdir()) == []


def test_all_settings_out_of_range_are_named_at_once(capsys: Capture) -> None:
    flags = ["--model.dropout=1", "--data.batch_size=0", "--trainer.max_steps=-1", "--seed_everything=-1"]
    message = error_of(["fit", "--data.path=nowhere.txt", *flags], capsys)
    assert "model.dropout must be at least 0 and below 1 (got 1.0)" in message
    assert "data.batch_size must be between 1 and 1,000,000,000 (got 0)" in message
    assert "trainer.max_steps must be" in message and "seed_everything must be" in message
    message = error_of(["sample", "nowhere.ckpt", "--num=0", "--top_p=2", "--temperature=-1"], capsys)
    assert re.findall(r"[\w.]+(?= must be)", message) == ["num", "temperature", "top_p"]


def test_the_fields_of_sampling_are_flags_which_may_have_hyphens(best: Path, capsys: Capture) -> None:
    flags = "--num 3 --prompt=a --temperature 0.8 --top-k=2 --top_p=0.9 --max-length 9 --seed=1 --only-new"
    assert main(["sample", str(best), *flags.split()]) == 0
    sampling = Sampling("a", temperature=0.8, top_k=2, top_p=0.9, max_length=9, seed=1, only_new=True)
    assert capsys.readouterr().out.splitlines() == [str(sample) for sample in load(best).sample(3, sampling)]


@pytest.mark.parametrize("name", ["null", "~", "12", "true"])
def test_a_file_may_have_a_name_that_means_something_in_yaml(name: str, corpus_file: Path, capsys: Capture) -> None:
    shutil.copy(corpus_file, name)
    assert main(["ngram", str(corpus_file), "--orders=2"]) == 0
    expected = capsys.readouterr().out.splitlines()[1].split()[:-1]  # but for the seconds
    assert main(["ngram", name, "--orders=2"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:-1] == expected


# -- configs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "bad.yaml: not a config; expected sections such as data:, model: and trainer:"),
        ("just words", "bad.yaml: not a config"),
        ("model:\n  - [", "bad.yaml:2: not YAML"),
        ("data: !!python/name:os.mkdir", "bad.yaml:1: not YAML (could not determine a constructor"),
        ("data: 2001-13-45", "bad.yaml: invalid value (month must be in 1..12)"),
        ("data: 3", "bad.yaml: data: found 3, expected settings"),
        ("1: 2", "bad.yaml: found the key 1, expected sections such as data:, model: and trainer:"),
        ("model:\n  dropout: 0\ndata:\n  path: x\nmodel:\n  num_layers: 2\n", "bad.yaml:5: model occurs twice"),
        ("model:\n  dropout: 0\n  num_layers: 2\n  dropout: 0.5\n", "bad.yaml:4: dropout occurs twice"),
        ("model:\n  hiden_dim: 3\n", "model.hiden_dim: no such setting; did you mean model.hidden_dim? (in bad.yaml)"),
        (
            "modell:\n  hidden_dim: 3\n",
            "modell.hidden_dim: no such setting; did you mean model.hidden_dim? (in bad.yaml)",
        ),
        ("model.dropout: 0", "bad.yaml: found 'model.dropout', expected dropout in the section model:"),
        ("model:\n  hidden_dim:\n", "model.hidden_dim: found null, expected int (in bad.yaml)"),
        ("model:\n  optimizer: null\n", "model.optimizer: found null, expected sgd or adamw (in bad.yaml)"),
        ("model:\n  vocab_size: 3\n", "bad.yaml: model.vocab_size follows from the data"),
        ("model:\n  dropout: 1.0\n", "model.dropout must be at least 0 and below 1 (got 1.0)"),
        ("trainer:\n  barebones: true\n", "barebones: no such setting; a run needs the checkpoints and losses that it"),
        ("ckpt_path: x.ckpt", "ckpt_path is allowed only on the command line, not in a config"),
        ("config: other.yaml", "bad.yaml: config is allowed only on the command line, not in a config"),
    ],
)
def test_a_wrong_config_is_one_clear_line(text: str, expected: str, capsys: Capture) -> None:
    Path("bad.yaml").write_text(text)
    assert expected in error_of(["fit", "--data.path=nowhere.txt", "--config", "bad.yaml"], capsys)
    assert [path.name for path in Path().iterdir()] == ["bad.yaml"]


def test_flags_win_over_a_config_wherever_it_stands(capsys: Capture) -> None:
    Path("c.yaml").write_text("model:\n  dropout: 5\n  hidden_dim: -1\n")
    flags = ["fit", "--data.path=nowhere.txt", "--model.dropout=2"]
    for args in ([*flags, "--config", "c.yaml"], [*flags, "--config=c.yaml"], [flags[0], "-cc.yaml", *flags[1:]]):
        message = error_of(args, capsys)
        assert "model.dropout must be at least 0 and below 1 (got 2.0)" in message and "(got -1)" in message
