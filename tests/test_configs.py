"""The shipped configs and the commands of the README, run as they stand but for their length."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
import shlex
from pathlib import Path

import figures
import numpy as np
import pytest
import torch
import yaml

from mlp_lm.cli import main
from mlp_lm.commands import COMMANDS
from mlp_lm.models.language_model import CorpusFacts, LanguageModel
from mlp_lm.text.corpus import Corpus, CorpusSettings
from mlp_lm.text.datasets import DATASETS, RemoteFile
from mlp_lm.text.vocab import Vocab
from mlp_lm.training.cli import SECTIONS
from mlp_lm.training.fast_lane import MULTIPLES
from mlp_lm.training.schema import config_schema
from tests.conftest import ROOT, Capture

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SHORT = ["--trainer.max_steps=3", "--model.lr_decay_steps=3", "--data.steps_per_execution=1"]
LONGER = ["--trainer.max_steps=5", "--model.lr_decay_steps=5"]  # of a run that is resumed
QUICK = ["--steps=200", "--data.batch_size=64", "--model.hidden_dim=32"]  # of a range test


BOOK = b"Once upon a time the king met the queen .\n" + b"The king said so to the queen .\n" * 50


@pytest.fixture
def small_datasets(corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that holds small texts as the datasets that are else fetched."""
    (tmp_path / "cache").mkdir()
    for name, content in (("makemore", corpus_file.read_bytes()), ("brown", BOOK), ("shakespeare", BOOK)):
        known = RemoteFile("http://127.0.0.1:9/", hashlib.sha256(content).hexdigest(), f"{name}.txt")
        (tmp_path / "cache" / known.file_name).write_bytes(content)
        monkeypatch.setitem(DATASETS, name, known)
    monkeypatch.setenv("MLP_LM_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("small_datasets")
def test_every_shipped_config_runs(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if config.stem == "taught":
        assert main(["ngram", "makemore", "--save=teacher.safetensors"]) == 0
    flags = ["--run_dir=run", "--data.teacher_items=100", *SHORT]
    if config.stem == "lecture":
        flags += [f"--{name}=3" for name in ("data.steps_per_execution", *MULTIPLES)]
    assert main(["fit", "--config", str(config), *flags]) == 0
    assert json.loads(Path("run/report.json").read_text())["steps"] == 3


def test_fit_without_a_config_is_names_yaml_but_for_its_length() -> None:
    settings = yaml.safe_load((ROOT / "configs" / "names.yaml").read_text(encoding="utf-8"))
    for section, owners in SECTIONS.items():
        defaults = {name: p.default for owner in owners for name, p in inspect.signature(owner).parameters.items()}
        chosen_by_size = {"max_steps", "val_check_interval"}
        for name in settings[section].keys() - chosen_by_size:
            assert settings[section][name] == defaults[name]


def test_the_schema_that_editors_use_is_up_to_date() -> None:
    assert json.loads((ROOT / "configs" / "schema.json").read_text(encoding="utf-8")) == config_schema()


def readme_commands() -> list[list[str]]:
    """The arguments of mlp_lm in the lines of the README's shell blocks that run it, in order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[3:] for line in words if line[:3] == ["python", "-m", "mlp_lm"]]


@pytest.mark.slow
@pytest.mark.usefixtures("small_datasets")
def test_every_command_of_the_readme_runs(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(DATASETS, "names", corpus_file)
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    Path("mine.txt").write_bytes(corpus_file.read_bytes())
    Path("book.txt").write_bytes(BOOK)
    commands = readme_commands()
    assert {args[0].replace("_", "-") for args in commands} == COMMANDS.keys()
    for args in commands:
        shorter = {"fit": LONGER if "--ckpt_path" in args else SHORT, "lr-find": QUICK}.get(args[0], [])
        if "configs/taught.yaml" in args:
            shorter = [*SHORT, "--data.teacher_items=100"]
        if args[0] == "sweep":  # each job would import torch and Lightning again
            shorter = ["--jobs=1", *([] if "--sweep_dir" in args else [f"--vary={flag[2:]}" for flag in SHORT])]
            shorter += ["--trials=2"] if "--trials" in args else []
        assert main([*args, *shorter]) == 0, (args, capsys.readouterr().err)


def test_the_tables_of_the_readme_are_what_the_script_makes_of_its_figures() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert figures.with_tables(text, figures.read_json(figures.FIGURES)) == text
    for name in figures.TABLES:
        assert f"<!-- {name}: scripts/benchmarks/figures.py -->" in text and f"<!-- end of {name} -->" in text
    assert {*re.findall(r"\w+\.yaml", " ".join(figures.ROWS))} <= {path.name for path in CONFIGS}


def test_the_loss_on_new_items_is_that_of_a_model_without_the_items_of_train() -> None:
    vocab = Vocab(["", "a", "b"])
    lm = LanguageModel(vocab, 1, lambda contexts: torch.full((len(contexts), 3), 1 / 3).log(), CorpusFacts(2, None))
    a_and_b, aa, ab_and_bb = ([1, 0, 2, 0], [1, 1, 0], [1, 2, 0, 2, 2, 0])
    corpus = Corpus(CorpusSettings(), vocab, np.array(a_and_b), np.array(aa), np.array(ab_and_bb), "")
    losses = {"network_dev": math.log(3), "network_test": math.log(3)}
    in_21_ways = math.log(21) / 3  # aa has 1/27 of all, and 1/21 of what a and b, with 1/9 each, leave over
    expected = {"network_in_train": 2 / 9, "network_new_dev": in_21_ways, "network_new_test": in_21_ways}
    assert figures.memorised(lm, "network", corpus, losses) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("scripts/*/*.md"))])
def test_every_file_of_this_project_that_a_readme_names_exists(text: str) -> None:
    content = (ROOT / text).read_text(encoding="utf-8")
    named = [ROOT / path for path in re.findall(r"\b(?:mlp_lm|scripts|configs|tests)/[\w./]*\w", content)]
    linked = [(ROOT / text).parent / path for path in re.findall(r"\]\(([\w./]+)\)", content)]
    listed = [(ROOT / text).parent / path for path in re.findall(r"^\| `(\w+\.py)` \|", content, re.MULTILINE)]
    assert named and [str(path) for path in [*named, *linked, *listed] if not path.exists()] == []
