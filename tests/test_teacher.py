"""`data.teacher`: training on the probabilities of another model, on train and on items that it makes up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mlp_lm import load
from mlp_lm.cli import main
from mlp_lm.errors import CheckpointError, SettingsError
from mlp_lm.models.metrics import evaluate
from mlp_lm.text.corpus import CorpusSettings, load_corpus
from mlp_lm.text.windows import Windows
from mlp_lm.training.teacher import load_teacher, teach
from tests.conftest import SMALL, Capture, error_of, fit, report, state

TAUGHT = ["--model.dropout=0", "--data.teacher_items=300"]


@pytest.fixture(scope="module")
def teacher(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Counts of order 3 of the corpus."""
    path = tmp_path_factory.mktemp("teacher") / "counts.safetensors"
    assert main(["ngram", str(corpus_file), "--orders=3", f"--save={path}"]) == 0
    return path


def test_targets_are_what_the_teacher_predicts_on_train_and_on_items_of_its_own(
    corpus_file: Path, teacher: Path
) -> None:
    corpus, model = load_corpus(CorpusSettings(path=str(corpus_file))), load(teacher)
    windows = teach(model, corpus.train, context_size=5, num_items=50, seed=1)
    train = Windows(corpus.train, 5)[:][0]
    contexts, probs = windows[:]
    torch.testing.assert_close(contexts[: len(train)], train)
    generated = int((contexts[len(train) :, -1] == 0).sum())  # an item has one window at its start
    assert 40 < generated <= 50  # but those without an end
    torch.testing.assert_close(probs.double(), model.log_probs(contexts[:, -2:]).exp(), atol=1e-3, rtol=1e-3)
    again, others = (teach(model, corpus.train, 5, 50, seed)[:][0] for seed in (1, 2))
    assert torch.equal(again, contexts) and not torch.equal(others[: len(contexts)], contexts[: len(others)])


def test_a_taught_network_comes_closer_to_its_teacher(corpus_file: Path, teacher: Path, tmp_path: Path) -> None:
    steps = ["--trainer.max_steps=150", "--model.dropout=0"]
    alone = fit(corpus_file, tmp_path / "alone", *steps)
    taught = fit(corpus_file, tmp_path / "taught", *steps, *TAUGHT, f"--data.teacher={teacher}")
    corpus, model = load_corpus(CorpusSettings(path=str(corpus_file))), load(teacher)
    contexts, _ = Windows(corpus.dev, 3)[:]
    target = model.log_probs(contexts[:, -2:]).exp()

    def distance(run: Path) -> float:
        log_probs = load(run / "checkpoints" / "last.ckpt").log_probs(contexts)
        return -(target * log_probs).sum(1).mean().item()

    assert distance(taught) < distance(alone) - 0.05
    dev = evaluate(load(taught).nats, Windows(corpus.dev, 3).batches()).nats_per_token
    assert report(taught)["losses"]["dev"]["nats_per_token"] == pytest.approx(dev)  # against the text, not the teacher


@pytest.mark.parametrize("recipe", [[], ["--model.optimizer=sgd"]], ids=["adamw", "sgd"])
def test_a_taught_run_resumes_exactly(
    recipe: list[str], corpus_file: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*TAUGHT, *recipe, f"--data.teacher={os.path.relpath(teacher)}"]  # which holds in any folder
    whole = fit(corpus_file, tmp_path / "whole", *flags)
    parts = fit(corpus_file, tmp_path / "parts", *flags, "--trainer.max_steps=5", "--model.lr_decay_steps=12")
    monkeypatch.chdir(tmp_path)
    assert main(["fit", f"--ckpt_path={parts}", "--trainer.max_steps=12"]) == 0
    assert main(["fit", f"--config={whole / 'config.yaml'}", f"--run_dir={tmp_path / 'again'}"]) == 0
    torch.testing.assert_close(state(whole), state(parts), rtol=0, atol=0)


def test_a_teacher_knows_the_same_data(corpus_file: Path, teacher: Path, tmp_path: Path, capsys: Capture) -> None:
    other = tmp_path / "other.txt"
    other.write_text(corpus_file.read_text().replace("a", "u"))
    assert main(["fit", f"--data.path={other}", f"--run_dir={tmp_path / 'run'}", f"--data.teacher={teacher}"]) == 2
    assert "counts.safetensors: the data has other characters" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    split = load_corpus(CorpusSettings(path=str(corpus_file), split_seed=1))
    with pytest.raises(CheckpointError, match="split differently"):
        load_teacher(str(teacher), split)


def test_a_run_keeps_its_teacher(corpus_file: Path, teacher: Path, tmp_path: Path, capsys: Capture) -> None:
    run = fit(corpus_file, tmp_path / "run", *TAUGHT, f"--data.teacher={teacher}", "--trainer.max_steps=2")
    resume = ["fit", f"--ckpt_path={run}", "--trainer.max_steps=3"]
    capsys.readouterr()
    for other in ("null", f"{run}/checkpoints/best.ckpt"):
        assert "data.teacher: found " in error_of([*resume, f"--data.teacher={other}"], capsys)


def test_a_teacher_is_for_items(corpus_file: Path, teacher: Path) -> None:
    text = load_corpus(CorpusSettings(path=str(corpus_file), layout="text"))
    with pytest.raises(SettingsError, match="for items with a vocabulary below 1,024 tokens"):
        load_teacher(str(teacher), text)


def test_a_missing_teacher_is_one_line(corpus_file: Path, tmp_path: Path, capsys: Capture) -> None:
    flags = [f"--data.path={corpus_file}", f"--run_dir={tmp_path / 'run'}", *SMALL, "--data.teacher=~no1/a.ckpt"]
    assert "~no1/a.ckpt: no such file" in error_of(["fit", *flags], capsys)
