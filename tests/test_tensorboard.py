"""What `fit` writes for TensorBoard beside the curves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

from mlp_lm import load
from mlp_lm.models import checkpoint
from mlp_lm.models.sampling import Sampling
from tests.conftest import events, fit, last, state

CURVES = {"train/loss", "lr", "dev/loss", "dev/perplexity", "dev/bits_per_token", "hp/dev_loss", "saturated/hidden.0"}
HISTOGRAMS = {"activations/hidden.0", "weights/embedding.weight", "weights/hidden.0.weight", "weights/hidden.0.bias"}
HISTOGRAMS |= {"weights/output.weight", "weights/output.bias"}


def texts(run_dir: Path, tag: str) -> list[tuple[int, str]]:
    """The texts of a tag, by step."""
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in events(run_dir).Tensors(f"{tag}/text_summary")]


def test_histograms_and_saturation_at_each_validation(run_dir: Path) -> None:
    reader = events(run_dir)
    assert set(reader.Tags()["histograms"]) == HISTOGRAMS
    activations = reader.Histograms("activations/hidden.0")
    assert [e.step for e in activations] == [5, 10, 12]
    assert all(-1 <= e.histogram_value.min < e.histogram_value.max <= 1 for e in activations)
    assert all(0 <= e.value <= 1 for e in reader.Scalars("saturated/hidden.0"))


def test_samples_are_those_of_the_network_at_that_step(run_dir: Path) -> None:
    step, text = texts(run_dir, "samples")[-1]
    assert step == 12
    model = load(last(run_dir))
    samples = model.sample(20, Sampling(seed=0))
    head, _, *items = text.splitlines()
    assert head == f"{model.summary(samples)} (* = in the training set)"
    assert items == [f"    {sample}{'*' if sample.seen_in == 'train' else ''}" for sample in samples]


def test_the_config_is_shown_as_it_was_saved(run_dir: Path) -> None:
    ((_, shown),) = texts(run_dir, "config")
    saved = (run_dir / "config.yaml").read_text()
    assert [line.removeprefix("    ") for line in shown.splitlines()] == saved.splitlines()


def test_the_projector_has_a_visible_label_for_every_token(run_dir: Path) -> None:
    (metadata,) = run_dir.rglob("metadata.tsv")
    assert metadata.read_text().splitlines() == [".", *"abcdeinor"]
    assert "tensor_path" in (run_dir / "projector_config.pbtxt").read_text()


def test_the_hparams_tab_ends_with_the_lowest_dev_loss(run_dir: Path) -> None:
    reader = events(run_dir)
    shown = reader.Scalars("hp/dev_loss")[-1]
    assert shown.step == 12
    assert shown.value == pytest.approx(min(e.value for e in reader.Scalars("dev/loss")))


def test_the_embedding_map_is_a_picture(run_dir: Path) -> None:
    (image,) = events(run_dir).Images("embedding map")
    assert image.step == 12 and image.width > 300 and image.encoded_image_string.startswith(b"\x89PNG")


def test_a_histogram_holds_large_but_finite_weights(corpus_file: Path, tmp_path: Path) -> None:
    flags = ["--model.optimizer=sgd", "--model.dropout=0", "--model.learning_rate=1e22", "--trainer.max_steps=1"]
    run = fit(corpus_file, tmp_path / "run", *flags, "--model.lr_warmup_steps=0")
    assert state(run)["state_dict"]["network.output.bias"].abs().max() > 1e20, "nothing to test"
    (event,) = events(run).Histograms("weights/output.bias")
    assert 1e18 < event.histogram_value.max <= 1e19


def test_logger_false_writes_no_events(corpus_file: Path, tmp_path: Path) -> None:
    run = fit(corpus_file, tmp_path / "run", "--trainer.logger=false")
    assert {path.name for path in run.iterdir()} == {".lock", "checkpoints", "config.yaml", "report.json"}


def test_what_a_validation_logs_is_on_disk_before_its_checkpoints_are(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A run that is killed right after, and resumed, would never log it again.
    logged: dict[tuple[str, int], set[str]] = {}
    write, write_event = checkpoint.write, RecordWriter.write

    def look_and_write(content: dict[str, Any], path: Path) -> None:
        reader, step = events(tmp_path / "run"), content["global_step"]
        logged[path.name, step] = {
            tag
            for kind in ("scalars", "histograms", "tensors")
            for tag in reader.Tags()[kind]
            if step in [event.step for event in getattr(reader, kind.capitalize())(tag)]
        }
        write(content, path)

    def slowly(writer: RecordWriter, data: bytes) -> None:
        time.sleep(0.003)  # as on a network disk; a thread of TensorBoard's waits for it, not the run
        write_event(writer, data)

    monkeypatch.setattr(checkpoint, "write", look_and_write)
    monkeypatch.setattr(RecordWriter, "write", slowly)
    fit(corpus_file, tmp_path / "run")
    everything = {*CURVES, *HISTOGRAMS, "samples/text_summary"}
    assert logged.pop(("last.ckpt", 0)) >= {"hp/dev_loss", "config/text_summary"}
    assert logged == {(name, step): everything for name in ("best.ckpt", "last.ckpt") for step in (5, 10, 12)}
