"""A folder that can be sent to strangers: weights as safetensors, everything else as JSON, and a model card."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mlp_lm.errors import DataError
from mlp_lm.exports.details import Details, dev_loss
from mlp_lm.files import write_text
from mlp_lm.models.checkpoint import load, save_folder
from mlp_lm.models.language_model import LanguageModel
from mlp_lm.models.sampling import Sampling
from mlp_lm.text.vocab import lines_printable

CARD = "README.md"
TOLERANCE = 1e-6  # between log-probabilities: nothing is rounded
KINDS = {"network": "An MLP language model", "counts": "A count model", "mixture": "A mixture of language models"}


def write(path: Path, model: LanguageModel, details: Details) -> None:
    """Write the folder `path`. Raises SettingsError if it cannot be written."""
    save_folder(path, model)
    write_text(path / CARD, "\n".join([*_card(model, details), ""]))


def read(path: Path) -> LanguageModel:
    """The model in the folder."""
    return load(path)


def usage(path: Path) -> str:
    """How to use the folder."""
    return f"python -m mlp_lm sample {path}; to publish it: hf upload USER/MODEL {path}"


def _card(model: LanguageModel, details: Details) -> Iterator[str]:
    """The lines of the model card, in Markdown with the metadata of the Hugging Face Hub."""
    data = model.facts.settings
    unit = {"characters": "characters", "words": "words", "pretokenized": "words"}[model.tokenizer.tokens]
    corpus = Path(data["path"] if data.get("train_path") is None else data["train_path"]).name
    yield from ["---", "library_name: mlp_lm", "pipeline_tag: text-generation"]
    yield from ["tags:", "- language-model", "- mlp", "- makemore", "---", "", f"# {details.name}", ""]
    yield (
        f"{KINDS[model.kind]} after Bengio et al. (2003), of {'running text' if model.is_of_text else 'items'} in "
        f"{unit}: {len(model.vocab):,} tokens, {model.context_size:,} tokens of context"
        + (f", {model.network.count_weights():,} weights" if model.network is not None else "")
        + f". Trained with [mlp_lm](https://pypi.org/project/mlp_lm/) on `{corpus}`."
    )
    losses = dict(details.losses)
    if not losses and details.corpus is not None:
        losses = {"dev": dev_loss(model, details.corpus)}
    if losses:
        yield from ["", "| split | nats/token | perplexity |", "|---|---|---|"]
        yield from (f"| {split} | {loss:.4f} | {math.exp(loss):.3f} |" for split, loss in losses.items())
        yield from ["", f"`unique: {str(data['unique']).lower()}`, `split_seed: {data['split_seed']}`."]
    with suppress(DataError):  # counts without smoothing can get to where nothing follows
        samples = model.sample(1 if model.is_of_text else 10, Sampling(seed=0))
        yield from [
            "",
            "## Samples",
            "",
            "```",
            *(lines_printable(str(s)).replace("```", "'''") for s in samples),
            "```",
        ]
    yield from ["", "## Use", "", "```python", "from mlp_lm import load", ""]
    yield from ['lm = load(".")  # this folder', "print(*lm.sample(10))", "```"]
