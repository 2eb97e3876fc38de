"""The shipped configs and the commands of the README, run as they stand but for their length."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from mlp_lm.cli import COMMANDS, main
from mlp_lm.commands import sweep
from mlp_lm.text.datasets import DATASETS, RemoteFile
from mlp_lm.training.datamodule import TextDataModule
from mlp_lm.training.module import MLPModule
from mlp_lm.training.trainer import Trainer
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SHORT = ["--trainer.max_steps=3", "--model.lr_decay_steps=3"]


@pytest.fixture
def makemore(corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that holds the small corpus as the dataset makemore."""
    known = RemoteFile("http://127.0.0.1:9/", hashlib.sha256(corpus_file.read_bytes()).hexdigest(), "m.txt")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "m.txt").write_bytes(corpus_file.read_bytes())
    monkeypatch.setitem(DATASETS, "makemore", known)
    monkeypatch.setenv("MLP_LM_CACHE", str(tmp_path / "cache"))


def test_the_five_configs_of_the_design() -> None:
    assert [path.stem for path in CONFIGS] == ["best", "debug", "lecture", "lecture_fast", "names"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("makemore")
def test_every_shipped_config_runs(config: Path, tmp_path: Path) -> None:
    assert main(["fit", "--config", str(config), "--run_dir", str(tmp_path / "run"), *SHORT]) == 0
    assert json.loads((tmp_path / "run" / "report.json").read_text())["steps"] == 3


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_says_what_it_is_for_how_long_it_takes_and_what_it_reaches(config: Path) -> None:
    text = config.read_text()
    header = " ".join(line.removeprefix("# ") for line in text.split("\ndata:")[0].splitlines())
    assert re.search(r"\d+(\.\d+)? s\b", header), "a time"
    assert re.search(r"dev \d\.\d{3}", header), "a loss"
    assert len(text.splitlines()) <= 40


def test_fit_without_a_config_is_names_yaml() -> None:
    settings = yaml.safe_load((ROOT / "configs" / "names.yaml").read_text())
    for section, owner in (("data", TextDataModule), ("model", MLPModule), ("trainer", Trainer)):
        defaults = {name: p.default for name, p in inspect.signature(owner).parameters.items()}
        assert settings[section] == {name: defaults[name] for name in settings[section]}


def readme_commands() -> list[str]:
    """The lines of the README's shell blocks that run mlp_lm, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("python -m mlp_lm ")]


@pytest.mark.usefixtures("makemore")
def test_every_command_of_the_readme_runs(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_here(runs: Mapping[str, Sequence[str]], *_: object) -> None:
        for command in runs.values():
            assert main([*command[3:], *SHORT]) == 0, command

    monkeypatch.setattr(sweep, "run_processes", run_here)  # each process would import torch and Lightning again
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    Path("mine.txt").write_bytes(corpus_file.read_bytes())
    commands = readme_commands()
    assert {shlex.split(c)[3] for c in commands} == COMMANDS.keys()
    for command in commands:
        args = shlex.split(command, comments=True)[3:]
        short = [flag.replace("3", "5") for flag in SHORT] if "--ckpt_path" in args else SHORT  # to train on
        assert main([*args, *short] if args[0] == "fit" else args) == 0, (command, capsys.readouterr().err)
