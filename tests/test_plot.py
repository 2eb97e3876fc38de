"""The plot command, what it computes and what stands in its figures."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]

from mlp_lm import load
from mlp_lm.cli import main
from mlp_lm.figures import curves
from mlp_lm.models.language_model import LanguageModel
from mlp_lm.models.network import MLP
from mlp_lm.models.views import activation_shares, next_token_probs
from mlp_lm.text.vocab import Vocab
from mlp_lm.training.curves import read_curves
from tests.conftest import Capture, error_of, scalars


@pytest.fixture(scope="module")
def counts(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A count model."""
    path = tmp_path_factory.mktemp("counts") / "counts.npz"
    assert main(["ngram", str(corpus_file), "--orders=2", f"--save={path}"]) == 0
    return path


# -- what is computed --------------------------------------------------------------------------------------------


def test_a_bigram_is_its_own_next_token_map() -> None:
    table = torch.tensor([[0.2, 0.8, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])  # token 2 never comes
    model = LanguageModel(Vocab(["", "a", "b"]), 2, lambda contexts: table[contexts[:, -1]].log(), longest_item=5)
    ids, probs = next_token_probs(model, num_items=50, max_tokens=10)
    assert ids == [0, 1, 2]
    np.testing.assert_allclose(probs[:2], table[:2].numpy(), rtol=1e-6)
    assert np.isnan(probs[2]).all()
    ids, probs = next_token_probs(model, num_items=50, max_tokens=1)
    assert ids in ([0], [1]) and probs.shape == (1, 1)


def test_rows_are_averaged_over_what_stands_before() -> None:
    # After .a comes a, after aa the end: one item, aa, in which a is followed by a and by the end once each.
    def log_probs(contexts: torch.Tensor) -> torch.Tensor:
        end = (contexts == 1).all(1)
        return torch.stack([end, ~end], 1).double().log()

    _, probs = next_token_probs(LanguageModel(Vocab(["", "a"]), 2, log_probs, longest_item=5), 7, 10)
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
    # By name, the file of the continued run comes first.
    write_events(tmp_path, ".a", 2000, [(20, 2.5), (40, 0.5)])
    write_events(tmp_path, ".b", 1000, [(10, 3.0), (20, 2.0), (25, 1.0), (30, 1.5)])
    assert read_curves(tmp_path) == {"dev/loss": [(10, 3.0), (20, 2.5), (40, 0.5)]}


def test_a_long_curve_keeps_every_point(tmp_path: Path) -> None:
    points = [(step, float(step)) for step in range(10_100)]
    write_events(tmp_path, ".a", 1000, points)
    assert read_curves(tmp_path) == {"dev/loss": points}


def test_the_curves_of_a_run(run_dir: Path, tmp_path: Path) -> None:
    assert read_curves(run_dir) == scalars(run_dir)
    assert read_curves(tmp_path) == {}


# -- the command -------------------------------------------------------------------------------------------------


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


def test_chosen_plots_and_svg(best: Path, tmp_path: Path, capsys: Capture) -> None:
    copy = Path(shutil.copy(best, tmp_path / "a.ckpt"))
    assert main(["plot", str(copy), "--what=embeddings,next_token"]) == 0
    assert (tmp_path / "a_embeddings_next_token.png").exists()
    assert main(["plot", str(copy), "--what=activations", f"--output={tmp_path / 'a.svg'}"]) == 0
    assert "<svg" in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_a_count_model_has_a_next_token_map_alone(counts: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["plot", str(counts), f"--output={tmp_path / 'a.png'}"]) == 0
    err = capsys.readouterr().err
    assert [line.split(":")[1] for line in err.splitlines()] == [" embeddings", " loss", " activations"]
    assert (tmp_path / "a.png").exists()


def test_a_mixture_has_embeddings_too(best: Path, tmp_path: Path, capsys: Capture) -> None:
    mixture = tmp_path / "mixture.npz"
    assert main(["ngram", f"--mix={best}", "--orders=2", f"--save={mixture}"]) == 0
    network = load(mixture).network
    assert network is not None and torch.equal(network.embedding.weight, load(best).network.embedding.weight)  # type: ignore[union-attr]
    assert main(["plot", str(mixture), "--what=embeddings"]) == 0


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["FILE", "--what=embedings"], "what: found 'embedings', expected some of embeddings, loss, next_token, "),
        (["FILE", "--what=loss,embedings"], "did you mean embeddings?"),
        (["FILE", "--what="], "what: found ''"),
        (["FILE", "--output=a.gif"], "output: found 'a.gif', expected a file that ends in .png or .svg"),
        (["FILE", "--output=/nowhere/a.png"], "output: '/nowhere/a.png' cannot be written"),
        (["nowhere.ckpt"], "nowhere.ckpt: no such file"),
        (["FOLDER"], "a folder; expected a checkpoint file inside it"),
        (["COUNTS", "--what=embeddings"], "counts have no embeddings; expected the checkpoint of a network"),
        (["COUNTS", "--what=loss"], "counts have no loss curves"),
        (["COUNTS", "--what=activations"], "says nothing of its corpus"),
        (["ALONE", "--what=loss"], "no TensorBoard events with losses"),
    ],
)
def test_bad_input(args: list[str], expected: str, best: Path, counts: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "folder").mkdir()
    alone = shutil.copy(best, tmp_path / "alone.ckpt")
    places = {"FILE": str(best), "FOLDER": str(tmp_path / "folder"), "COUNTS": str(counts), "ALONE": str(alone)}
    assert expected in error_of(["plot", *(places.get(arg, arg) for arg in args)], capsys)


def test_a_checkpoint_is_never_drawn_over(best: Path, tmp_path: Path, capsys: Capture) -> None:
    checkpoint = Path(shutil.copy(best, tmp_path / "a.png"))
    assert "is an input too" in error_of(["plot", str(checkpoint)], capsys)
    assert checkpoint.read_bytes() == best.read_bytes()


def test_activations_need_the_corpus_of_the_checkpoint(
    best: Path, corpus_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    content = torch.load(best, weights_only=True)
    content["TextDataModule"]["settings"]["path"] = str(tmp_path / "items.txt")
    checkpoint = tmp_path / "moved.ckpt"
    torch.save(content, checkpoint)
    args = ["plot", str(checkpoint), "--what=activations"]
    assert "activations need its corpus: " in (message := error_of(args, capsys)) and "no such file" in message
    (tmp_path / "items.txt").write_text(corpus_file.read_text() + "abba\n")
    assert "the data has other items than the checkpoint was trained with" in error_of(args, capsys)
    assert main(["plot", str(checkpoint)]) == 0  # all else can be drawn
    assert "left out: activations: " in capsys.readouterr().err
