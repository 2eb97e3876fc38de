"""Count models against numbers worked out by hand, and what holds for all of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mlp_lm import load
from mlp_lm.cli import main
from mlp_lm.models.metrics import evaluate
from mlp_lm.models.ngram import Level, NGramModel, add_k, count, modified_kneser_ney
from mlp_lm.text.corpus import Ids, encode, load_corpus
from mlp_lm.text.vocab import Vocab
from mlp_lm.text.windows import Windows
from tests.conftest import Capture, error_of, fit

VOCAB = Vocab(["", "a", "b"])
THREE = encode(["ab", "ab", "b"], VOCAB)  # a b . a b . b .


def model(levels: list[Level], vocab: Vocab = VOCAB) -> NGramModel:
    return NGramModel(levels, len(vocab))


def probs(levels: list[Level], context: list[int]) -> list[float]:
    row: list[float] = model(levels).probs(np.array([context]))[0].tolist()
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


def test_an_order_of_one_is_the_tokens_own_frequency_smoothed() -> None:
    levels, fallbacks = modified_kneser_ney(count(THREE, 3, 1))
    assert fallbacks == [1]  # counts 3, 2, 3: D = 1.5, 1, 1.5; 4 of 8 is handed on
    assert probs(levels, [0]) == pytest.approx([1.5 / 8 + 0.5 / 3, 1 / 8 + 0.5 / 3, 1.5 / 8 + 0.5 / 3], abs=1e-12)


def test_relative_frequencies_and_added_counts() -> None:
    counts = count(THREE, 3, 3)
    assert probs(add_k(counts, 3, 0), [0, 0]) == pytest.approx([0, 2 / 3, 1 / 3])  # an item is too young for level 3
    assert probs(add_k(counts, 3, 0), [0, 1]) == [0, 0, 1]
    assert probs(add_k(counts, 3, 0), [1, 1]) == [0, 0, 0]  # never seen
    assert probs(add_k(counts, 3, 1), [0, 1]) == pytest.approx([1 / 5, 1 / 5, 3 / 5])
    assert probs(add_k(counts, 3, 1), [1, 1]) == pytest.approx([1 / 3] * 3)


@pytest.fixture(scope="module")
def stream(corpus_file: Path) -> Ids:
    return load_corpus(str(corpus_file), None, unique=True, split_seed=42, max_item_length=100).train


@pytest.mark.parametrize("order", [1, 2, 3, 6])
@pytest.mark.parametrize("smoothing", ["mkn", "add_k"])
def test_probabilities_sum_to_1_for_contexts_seen_and_unseen(stream: Ids, order: int, smoothing: str) -> None:
    counts = count(stream, 12, order)  # two tokens of the vocabulary never occur
    levels = modified_kneser_ney(counts)[0] if smoothing == "mkn" else add_k(counts, 12, 0.1)
    contexts = np.random.default_rng(1).integers(0, 12, (500, max(order - 1, 1)))
    seen, _ = Windows(stream, max(order - 1, 1))[:]
    for rows in (contexts, seen.numpy()):
        table = NGramModel(levels, 12).probs(rows)
        assert table.min() > 0
        assert np.abs(table.sum(1) - 1).max() < 1e-12


def test_a_padded_context_is_that_of_a_single_boundary(stream: Ids) -> None:
    six = NGramModel(modified_kneser_ney(count(stream, 10, 6))[0], 10)
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


def test_the_table_and_the_saved_model(corpus_file: Path, tmp_path: Path, capsys: Capture) -> None:
    saved, figures, plot = (str(tmp_path / name) for name in ("counts.npz", "figures.json", "orders.png"))
    flags = ["--orders=1,2,3", "--test", f"--save={saved}", f"--json={figures}", f"--plot={plot}"]
    assert main(["ngram", str(corpus_file), *flags]) == 0
    report = json.loads(Path(figures).read_text())
    assert [row["order"] for row in report["orders"]] == [1, 2, 3]
    assert [row["contexts_possible"] for row in report["orders"]] == [1, 10, 100]
    best = min(report["orders"], key=lambda row: row["dev"])
    assert f"test, order {best['order']}: {report['test']['test']:.4f} nats/token" in capsys.readouterr().out
    assert Path(plot).read_bytes().startswith(b"\x89PNG")
    corpus = load_corpus(str(corpus_file), None, unique=True, split_seed=42, max_item_length=100)
    own = NGramModel(modified_kneser_ney(count(corpus.train, 10, best["order"]))[0], 10)
    windows = Windows(corpus.dev, max(best["order"] - 1, 1))
    assert evaluate(own.log_probs, windows.batches()).nats_per_token == best["dev"]
    contexts, _ = windows[:]
    assert torch.equal(load(saved).log_probs(contexts), own.log_probs(contexts))  # bit by bit
    assert main(["sample", saved, "--num=3", "--seed=1"]) == 0
    assert capsys.readouterr().out.splitlines() == load(saved).sample(3, seed=1)
    assert main(["score", saved, str(corpus_file)]) == 0


def test_unseen_events_are_impossible_without_smoothing(corpus_file: Path, tmp_path: Path, capsys: Capture) -> None:
    saved = str(tmp_path / "counts.npz")
    assert main(["ngram", str(corpus_file), "--orders=6", "--smoothing=none", f"--save={saved}"]) == 0
    assert "inf" in capsys.readouterr().out
    assert load(saved).sample(20, seed=1)
    assert "no token has a chance after this prompt" in error_of(["sample", saved, "--prompt=aaaaaaa"], capsys)


def test_add_k_chooses_k_on_dev(corpus_file: Path, tmp_path: Path, capsys: Capture) -> None:
    figures = tmp_path / "figures.json"
    assert main(["ngram", str(corpus_file), "--orders=2,3", "--smoothing=add_k", f"--json={figures}"]) == 0
    first, second = json.loads(figures.read_text())["orders"]
    out = capsys.readouterr().out
    assert f"k, chosen on dev: {first['added']:g} for order 2, {second['added']:g} for order 3\n" in out
    corpus = load_corpus(str(corpus_file), None, unique=True, split_seed=42, max_item_length=100)
    counts, windows = count(corpus.train, 10, 2), Windows(corpus.dev, 1)
    losses = {
        k: evaluate(NGramModel(add_k(counts, 10, k), 10).log_probs, windows.batches()).nats_per_token
        for k in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    }
    assert losses[first["added"]] == first["dev"] == min(losses.values())


def test_levels_whose_discounts_cannot_be_estimated_are_named_once(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "short.txt").write_text("ab\nba\naa\nbb\na\nb\n")
    assert main(["ngram", str(tmp_path / "short.txt"), "--orders=1"]) == 0
    assert "discounts" not in capsys.readouterr().out  # nothing is lost at level 1
    assert main(["ngram", str(tmp_path / "short.txt"), "--orders=1,2,3,8"]) == 0
    *_, note, _ = capsys.readouterr().out.splitlines()
    assert note.startswith(
        "the discounts of 3-grams, 4-grams, 5-grams, 6-grams, 7-grams, 8-grams cannot be estimated from this text"
    )


def test_the_mixture_is_no_worse_than_its_parts_and_can_be_saved(best: Path, tmp_path: Path, capsys: Capture) -> None:
    saved, figures = tmp_path / "mixture.npz", tmp_path / "figures.json"
    assert main(["ngram", f"--mix={best}", "--orders=1,2,3", f"--save={saved}", f"--json={figures}"]) == 0
    report = json.loads(figures.read_text())["mixture"]
    assert report["mixture"]["dev"] <= min(report["network"]["dev"], report["counts"]["dev"])
    lm, network, arrays, weight = load(saved), load(best), np.load(saved), report["weight"]
    parts = ("keys", "probs", "backoff")
    counts = NGramModel([Level(*(arrays[f"level{k + 1}_{n}"] for n in parts)) for k in range(report["order"])], 10)
    contexts = torch.tensor([[0, 0, 3], [4, 2, 1]])
    expected = weight * network.log_probs(contexts).double().exp() + (1 - weight) * counts.log_probs(contexts).exp()
    assert (lm.log_probs(contexts).exp() - expected).abs().max() < 1e-12
    assert lm.sample(3, seed=1)


def test_test_is_left_unread_unless_asked_for(best: Path, tmp_path: Path, capsys: Capture) -> None:
    figures = tmp_path / "figures.json"
    for flags, splits in (([], {"dev"}), (["--test"], {"dev", "test"})):
        assert main(["ngram", f"--mix={best}", "--orders=2", f"--json={figures}", *flags]) == 0
        report = json.loads(figures.read_text())["mixture"]
        assert all(report[name].keys() == splits for name in ("network", "counts", "mixture"))
        out = capsys.readouterr().out
        assert f"  mixture  dev {report['mixture']['dev']:.4f} nats/token" in out
        assert ("test" in out) == ("test" in splits)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--orders=0"], "orders: found '0', expected whole numbers from 1 to 12"),
        (["--orders=13"], "from 1 to 12"),
        (["--orders=x"], "from 1 to 12"),
        (["--smoothing=magic"], "smoothing: found 'magic', expected mkn or add_k or none"),
        (["--mix=none.ckpt"], "none.ckpt: no such file"),
        (["--save=counts"], "save: found 'counts', expected a file that ends in .npz"),
        (["--plot=orders.foo"], "plot: found 'orders.foo', expected a file that ends in .png or .svg"),
        (["--json=FILE"], "is an input too"),
        (["--json=x.npz", "--save=x.npz"], "json: x.npz is --save too"),
        (["--max_item_length=3"], "at most 3 are allowed"),
    ],
)
def test_bad_input(args: list[str], expected: str, corpus_file: Path, capsys: Capture) -> None:
    args = [arg.replace("FILE", str(corpus_file)) for arg in args]
    assert expected in error_of(["ngram", str(corpus_file), "--orders=1", *args], capsys)


def test_a_checkpoint_of_other_data(best: Path, tmp_path: Path, capsys: Capture) -> None:
    assert "has other characters" in error_of(["ngram", "names", f"--mix={best}"], capsys)
    assert "split in another way" in error_of(["ngram", f"--mix={best}", "--split_seed=1"], capsys)
    assert "gone.txt: no such file" in error_of(["ngram", str(tmp_path / "gone.txt"), f"--mix={best}"], capsys)


def test_contexts_that_were_seen(tmp_path: Path) -> None:
    for name, text in (("train", "ab\nab\n"), ("dev", "zed\n"), ("test", "a\n")):
        (tmp_path / name).write_text(text)
    paths = [f"--{name}_path={tmp_path / name}" for name in ("train", "dev", "test")]
    assert main(["ngram", *paths, "--orders=1,2,3", f"--json={tmp_path / 'f.json'}", "--smoothing=none"]) == 0
    rows = json.loads((tmp_path / "f.json").read_text())["orders"]
    assert [row["contexts_seen"] for row in rows] == [1, 3, 2]  # ., a, b; then .a and ab
    assert [row["dev"] for row in rows] == [None, None, None]  # infinite, which JSON cannot say


def test_a_mixture_in_float64_is_the_same_after_saving(corpus_file: Path, tmp_path: Path) -> None:
    run = fit(corpus_file, tmp_path / "run", "--trainer.precision=64-true")
    saved, checkpoint = tmp_path / "m.npz", run / "checkpoints" / "best.ckpt"
    figures = tmp_path / "figures.json"
    assert main(["ngram", f"--mix={checkpoint}", "--orders=2", f"--save={saved}", f"--json={figures}"]) == 0
    corpus = load_corpus(str(corpus_file), None, unique=True, split_seed=42, max_item_length=100)
    loss = evaluate(load(saved).log_probs, Windows(corpus.dev, 3).batches()).nats_per_token
    mixed = json.loads(figures.read_text())["mixture"]["mixture"]["dev"]
    assert loss == pytest.approx(mixed, abs=1e-12)


def test_a_damaged_count_file(corpus_file: Path, tmp_path: Path, capsys: Capture) -> None:
    saved = tmp_path / "counts.npz"
    assert main(["ngram", str(corpus_file), "--orders=2", f"--save={saved}"]) == 0
    capsys.readouterr()
    np.savez(saved, **{name: array for name, array in np.load(saved).items() if name != "level2_backoff"})
    assert "damaged" in error_of(["sample", str(saved)], capsys)
    saved.write_bytes(saved.read_bytes()[:100])
    assert "damaged, or not a count model" in error_of(["sample", str(saved)], capsys)


def test_the_bundled_names() -> None:
    corpus = load_corpus("names", None, unique=True, split_seed=42, max_item_length=100)
    four = NGramModel(modified_kneser_ney(count(corpus.train, 27, 4))[0], 27)
    loss = evaluate(four.log_probs, Windows(corpus.dev, 3).batches()).nats_per_token
    assert 2.0 < loss < math.log(27) - 0.9
