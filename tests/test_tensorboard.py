"""What `fit` writes for TensorBoard beside the curves."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.data_provider import (  # type: ignore[import-untyped]
    MultiplexerDataProvider,
)
from tensorboard.backend.event_processing.plugin_event_multiplexer import (  # type: ignore[import-untyped]
    EventMultiplexer,
)
from tensorboard.context import RequestContext  # type: ignore[import-untyped]
from tensorboard.plugins.base_plugin import TBContext  # type: ignore[import-untyped]
from tensorboard.plugins.hparams import api_pb2  # type: ignore[import-untyped]
from tensorboard.plugins.hparams.backend_context import Context  # type: ignore[import-untyped]
from tensorboard.plugins.hparams.list_session_groups import Handler  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

from mlp_lm import load
from mlp_lm.cli import main
from mlp_lm.models import checkpoint
from mlp_lm.models.sampling import Sampling
from tests.conftest import LOGGED, events, fit, last, state, stop_at

CURVES = {"train/loss", "lr", "dev/loss", "dev/perplexity", "dev/bits_per_token", "saturated/hidden.0"}
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


def hparams_tab(run_dir: Path) -> tuple[dict[str, Any], dict[str, float], str]:
    """What the HParams tab shows of a run: settings, metrics and status."""
    runs = EventMultiplexer({"run": str(run_dir)})
    runs.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(runs, str(run_dir))))
    every = api_pb2.ListSessionGroupsRequest(slice_size=9, allowed_statuses=api_pb2.Status.values())
    arguments = (RequestContext(), context, "", every)
    ((group,),) = [Handler(*arguments).run().session_groups]
    (session,) = group.sessions
    settings = {name: value.number_value or value.string_value for name, value in group.hparams.items()}
    metrics = {metric.name.tag: metric.value for metric in session.metric_values}
    return settings, metrics, api_pb2.Status.Name(session.status)


@pytest.mark.slow
def test_the_hparams_tab_has_settings_and_latest_and_lowest_dev_loss_also_of_a_resumed_run(
    corpus_file: Path, tmp_path: Path
) -> None:
    constant = ["--model.optimizer=sgd", "--model.dropout=0", "--model.lr_schedule=constant"]
    run = fit(corpus_file, tmp_path / "run", LOGGED, *constant, "--model.learning_rate=0.1")
    time.sleep(1.1)  # TensorBoard orders the files of a run by the second they were begun in
    assert main(["fit", f"--ckpt_path={run}", "--model.learning_rate=30", "--trainer.max_steps=20"]) == 0
    settings, metrics, status = hparams_tab(run)
    assert (settings["model.hidden_dim"], settings["data.path"]) == (16, str(corpus_file))
    losses = [event.value for event in events(run).Scalars("dev/loss")]
    assert min(losses) < losses[-1], "nothing to test"
    assert metrics == {"dev/loss": losses[-1], "dev/lowest_loss": min(losses)}
    assert status == "STATUS_SUCCESS"


def test_the_hparams_tab_has_a_run_that_was_stopped_too(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(6, signal.SIGTERM, monkeypatch)
    run = fit(corpus_file, tmp_path / "run", LOGGED, expected=143)
    settings, metrics, status = hparams_tab(run)
    assert settings["trainer.max_steps"] == 12 and [*metrics] == ["dev/loss"] and status == "STATUS_UNKNOWN"


def test_the_lowest_dev_loss_is_no_second_curve(run_dir: Path) -> None:
    reader = events(run_dir)
    assert [event.step for event in reader.Scalars("dev/loss")] == [5, 10, 12]
    assert [event.step for event in reader.Scalars("dev/lowest_loss")] == [12]


def test_the_lowest_dev_loss_of_a_run_that_ends_early(corpus_file: Path, tmp_path: Path) -> None:
    callbacks = {"": "EarlyStopping", ".monitor": "dev/loss", ".patience": "1", ".min_delta": "100"}
    flags = [f"--trainer.callbacks{name or '+'}={value}" for name, value in callbacks.items()]
    run = fit(corpus_file, tmp_path / "run", LOGGED, *flags, "--trainer.max_steps=100")
    assert [event.step for event in events(run).Scalars("dev/lowest_loss")] == [10]


def test_the_embedding_map_is_a_picture(run_dir: Path) -> None:
    (image,) = events(run_dir).Images("embedding map")
    assert image.step == 12 and image.width > 300 and image.encoded_image_string.startswith(b"\x89PNG")


def test_a_histogram_holds_large_but_finite_weights(corpus_file: Path, tmp_path: Path) -> None:
    flags = ["--model.optimizer=sgd", "--model.dropout=0", "--model.learning_rate=1e22", "--trainer.max_steps=1"]
    run = fit(corpus_file, tmp_path / "run", LOGGED, *flags, "--model.lr_warmup_steps=0")
    assert state(run)["state_dict"]["network.output.bias"].abs().max() > 1e20, "nothing to test"
    (event,) = events(run).Histograms("weights/output.bias")
    assert 1e18 < event.histogram_value.max <= 1e19


def test_logger_false_writes_no_events(corpus_file: Path, tmp_path: Path) -> None:
    run = fit(corpus_file, tmp_path / "run", LOGGED, "--trainer.logger=false")
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
    fit(corpus_file, tmp_path / "run", LOGGED)
    everything = {*CURVES, *HISTOGRAMS, "samples/text_summary"}
    assert logged.pop(("last.ckpt", 0)) >= {"config/text_summary"}
    for name in ("best.ckpt", "last.ckpt"):
        assert [logged.pop((name, step)) for step in (5, 10, 12)] == [
            everything,
            everything,
            everything | {"dev/lowest_loss"},
        ]
    assert logged == {}
