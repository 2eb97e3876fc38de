"""Properties that hold for any text, bytes or values: round trips, and one error instead of a traceback."""

from __future__ import annotations

import contextlib
import unicodedata
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import yaml

from mlp_lm.errors import CheckpointError, DataError, SettingsError
from mlp_lm.models import checkpoint
from mlp_lm.models.checkpoint import load
from mlp_lm.parsing import check_config_file
from mlp_lm.settings import RANGES, check
from mlp_lm.text.corpus import SPLITS, decode, encode, load_corpus, read_items
from mlp_lm.text.vocab import Vocab
from mlp_lm.training.runs import run_name

SHARED_FOLDER = hypothesis.HealthCheck.function_scoped_fixture  # each example writes over the files of the one before
few = hypothesis.settings(
    max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=[SHARED_FOLDER]
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


def item_of(line: str) -> str:
    return unicodedata.normalize("NFC", line).strip()


# -- round trips -----------------------------------------------------------------------------------------------------


@few
@hypothesis.given(texts)
def test_what_a_vocabulary_encodes_it_decodes(text: str) -> None:
    vocab = Vocab.build(text)
    assert vocab.decode(vocab.encode(text)) == list(text)


@few
@hypothesis.given(st.lists(texts.map(lambda text: text.replace("\n", "")), max_size=9))
def test_what_a_corpus_encodes_it_decodes(items: list[str]) -> None:
    vocab = Vocab.build("".join(items))
    assert decode(encode(items, vocab), vocab) == items


@few
@hypothesis.given(lines=st.lists(texts, min_size=6, max_size=20), line_end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_the_splits_hold_the_lines_of_a_file_and_nothing_else(lines: list[str], line_end: str, tmp_path: Path) -> None:
    (tmp_path / "items.txt").write_bytes(line_end.join(lines).encode())
    expected = [item for item in map(item_of, "\n".join(lines).replace("\r", "\n").split("\n")) if item]
    hypothesis.assume(len(expected) >= 6)
    path = str(tmp_path / "items.txt")
    corpus = load_corpus(path, None, unique=False, split_seed=1, max_item_length=100)
    assert sorted(item for split in SPLITS for item in corpus.items(split)) == sorted(expected)


@few
@hypothesis.given(
    number=st.integers(1, 2**31 - 1),
    share=st.floats(0, 1, exclude_max=True),
    switch=st.booleans(),
    path=texts.map("a".__add__),
)
def test_settings_come_back_from_a_checkpoint(
    number: int, share: float, switch: bool, path: str, best: Path, tmp_path: Path
) -> None:
    content = torch.load(best, weights_only=True)
    hypothesis.assume(path in RANGES["data.path"])
    content["TextDataModule"]["settings"] |= {"batch_size": number, "path": path, "unique": switch}
    content["mlp_lm"]["model"] |= {"dropout": share, "lr_decay_steps": number}
    torch.save(content, tmp_path / "x.ckpt")
    found = checkpoint.settings(checkpoint.read(tmp_path / "x.ckpt"))
    assert (found["data.batch_size"], found["model.lr_decay_steps"], found["model.dropout"]) == (number, number, share)
    assert (found["data.path"], found["data.unique"]) == (path, switch)


# -- any bytes, any values -------------------------------------------------------------------------------------------


@few
@hypothesis.given(content=st.binary(max_size=200))
def test_any_bytes_are_items_or_one_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "items.txt").write_bytes(content)
    try:
        items = read_items(tmp_path / "items.txt", 100)
    except DataError as error:
        assert str(tmp_path) in str(error)
    else:
        assert all(item == item_of(item) != "" for item in items)


def damaged(good: bytes) -> st.SearchStrategy[bytes]:
    """`good` cut off, with a part replaced, or with something behind it."""
    places = st.integers(0, len(good) - 1)
    return st.builds(
        lambda at, new: good[:at] + new + good[at + len(new) :], places, st.binary(max_size=8)
    ) | st.builds(lambda at, more: good[:at] + more, places, st.binary(max_size=3))


@few
@hypothesis.given(data=st.data())
@pytest.mark.parametrize("name", ["best.ckpt", "counts.npz"])
def test_a_damaged_file_is_a_model_or_one_error(
    name: str, data: st.DataObject, good: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data.draw(damaged(good[name])))
    with contextlib.suppress(CheckpointError, DataError):
        load(tmp_path / name).sample(2, seed=1)


@few
@hypothesis.given(st.sampled_from([*RANGES]), values)
def test_any_value_is_in_range_or_one_error(name: str, value: object) -> None:
    try:
        check({name: value})
    except SettingsError as error:
        assert str(error).startswith(name) and len(str(error)) < 500


@few
@hypothesis.given(content=st.dictionaries(st.sampled_from(["data", "model", "trainer", "x"]), values) | texts)
def test_any_yaml_is_a_config_or_one_error(content: object, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    try:
        check_config_file(str(path))
    except SettingsError as error:
        assert str(error).startswith(str(path)) and len(str(error)) < 500 + len(str(path))


@few
@hypothesis.given(config=texts, path=texts)
def test_a_run_has_a_name_whatever_its_config_and_data_are_called(config: str, path: str) -> None:
    assert run_name(config, path) not in ("", ".", "..")
