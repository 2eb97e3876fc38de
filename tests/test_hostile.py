"""Texts, paths, configs and flags that are made to harm end as a result or as one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mlp_lm import cli
from mlp_lm.cli import main
from mlp_lm.errors import MlpLmError, SettingsError
from mlp_lm.models import language_model
from mlp_lm.models.language_model import LanguageModel
from mlp_lm.settings import check
from mlp_lm.text.vocab import Vocab
from mlp_lm.training.runs import chosen_run_dir, run_name
from tests.conftest import Capture, error_of

# -- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device")
@pytest.mark.parametrize(
    "args",
    [["sample", "/dev/zero"], ["fit", "--config", "/dev/zero"]],
)
def test_a_file_without_end(args: list[str], best: Path, capsys: Capture) -> None:
    assert "/dev/zero: " in error_of([str(best) if arg == "BEST" else arg for arg in args], capsys)


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "a\nb", "s3://bucket/x", "x" * 5000])
def test_a_path_that_is_none(path: str, capsys: Capture) -> None:
    assert error_of(["ngram", path], capsys)


@pytest.mark.parametrize("run_dir", ["s3://bucket/run", "gs://bucket/run", "file:///run"])
def test_a_url_is_no_folder(
    run_dir: str, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "run_dir: found" in error_of(["fit", f"--data.path={corpus_file}", f"--run_dir={run_dir}"], capsys)
    assert not [*tmp_path.iterdir()]


def test_a_link_to_an_input_is_no_output(best: Path, corpus_file: Path, tmp_path: Path, capsys: Capture) -> None:
    items = tmp_path / "items.txt"
    items.write_bytes(corpus_file.read_bytes())
    os.link(items, tmp_path / "hard.svg")
    for output in (tmp_path / "hard.svg", best):
        assert "an input too" in error_of(["score", str(best), str(items), f"--output={output}"], capsys)
    assert "an input too" in error_of(["ngram", str(items), f"--plot={tmp_path / 'hard.svg'}"], capsys)
    assert items.read_bytes() == corpus_file.read_bytes()


def test_outputs_have_the_names_that_were_asked_for(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["ngram", str(corpus_file), "--orders=1", "--plot=....svg"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["....svg"]


@pytest.mark.parametrize(
    ("config", "path", "name"), [("", "...txt", "run"), ("...yaml", "x", "run"), ("a.yaml", "", "a")]
)
def test_a_run_never_leaves_the_folder_of_runs(config: str, path: str, name: str) -> None:
    assert run_name(config, path) == name


def test_a_sample_is_cut_somewhere_whatever_the_file_says_of_the_longest_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "MAX_LENGTH", 50)
    endless = LanguageModel(Vocab.build("a"), 1, lambda c: torch.tensor([-torch.inf, 0]).expand(len(c), 2), 2**30)
    assert [len(sample.text) for sample in endless.generate(1)] == [50]


def test_the_home_of_an_unknown_user_is_a_folder_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert chosen_run_dir("~no_such_user/run") == Path("~no_such_user/run") and Path("~no_such_user/run").is_dir()


# -- configs ---------------------------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [lol]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}, *a{i}, *a{i}]\n" for i in range(40))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LAUGHS + "data: *a40\n", "c.yaml:2: an alias, *a0; write out"),
        ("a: &a {k: 1}\nb: {<<: *a}\n", "c.yaml:2: an alias"),
        ("&r [*r]", "an alias"),
        ("[" * 50_000, "c.yaml:1: nested more than 20 deep"),
        ("\n".join(" " * i + "a:" for i in range(30)), "c.yaml:21: nested more than 20 deep"),
        ("a" * 100_001, "more than 100,000 bytes"),
        ("data: 2001-13-45", "a value that is none"),
        ("model:\n  hidden_dim: " + "9" * 5000, "a value that is none (Exceeds the limit"),
        ("model:\n  hidden_dim: 0x" + "f" * 5000, "found a number of thousands of digits"),
        ("data: !!python/object/apply:os.mkdir [pwned]", "not YAML (could not determine a constructor"),
        ("data: !!python/name:os.mkdir", "not YAML"),
        ("model.context_size: 5", "c.yaml: found 'model.context_size', expected context_size in the section model:"),
        ('data:\n  path: "a\\0b"\n', "data.path: found 'a\\x00b', expected the name of a file"),
    ],
)
def test_a_config_that_is_made_to_harm(
    text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(text)
    assert expected in error_of(["fit", "--config=c.yaml"], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize(
    "text",
    [
        "trainer: {callbacks: [{class_path: evil.Callback}]}",
        "trainer: {callbacks: {class_path: evil.Callback}}",
        "trainer: {callbacks: evil.Callback}",
        "trainer.callbacks: [{class_path: evil.Callback}]",
        "trainer: {accelerator: {class_path: evil.Callback}, profiler: evil.Callback}",
        "model: {class_path: evil.Callback}",
    ],
)
def test_a_config_imports_nothing(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("evil.py").write_text("import os\nos.mkdir('pwned')\nfrom lightning.pytorch import Callback\n")
    Path("c.yaml").write_text(text)
    error_of(["fit", "--config=c.yaml"], capsys)
    assert not Path("pwned").exists()


# -- the last resort -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "sample: error: out of memory; what takes less: a smaller data.batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (UnicodeEncodeError("ascii", "é", 0, 1, "ordinal"), r"'\xe9' cannot be printed as ascii; set PYTHONUTF8=1"),
        (MlpLmError("x" * 10**6 + " do this"), "x … x"),
        (MlpLmError("a\x1b[31m\u2028b\n"), r"a\x1b[31m b"),
    ],
)
def test_what_ends_as_one_line(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(_: list[str]) -> None:
        raise error

    monkeypatch.setattr(cli, "_dispatch", fail)
    message = error_of(["sample"], capsys)
    assert expected in message and len(message) < 5000


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: list[str]) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "_dispatch", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["sample"])


def test_a_number_that_no_float_holds(capsys: Capture) -> None:
    for flag in ("--model.weight_decay", "--model.learning_rate"):
        assert "no setting can have" in error_of(["fit", f"{flag}=0x{'f' * 500}"], capsys)


@pytest.mark.parametrize("devices", ["1000000000", "9" * 30, "9" * 5000, "0x" + "f" * 5000])
def test_more_devices_than_any_machine_has(devices: str, corpus_file: Path, capsys: Capture) -> None:
    assert "trainer" in error_of(["fit", f"--data.path={corpus_file}", f"--trainer.devices={devices}"], capsys)


def test_a_long_value_is_cut_where_it_is_quoted() -> None:
    with pytest.raises(SettingsError) as caught:
        check({"data.path": ["x" * 10**6]})
    assert len(str(caught.value)) < 500


def test_arguments_with_nul(capsys: Capture) -> None:
    assert "NUL" in error_of(["ngram", "names", "--json=a\0b"], capsys)


def test_a_network_larger_than_the_machine_is_refused_with_what_helps(corpus_file: Path, capsys: Capture) -> None:
    args = ["fit", f"--data.path={corpus_file}", "--model.hidden_dim=65536", "--model.num_layers=1000"]
    message = error_of(args, capsys)
    assert "model.hidden_dim: a network of 4,290,6" in message and "lower model.hidden_dim" in message
    with pytest.raises(SettingsError, match="or use a text of fewer than 100,000 different characters"):
        check(dict.fromkeys(["model.embedding_dim", "model.context_size"], 1) | LARGE)


LARGE: dict[str, object] = {"model.vocab_size": 100_000, "model.hidden_dim": 2**16, "model.num_layers": 50}
