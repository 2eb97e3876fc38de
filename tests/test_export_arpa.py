"""`export --format arpa`: the file has the numbers of the model, for any smoothing, order and tokens."""

from __future__ import annotations

import math
import re
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from torch import Tensor

from mlp_lm.cli import main
from mlp_lm.exports import arpa
from mlp_lm.exports.info import ExportInfo
from mlp_lm.models import model_file
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
    model_file.save(tmp_path / "counts.safetensors", LanguageModel.of_counts(counts, VOCAB, CorpusFacts(2, None)))
    assert main(["export", str(tmp_path / "counts.safetensors"), "--format=arpa"]) == 0
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
    assert capsys.readouterr().out.startswith(f"saved: {tmp_path / 'counts.arpa'}, 214 bytes\n")


# -- read back ---------------------------------------------------------------------------------------------------------


def unescape(word: str) -> str:
    """The token of a word."""
    return re.sub("<U\\+([0-9A-F]+)>", lambda found: chr(int(found[1], 16)), word)


def read_log10(number: str) -> float:
    return float(number) if float(number) > -99 else -math.inf


def log_probs_of(path: Path, vocab: Vocab, contexts: Tensor) -> Tensor:
    """Log-probabilities (B, V) after the `contexts` (B, T), as a reader of the back-off format computes them."""
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n") if "\t" in line]
    probs = {gram: read_log10(prob) for prob, gram, *_ in lines}
    backoffs = {gram: read_log10(backoff[0]) for _, gram, *backoff in lines if backoff}
    words = arpa.words_of(vocab)
    logs = torch.full((len(contexts), len(vocab)), -math.inf, dtype=torch.float64)
    for row, ids in zip(logs, contexts.tolist(), strict=True):
        history = ["<s>" if i == 0 else words[i] for i in ids]
        for token_id, word in enumerate(words):
            log, context = 0.0, history
            while context and " ".join([*context, word]) not in probs:
                log, context = log + backoffs.get(" ".join(context), 0.0), context[1:]
            row[token_id] = log + probs[" ".join([*context, word])]
    return logs * math.log(10)


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
    arpa.write(model, ExportInfo("model"), file := tmp_path / "model.arpa")
    (unigrams,) = re.findall(r"\\1-grams:\n(.*?)\n\n", file.read_text(encoding="utf-8"), re.DOTALL)
    listed = [line.split("\t")[1] for line in unigrams.split("\n")]
    assert [unescape(word) for word in listed[listed.index("</s>") + 1 :]] == model.vocab.tokens[1:]
    assert listed.count("<unk>") == 1
    seen = Windows(corpus.dev, model.context_size)[:100][0]
    unseen = torch.from_numpy(np.random.default_rng(1).integers(0, size, (100, model.context_size)))
    contexts = torch.cat([seen, unseen])
    found = log_probs_of(file, corpus.vocab, contexts)
    torch.testing.assert_close(found, model.log_probs(contexts), rtol=0, atol=5e-6)


@few
@hypothesis.given(st.sets(texts | st.text("<U+0320>s/ \n"), max_size=9))
@hypothesis.example({"<s>", "</s>", "<unk>", "<UNK>", " ", "\0", "<U+0020>", "<U+003C>s>", "<<U+0020>", "\u3000"})
def test_any_token_is_one_word_and_comes_back(tokens: set[str]) -> None:
    vocab = Vocab.build(tokens - {""})
    words = arpa.words_of(vocab)
    assert len({*words, "<s>", ""}) == len(vocab) + 2
    assert all(word.split() == [word] and "\0" not in word for word in words)
    assert [unescape(word) for word in words[1:]] == vocab.tokens[1:]
    assert "<UNK>" not in words and ("<unk>" in words) == ("<unk>" in tokens)


def test_white_space_and_special_words_are_written_as_code_points() -> None:
    tokens = [" ", "\n", "<s>", "<U+0020>", "<unk>", "<", "a"]
    words = ["<U+0020>", "<U+000A>", "<U+003C>s>", "<U+003C>U+0020>", "<unk>", "<", "a"]
    assert [arpa.escape(token) for token in tokens] == words


def test_a_network_is_refused(best: Path, capsys: Capture) -> None:
    error = error_of(["export", str(best), "--format=arpa"], capsys)
    assert error.endswith(
        "best.ckpt: found a network, but arpa is for counts, which ngram TEXT --save counts.safetensors writes\n"
    )
