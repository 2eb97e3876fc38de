"""`export`: what was written computes what the model computes, and nothing is overwritten by mistake."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mlp_lm import Sampling, load
from mlp_lm.cli import main
from mlp_lm.exports import safetensors
from mlp_lm.exports.info import ExportInfo
from mlp_lm.models.metrics import evaluate
from mlp_lm.text.corpus import CorpusSettings, load_corpus
from mlp_lm.text.windows import Windows
from tests.conftest import CONSTANT_SGD, Capture, error_of, fit, report


def export(*args: object) -> None:
    """Run the command."""
    assert main(["export", *map(str, args)]) == 0


@pytest.fixture(scope="module")
def mixture(best: Path, good: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of the network and counts."""
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "counts.safetensors").write_bytes(good["counts.safetensors"])
    assert main(["mix", str(best), str(folder / "counts.safetensors"), f"--save={folder / 'mixture.safetensors'}"]) == 0
    return folder / "mixture.safetensors"


@pytest.mark.parametrize("kind", ["network", "counts", "mixture"])
def test_a_shared_file_computes_samples_and_scores_like_the_model(
    kind: str, best: Path, mixture: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = {"network": best, "counts": mixture.with_name("counts.safetensors"), "mixture": mixture}[kind]
    shared = tmp_path / "model.safetensors"
    export(file, "--format=safetensors", f"--output={shared}")
    saved, card, *_ = capsys.readouterr().out.splitlines()
    assert saved == f"saved: {shared}, {shared.stat().st_size:,} bytes"
    assert card == f"model card: {tmp_path / 'model.md'}"
    model = load(shared)
    contexts = torch.randint(10, (200, model.context_size), generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.log_probs(contexts), load(file).log_probs(contexts))
    printed = []
    for name in (file, shared):
        assert main(["sample", str(name), "--seed=1"]) == main(["score", str(name), "--item=anna"]) == 0
        printed.append(capsys.readouterr())
    assert printed[0] == printed[1]


@pytest.mark.slow
def test_a_shared_file_is_drawn_like_the_model(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "model.safetensors"
    export(run_dir, "--format=safetensors", f"--output={shared}")
    data = load(run_dir).facts.settings["path"]
    monkeypatch.chdir(Path(data).parent)  # a shared file has only the name of its corpus
    for what in ("embeddings", "next_token", "activations"):
        pictures = [tmp_path / f"{what}{i}.svg" for i in (1, 2)]
        for model, picture in zip((run_dir, shared), pictures, strict=True):
            assert main(["plot", str(model), f"--what={what}", f"--output={picture}"]) == 0
        one, other = (re.sub("<dc:date>.*|(id=|#)[^ ]*", "", picture.read_text()) for picture in pictures)
        assert one == other


def test_the_card_of_a_network_has_the_losses_of_its_report_and_python_that_runs(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    export(run_dir, "--format=safetensors", f"--output={tmp_path / 'model.safetensors'}")
    card = (tmp_path / "model.md").read_text()
    losses = json.loads((run_dir / "report.json").read_text())["losses"]
    for split in ("dev", "test"):
        assert f"| {split} | {losses[split]['nats_per_token']:.4f} |" in card
    (samples,) = re.findall("## Samples\n\n```\n(.*?)\n```", card, re.DOTALL)
    assert samples.split("\n") == [str(sample) for sample in load(run_dir).sample(10, Sampling(seed=0))]
    (python,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    exec(python, {})
    assert capsys.readouterr().out.count(" ") == 9


def test_the_card_names_a_published_split(best: Path, tmp_path: Path) -> None:
    model = load(best)
    as_published = {"path": "brown", "layout": "text", "tokens": "pretokenized", "newlines": "drop"}
    model = replace(model, facts=replace(model.facts, settings={**model.facts.settings, **as_published}))
    safetensors.write(model, ExportInfo("brown", best, {"dev": 5.0}), tmp_path / "model.safetensors")
    card = (tmp_path / "model.md").read_text()
    assert "Split: the published one, cut after 800,000 and 1,000,000 tokens." in card


def test_a_run_whose_report_is_damaged_can_be_exported(run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "run")
    (copy / "report.json").write_text('{"losses"')
    export(copy, "--format=safetensors")
    assert (copy / "checkpoints" / "best.safetensors").exists()


def test_a_shared_file_does_not_tell_where_its_corpus_was(run_dir: Path, corpus_file: Path, tmp_path: Path) -> None:
    export(run_dir, "--format=safetensors", f"--output={tmp_path / 'model.safetensors'}")
    for file in tmp_path.iterdir():
        assert str(corpus_file.parent).encode() not in file.read_bytes()
    assert load(tmp_path / "model.safetensors").facts.settings["path"] == corpus_file.name


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--output=model"], "output: found 'model', expected a file that ends in .safetensors"),
        (["--output=nowhere/a.safetensors"], "output: 'nowhere/a.safetensors' cannot be written; expected a file in a"),
        (["--output=folder.safetensors"], "output: 'folder.safetensors' cannot be written; expected a file in a"),
        (["--output=pipe.safetensors"], "output: pipe.safetensors is not a regular file; choose another name"),
        (["--output=before.safetensors"], "output: before.safetensors exists; --overwrite replaces it"),
        (["--output=card.safetensors"], "output: card.md exists; --overwrite replaces it"),
        (["--format=html", "--output=page.html"], "output: page.html exists; --overwrite replaces it"),
    ],
)
def test_what_is_not_overwritten(
    flags: list[str], expected: str, best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.safetensors").mkdir()
    os.mkfifo("pipe.safetensors")
    for name in ("before.safetensors", "card.md", "page.html"):
        Path(name).write_text("mine")
    args = ["export", str(best), "--format=safetensors", *flags]
    assert expected in error_of(args, capsys)
    assert len([*tmp_path.iterdir()]) == 5
    if "--overwrite" in expected:
        assert main([*args, "--overwrite"]) == 0
        assert "mine" not in Path(expected.split()[1]).read_text(errors="ignore")
    else:
        assert expected in error_of([*args, "--overwrite"], capsys)


def test_a_file_of_the_same_format_is_not_its_own_export(mixture: Path, tmp_path: Path, capsys: Capture) -> None:
    file = Path(shutil.copy(mixture, tmp_path / "a.safetensors"))
    export(file, "--format=safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.safetensors",
        "a_exported.md",
        "a_exported.safetensors",
    ]
    capsys.readouterr()
    args = ["export", str(file), "--format=safetensors", f"--output={file}", "--overwrite"]
    assert "would overwrite an input" in error_of(args, capsys)


def test_a_failed_export_leaves_what_was_there(
    best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "page.html").write_text("before")
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left")))
    args = ["export", str(best), f"--output={tmp_path / 'page.html'}", "--overwrite"]
    assert "page.html: cannot be written (No space left)" in error_of(args, capsys)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("page.html", "before")]


def test_a_network_that_computes_nan_is_one_line(best: Path, tmp_path: Path, capsys: Capture) -> None:
    content = torch.load(best, weights_only=True)
    content["state_dict"]["network.output.bias"][:] = torch.nan
    torch.save(content, tmp_path / "nan.ckpt")
    for format in ("html", "safetensors"):
        error = error_of(["export", str(tmp_path / "nan.ckpt"), f"--format={format}"], capsys)
        assert "nan.ckpt: some weights are NaN or infinite; its training diverged" in error


@pytest.mark.slow
def test_losses_of_a_report_are_those_of_best_ckpt_alone(corpus_file: Path, tmp_path: Path) -> None:
    run = fit(corpus_file, tmp_path / "run", *CONSTANT_SGD, "--model.learning_rate=20", "--trainer.max_steps=30")
    export(run / "checkpoints" / "last.ckpt", "--format=safetensors", f"--output={tmp_path / 'last.safetensors'}")
    model = load(run / "checkpoints" / "last.ckpt")
    corpus = load_corpus(CorpusSettings(path=str(corpus_file)))
    loss = evaluate(model.nats, Windows(corpus.dev, 3).batches()).nats_per_token
    assert loss > report(run)["losses"]["dev"]["nats_per_token"] + 0.001
    assert f"| dev | {loss:.4f} |" in (tmp_path / "last.md").read_text()
