"""Input that is made to harm ends as a result or as one line, at a cost in keeping with its size."""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlp_lm import cli
from mlp_lm.cli import main
from mlp_lm.errors import CheckpointError, DataError, MlpLmError, SettingsError
from mlp_lm.models import checkpoint, language_model
from mlp_lm.models.checkpoint import load
from mlp_lm.models.language_model import LanguageModel
from mlp_lm.models.network import MLP
from mlp_lm.settings import check
from mlp_lm.text.corpus import read_items, stored_vocab
from mlp_lm.text.vocab import Vocab
from mlp_lm.training.runs import chosen_run_dir, run_name
from tests.test_cli import Capture, error_of

# -- files that cost more than their size ----------------------------------------------------------------------------


class Evil:
    """A pickle that makes a file when it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("command", [["sample", "evil"], ["validate", "--ckpt_path", "evil"]])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_never_runs_and_nothing_says_how_it_could(
    command: list[str], zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"mlp_lm": Evil()}, "evil", _use_new_zipfile_serialization=zipped)
    message = error_of(command, capsys)
    assert "another program" in message or "damaged" in message
    assert not [hint for hint in ("weights_only", "safe_globals", "pickle", "trust") if hint in message]
    assert not Path("pwned").exists()


def test_code_in_a_count_file_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("evil.npz", header=np.array(Evil(), object))
    message = error_of(["sample", "evil.npz"], capsys)
    assert "damaged" in message and "pickle" not in message
    assert not Path("pwned").exists()


def claiming(good: bytes, entry: str, size: int) -> bytes:
    """A zip file that says of one entry that it unpacks to `size` bytes."""
    with zipfile.ZipFile(io.BytesIO(good)) as file:
        info = next(info for info in file.infolist() if info.filename.endswith(entry))
    data = bytearray(good)
    central = good.index(b"PK\x01\x02", good.rindex(info.filename.encode()) - 46)
    data[central + 24 : central + 28] = struct.pack("<I", size)
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "entry"), [("best.ckpt", "data/0"), ("best.ckpt", "data.pkl"), ("counts.npz", "header.npy")]
)
def test_an_entry_that_unpacks_to_gigabytes_is_refused_before(
    name: str, entry: str, good: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpack(*_: Any, **__: Any) -> None:
        raise AssertionError("unpacked")

    monkeypatch.setattr(zipfile.ZipFile, "open", unpack)
    monkeypatch.setattr(torch, "load", unpack)
    (tmp_path / name).write_bytes(claiming(good[name], entry, 3 << 30))
    with pytest.raises(CheckpointError, match="would unpack to 3,2"):
        load(tmp_path / name)


def test_a_compressed_checkpoint_is_not_ours(good: dict[str, bytes], tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(io.BytesIO(good["best.ckpt"])) as old,
        zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
        new.writestr("archive/data/99", bytes(10**6))
    with pytest.raises(CheckpointError, match="would unpack to 1,0"):
        load(tmp_path / "x")


def pickled(path: Path, body: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + body + b".")
        file.writestr("archive/byteorder", b"little")
        file.writestr("archive/version", b"3\n")
    return path


PAIRS = b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(60))  # of the tuple on the stack and itself


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"}K\x01\x85q\x00" + PAIRS + b"K\x00s", "a container twice"),  # a key whose hash takes 2^60 steps
        (b"]q\x00h\x00a", "a container twice"),  # a list that holds itself
        (b"cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R", "objects that ours never do"),  # 8 GiB of zeros
    ],
)
def test_a_pickle_that_grows(body: bytes, expected: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=expected):
        load(pickled(tmp_path / "x.ckpt", body))


def test_strings_tensors_and_flat_tuples_may_stand_in_a_checkpoint_twice(best: Path, tmp_path: Path) -> None:
    pair, score = (0.9, 0.99), torch.tensor(1.0)  # as optimizers and callbacks have them
    torch.save(torch.load(best, weights_only=True) | {"more": [pair, pair, score, score]}, tmp_path / "x.ckpt")
    assert checkpoint.read(tmp_path / "x.ckpt")["more"] == [pair, pair, score, score]


Change = Callable[[dict[str, Any]], object]
LIES: dict[str, tuple[Change, str]] = {
    "a wide network": (lambda c: c["mlp_lm"]["model"].update(hidden_dim=2**20), "not those of a network"),
    "a deep network": (lambda c: c["mlp_lm"]["model"].update(num_layers=1000), "not those of a network"),
    "out of range": (lambda c: c["mlp_lm"]["model"].update(hidden_dim=10**12), "model.hidden_dim: found 1000000000000"),
    "no number": (lambda c: c["mlp_lm"]["model"].update(hidden_dim=[16]), "model.hidden_dim: found"),
    "no settings": (lambda c: c["mlp_lm"]["model"].clear(), "damaged"),
    "a path that is none": (lambda c: c["TextDataModule"]["settings"].update(path=["x"]), "data.path: found"),
    "no vocabulary": (lambda c: c["TextDataModule"].update(vocab=["", 1]), "damaged"),
    "long tokens": (lambda c: c["TextDataModule"].update(vocab=["", "ab", *"cdefghij"]), "not one character"),
    "fewer tokens": (lambda c: c["TextDataModule"]["vocab"].pop(), "wrong or missing are vocab"),
    "no hashes": (lambda c: c["TextDataModule"]["item_hashes"].update(train=torch.zeros(2)), "are item_hashes"),
    "no longest item": (lambda c: c["TextDataModule"].update(longest_item="x"), "are longest_item"),
    "no step": (lambda c: c.update(global_step=-1), "are global_step"),
    "no random state": (lambda c: c["mlp_lm"].update(random_state=torch.zeros(3)), "damaged"),
    "views": (
        lambda c: c["state_dict"].update({"network.output.weight": torch.zeros(1).expand(10, 2**40)}),
        "larger than the file",
    ),
    "views elsewhere": (lambda c: c.update(more=[{"x": torch.zeros(1).expand(2**40)}]), "larger than the file"),
    "complex weights": (
        lambda c: c["state_dict"].update({k: v.cfloat() for k, v in c["state_dict"].items()}),
        "another program",
    ),
    "mixed weights": (
        lambda c: c["state_dict"].update({"network.output.bias": torch.zeros(10).half()}),
        "not all float32",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_checkpoint_that_lies(lie: str, best: Path, tmp_path: Path, capsys: Capture) -> None:
    change, expected = LIES[lie]
    content = torch.load(best, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "x.ckpt")
    assert expected in error_of(["sample", str(tmp_path / "x.ckpt")], capsys)


@pytest.mark.parametrize(
    "header",
    [
        {"vocab": ["", *"abcdefgh", 1]},
        {"vocab": ["", *"abcdefgh\n"]},
        {"longest_item": "x"},
        {"order": 10**9},
        {"vocab": 3},
    ],
)
def test_a_count_file_that_lies(
    header: dict[str, Any], good: dict[str, bytes], tmp_path: Path, capsys: Capture
) -> None:
    arrays = dict(np.load(io.BytesIO(good["counts.npz"])))
    arrays["header"] = np.array(json.dumps(json.loads(str(arrays["header"])) | header))
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    assert "do not fit together" in error_of(["sample", str(tmp_path / "x.npz")], capsys)


COUNTER = "epoch_loop.manual_optimization.optim_step_progress"
DAMAGES: dict[str, Callable[[Any], object]] = {
    "no optimizer": lambda c: c.update(optimizer_states=[{}]),
    "no loops": lambda c: c.update(loops={"fit_loop": 3}),
    "another counter": lambda c: c["loops"]["fit_loop"][COUNTER]["total"].update(completed=10**9),
    "no version": lambda c: c.update({"pytorch-lightning_version": "x"}),
    "no lowest loss": lambda c: c["callbacks"]["Checkpoints"].update(best_dev_loss=math.nan),
    "time before time": lambda c: c["callbacks"]["Checkpoints"].update(seconds=-1.0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_whose_other_parts_are_damaged_is_not_continued(
    damage: str, run_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    content = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    DAMAGES[damage](content)
    torch.save(content, tmp_path / "x.ckpt")
    more = ["--trainer.max_steps=14", "--model.lr_decay_steps=14", "--trainer.logger=false"]
    assert main(["fit", "--ckpt_path", str(tmp_path / "x.ckpt"), *more]) == 2
    assert "x.ckpt: damaged; it cannot be restored" in capsys.readouterr().err


def test_a_checkpoint_with_weights_of_another_network_is_not_evaluated(
    best: Path, tmp_path: Path, capsys: Capture
) -> None:
    content = torch.load(best, weights_only=True)
    content["state_dict"]["network.output.bias"] = torch.zeros(3)
    torch.save(content, tmp_path / "x.ckpt")
    assert "do not fit together" in error_of(["validate", "--ckpt_path", str(tmp_path / "x.ckpt")], capsys)


def test_weights_that_overflow_are_one_line(best: Path, tmp_path: Path, capsys: Capture) -> None:
    content = torch.load(best, weights_only=True)
    for weight in content["state_dict"].values():
        weight.fill_(3e38)
    torch.save(content, tmp_path / "x.ckpt")
    assert "probabilities are no numbers" in error_of(["sample", str(tmp_path / "x.ckpt")], capsys)


@pytest.mark.parametrize("dtypes", [[torch.float16], [torch.complex64], [torch.float64, torch.float32]])
def test_weights_are_of_one_usual_type(dtypes: list[torch.dtype]) -> None:
    weights = MLP(3, 2, 2, 2).state_dict()
    odd = {name: weight.to(dtypes[i % len(dtypes)]) for i, (name, weight) in enumerate(weights.items())}
    with pytest.raises(ValueError, match="not all float32 or all float64"):
        MLP.from_weights(odd, 3, 2, embedding_dim=2, hidden_dim=2, num_layers=1)
    assert MLP.from_weights(weights, 3, 2, embedding_dim=2, hidden_dim=2, num_layers=1).count_weights() == 25


def test_weights_of_another_shape_are_refused_without_making_the_network() -> None:
    with pytest.raises(ValueError, match="not those of a network"):
        MLP.from_weights({}, vocab_size=10, context_size=1000, embedding_dim=600, hidden_dim=100, num_layers=1)


# -- texts -----------------------------------------------------------------------------------------------------------


def test_a_pile_of_combining_marks_is_refused_before_it_is_normalised(tmp_path: Path) -> None:
    path = tmp_path / "zalgo.txt"
    path.write_text("e\u0301\na" + "\u0301\u0316" * 200_000, encoding="utf-8")  # 20 s to normalise
    with pytest.raises(DataError, match=r"zalgo.txt:2: more than 100 combining marks"):
        read_items(path)
    path.write_text("a" + "\u0316" * 100, encoding="utf-8")
    assert read_items(path) == ["a" + "\u0316" * 100]


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device")
@pytest.mark.parametrize(
    "args",
    [["ngram", "/dev/zero"], ["sample", "/dev/zero"], ["fit", "--config", "/dev/zero"], ["score", "BEST", "/dev/zero"]],
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


def test_a_vocabulary_in_a_file_is_one_of_characters() -> None:
    assert stored_vocab(["", "a", "\u202e", "\U0001f600"]).encode("a\u202e") == [1, 2]
    for tokens in (["", "ab"], ["", "\n"], ["", "\ud800"], ["a"], ["", "a", "a"]):
        with pytest.raises(ValueError):
            stored_vocab(tokens)


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


def test_a_zip_file_of_several_disks_is_damaged(good: dict[str, bytes], tmp_path: Path, capsys: Capture) -> None:
    end = good["best.ckpt"].rindex(b"PK\x05\x06")
    locator = b"PK\x06\x07" + struct.pack("<LQL", 1, 0, 2)
    (tmp_path / "x.ckpt").write_bytes(good["best.ckpt"][:end] + locator + good["best.ckpt"][end:])
    assert "damaged" in error_of(["sample", str(tmp_path / "x.ckpt")], capsys)


def test_a_long_value_is_cut_where_it_is_quoted() -> None:
    with pytest.raises(SettingsError) as caught:
        check({"data.path": ["x" * 10**6]})
    assert len(str(caught.value)) < 500


def test_arguments_with_nul(capsys: Capture) -> None:
    assert "NUL" in error_of(["ngram", "names", "--json=a\0b"], capsys)


def test_a_network_larger_than_the_machine_is_refused_with_what_helps(corpus_file: Path, capsys: Capture) -> None:
    args = ["fit", f"--data.path={corpus_file}", "--model.hidden_dim=1048576", "--model.num_layers=1000"]
    message = error_of(args, capsys)
    assert "model.hidden_dim: a network of 1,098,4" in message and "lower model.hidden_dim" in message
    with pytest.raises(SettingsError, match="or use a text of fewer than 100,000 different characters"):
        check(dict.fromkeys(["model.embedding_dim", "model.context_size"], 1) | LARGE)


LARGE: dict[str, object] = {"model.vocab_size": 100_000, "model.hidden_dim": 2**20, "model.num_layers": 50}
