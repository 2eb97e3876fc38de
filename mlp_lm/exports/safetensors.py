"""A model for sharing: our safetensors file, which runs no code when it is read, and a model card next to it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mlp_lm.errors import DataError
from mlp_lm.exports.info import ExportInfo, corpus_name, dev_loss, find_corpus
from mlp_lm.files import write_text
from mlp_lm.models import model_file
from mlp_lm.models.language_model import LanguageModel
from mlp_lm.models.metrics import NLL
from mlp_lm.models.sampling import Sampling
from mlp_lm.terminal import escape_lines
from mlp_lm.text.corpus import CorpusSettings

MODEL_CARD = ".md"  # its suffix; the card has the name of the file


def write(model: LanguageModel, info: ExportInfo, path: Path) -> list[str]:
    """Write the model and its card. Returns lines for the user."""
    card = path.with_suffix(MODEL_CARD)
    write_text(card, "\n".join([*_card(model, info, path.name), ""]))
    model_file.save(path, _without_folders(model))
    file, text = (shlex.quote(str(name)) for name in (path, card))
    return [
        f"model card: {card}",
        f"next: python -m mlp_lm sample {file}",
        f"to publish it: hf upload USER/MODEL {file}; hf upload USER/MODEL {text} README.md",
    ]


def _without_folders(model: LanguageModel) -> LanguageModel:
    """The same model, without the folders of its corpus on this machine."""
    settings = model.facts.settings
    names = {name: Path(value).name for name, value in settings.items() if name.endswith("path") and value}
    return replace(model, facts=replace(model.facts, settings={**settings, **names}))


def _card(model: LanguageModel, info: ExportInfo, file: str) -> Iterator[str]:
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
    yield from ["tags:", "- language-model", "- makemore", "---", "", f"# {info.name}", ""]
    yield (
        f"A language model of {what}, trained with mlp_lm on `{corpus_name(model)}`: {len(model.vocab):,} tokens "
        f"({'characters' if facts.tokens == 'characters' else 'words'}), {model.context_size:,} tokens of context."
    )
    yield from ["", *(f"- {_describe(part)}{_share(weight, model)}" for weight, part in model.parts)]
    losses = dict(info.losses)
    if not losses and (corpus := find_corpus(model, info)) is not None:
        losses = {"dev": dev_loss(model, corpus)}
    if losses:
        yield from ["", "| split | nats/token | perplexity |", "|---|---|---|"]
        yield from (f"| {name} | {loss:.4f} | {NLL(loss, 1).perplexity:.3f} |" for name, loss in losses.items())
        yield from ["", f"Split: {split}."]
    with suppress(DataError):  # unsmoothed counts can reach a context that nothing follows
        samples = model.sample(1 if model.is_of_text else 10, Sampling(seed=0))
        lines = (escape_lines(str(sample)).replace("```", "'''") for sample in samples)
        yield from ["", "## Samples", "", "```", *lines, "```"]
    yield from ["", "## Use", "", "With mlp_lm installed:", ""]
    yield from [
        "```python",
        "from mlp_lm import load",
        "",
        f"lm = load({file!r})",
        "print(*lm.sample(10))",
        "```",
        "",
        f"or `python -m mlp_lm sample {shlex.quote(file)}`",
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
