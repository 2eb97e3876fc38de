"""Properties that hold for any text, bytes or values: round trips, and one error instead of a traceback."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import yaml

from mlp_lm.errors import DataError, SettingsError
from mlp_lm.parsing import check_config_file
from mlp_lm.settings import Range, check
from mlp_lm.text.corpus import SPLITS, CorpusSettings, load_corpus
from mlp_lm.text.reading import parse_items, read_text
from mlp_lm.text.tokenizer import Tokenizer
from mlp_lm.text.vocab import BOUNDARY, Vocab

SHARED_FOLDER = hypothesis.HealthCheck.function_scoped_fixture  # each example overwrites the files of the last
few = hypothesis.settings(
    max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=[SHARED_FOLDER]
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


# -- round trips -----------------------------------------------------------------------------------------------------


@few
@hypothesis.given(st.lists(texts.map(lambda text: text.replace("\n", "")), max_size=9))
def test_what_a_corpus_or_a_vocabulary_encodes_it_decodes(items: list[str]) -> None:
    vocab = Vocab.build("".join(items))
    stream = Tokenizer().encode("".join(f"{item}\n" for item in items), vocab)
    assert Tokenizer().decode(stream, vocab) == items
    assert stream.tolist() == [i for item in items for i in [*vocab.encode(item), BOUNDARY]]
    assert vocab.decode(stream) == [token for item in items for token in [*item, ""]]


@few
@hypothesis.given(lines=st.lists(texts, min_size=6, max_size=20), line_end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_the_splits_hold_the_lines_of_a_file_and_nothing_else(lines: list[str], line_end: str, tmp_path: Path) -> None:
    (tmp_path / "items.txt").write_bytes(line_end.join(lines).encode())
    text = unicodedata.normalize("NFC", "\n".join(lines).replace("\r", "\n"))
    expected = [item for line in text.split("\n") if (item := line.strip())]
    hypothesis.assume(len(expected) >= 6)
    corpus = load_corpus(CorpusSettings(path=str(tmp_path / "items.txt"), unique=False))
    assert sorted(item for split in SPLITS for item in corpus.items(split)) == sorted(expected)


# -- any bytes, any values -------------------------------------------------------------------------------------------


@few
@hypothesis.given(content=st.binary(max_size=200))
def test_any_bytes_are_items_or_one_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "items.txt"
    path.write_bytes(content)
    try:
        items = parse_items(read_text(path), path, 100)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert all(item == unicodedata.normalize("NFC", item).strip() != "" for item in items)


@few
@hypothesis.given(st.builds(Range, st.integers(-5, 5), st.integers(6, 9)), values)
def test_any_value_is_in_range_or_one_error(limits: Range, value: object) -> None:
    try:
        check({"data.x": value}, {"data.x": limits})
    except SettingsError as error:
        assert str(error).startswith(f"data.x must be {limits} (got ")
    else:
        assert value is None or (isinstance(value, (int, float)) and limits.low <= value <= limits.high)


@few
@hypothesis.given(content=st.dictionaries(st.sampled_from(["data", "model", "trainer", "x"]), values) | texts)
def test_any_yaml_is_a_config_or_one_error(content: object, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    try:
        check_config_file(str(path))
    except SettingsError as error:
        assert str(error).startswith(str(path))
