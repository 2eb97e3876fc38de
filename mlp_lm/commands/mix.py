"""`python -m mlp_lm mix`: the best mixture of several language models."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

import torch
from torch import Tensor

from mlp_lm.errors import SettingsError
from mlp_lm.files import check_outputs
from mlp_lm.models import mixture, model_file
from mlp_lm.models.checkpoint import MODEL_SUFFIX, check_same_corpus, load, resolve
from mlp_lm.models.language_model import LanguageModel
from mlp_lm.models.metrics import NLL
from mlp_lm.settings import Range
from mlp_lm.text.corpus import CorpusSettings, load_corpus
from mlp_lm.text.windows import Windows


def mix(
    files: Sequence[str],
    /,
    path: str | None = None,
    cache: Annotated[int, Range(1, 100_000)] | None = None,
    test: bool = False,
    save: str | None = None,
) -> None:
    """The best mixture of networks and counts that were trained on the same split of a text.

    Its weights give dev the highest probability. The table has the losses of each part alone, of the mixture, and of
    the best mixture without each part.

    Args:
        files: Checkpoints, run folders and count models.
        path: Their text, if it has moved.
        cache: Of running text: mix in how often each word occurs among so many last ones, which adapts to the text that
            is being read, dev and test included.
        test: Report the test split too.
        save: Write the mixture to this .safetensors file; sample, score and plot read it.
    """
    files = [str(resolve(file)) for file in files]
    if len({os.path.realpath(file) for file in files}) < len(files):
        raise SettingsError("files: one is listed twice")
    check_outputs([*files, path], save=(save, (MODEL_SUFFIX,)))
    parts = {file: load(file) for file in files}
    _check(parts, cache)
    first = next(iter(parts.values()))
    if path is not None and first.facts.settings.get("train_path") is not None:
        raise SettingsError("path: not needed; the parts were trained on files of their own for train, dev and test")
    settings = {**first.facts.settings, **({} if path is None else {"path": path})}
    corpus = load_corpus(CorpusSettings.of(settings))
    check_same_corpus(files[0], first, corpus)
    if cache is not None:
        parts[f"cache of {cache:,} tokens"] = mixture.cache_model(cache, first.vocab, first.facts)
    models = [*parts.values()]
    probs = {}
    for split in ("dev", "test") if test else ("dev",):
        stream = getattr(corpus, split)
        probs[split] = torch.stack(
            [mixture.target_probs(model, Windows(stream, model.context_size)) for model in models]
        )
    weights = mixture.best_weights(probs["dev"])
    print("\n".join(_table([*parts], probs, weights)))
    if save is not None:
        model_file.save(save, mixture.mix(models, weights.tolist()))
        print(f"saved: {save}")


def _check(parts: Mapping[str, LanguageModel], cache: int | None) -> None:
    """Raise SettingsError that names what does not go together."""
    (name, first), *others = parts.items()
    for file, model in parts.items():
        if model.kind == "mixture":
            raise SettingsError(f"{file}: a mixture already; name its parts")
    for file, model in others:
        if model.vocab.tokens != first.vocab.tokens:
            raise SettingsError(f"{file}: another vocabulary than {name}; mix what was trained on the same text")
        if model.facts.fingerprint != first.facts.fingerprint:
            raise SettingsError(f"{file}: another text or split than {name}; mix what was trained on the same split")
    if cache is not None and not first.is_of_text:
        raise SettingsError("cache: for running text; the order of items is random")
    if len(parts) + (cache is not None) < 2:
        raise SettingsError("files: expected two or more, or one and --cache")


def _table(names: Sequence[str], probs: Mapping[str, Tensor], weights: Tensor) -> Iterator[str]:
    """A line for each part alone, for the mixture, and for the mixture without each part; `probs`: (P, N) by split."""
    width = max(map(len, names)) + len("without ")
    yield " " * width + "".join(f"{split:>9}        ppl" for split in probs) + "  weight"

    def line(name: str, mixed: Mapping[str, Tensor], weight: str = "") -> str:
        losses = [NLL(-p.log().sum().item(), p.numel()) for p in mixed.values()]
        figures = "".join(f"{loss.nats_per_token:>9.4f}{loss.perplexity:>11.3f}" for loss in losses)
        figures = figures.replace("inf", "  –")  # a cache alone gives most tokens no probability
        return f"{name:<{width}}{figures}{weight:>8}"

    for i, name in enumerate(names):
        yield line(name, {split: p[i] for split, p in probs.items()}, f"{weights[i]:.3f}")
    yield line("mixture", {split: weights @ p for split, p in probs.items()})
    for i, name in enumerate(names if len(names) > 2 else ()):
        others = [k for k in range(len(names)) if k != i]
        best = mixture.best_weights(probs["dev"][others])
        yield line(f"without {name}", {split: best @ p[others] for split, p in probs.items()})
