"""`mix`: networks, counts and a cache, weighed against each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mlp_lm import load
from mlp_lm.cli import main
from mlp_lm.models.metrics import evaluate
from mlp_lm.models.mixture import Cache, best_weights
from mlp_lm.text.corpus import CorpusSettings, load_corpus
from mlp_lm.text.windows import Windows
from tests.conftest import Capture, error_of


@pytest.fixture(scope="module")
def counts(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A count model of order 2 of the corpus."""
    path = tmp_path_factory.mktemp("counts") / "counts.safetensors"
    assert main(["ngram", str(corpus_file), "--orders=2", f"--save={path}"]) == 0
    return path


def text_counts(folder: Path, text: str, order: int, *flags: str) -> Path:
    """A count model of a running text of words."""
    (folder / "text.txt").write_text(text)
    path = folder / f"{order}{''.join(flags)}.safetensors"
    words = ["--layout=text", "--tokens=words", *flags]
    assert main(["ngram", str(folder / "text.txt"), f"--orders={order}", *words, f"--save={path}"]) == 0
    return path


def test_the_weights_are_those_of_the_highest_likelihood() -> None:
    probs = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.2, 0.6, 0.4, 0.3], [0.1, 0.1, 0.1, 0.1]], dtype=torch.float64)
    weights = best_weights(probs)
    assert weights.sum().item() == pytest.approx(1) and weights[2] < 1e-6  # worse than the second everywhere

    def likelihood(share: float) -> float:
        return (share * probs[0] + (1 - share) * probs[1]).log().sum().item()

    best = max(range(1001), key=lambda i: likelihood(i / 1000)) / 1000
    assert weights[0].item() == pytest.approx(best, abs=1e-3)
    impossible = torch.cat([probs, torch.zeros(3, 5, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(best_weights(impossible), weights)


def test_a_cache_counts_the_last_tokens_but_no_boundaries() -> None:
    contexts = torch.tensor([[0, 0, 1, 2, 1], [0, 0, 0, 0, 0], [1, 1, 2, 2, 2]])
    cache = Cache(vocab_size=4)
    expected = torch.tensor([[0, 2 / 3, 1 / 3, 0], [0, 0, 0, 0], [0, 0.4, 0.6, 0]])
    torch.testing.assert_close(cache.log_probs(contexts).exp().float(), expected)
    for target in range(4):
        targets = torch.full((3,), target)
        torch.testing.assert_close((-cache.nats(contexts, targets)).exp().float(), expected[:, target])


def test_a_mixture_is_no_worse_than_its_parts_and_can_be_saved(
    best: Path, counts: Path, corpus_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    saved = tmp_path / "mixture.safetensors"
    assert main(["mix", str(best), str(counts), f"--save={saved}"]) == 0
    out = capsys.readouterr().out
    assert "test" not in out.splitlines()[0]
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:4]}
    (network, _, weight), (alone, _, other), (mixed, _) = rows[str(best)], rows[str(counts)], rows["mixture"]
    assert float(mixed) <= min(float(network), float(alone)) and float(weight) + float(other) == pytest.approx(1)
    lm, dev = load(saved), load_corpus(CorpusSettings(path=str(corpus_file))).dev
    contexts, targets = Windows(dev, lm.context_size)[:]
    assert f"{evaluate(lm.nats, [(contexts, targets)]).nats_per_token:.4f}" == mixed
    parts = [load(best).log_probs(contexts[:, -3:]), load(counts).log_probs(contexts[:, -1:])]
    expected = sum(float(w) * p.double().exp() for w, p in zip((weight, other), parts, strict=True))
    assert (lm.log_probs(contexts).exp() - expected).abs().max() < 1e-3  # weights are printed to three digits
    for command in ("sample", "score"):
        assert main([command, str(saved), *([str(corpus_file)] if command == "score" else ["--num=3"])]) == 0


def test_a_cache_helps_where_a_text_repeats_itself_and_each_part_can_be_left_out(
    tmp_path: Path, capsys: Capture
) -> None:
    text = " ".join(f"w{i // 30} w{i // 30} rare{i}" for i in range(600))
    one, two = (text_counts(tmp_path, text, order) for order in (1, 2))
    capsys.readouterr()
    saved = tmp_path / "mixture.safetensors"
    assert main(["mix", str(one), str(two), "--cache=20", "--test", f"--save={saved}"]) == 0
    out = capsys.readouterr().out
    names, losses = zip(*(re.split(r"  +", line)[:2] for line in out.splitlines()[1:-1]), strict=True)
    cache = "cache of 20 tokens"
    assert [*names] == [str(one), str(two), cache, "mixture", f"without {one}", f"without {two}", f"without {cache}"]
    assert losses[2] == "–"  # a cache alone gives most tokens no probability
    dev = {name: float(loss) for name, loss in zip(names, losses, strict=True) if name != cache}
    assert dev["mixture"] < dev[f"without {cache}"] - 0.1
    lm = load(saved)
    assert lm.context_size == 20
    assert lm.log_probs(torch.ones(2, 20, dtype=torch.int64)).exp().sum(1).tolist() == pytest.approx([1, 1])


def test_what_does_not_go_together_is_refused(best: Path, counts: Path, tmp_path: Path, capsys: Capture) -> None:
    one = text_counts(tmp_path, "rare " + "a b c d e " * 20, 1)
    saved = tmp_path / "mixture.safetensors"
    assert main(["mix", str(best), str(counts), f"--save={saved}"]) == 0
    capsys.readouterr()
    for args, expected in (
        ([best, one], f"{one}: another vocabulary than {best}; mix what was trained on the same text"),
        ([best, counts, "--cache=5"], "cache: for running text; the order of items is random"),
        ([best], "files: expected two or more, or one and --cache"),
        ([saved, counts], f"{saved}: a mixture already; name its parts"),
        ([best, counts, f"--save={counts}"], "would overwrite an input"),
        ([best, counts, "--path=names"], "has other characters"),
        ([best, counts, best.parent / "best.ckpt"], "files: one is listed twice"),
    ):
        assert expected in error_of(["mix", *map(str, args)], capsys)
