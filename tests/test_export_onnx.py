"""`export --format onnx`: ONNX Runtime computes what the network computes."""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch

from mlp_lm import Sampling, load
from mlp_lm.cli import main
from mlp_lm.exports.info import ExportInfo
from mlp_lm.exports.onnx import write
from mlp_lm.models.language_model import CorpusFacts, LanguageModel
from mlp_lm.models.network import MLP
from mlp_lm.text.vocab import Vocab
from tests.conftest import ROOT, Capture, error_of, fit

BOOK = "".join(f"{word} {word} once{word}\n" for word in range(1500))  # in train, 1,200 words that occur twice
WORDS = ["--data.layout=text", "--data.tokens=words", "--data.lowercase=true"]
DEEP = ["--model.num_layers=3", "--model.residual=true", "--model.tied=true", "--trainer.precision=64-true"]


def export(file: Path, output: Path) -> Path:
    """Write and return the file `output`."""
    assert main(["export", str(file), "--format=onnx", f"--output={output}"]) == 0
    return output


@pytest.fixture(scope="module")
def file(best: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of `best`; read only."""
    return export(best, tmp_path_factory.mktemp("onnx") / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        [*WORDS, *DEEP],
        ["--model.num_layers=1"],
        ["--model.num_layers=2", "--model.direct=true"],
        ["--model.hidden_dim=0", "--model.direct=true"],
    ],
    ids=" ".join,
)
def test_onnx_runtime_computes_the_log_probabilities_of_the_network(
    flags: list[str], corpus_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "book.txt").write_text(BOOK)
    run_dir = fit(tmp_path / "book.txt" if WORDS[0] in flags else corpus_file, tmp_path / "run", *flags)
    file = export(run_dir, tmp_path / "model.onnx")
    model, session = load(run_dir), onnxruntime.InferenceSession(file)
    for batch_size in (1, 200):
        contexts = torch.randint(len(model.vocab), (batch_size, model.context_size))
        (log_probs,) = session.run(["log_probs"], {"contexts": contexts.numpy()})
        expected = model.log_probs(contexts).float()
        torch.testing.assert_close(torch.from_numpy(log_probs), expected, rtol=0, atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    found = [json.loads(metadata[name]) for name in ("vocab", "tokenizer", "context_size", "longest_item")]
    assert found == [model.vocab.tokens, vars(model.tokenizer), model.context_size, model.facts.longest_item]


@pytest.mark.slow
def test_the_python_of_the_readme_draws_what_the_network_finds_probable(
    best: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [text for text in examples if "onnxruntime" in text]
    assert "mlp_lm" not in example
    python = example.replace("runs/names/version_0/checkpoints/best.onnx", str(file))
    capsys.readouterr()
    exec(python, {})
    item = capsys.readouterr().out.removesuffix("\n")
    assert load(best).unknown(item) == []
    no_noise = iter([0.0] * 20)  # for a few tokens, so that nothing runs for ever
    monkeypatch.setattr(np.random, "gumbel", lambda size: np.full(size, next(no_noise)))
    exec(python, {})
    (most_probable,) = load(best).sample(1, Sampling(temperature=0))
    assert capsys.readouterr().out == f"{most_probable}\n"


@pytest.mark.slow
def test_a_network_of_another_precision_stays_as_it_is(tmp_path: Path) -> None:
    network = MLP(vocab_size=3, context_size=2, embedding_dim=2, hidden_dim=2).double()
    model = LanguageModel.of_network(network, 2, Vocab(["", "a", "b"]), CorpusFacts(1, None))
    write(model, ExportInfo(""), tmp_path / "m.onnx")
    assert network.training and {weight.dtype for weight in network.parameters()} == {torch.float64}


@pytest.mark.slow
def test_a_file_does_not_tell_where_it_was_made(file: Path, corpus_file: Path) -> None:
    for folder in (ROOT, Path(torch.__file__).parent, corpus_file.parent, file.parent):
        assert str(folder).encode() not in file.read_bytes()


@pytest.mark.slow
def test_exporting_prints_two_lines_and_none_of_what_torch_says(
    best: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: Capture
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(best, tmp_path / "model.onnx")
    out, err = capfd.readouterr()
    heard = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert (out.count("\n"), err, heard) == (2, "", [])


def test_what_is_not_exported_is_one_line(
    best: Path, good: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    counts = tmp_path / "counts.safetensors"
    counts.write_bytes(good["counts.safetensors"])
    capsys.readouterr()
    error = error_of(["export", str(counts), "--format=onnx"], capsys)
    assert f"{counts}: found counts, but onnx is for networks" in error
    for missing in ("onnx", "onnxscript"):
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "mlp_lm.exports.onnx")
            patch.setitem(sys.modules, missing, None)
            error = error_of(["export", str(best), "--format=onnx", f"--output={tmp_path / 'model.onnx'}"], capsys)
        assert f"format: onnx needs {missing}, which is not installed: pip install 'mlp_lm[onnx]'" in error
    assert [path.name for path in tmp_path.iterdir()] == ["counts.safetensors"]
