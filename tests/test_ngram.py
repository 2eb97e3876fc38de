"""Count models against numbers worked out by hand, and what holds for all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlp_lm import load
from mlp_lm.cli import main
from mlp_lm.models.metrics import evaluate
from mlp_lm.models.ngram import Level, NGramModel, add_k, count, modified_kneser_ney
from mlp_lm.models.sampling import Sampling
from mlp_lm.text.corpus import Corpus, CorpusSettings, load_corpus
from mlp_lm.text.tokenizer import Tokenizer
from mlp_lm.text.vocab import Vocab
from mlp_lm.text.windows import Windows
from tests.conftest import Capture, error_of

VOCAB = Vocab(["", "a", "b"])
THREE = Tokenizer().encode("ab\nab\nb\n", VOCAB)  # a b . a b . b .


def probs(levels: list[Level], context: list[int]) -> list[float]:
    row: list[float] = NGramModel(levels, len(VOCAB)).probs(np.array([context]))[0].tolist()
    return row


def test_what_is_counted() -> None:
    unigrams, bigrams, trigrams = count(THREE, 3, 3)
    assert unigrams.counts.tolist() == [3, 2, 3]
    assert unigrams.preceded.tolist() == [1, 1, 2]  # the boundary by b; a by the boundary; b by a and the boundary
    assert bigrams.keys.tolist() == [3 * 0 + 1, 3 * 0 + 2, 3 * 1 + 2, 3 * 2 + 0]  # .a, .b, ab, b.
    assert bigrams.counts.tolist() == [2, 1, 2, 3]
    assert bigrams.begins.tolist() == [True, True, False, False]
    # .ab, .b. and ab.: none reaches from one item into the next
    assert sorted(trigrams.counts.tolist()) == [1, 2, 2]


def test_kneser_ney_of_three_items_by_hand() -> None:
    # Bigrams have 1, 2, 1, 0 of count 1, 2, 3, 4: y = 1/5, D = 1 - 2y·2/1, 2 - 3y·1/2, 3 - 0 = 0.2, 1.7, 3.
    # Unigrams count 1, 1, 2 different predecessors: no count of 3, so D = 0.5, 1; half of their mass is handed on.
    levels, fallbacks = modified_kneser_ney(count(THREE, 3, 2))
    assert fallbacks == [1]
    boundary, a, b = (1 - 0.5) / 4 + 0.5 / 3, (1 - 0.5) / 4 + 0.5 / 3, (2 - 1) / 4 + 0.5 / 3
    handed_on = (1.7 + 0.2) / 3
    expected = [handed_on * boundary, (2 - 1.7) / 3 + handed_on * a, (1 - 0.2) / 3 + handed_on * b]
    assert probs(levels, [0]) == pytest.approx(expected, abs=1e-12)
    assert probs(levels, [1]) == pytest.approx([0.85 * boundary, 0.85 * a, 0.15 + 0.85 * b], abs=1e-12)


def test_relative_frequencies_and_added_counts() -> None:
    counts = count(THREE, 3, 3)
    assert probs(add_k(counts, 3, 0), [0, 0]) == pytest.approx([0, 2 / 3, 1 / 3])  # an item is too young for level 3
    assert probs(add_k(counts, 3, 0), [0, 1]) == [0, 0, 1]
    assert probs(add_k(counts, 3, 0), [1, 1]) == [0, 0, 0]  # never seen
    assert probs(add_k(counts, 3, 1), [0, 1]) == pytest.approx([1 / 5, 1 / 5, 3 / 5])
    assert probs(add_k(counts, 3, 1), [1, 1]) == pytest.approx([1 / 3] * 3)


@pytest.fixture(scope="module")
def corpus(corpus_file: Path) -> Corpus:
    return load_corpus(CorpusSettings(path=str(corpus_file)))


@pytest.mark.parametrize("order", [1, 2, 6])
@pytest.mark.parametrize("smoothing", ["mkn", "add_k"])
def test_probabilities_sum_to_1_for_contexts_seen_and_unseen(corpus: Corpus, order: int, smoothing: str) -> None:
    counts = count(corpus.train, 12, order)  # two tokens of the vocabulary never occur
    levels = modified_kneser_ney(counts)[0] if smoothing == "mkn" else add_k(counts, 12, 0.1)
    contexts = np.random.default_rng(1).integers(0, 12, (500, max(order - 1, 1)))
    seen, _ = Windows(corpus.train, max(order - 1, 1))[:]
    for rows in (contexts, seen.numpy()):
        table = NGramModel(levels, 12).probs(rows)
        assert table.min() > 0
        assert np.abs(table.sum(1) - 1).max() < 1e-12


def test_a_padded_context_is_that_of_a_single_boundary(corpus: Corpus) -> None:
    six = NGramModel(modified_kneser_ney(count(corpus.train, 10, 6))[0], 10)
    padded, short = np.array([[0, 0, 0, 3, 4]]), np.array([[0, 3, 4]])
    assert six.probs(padded).tolist() == six.probs(short).tolist()


def test_keys_stay_exact_for_a_large_vocabulary() -> None:
    # 100,000 to the power of 5 is beyond 64 bits. Two 5-grams that differ in their first token alone stay apart.
    ids = [99_999, 99_998, 99_997, 99_996, 99_995, 0, 1, 99_998, 99_997, 99_996, 99_994, 0]
    levels = add_k(count(np.array(ids, np.int32), 100_000, 5), 100_000, 0)
    contexts = np.array([[99_999, 99_998, 99_997, 99_996], [1, 99_998, 99_997, 99_996]])
    found = NGramModel(levels, 100_000).probs(contexts)
    assert found[:, [99_995, 99_994]].tolist() == [[1, 0], [0, 1]]


# -- the command ---------------------------------------------------------------------------------------------------


def dev_loss(levels: list[Level], corpus: Corpus) -> float:
    windows = Windows(corpus.dev, max(len(levels) - 1, 1))
    return evaluate(NGramModel(levels, len(corpus.vocab)).nats, windows.batches()).nats_per_token


def ngram(figures: Path, *args: object) -> dict[str, Any]:
    """The figures of a command that must succeed."""
    assert main(["ngram", *map(str, args), f"--json={figures}"]) == 0
    report: dict[str, Any] = json.loads(figures.read_text())
    return report


def test_the_table_and_the_saved_model(corpus_file: Path, corpus: Corpus, tmp_path: Path, capsys: Capture) -> None:
    saved, plot = tmp_path / "counts.safetensors", tmp_path / "orders.png"
    report = ngram(tmp_path / "f.json", corpus_file, "--orders=1,2,3", "--test", f"--save={saved}", f"--plot={plot}")
    assert [row["order"] for row in report["orders"]] == [1, 2, 3]
    assert [row["contexts_possible"] for row in report["orders"]] == [1, 10, 100]
    assert [row["contexts_seen"] for row in report["orders"][:2]] == [1, 10]
    best = min(report["orders"], key=lambda row: row["dev"])
    assert f"test, order {best['order']}: {report['test']['test']:.4f} nats/token" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")
    levels, _ = modified_kneser_ney(count(corpus.train, 10, best["order"]))
    assert dev_loss(levels, corpus) == best["dev"]
    contexts, _ = Windows(corpus.dev, max(best["order"] - 1, 1))[:]
    assert torch.equal(load(saved).log_probs(contexts), NGramModel(levels, 10).log_probs(contexts))  # bit by bit
    assert main(["sample", str(saved), "--num=3", "--seed=1"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(s) for s in load(saved).sample(3, Sampling(seed=1))]
    assert main(["score", str(saved), str(corpus_file)]) == 0


def test_unseen_events_are_impossible_without_smoothing(corpus_file: Path, tmp_path: Path, capsys: Capture) -> None:
    saved = tmp_path / "counts.safetensors"
    report = ngram(tmp_path / "f.json", corpus_file, "--orders=6", "--smoothing=none", f"--save={saved}")
    assert report["orders"][0]["dev"] is None  # infinite, which JSON cannot say
    assert "inf" in capsys.readouterr().out
    assert "no token can follow" in error_of(["sample", str(saved), "--prompt=aaaaaaa"], capsys)


def test_add_k_chooses_k_on_dev(corpus_file: Path, corpus: Corpus, tmp_path: Path, capsys: Capture) -> None:
    [row] = ngram(tmp_path / "f.json", corpus_file, "--orders=2", "--smoothing=add_k")["orders"]
    assert f"k, chosen on dev: {row['added']:g} for order 2\n" in capsys.readouterr().out
    counts = count(corpus.train, 10, 2)
    losses = {k: dev_loss(add_k(counts, 10, k), corpus) for k in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)}
    assert losses[row["added"]] == row["dev"] == min(losses.values())


def test_levels_whose_discounts_cannot_be_estimated_are_named_once(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "short.txt").write_text("ab\nba\naa\nbb\na\nb\n")
    assert main(["ngram", str(tmp_path / "short.txt"), "--orders=1"]) == 0
    assert "discounts" not in capsys.readouterr().out  # nothing is lost at level 1
    assert main(["ngram", str(tmp_path / "short.txt"), "--orders=1,2,3,8"]) == 0
    *_, note, _ = capsys.readouterr().out.splitlines()
    assert note.startswith(
        "the discounts of 3-grams, 4-grams, 5-grams, 6-grams, 7-grams, 8-grams cannot be estimated from this text"
    )


def test_test_is_left_unread_unless_requested(corpus_file: Path, tmp_path: Path, capsys: Capture) -> None:
    report = ngram(tmp_path / "f.json", corpus_file, "--orders=2")
    assert "test" not in capsys.readouterr().out and "test" not in report
    assert "test" in ngram(tmp_path / "f.json", corpus_file, "--orders=2", "--test")
    assert "test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("{corpus} --orders=0", "orders: found '0', expected whole numbers from 1 to 12"),
        ("{corpus} --orders=1,x", "orders: found '1,x', expected whole numbers"),
        ("{corpus} --smoothing=magic", "smoothing: found 'magic', expected mkn or add_k or none"),
        ("{corpus} --save=counts", "save: found 'counts', expected a file that ends in .safetensors"),
        ("{corpus} --plot=orders.foo", "plot: found 'orders.foo', expected a file that ends in .png or .svg"),
        ("{corpus} --json={corpus}", "would overwrite an input"),
        (
            "{corpus} --json=x.safetensors --save=x.safetensors",
            "json: x.safetensors would overwrite the output of --save",
        ),
        ("gone.txt", "gone.txt: no such file"),
        ("{corpus} --max_vocab_size=9", "data.max_vocab_size: applies only to words"),
    ],
)
def test_bad_input(args: str, expected: str, corpus_file: Path, capsys: Capture) -> None:
    assert expected in error_of(["ngram", *args.format(corpus=corpus_file).split()], capsys)
