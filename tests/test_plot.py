"""The plot command, what it computes and what stands in its figures."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]

from mlp_lm.cli import main
from mlp_lm.figures import curves
from mlp_lm.models.language_model import CorpusFacts, LanguageModel
from mlp_lm.models.network import MLP
from mlp_lm.models.views import activation_shares, next_token_probs
from mlp_lm.runs import read_curves
from mlp_lm.text.vocab import Vocab
from tests.conftest import Capture, error_of


@pytest.fixture
def counts(good: dict[str, bytes], tmp_path: Path) -> Path:
    """A count model."""
    path = tmp_path / "counts.safetensors"
    path.write_bytes(good[path.name])
    return path


# -- what is computed --------------------------------------------------------------------------------------------


def test_a_bigram_is_its_own_next_token_map() -> None:
    table = torch.tensor([[0.2, 0.8, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])  # token 2 never comes
    model = LanguageModel(Vocab(["", "a", "b"]), 2, lambda contexts: table[contexts[:, -1]].log(), CorpusFacts(5, None))
    ids, probs = next_token_probs(model, num_items=50, max_tokens=10)
    assert ids == [0, 1, 2]
    np.testing.assert_allclose(probs[:2], table[:2].numpy(), rtol=1e-6)
    assert np.isnan(probs[2]).all()
    assert next_token_probs(model, num_items=50, max_tokens=1)[1].shape == (1, 1)


def test_rows_are_averaged_over_the_contexts_before_the_last_token() -> None:
    # After .a comes a, after aa the end: one item, aa, in which a is followed by a and by the end once each.
    def log_probs(contexts: torch.Tensor) -> torch.Tensor:
        end = (contexts == 1).all(1)
        return torch.stack([end, ~end], 1).double().log()

    _, probs = next_token_probs(LanguageModel(Vocab(["", "a"]), 2, log_probs, CorpusFacts(5, None)), 7, 10)
    assert probs.tolist() == [[0, 1], [0.5, 0.5]]


def test_shares_of_activations() -> None:
    net = MLP(vocab_size=2, context_size=1, embedding_dim=1, hidden_dim=2, num_layers=2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.hidden[0].bias[0] = -9.0  # type: ignore[operator]  # one of two units is saturated
    batch = (torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3))
    (first, saturated), (second, none) = activation_shares(net, [batch, batch], threshold=0.97, bins=3)
    assert first.tolist() == [0.5, 0.5, 0] and saturated == 0.5
    assert second.tolist() == [0, 1, 0] and none == 0


# -- curves ------------------------------------------------------------------------------------------------------


def write_events(folder: Path, suffix: str, start: float, points: list[tuple[int, float]]) -> None:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

    writer = EventFileWriter(str(folder), filename_suffix=suffix)
    started = SessionLog(status=SessionLog.START)  # of which TensorBoard concludes that all later steps are void
    writer.add_event(Event(wall_time=start, step=points[0][0], session_log=started))
    for i, (step, value) in enumerate(points):
        summary = Summary(value=[Summary.Value(tag="dev/loss", simple_value=value)])
        writer.add_event(Event(wall_time=start + i, step=step, summary=summary))
    writer.close()


def test_of_overlapping_event_files_the_later_one_wins(tmp_path: Path) -> None:
    assert read_curves(tmp_path) == {}
    # By name, the file of the resumed run comes first.
    write_events(tmp_path, ".a", 2000, [(20, 2.5), (40, 0.5)])
    write_events(tmp_path, ".b", 1000, [(10, 3.0), (20, 2.0), (25, 1.0), (30, 1.5)])
    assert read_curves(tmp_path) == {"dev/loss": [(10, 3.0), (20, 2.5), (40, 0.5)]}


# -- the command -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_everything_that_a_run_has_in_one_picture(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "run")
    drawn: list[Figure] = []
    save = curves.save

    def keep(figure: Figure, path: str) -> None:
        drawn.append(figure)
        save(figure, path)

    monkeypatch.setattr(curves, "save", keep)
    assert main(["plot", str(copy)]) == 0
    assert capsys.readouterr() == (f"saved: {copy / 'checkpoints' / 'best.png'}\n", "")
    titles = [title for axes in drawn[0].axes if (title := axes.get_title(loc="left"))]
    assert [title.split()[0].rstrip(":") for title in titles] == ["Embeddings", "Loss", "P(next", "Activations"]
    assert (copy / "checkpoints" / "best.png").read_bytes().startswith(b"\x89PNG")


def test_chosen_plots_and_svg(best: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(best, tmp_path / "a.ckpt"))
    assert main(["plot", str(copy), "--what=embeddings,next_token"]) == 0
    assert (tmp_path / "a_embeddings_next_token.png").exists()
    assert main(["plot", str(copy), "--what=activations", f"--output={tmp_path / 'a.svg'}"]) == 0
    assert "<svg" in (tmp_path / "a.svg").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_count_model_has_a_next_token_map_alone_and_a_mixture_embeddings_too(
    counts: Path, best: Path, tmp_path: Path, capsys: Capture
) -> None:
    mixture = tmp_path / "mixture.safetensors"
    assert main(["mix", str(best), str(counts), f"--save={mixture}"]) == 0
    for file, left_out in ((counts, ["embeddings", "loss", "activations"]), (mixture, ["loss"])):
        assert main(["plot", str(file), f"--output={tmp_path / 'a.png'}"]) == 0
        assert [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()] == left_out
    assert (tmp_path / "a.png").exists()


def test_counts_that_generate_nothing_have_no_picture(tmp_path: Path, capsys: Capture) -> None:
    text, counts = tmp_path / "text.txt", tmp_path / "counts.safetensors"
    text.write_text(" ".join(f"a once{i}" for i in range(100)))  # <unk>, which is never drawn, after each a
    settings = ["--layout=text", "--tokens=words", "--orders=2", "--smoothing=none"]
    assert main(["ngram", str(text), *settings, f"--save={counts}"]) == 0
    assert main(["plot", str(counts)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("no plot can be drawn of it; nothing was written")
    assert not counts.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("{best} --what=loss,embedings", "what: found 'embedings', expected some of embeddings, loss, next_token, "),
        ("{best} --what=embedings", "did you mean embeddings?"),
        ("{best} --what=", "what: found ''"),
        ("{best} --output=a.gif", "output: found 'a.gif', expected a file that ends in .png or .svg"),
        ("{copy} --output={copy}", "would overwrite an input"),
        ("{copy} --what=loss", "no TensorBoard events with losses"),
        ("{folder}", "a folder without checkpoints/best.ckpt"),
        ("{counts} --what=embeddings", "counts have no embeddings; expected the checkpoint of a network"),
        ("{counts} --what=loss", "has no loss curves"),
        ("{counts} --what=activations", "counts have no activations; expected the checkpoint of a network"),
    ],
)
def test_bad_input(args: str, expected: str, best: Path, counts: Path, tmp_path: Path, capsys: Capture) -> None:
    copy = Path(shutil.copy(best, tmp_path / "a.png"))
    places = {"best": best, "copy": copy, "folder": tmp_path, "counts": counts}
    assert expected in error_of(["plot", *args.format(**places).split()], capsys)
    assert copy.read_bytes() == best.read_bytes()


def test_activations_need_the_corpus_of_the_checkpoint(
    best: Path, corpus_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    content = torch.load(best, weights_only=True)
    content["datamodule_hyper_parameters"]["path"] = str(tmp_path / "items.txt")
    checkpoint = tmp_path / "moved.ckpt"
    torch.save(content, checkpoint)
    args = ["plot", str(checkpoint), "--what=activations"]
    assert "activations need its corpus: " in (message := error_of(args, capsys)) and "no such file" in message
    (tmp_path / "items.txt").write_text(corpus_file.read_text() + "abba\n")
    assert "the data has other items than the checkpoint's data" in error_of(args, capsys)
    assert main(["plot", str(checkpoint)]) == 0  # all else can be drawn
    assert "left out: activations: " in capsys.readouterr().err
