"""`export`: what was written computes what the model computes, and nothing is overwritten by mistake."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mlp_lm import Sampling, load
from mlp_lm.cli import main
from mlp_lm.exports import folder
from mlp_lm.exports.details import Details
from mlp_lm.models.checkpoint import resolve
from mlp_lm.models.metrics import evaluate
from mlp_lm.text.corpus import CorpusSettings, load_corpus
from mlp_lm.text.windows import Windows
from tests.conftest import CONSTANT_SGD, Capture, error_of, fit, report


def export(*args: object, code: int = 0) -> None:
    """Run the command."""
    assert main(["export", *map(str, args)]) == code


@pytest.fixture(scope="module")
def mixture(best: Path, good: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of the network and counts."""
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "counts.npz").write_bytes(good["counts.npz"])
    assert main(["mix", str(best), str(folder / "counts.npz"), f"--save={folder / 'mixture.npz'}"]) == 0
    return folder / "mixture.npz"


@pytest.mark.parametrize("kind", ["network", "counts", "mixture"])
def test_a_folder_samples_and_scores_like_the_model(
    kind: str, best: Path, mixture: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = {"network": best, "counts": mixture.with_name("counts.npz"), "mixture": mixture}[kind]
    export(file, "--format=safetensors", f"--output={tmp_path / 'model'}")
    saved, checked, _ = capsys.readouterr().out.splitlines()
    assert saved.startswith(f"saved: {tmp_path / 'model'}, ") and "differ by at most 0.0e+00" in checked
    printed = []
    for model in (file, tmp_path / "model"):
        assert main(["sample", str(model), "--seed=1"]) == main(["score", str(model), "--item=anna"]) == 0
        printed.append(capsys.readouterr())
    assert printed[0] == printed[1]


@pytest.mark.slow
def test_a_folder_is_drawn_like_the_model(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(run_dir, "--format=safetensors", f"--output={tmp_path / 'model'}")
    data = load(run_dir).facts.settings["path"]
    monkeypatch.chdir(Path(data).parent)  # a folder has the name of its corpus alone
    for what in ("embeddings", "next_token", "activations"):
        pictures = [tmp_path / f"{what}{i}.svg" for i in (1, 2)]
        for model, picture in zip((run_dir, tmp_path / "model"), pictures, strict=True):
            assert main(["plot", str(model), f"--what={what}", f"--output={picture}"]) == 0
        one, other = (re.sub("<dc:date>.*|(id=|#)[^ ]*", "", picture.read_text()) for picture in pictures)
        assert one == other


def test_the_card_of_a_network_has_the_losses_of_its_report_and_python_that_runs(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    export(run_dir, "--format=safetensors", f"--output={tmp_path / 'model'}")
    card = (tmp_path / "model" / "README.md").read_text()
    losses = json.loads((run_dir / "report.json").read_text())["losses"]
    for split in ("dev", "test"):
        assert f"| {split} | {losses[split]['nats_per_token']:.4f} |" in card
    (samples,) = re.findall("## Samples\n\n```\n(.*?)\n```", card, re.DOTALL)
    assert samples.split("\n") == [str(sample) for sample in load(run_dir).sample(10, Sampling(seed=0))]
    (python,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
    capsys.readouterr()
    monkeypatch.chdir(tmp_path / "model")
    exec(python, {})
    assert capsys.readouterr().out.count(" ") == 9


def test_the_card_names_a_published_split(best: Path, tmp_path: Path) -> None:
    model = load(best)
    as_published = {"path": "brown", "layout": "text", "tokens": "pretokenized", "newlines": "drop"}
    model = replace(model, facts=replace(model.facts, settings={**model.facts.settings, **as_published}))
    folder.write(tmp_path / "model", model, Details("brown", (best, model), {"dev": 5.0}))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Split: the published one, cut after 800,000 and 1,000,000 tokens." in card


@pytest.mark.parametrize(("place", "name"), [("model", "."), ("model/inside", "..")])
def test_dots_are_a_folder_like_others(
    place: str, name: str, best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(best, "--format=safetensors", f"--output={tmp_path / 'model'}")
    (tmp_path / "model" / "inside").mkdir()
    monkeypatch.chdir(tmp_path / place)
    assert main(["plot", name, "--what=embeddings"]) == 0
    assert (tmp_path / "model_embeddings.png").exists()


def test_a_run_whose_report_is_damaged_can_be_exported(run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "run")
    (copy / "report.json").write_text('{"losses"')
    export(copy, "--format=safetensors", f"--output={tmp_path / 'model'}")


def test_a_folder_does_not_tell_where_its_corpus_was(run_dir: Path, corpus_file: Path, tmp_path: Path) -> None:
    export(run_dir, "--format=safetensors", f"--output={tmp_path / 'model'}")
    assert str(corpus_file.parent) not in "".join(p.read_text(errors="ignore") for p in (tmp_path / "model").iterdir())
    assert load(tmp_path / "model").facts.settings["path"] == corpus_file.name


def test_a_damaged_folder_is_one_line(run_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "model"
    export(run_dir, "--format=safetensors", f"--output={folder}")
    weights, config = (folder / "model.safetensors").read_bytes(), (folder / "config.json").read_text()
    flipped = bytearray(weights)
    flipped[-10] ^= 1
    capsys.readouterr()
    for data, text, expected in (
        (bytes(flipped), config, "damaged; model.safetensors is not the file that config.json describes"),
        (weights[:-10], config, "damaged, or not a model of mlp_lm"),
        (weights, config[:-10], "damaged, or not a model of mlp_lm"),
        (weights, '{"model_type": "gpt2"}', "a checkpoint of another program"),
        (weights, config.replace('"format_version": 3', '"format_version": 4'), "install a newer mlp_lm"),
    ):
        (folder / "model.safetensors").write_bytes(data)
        (folder / "config.json").write_text(text)
        assert expected in error_of(["sample", str(folder)], capsys)
    (folder / "config.json").unlink()
    assert "config.json: cannot be read (No such file or directory)" in error_of(["score", str(folder), "x"], capsys)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--output=mine"], "output: mine is a folder that export did not write; name another place"),
        (["--output=bert"], "output: bert is a folder that export did not write; name another place"),
        (["--output=a.safetensors"], "output: found 'a.safetensors', expected the name of a folder"),
        (["--output=mine/thesis.txt"], "output: mine/thesis.txt is a file; expected a folder"),
        (["--output=before"], "output: before exists; --overwrite replaces it"),
        (["--output=nowhere/model"], "output: 'nowhere/model' cannot be written; expected a place in a folder that"),
    ],
)
def test_what_is_not_overwritten(
    flags: list[str], expected: str, best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/thesis.txt").touch()
    Path("bert").mkdir()
    Path("bert/config.json").write_text('{"model_type": "bert"}')
    export(best, "--format=safetensors", "--output=before")
    capsys.readouterr()
    for more in ([], ["--overwrite"]) if "before" not in flags[0] else ([],):
        assert expected in error_of(["export", str(best), "--format=safetensors", *flags, *more], capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "bert", "mine"]
    export(best, "--format=safetensors", "--output=before", "--overwrite")
    assert sorted(path.name for path in Path("before").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert resolve("before") == Path("before")


def test_a_link_to_a_folder_stays_one(best: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    export(best, "--format=safetensors", f"--output={tmp_path / 'link'}", "--overwrite")
    assert (tmp_path / "link").is_symlink() and load(tmp_path / "real").network is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_a_failed_export_leaves_what_was_there(
    best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    args = ["export", str(best), f"--output={tmp_path / 'page.html'}", "--overwrite"]
    (tmp_path / "page.html").write_text("before")
    monkeypatch.setattr("mlp_lm.exports.page.TOLERANCE", -1.0)
    assert "not written, as its log-probabilities differ by" in error_of(args, capsys)
    monkeypatch.setattr("mlp_lm.exports.page._text", lambda name: (_ for _ in ()).throw(OSError(28, "No space left")))
    assert "page.html: cannot be written (No space left)" in error_of(args, capsys)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("page.html", "before")]


def test_a_network_that_computes_nan_is_one_line(best: Path, tmp_path: Path, capsys: Capture) -> None:
    content = torch.load(best, weights_only=True)
    content["state_dict"]["network.output.bias"][:] = torch.nan
    torch.save(content, tmp_path / "nan.ckpt")
    for format in ("html", "safetensors"):
        assert "probabilities are NaN" in error_of(["export", str(tmp_path / "nan.ckpt"), f"--format={format}"], capsys)


@pytest.mark.slow
def test_losses_of_a_report_are_those_of_best_ckpt_alone(corpus_file: Path, tmp_path: Path) -> None:
    run = fit(corpus_file, tmp_path / "run", *CONSTANT_SGD, "--model.learning_rate=20", "--trainer.max_steps=30")
    export(run / "checkpoints" / "last.ckpt", "--format=safetensors", f"--output={tmp_path / 'last'}")
    model = load(run / "checkpoints" / "last.ckpt")
    corpus = load_corpus(CorpusSettings(path=str(corpus_file)))
    loss = evaluate(model.nats, Windows(corpus.dev, 3).batches()).nats_per_token
    assert loss > report(run)["losses"]["dev"]["nats_per_token"] + 0.001
    assert f"| dev | {loss:.4f} |" in (tmp_path / "last" / "README.md").read_text()
