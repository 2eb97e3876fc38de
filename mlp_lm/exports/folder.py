"""A folder that can be sent to strangers: weights as safetensors, everything else as JSON, and a model card."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mlp_lm.errors import DataError
from mlp_lm.exports.details import Details, dev_loss
from mlp_lm.models.checkpoint import CARD, load, save_folder
from mlp_lm.models.language_model import LanguageModel
from mlp_lm.models.metrics import NLL
from mlp_lm.models.sampling import Sampling
from mlp_lm.text.corpus import CorpusSettings
from mlp_lm.text.vocab import lines_printable

TOLERANCE = 1e-6  # between log-probabilities: nothing is rounded


def write(path: Path, model: LanguageModel, details: Details) -> None:
    """Write the folder `path`."""
    save_folder(path, model)
    (path / CARD).write_text("\n".join([*_card(model, details), ""]), encoding="utf-8")


def read(path: Path) -> LanguageModel:
    """The model in the folder."""
    return load(path)


def usage(path: Path) -> str:
    """How to use the folder."""
    place = shlex.quote(str(path))
    return f"python -m mlp_lm sample {place}; to publish it: hf upload USER/MODEL {place}"


def _card(model: LanguageModel, details: Details) -> Iterator[str]:
    """The lines of the model card, in Markdown with the metadata of the Hugging Face Hub."""
    facts = CorpusSettings.of(model.facts.settings)
    what = "running text" if model.is_of_text else "items such as names"
    split = "80 % train, 10 % dev, 10 % test, in order"
    if not model.is_of_text:
        repeats = "dropped" if facts.unique else "kept"
        split = f"80 % train, 10 % dev, 10 % test, shuffled with seed {facts.split_seed}, repeated items {repeats}"
    if facts.published_cuts:
        split = "the published one, cut after {:,} and {:,} tokens".format(*facts.published_cuts)
    if facts.train_path is not None:
        split = "train, dev and test are files of their own"
    yield from ["---", "library_name: mlp_lm", "pipeline_tag: text-generation"]
    yield from ["tags:", "- language-model", "- makemore", "---", "", f"# {details.name}", ""]
    yield (
        f"A language model of {what}, trained with mlp_lm on `{details.corpus_name}`: {len(model.vocab):,} tokens "
        f"({'characters' if facts.tokens == 'characters' else 'words'}), {model.context_size:,} tokens of context."
    )
    yield from ["", *(f"- {_describe(part)}{_share(weight, model)}" for weight, part in model.parts)]
    losses = dict(details.losses)
    if not losses and details.corpus is not None:
        losses = {"dev": dev_loss(model, details.corpus)}
    if losses:
        yield from ["", "| split | nats/token | perplexity |", "|---|---|---|"]
        yield from (f"| {name} | {loss:.4f} | {NLL(loss, 1).perplexity:.3f} |" for name, loss in losses.items())
        yield from ["", f"Split: {split}."]
    with suppress(DataError):  # counts without smoothing can get to where nothing follows
        samples = model.sample(1 if model.is_of_text else 10, Sampling(seed=0))
        lines = (lines_printable(str(sample)).replace("```", "'''") for sample in samples)
        yield from ["", "## Samples", "", "```", *lines, "```"]
    yield from ["", "## Use", "", "With mlp_lm installed, in this folder:", ""]
    yield from [
        "```python",
        "from mlp_lm import load",
        "",
        'lm = load(".")',
        "print(*lm.sample(10))",
        "```",
        "",
        "or `python -m mlp_lm sample .`",
    ]


def _describe(part: LanguageModel) -> str:
    """What one part is."""
    if part.network is not None:
        return (
            f"an MLP after Bengio et al. (2003) with {part.context_size} tokens of context: "
            f"{part.network.count_weights():,} weights, embeddings of {part.network.embedding_dim}, "
            f"{part.network.num_layers if part.network.hidden_dim else 0} tanh layers of {part.network.hidden_dim}"
        )
    if part.counts is not None:
        return f"an n-gram model of order {part.counts.order}: {part.counts.count_parameters():,} parameters"
    return f"a cache of the last {part.context_size:,} tokens"


def _share(weight: float, model: LanguageModel) -> str:
    return f"; its weight in the mixture is {weight:.3f}" if model.kind == "mixture" else ""
