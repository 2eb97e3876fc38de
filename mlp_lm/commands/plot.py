"""`python -m mlp_lm plot`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mlp_lm.errors import CheckpointError, DataError, SettingsError
from mlp_lm.figures import curves, networks
from mlp_lm.files import PICTURES, check_outputs
from mlp_lm.models import checkpoint
from mlp_lm.models.language_model import LanguageModel
from mlp_lm.models.network import SATURATED
from mlp_lm.models.views import activation_shares, embedding_table, next_token_probs
from mlp_lm.parsing import did_you_mean
from mlp_lm.runs import read_curves, run_folder
from mlp_lm.text.corpus import CorpusSettings, load_corpus
from mlp_lm.text.windows import Windows, eval_batch_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_ITEMS = 2000  # generated for the next-token map; takes a second at most for a small network
NUM_TEXTS = 20  # of running text
MAX_TOKENS = 100  # of that map; more rows could not be read
MAX_WINDOWS = 100_000  # of dev; more would not change a histogram that one can see

Panel = Callable[["Axes"], None]


def plot(file: str, what: str | None = None, output: str | None = None) -> None:
    """Draw a trained model, all plots into one picture.

    embeddings: where each token lies, in the two main directions. loss: the curves of the run that FILE lies in.
    next_token: P(next token | last token), averaged over items that the model generates. activations: histogram of
    the tanh outputs over dev, and the share that is saturated.

    Args:
        file: Checkpoint, count model, mixture or exported network; a run folder means its best.ckpt.
        what: Some of embeddings, loss, next_token, activations, separated by commas; by default all that FILE has.
        output: PNG or SVG file; by default a PNG beside FILE with its name, and what was drawn if that was chosen.
    """
    chosen = _chosen(what)
    path = checkpoint.resolve(file)
    model = checkpoint.load(path)
    if output is None:
        output = str(path.with_name("_".join([path.stem, *chosen]) + ".png"))
    check_outputs([str(path)], output=(output, PICTURES))
    panels = []
    for name in chosen or PLOTS:
        try:
            panels.append(PLOTS[name](path, model))
        except (CheckpointError, DataError) as error:
            if chosen:
                raise
            print(f"left out: {name}: {error}", file=sys.stderr)
    if not panels:
        raise CheckpointError(f"{path}: no plot can be drawn of it; nothing was written")
    curves.save(networks.draw_panels(panels, networks.panel_side(min(len(model.vocab), MAX_TOKENS))), output)
    print(f"saved: {output}")


def _chosen(what: str | None) -> list[str]:
    """The plots that a user asked for, in that order; empty for all."""
    if what is None:
        return []
    names = list(dict.fromkeys(what.split(",")))
    for name in names:
        if name not in PLOTS:
            hint = did_you_mean(name.replace("-", "_"), PLOTS)
            raise SettingsError(f"what: found {name!r}, expected some of {', '.join(PLOTS)}, separated by commas{hint}")
    return names


def _embeddings(path: Path, model: LanguageModel) -> Panel:
    if model.network is None:
        raise CheckpointError(f"{path}: counts have no embeddings; expected the checkpoint of a network")
    table, labels = embedding_table(model.network, model.vocab)
    return partial(networks.embedding_map, table=table, labels=labels)


def _loss(path: Path, model: LanguageModel) -> Panel:
    if path.suffix == checkpoint.MODEL_SUFFIX:
        raise CheckpointError(f"{path}: has no loss curves; expected a checkpoint in its run folder")
    run_dir = run_folder(path)
    losses = read_curves(run_dir)
    if not {"train/loss", "dev/loss"} & losses.keys():
        raise CheckpointError(
            f"{path}: no TensorBoard events with losses in {run_dir}; expected a file in its run's folder"
        )
    return partial(curves.loss_curves, curves=losses, dropout=checkpoint.read(path)["hyper_parameters"]["dropout"])


def _next_token(path: Path, model: LanguageModel) -> Panel:
    number, noun = (NUM_TEXTS, "texts") if model.is_of_text else (NUM_ITEMS, "items")
    ids, probs = next_token_probs(model, number, MAX_TOKENS)
    note = f"averaged over {number:,} {noun} that the model generated"
    if len(ids) < len(model.vocab):
        note += f"; the {len(ids)} most frequent of {len(model.vocab):,} tokens"
    return partial(networks.next_token_map, probs=probs, labels=[model.vocab.show(i) for i in ids], note=note)


def _activations(path: Path, model: LanguageModel) -> Panel:
    part = next((part for _, part in model.parts if part.network is not None), None)
    if part is None or part.network is None:
        raise CheckpointError(f"{path}: counts have no activations; expected the checkpoint of a network")
    if not len(part.network.hidden):
        raise CheckpointError(f"{path}: no tanh layer, and so no activations")
    try:
        corpus = load_corpus(CorpusSettings.of(model.facts.settings))
    except DataError as error:
        problem = str(error).partition("; ")[0]
        others = ",".join(name for name in PLOTS if name != "activations")
        raise DataError(f"{path}: activations need its corpus: {problem}; --what {others} does without") from error
    checkpoint.check_same_corpus(path, model, corpus)
    windows, batch_size = Windows(corpus.dev, part.context_size), eval_batch_size(len(model.vocab))
    num_batches = -(-min(len(windows), MAX_WINDOWS) // batch_size)
    layers = activation_shares(part.network, islice(windows.batches(batch_size), num_batches), SATURATED)
    used = min(len(windows), num_batches * batch_size)
    note = f"over {'all' if used == len(windows) else 'the first'} {used:,} windows of dev"
    return partial(networks.activation_histograms, layers=layers, threshold=SATURATED, note=note)


PLOTS: dict[str, Callable[[Path, LanguageModel], Panel]] = {
    "embeddings": _embeddings,
    "loss": _loss,
    "next_token": _next_token,
    "activations": _activations,
}
