"""`export --format arpa`: the file has the numbers of the model, for any smoothing, order and tokens."""

from __future__ import annotations

import re
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from mlp_lm.cli import main
from mlp_lm.exports import arpa
from mlp_lm.exports.details import Details
from mlp_lm.models.checkpoint import save_parts
from mlp_lm.models.language_model import CorpusFacts, LanguageModel
from mlp_lm.models.ngram import NGramModel, add_k, count, modified_kneser_ney
from mlp_lm.text.corpus import CorpusSettings, load_corpus
from mlp_lm.text.tokenizer import Tokenizer
from mlp_lm.text.vocab import Vocab
from mlp_lm.text.windows import Windows
from tests.conftest import Capture, error_of
from tests.test_properties import few, texts

VOCAB = Vocab(["", "a", "b"])
THREE = Tokenizer().encode("ab\nab\nb\n", VOCAB)


def test_the_whole_file_of_three_items_by_hand(tmp_path: Path, capsys: Capture) -> None:
    # With 1 added to each bigram, p(a | .) = (2 + 1)/(3 + 3) = 1/2, p(b | .) = 1/3, p(b | a) = 3/5, p(. | b) = 4/6.
    # What was not seen after . and b has 1/6, half of the uniform 1/3; after a it has 1/5, which is 3/5 of it.
    counts = NGramModel(add_k(count(THREE, 3, 2), 3, 1.0), 3)
    save_parts(tmp_path / "counts.npz", LanguageModel.of_counts(counts, VOCAB, CorpusFacts(2, None)))
    assert main(["export", str(tmp_path / "counts.npz"), "--format=arpa"]) == 0
    assert (tmp_path / "counts.arpa").read_text() == (
        "\\data\\\n"
        "ngram 1=5\n"
        "ngram 2=4\n"
        "\n"
        "\\1-grams:\n"
        "-99\t<unk>\t0\n"
        "-99\t<s>\t-0.30103\n"
        "-0.4771213\t</s>\t0\n"
        "-0.4771213\ta\t-0.2218487\n"
        "-0.4771213\tb\t-0.30103\n"
        "\n"
        "\\2-grams:\n"
        "-0.30103\t<s> a\n"
        "-0.4771213\t<s> b\n"
        "-0.2218487\ta b\n"
        "-0.1760913\tb </s>\n"
        "\n"
        "\\end\\\n"
    )
    out = capsys.readouterr().out
    assert out.startswith(f"saved: {tmp_path / 'counts.arpa'}, 214 bytes\n") and "on 200 contexts" in out


TEXT = (
    "the king met the queen .\nthe king  said so\tto the queen .\n\n" * 20 + "a fool <s> <U+0020> <UNK> laughed .\n" * 2
)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT + "once upon a time " + TEXT)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("smoothing", ["mkn", "add_k", "none"])
@pytest.mark.parametrize(
    "tokens", ["items of characters", "text of characters", "text of words", "text of pretokenized"]
)
def test_what_is_read_back_has_the_probabilities_of_the_model(
    tokens: str, smoothing: str, order: int, corpus_file: Path, text_file: Path, tmp_path: Path
) -> None:
    layout, kind = tokens.split(" of ")
    path = corpus_file if layout == "items" else text_file
    corpus = load_corpus(CorpusSettings(path=str(path), layout=layout, tokens=kind))  # type: ignore[arg-type]
    size = len(corpus.vocab)
    counts = count(corpus.train, size, order)
    levels = modified_kneser_ney(counts)[0] if smoothing == "mkn" else add_k(counts, size, 0.1 * (smoothing == "add_k"))
    model = LanguageModel.of_counts(NGramModel(levels, size), corpus.vocab, CorpusFacts.of(corpus))
    arpa.write(tmp_path / "model.arpa", model, Details("model"))
    assert len(re.findall("\t<unk>[\t\n]", (tmp_path / "model.arpa").read_text())) == 1
    written = arpa.read(tmp_path / "model.arpa")
    assert written.vocab.tokens == model.vocab.tokens and written.context_size == model.context_size
    seen = Windows(corpus.dev, model.context_size)[:40][0]
    unseen = torch.from_numpy(np.random.default_rng(1).integers(0, size, (40, model.context_size)))
    contexts = torch.cat([seen, unseen])
    torch.testing.assert_close(written.log_probs(contexts), model.log_probs(contexts), rtol=0, atol=5e-6)


@few
@hypothesis.given(st.sets(texts | st.text("<U+0320>s/ \n"), max_size=9))
@hypothesis.example({"<s>", "</s>", "<unk>", "<UNK>", " ", "\0", "<U+0020>", "<U+003C>s>", "<<U+0020>", "\u3000"})
def test_any_token_is_one_word_and_comes_back(tokens: set[str]) -> None:
    vocab = Vocab.build(tokens - {""})
    words = arpa.words_of(vocab)
    assert len({*words, "<s>", ""}) == len(vocab) + 2
    assert all(word.split() == [word] and "\0" not in word for word in words)
    assert [arpa.unescape(word) for word in words[1:]] == vocab.tokens[1:]
    assert "<UNK>" not in words and ("<unk>" in words) == ("<unk>" in tokens)


def test_white_space_and_special_words_are_written_as_code_points() -> None:
    tokens = [" ", "\n", "<s>", "<U+0020>", "<unk>", "<", "a"]
    words = ["<U+0020>", "<U+000A>", "<U+003C>s>", "<U+003C>U+0020>", "<unk>", "<", "a"]
    assert [arpa.escape(token) for token in tokens] == words


def test_a_network_is_refused(best: Path, capsys: Capture) -> None:
    error = error_of(["export", str(best), "--format=arpa"], capsys)
    assert error.endswith(
        "best.ckpt: found a network, but arpa is for counts, which ngram TEXT --save counts.npz writes\n"
    )
