"""`python -m mlp_lm export`: a trained model in the formats of other programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlp_lm.errors import MlpLmError, SettingsError
from mlp_lm.exports.details import Details
from mlp_lm.files import replacing
from mlp_lm.models.checkpoint import CONFIG, WEIGHTS, check_same_data, load, resolve
from mlp_lm.models.language_model import LanguageModel, ModelKind
from mlp_lm.models.sampling import Sampling
from mlp_lm.text.corpus import Corpus, CorpusSettings, load_corpus
from mlp_lm.text.vocab import BOUNDARY
from mlp_lm.text.windows import Windows
from mlp_lm.training.runs import REPORT, run_folder

NUM_CONTEXTS = 200  # on which what was written is compared with the model
ANY: Sequence[ModelKind] = ("network", "counts", "mixture")


class Format(NamedTuple):
    """A format; its module in `exports` writes it, reads it back and says how to use it."""

    module: str
    suffix: str  # of the file; "" for a folder
    kinds: Sequence[ModelKind]


FORMATS = {
    "safetensors": Format("folder", "", ANY),
}


def export(
    file: str,
    /,
    format: Literal["safetensors"] = "safetensors",
    output: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a trained model in the formats of other programs.

    safetensors: a folder for strangers, with a model card, which sample, score, plot and mix read like a checkpoint.
    What was written is compared with FILE on 200 contexts before it gets its name.

    Args:
        file: Checkpoint, count model, mixture or exported folder; a run folder stands for its best.ckpt.
        format: safetensors.
        output: File to write, of safetensors a folder; by default FILE's name with another ending, beside FILE.
        overwrite: Replace what was exported to the same place before.
    """
    chosen = FORMATS[format]
    source = resolve(file)
    model = load(source)
    if model.kind not in chosen.kinds:
        raise SettingsError(f"{file}: found a model of kind {model.kind}; {format} is for {' and '.join(chosen.kinds)}")
    target = Path(output or source.with_name(source.stem + (chosen.suffix or "_exported")))
    _check_target(target, chosen.suffix, overwrite)
    module = _module(chosen.module, format)
    details = _details(source, model)
    try:
        with replacing(target) as temporary:
            module.write(temporary, model, details)
            difference = _largest_difference(model, module.read(temporary))
            if not difference < module.TOLERANCE:
                raise MlpLmError(
                    f"{target}: not written, as its log-probabilities differ from FILE's by {difference:.1e}"
                )
    except OSError as error:
        raise SettingsError(f"{target}: cannot be written ({error.strerror or error})") from error
    size = sum(path.stat().st_size for path in (target.iterdir() if target.is_dir() else [target]))
    print(f"saved: {target}, {size:,} bytes")
    print(f"checked: log-probabilities differ by at most {difference:.1e} on {NUM_CONTEXTS} contexts")
    print(f"next: {module.usage(target)}")


def _check_target(target: Path, suffix: str, overwrite: bool) -> None:
    """Raise SettingsError for a target that cannot be written, or must not be overwritten."""
    if suffix and target.suffix != suffix:
        raise SettingsError(f"output: found {str(target)!r}, expected a file that ends in {suffix}")
    if not target.absolute().parent.is_dir():
        raise SettingsError(f"output: {str(target)!r} cannot be written; expected a place in a folder that exists")
    if not os.path.lexists(target):
        return
    ours = {WEIGHTS, CONFIG, "README.md"}
    if target.is_dir() and (suffix or not {path.name for path in target.iterdir()} <= ours):
        raise SettingsError(f"output: {target} is a folder with other files; name another place")
    if not suffix and not target.is_dir():
        raise SettingsError(f"output: {target} is a file; expected a folder")
    if not overwrite:
        raise SettingsError(f"output: {target} exists; --overwrite replaces it")


def _module(name: str, format: str) -> ModuleType:
    """The module of a format. Raises SettingsError if its extra is not installed."""
    try:
        return import_module(f"mlp_lm.exports.{name}")
    except ImportError as error:
        raise SettingsError(
            f"format: {format} needs {error.name}, which is not installed: pip install 'mlp_lm[{format}]'"
        ) from error


def _details(source: Path, model: LanguageModel) -> Details:
    """The losses in the report of the model's run, and its corpus, if they are still there."""
    report = run_folder(source) / REPORT
    losses = {}
    if source.suffix == ".ckpt" and report.exists():
        figures = json.loads(report.read_text(encoding="utf-8"))["losses"]
        losses = {split: loss["nats_per_token"] for split, loss in figures.items()}
    name = run_folder(source).parent.name if report.exists() else source.stem
    return Details(name, losses, _corpus(source, model))


def _corpus(source: Path, model: LanguageModel) -> Corpus | None:
    """The corpus that a model was trained on; None, and a line to stderr, if it is not there or has changed."""
    facts = model.facts
    try:
        corpus = load_corpus(CorpusSettings.of(facts.settings))
        data = {"vocab": model.vocab.tokens, "fingerprint": facts.fingerprint, "item_hashes": facts.item_hashes}
        check_same_data(source, data, corpus)
    except MlpLmError as error:
        print(f"without figures of its corpus: {error}", file=sys.stderr)
        return None
    return corpus


def _largest_difference(model: LanguageModel, written: LanguageModel) -> float:
    """The largest difference of log-probabilities on some contexts that `model` generates."""
    contexts = _contexts(model)
    with torch.inference_mode():
        one, other = (lm.log_probs(contexts[:, -lm.context_size :]).double() for lm in (model, written))
    return (one - other)[one.isfinite() | other.isfinite()].abs().max().item()


def _contexts(model: LanguageModel) -> Tensor:
    """Contexts (B, T) from what `model` generates, always the same ones."""
    samples = model.sample(1 if model.is_of_text else NUM_CONTEXTS, Sampling(seed=0))
    ids = [[*model.vocab.encode(model.tokenizer.split(sample.text)), BOUNDARY] for sample in samples]
    windows = Windows(np.concatenate(ids), model.context_size)
    step = max(1, len(windows) // NUM_CONTEXTS)
    return windows[torch.arange(0, len(windows), step)[:NUM_CONTEXTS]][0]
