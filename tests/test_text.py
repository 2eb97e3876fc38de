"""Running text and words: from a file to a network, samples and scores."""

from __future__ import annotations

import csv
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlp_lm import Sampling, load
from mlp_lm.cli import main
from mlp_lm.errors import DataError
from mlp_lm.models.metrics import evaluate
from mlp_lm.models.views import nearest
from mlp_lm.text.corpus import SPLITS, Corpus, CorpusSettings, load_corpus
from mlp_lm.text.datasets import DATASETS, RemoteFile
from mlp_lm.text.windows import Windows
from tests.conftest import LOGGED, Capture, error_of, fit, last, report, state

TEXT = ["--data.layout=text", "--data.tokens=words"]


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 sentences of two to six of 40 words, some of them rare, one a line."""
    rng = random.Random(1)
    words = [f"{a}{b}" for a in "bdfgklmn" for b in ("a", "e", "i", "o", "u")]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    sentences = [" ".join(rng.choices(words, weights, k=rng.randint(2, 6))) for _ in range(400)]
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text(".\n".join(["Once only", *sentences]) + ".\n")
    return path


@pytest.fixture(scope="module")
def run(book: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on it; read only."""
    return fit(book, tmp_path_factory.mktemp("runs") / "run", LOGGED, *TEXT)


def corpus(path: Path, **settings: Any) -> Corpus:
    return load_corpus(CorpusSettings(path=str(path), **{"layout": "text", "tokens": "words", **settings}))


# -- data ----------------------------------------------------------------------------------------------------------


def test_running_text_is_cut_in_order_and_each_split_is_one_item(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefgh\ni")
    found = corpus(tmp_path / "a.txt", tokens="characters")
    assert [found.items(split) for split in SPLITS] == [["abcdefgh"], ["\n"], ["i"]]
    assert found.train.tolist()[-1] == 0 and found.vocab.show(1) == "↵"
    dropped = corpus(tmp_path / "a.txt", tokens="characters", newlines="drop")
    assert [dropped.items(split) for split in SPLITS] == [["abcdefgh"], [" "], ["i"]]


@pytest.mark.parametrize("tokens", ["characters", "words"])
def test_a_text_that_is_read_in_pieces_is_the_same(
    tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clean.txt").write_text("\n \nthe caf\u00e9\nthe end\n\nof the caf\u00e9\n\n", encoding="utf-8")
    windows = "\ufeff\r\n \r\nthe cafe\u0301\r\nthe end\r\n\r\nof the cafe\u0301\r\n\r\n"
    (tmp_path / "windows.txt").write_bytes(windows.encode())
    whole = corpus(tmp_path / "clean.txt", tokens=tokens)
    for block in (1, 7):
        monkeypatch.setattr("mlp_lm.text.reading.BLOCK", block)
        monkeypatch.setattr("mlp_lm.text.corpus.BLOCK", block)
        found = corpus(tmp_path / "windows.txt", tokens=tokens)
        assert found.fingerprint == whole.fingerprint
        assert [found.items(split) for split in SPLITS] == [whole.items(split) for split in SPLITS]


def test_a_dataset_may_have_a_published_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"a a b b c"
    (tmp_path / "x.txt").write_bytes(content)
    known = RemoteFile("http://127.0.0.1:9/", hashlib.sha256(content).hexdigest(), "x.txt", cuts=(3, 4))
    monkeypatch.setitem(DATASETS, "brown", known)
    monkeypatch.setenv("MLP_LM_CACHE", str(tmp_path))
    settings: dict[str, Any] = {"path": "brown", "layout": "text", "newlines": "drop"}
    found = load_corpus(CorpusSettings(**settings, tokens="pretokenized", max_vocab_size=3))
    assert [found.items(split) for split in SPLITS] == [["a a <unk>"], ["<unk>"], ["<unk>"]]
    assert load_corpus(CorpusSettings(**settings)).items("train") == ["a a b b"]  # 80 % of the characters


def test_the_windows_of_a_text_cross_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a b\na b\n" * 10)
    found = corpus(tmp_path / "a.txt", max_vocab_size=4)
    contexts, targets = Windows(found.train, 2)[:]
    assert len(targets) == len(found.train) == 49
    assert contexts[:2].tolist() == [[0, 0], [0, 2]] and (contexts[2:] != 0).all()
    assert targets.tolist() == found.train.tolist() and targets[-1] == 0


def test_a_vocabulary_is_learnt_from_train_alone_unless_asked_for(tmp_path: Path) -> None:
    for name, text in (("train", "a a a b b c"), ("dev", "d d d d"), ("test", "a b e")):
        (tmp_path / f"{name}.txt").write_text(text)
    files = {f"{name}_path": str(tmp_path / f"{name}.txt") for name in SPLITS}
    settings: dict[str, Any] = {"layout": "text", "tokens": "words", **files}
    assert load_corpus(CorpusSettings(**settings)).vocab.tokens == ["", "a", "b", "<unk>"]
    assert load_corpus(CorpusSettings(**settings, vocab_from="all")).vocab.tokens == ["", "a", "d", "b", "<unk>"]


def test_words_of_items_and_three_files(tmp_path: Path) -> None:
    lines = [f"item {i % 7} is here" for i in range(40)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    found = corpus(tmp_path / "a.txt", layout="items", unique=False, min_count=6)
    assert all(item.startswith("item ") and item.endswith(" is here") for item in found.items("dev"))
    assert np.count_nonzero(found.train == 0) == 32


def test_text_tokens_and_vocabulary_are_part_of_the_fingerprint(book: Path) -> None:
    settings: list[dict[str, Any]] = [{}, {"min_count": 20}, {"lowercase": True}, {"newlines": "drop"}]
    assert len({corpus(book, **each).fingerprint for each in settings}) == len(settings)


@pytest.mark.parametrize(
    ("content", "settings", "expected"),
    [
        ("", {}, "a.txt: an empty file; expected running text"),
        (" \n\n", {}, "a.txt: only white space; expected running text"),
        ("one", {"min_count": 1}, "the train split would be empty"),
        ("a b c d e f g h i j", {}, "no word occurs 2 times; lower data.min_count"),
        ("a b a b a b a b a b", {}, "has every word of train, so that <unk> would never be learnt"),
    ],
)
def test_a_text_that_cannot_be_used(tmp_path: Path, content: str, settings: dict[str, Any], expected: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(DataError, match=expected):
        corpus(tmp_path / "a.txt", **settings)


def test_a_split_that_is_shorter_than_a_window_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.txt").write_text("a b c a b d a b c a b e")
    (tmp_path / "b.txt").write_text("a b c")
    one, three = [f"--data.path={tmp_path / 'a.txt'}"], [f"--data.{x}_path={tmp_path / 'a.txt'}" for x in SPLITS]
    args = ["fit", *TEXT, "--data.context_size=4", f"--run_dir={tmp_path / 'run'}"]
    assert "a.txt: dev has 1 token, fewer than a window of 5" in error_of([*args, *one], capsys)
    three += [f"--data.dev_path={tmp_path / 'b.txt'}"]
    assert "b.txt: dev has 3 tokens, fewer than a window of 5" in error_of([*args, *three], capsys)


def test_inspect_counts_words_and_says_how_many_a_vocabulary_leaves_out(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.txt").write_text("x x y z . x x y w\n" + "u y " * 5)
    files = tmp_path / "a.txt", tmp_path / "found.json"
    assert main(["inspect", str(files[0]), "--layout=text", "--tokens=words", f"--json={files[1]}"]) == 0
    out = capsys.readouterr().out
    assert "20 tokens, 7 distinct\n" in out and "some of the rarest: z, " in out
    found = json.loads(files[1].read_text())
    assert found["counts"] == {"y": 7, "u": 5, "x": 4, "\n": 1, ".": 1, "w": 1, "z": 1}
    assert found["unknown"] == {"1": 0, "2": 0, "4": 0.5, "8": 1}  # dev is `u y`, which train has 3 and 5 times


def test_the_nearest_tokens_are_those_of_the_smallest_angle(run: Path, best: Path, capsys: Capture) -> None:
    model = load(run)
    assert model.network is not None
    with torch.no_grad():
        table = model.network.embedding.weight
        table.zero_()[:, 0] = 1.0
        table[1], table[2], table[3] = (torch.tensor(row) for row in ([2.0, 0, 0, 1], [1.0, 0, 0, 0.5], [0, 0, 1.0, 1]))
    (first, same), (_, less) = nearest(model.network, 1, 2)
    assert first == 2 and same == pytest.approx(1) and less == pytest.approx(2 / 5**0.5)
    assert main(["inspect", str(run), "--nearest=ba,be"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["ba", "be"]
    assert "nearest: 'zz' not in the vocabulary of" in error_of(["inspect", str(run), "--nearest=zz"], capsys)


def test_scripts_without_blanks_and_prose_get_a_line_of_advice(tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "a.txt").write_text("\u4e2d\u6587 \u6587\u5b57\u3002 \u7f55\n" + "\u4e2d\u6587 \u6587\u5b57\n" * 40)
    fit(tmp_path / "a.txt", tmp_path / "run", *TEXT, "--trainer.enable_progress_bar=false")
    assert "in a script without spaces between words; tokens: characters suits it" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("fit --data.min_count=3", "data.min_count: applies only to words (got 3)"),
        ("fit --data.vocab_from=all", "data.vocab_from: applies only to words"),
        ("fit --data.newlines=drop", "data.newlines: applies only to data.layout text"),
        ("fit --model.hidden_dim=0", "model.hidden_dim: found 0, which needs --model.direct true"),
        ("fit --model.tied=true --model.direct=true", "model.direct: does not go with model.tied"),
        ("fit --model.residual=true", "model.residual: applies only to model.num_layers above 1"),
        ("fit --model.hidden_dim=0 --model.direct=true --model.num_layers=2", "hidden_dim 0 leaves no tanh layer"),
        ("inspect names --max_vocab_size=9", "data.max_vocab_size: applies only to words"),
        ("inspect names --tokens=words --item=emma", "item: shows windows of characters in items"),
    ],
)
def test_settings_that_do_not_go_together(args: str, expected: str, capsys: Capture) -> None:
    assert expected in error_of(args.split(), capsys)


@pytest.mark.parametrize("tokens", ["characters", "words"])
@pytest.mark.parametrize("newlines", ["keep", "drop"])
def test_the_lines_of_dev_score_as_its_windows_do(tokens: str, newlines: str, tmp_path: Path) -> None:
    lines = [f"{w} w{i % 3} rare{i}" for i, w in enumerate(["a", "b", "b", "a", "a"] * 20)]
    for split, part in (("train", lines[:80]), ("dev", lines[80:]), ("test", lines[80:])):
        (tmp_path / f"{split}.txt").write_text("\n".join(part) + "\n")
    files = {f"{split}_path": str(tmp_path / f"{split}.txt") for split in SPLITS}
    settings: dict[str, Any] = {"layout": "text", "tokens": tokens, "newlines": newlines, **files}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    assert main(["ngram", *flags, "--orders=2", f"--save={tmp_path / 'counts.safetensors'}"]) == 0
    model = load(tmp_path / "counts.safetensors")
    scores = model.score_text(lines[80:])
    contexts, targets = Windows(load_corpus(CorpusSettings(**settings)).dev, 1)[:-1]  # all but the boundary
    assert sum(score.tokens for score in scores) == len(targets)
    expected = model.nats(contexts, targets).sum().item()
    assert -sum(score.log_prob for score in scores) == pytest.approx(expected)


def test_a_text_without_tokens_is_one_line(tmp_path: Path, run: Path, capsys: Capture) -> None:
    (tmp_path / "empty.txt").write_text("")
    assert "empty.txt: found no token; expected text" in error_of(
        ["score", str(run), str(tmp_path / "empty.txt")], capsys
    )


def test_items_of_words_are_known_although_some_words_are_not(tmp_path: Path, capsys: Capture) -> None:
    lines = [f"the {'cat' if i % 2 else 'dog'} saw no{i}." for i in range(30)]
    (tmp_path / "items.txt").write_text("\n".join(lines))
    saved = tmp_path / "counts.safetensors"
    assert main(["ngram", str(tmp_path / "items.txt"), "--tokens=words", "--orders=2", f"--save={saved}"]) == 0
    assert main(["score", str(saved), f"--item={lines[0]}", "--item=the sun."]) == 0
    assert "1 of them is in the training set" in capsys.readouterr().err


# -- a network -----------------------------------------------------------------------------------------------------


def test_a_run_on_words_reports_and_evaluates(run: Path, book: Path, capsys: Capture) -> None:
    found = report(run)
    dev = Windows(corpus(book).dev, 3)
    assert found["windows"]["dev"] == len(dev)
    assert evaluate(load(run).nats, [dev[:]]).nats_per_token == pytest.approx(found["losses"]["dev"]["nats_per_token"])
    assert found["losses"]["dev"]["nats_per_token"] < np.log(found["vocab_size"])
    assert len(found["samples"]) == 1 and found["samples"][0]["seen_in"] is None
    assert main(["validate", f"--ckpt_path={run}"]) == 0
    assert main(["predict", f"--ckpt_path={run}"]) == 0
    assert main(["plot", str(run), f"--output={run.parent / 'a.png'}"]) == 0


def test_what_decides_about_tokens_cannot_change_when_a_run_is_resumed(run: Path, capsys: Capture) -> None:
    changes = ["--data.layout=items", "--data.min_count=9", "--data.lowercase=true", "--data.vocab_from=all"]
    message = error_of(["fit", f"--ckpt_path={run}", "--trainer.max_steps=20", *changes], capsys)
    for name in ("layout", "min_count", "lowercase", "vocab_from"):
        assert f"data.{name}: found " in message
    assert state(run)["global_step"] == 12 and last(run).exists()


def test_a_text_is_generated_without_unk_and_as_long_as_asked_for(run: Path, capsys: Capture) -> None:
    model = load(run)
    texts = model.sample(50, Sampling(seed=1, num_tokens=40, prompt="ba"))
    for text in texts:
        assert len(model.tokenizer.split(text.text)) == 41 and text.text.startswith("ba") and "<unk>" not in text.text
    allowed = model.sample(200, Sampling(seed=1, num_tokens=40, allow_unk=True))
    assert any("<unk>" in text.text for text in allowed)
    assert main(["sample", str(run), "--num_tokens=5", "--seed=1", "--prompt=zzz"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() and err == "prompt: 'zzz' outside the vocabulary, read as <unk>\n1 text\n"


def test_settings_of_items_are_refused_for_a_text_and_the_other_way_round(
    run: Path, best: Path, capsys: Capture
) -> None:
    assert "only_new and max_length are for items" in error_of(["sample", str(run), "--only_new"], capsys)
    assert "num_tokens is for running text" in error_of(["sample", str(best), "--num_tokens=9"], capsys)


def test_a_form_feed_is_no_end_of_a_line(tmp_path: Path, capsys: Capture) -> None:
    text, counts = tmp_path / "text.txt", tmp_path / "counts.safetensors"
    text.write_text("ab\fab\n" * 20)
    assert main(["ngram", str(text), "--layout=text", "--orders=2", f"--save={counts}"]) == 0
    capsys.readouterr()
    assert main(["score", str(counts), str(text)]) == 0
    assert capsys.readouterr().err.startswith("20 lines, 120 tokens: ")


def test_a_text_is_scored_line_by_line_in_the_context_of_the_lines_before(
    run: Path, book: Path, tmp_path: Path, capsys: Capture
) -> None:
    lines = ["ba be bi.", "", "zzz bo"]
    (tmp_path / "other.txt").write_text("\n".join(lines) + "\n")
    assert main(["score", str(run), str(tmp_path / "other.txt")]) == 0
    out, err = capsys.readouterr()
    *rows, total = csv.DictReader(out.splitlines())
    assert [(row["item"], row["tokens"], row["unknown"]) for row in rows] == [
        ("ba be bi.", "5", "0"),
        ("", "1", "0"),
        ("zzz bo", "3", "1"),
    ]
    whole = load(run).score_text(["\n".join(lines)])[0].log_prob
    assert float(total["log_prob"]) == pytest.approx(whole, abs=1e-4)
    assert sum(float(row["log_prob"]) for row in rows) == pytest.approx(whole, abs=1e-4)
    bits = -whole / np.log(2) / (len("\n".join(lines)) + 1)
    assert err.startswith("3 lines, 9 tokens: ") and f", {bits:.4f} bits/byte; 11.11% <unk>\n" in err
