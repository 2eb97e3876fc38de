"""What `fit` writes for TensorBoard beside the curves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from torch.utils.tensorboard import SummaryWriter

from mlp_lm import load
from mlp_lm.training import tensorboard
from tests.conftest import ROOT, fit

EXTRAS = ("layout", "config", "hparams", "histograms", "samples", "embedding_map", "projector")


def events_of(run_dir: Path) -> EventAccumulator:
    events = EventAccumulator(str(run_dir), size_guidance={"tensors": 0, "histograms": 0})
    events.Reload()
    return events


def text(events: EventAccumulator, tag: str) -> list[tuple[int, str]]:
    """The texts of a tag, by step."""
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(f"{tag}/text_summary")]


def test_histograms_and_saturation_at_each_validation(run_dir: Path) -> None:
    events = events_of(run_dir)
    assert set(events.Tags()["histograms"]) == {
        "activations/hidden.0",
        *(f"weights/{n}" for n in ("embedding.weight", "hidden.0.weight", "hidden.0.bias", "output.weight")),
        "weights/output.bias",
    }
    activations = events.Histograms("activations/hidden.0")
    assert [e.step for e in activations] == [5, 10, 12]
    assert all(-1 <= e.histogram_value.min < e.histogram_value.max <= 1 for e in activations)
    assert all(0 <= e.value <= 1 for e in events.Scalars("saturated/hidden.0"))


def test_samples_are_those_of_the_network_at_that_step(run_dir: Path) -> None:
    step, last = text(events_of(run_dir), "samples")[-1]
    assert step == 12
    model = load(run_dir / "checkpoints" / "last.ckpt")
    samples = model.generate(20, seed=0)
    head, _, *items = last.splitlines()
    assert head == f"{model.summary(samples)} (* in train)"
    assert [item.strip().rstrip("*…") for item in items] == [s.text for s in samples]


def test_the_config_is_shown_as_it_was_saved(run_dir: Path) -> None:
    ((_, shown),) = text(events_of(run_dir), "config")
    saved = (run_dir / "config.yaml").read_text()
    assert [line.removeprefix("    ") for line in shown.splitlines()] == saved.splitlines()


def test_the_projector_has_a_visible_label_for_every_token(run_dir: Path) -> None:
    (metadata,) = run_dir.rglob("metadata.tsv")
    assert metadata.read_text().splitlines() == [".", *"abcdeinor"]
    assert "tensor_path" in (run_dir / "projector_config.pbtxt").read_text()


def test_the_hparams_tab_ends_with_the_lowest_dev_loss(run_dir: Path) -> None:
    events = events_of(run_dir)
    last = events.Scalars("hp/dev_loss")[-1]
    assert last.step == 12
    assert last.value == pytest.approx(min(e.value for e in events.Scalars("dev/loss")))


def test_the_embedding_map_is_a_picture(run_dir: Path) -> None:
    (image,) = events_of(run_dir).Images("embedding map")
    assert image.step == 12 and image.width > 300 and image.encoded_image_string.startswith(b"\x89PNG")


def test_a_histogram_holds_large_but_finite_weights_and_not_too_many(tmp_path: Path) -> None:
    values = tensorboard._thinned(torch.full((1000, 1000), -1e30))
    assert len(values) == tensorboard.MOST_VALUES
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_histogram("weights", values, 1)
    (event,) = events_of(tmp_path).Histograms("weights")
    assert event.histogram_value.min == pytest.approx(-1e19)


def test_each_can_be_turned_off(corpus_file: Path, tmp_path: Path) -> None:
    run = fit(corpus_file, tmp_path / "run", *(f"--trainer.log_{name}=false" for name in EXTRAS))
    tags = events_of(run).Tags()
    assert tags["histograms"] == tags["images"] == tags["tensors"] == []
    assert set(tags["scalars"]) == {"train/loss", "lr", "dev/loss", "dev/perplexity", "dev/bits_per_token"}
    assert not (run / "projector_config.pbtxt").exists()


@pytest.mark.slow
def test_tensorboard_itself_serves_them(run_dir: Path, corpus_file: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "scripts" / "check_tensorboard.py")]
    done = subprocess.run([*script, str(run_dir)], capture_output=True, text=True)
    assert done.stdout.endswith("as config.yaml asks\n"), done.stderr
    run = fit(corpus_file, tmp_path / "run", "--trainer.log_samples=false", "--trainer.log_projector=false")
    assert subprocess.run([*script, str(run)], capture_output=True).returncode == 0
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("log_samples: false", "log_samples: true"))
    done = subprocess.run([*script, str(run)], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "text: samples is missing\n"
