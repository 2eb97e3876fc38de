"""`python -m mlp_lm export`: a trained model as one web page, or in the formats of other programs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlp_lm.errors import DataError, MlpLmError, SettingsError
from mlp_lm.exports.details import Details
from mlp_lm.files import replacing
from mlp_lm.models.checkpoint import CONFIG, WEIGHTS, load, resolve
from mlp_lm.models.language_model import LanguageModel, ModelKind
from mlp_lm.models.sampling import Sampling
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
    "html": Format("page", ".html", ANY),
    "safetensors": Format("folder", "", ANY),
    "onnx": Format("onnx", ".onnx", ["network"]),
    "arpa": Format("arpa", ".arpa", ["counts"]),
}


def export(
    file: str | None = None,
    /,
    format: Literal["html", "safetensors", "onnx", "arpa"] = "html",
    counts: str | None = None,
    output: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a trained model as one web page, or in the formats of other programs.

    html: a page that opens offline by a double click, in which one can type, generate, score, and train a network of
    one's own; without FILE, the page for training alone. safetensors: a folder for strangers, with a model card, which
    sample, score, plot and mix read like a checkpoint. onnx: a network's log-probabilities, for ONNX Runtime and its
    like. arpa: counts in the back-off format of kenlm and SRILM. What was written is compared with FILE on 200 contexts
    before it gets its name.

    Args:
        file: Checkpoint, count model, mixture or exported folder; a run folder stands for its best.ckpt.
        format: html, safetensors, onnx or arpa.
        counts: For html: a count model of the same text (.npz) to show beside a network.
        output: File to write, of safetensors a folder; by default FILE's name with another ending, beside FILE.
        overwrite: Replace what was exported to the same place before.
    """
    chosen = FORMATS[format]
    if file is None:
        if format != "html" or counts is not None:
            raise SettingsError("file: missing; only a page for training alone is written without a model")
        model, details, target = None, Details("mlp_lm"), Path(output or "mlp_lm.html")
    else:
        source = resolve(file)
        model = load(source)
        if model.kind not in chosen.kinds:
            kinds = " or ".join(chosen.kinds)
            raise SettingsError(f"{file}: a model of kind {model.kind}; {format} is for the kind {kinds}")
        details = _details(source, model, None if counts is None else _counts(counts, file, model, format))
        target = Path(output or source.with_name(source.stem + (chosen.suffix or "_exported")))
    _check_target(target, chosen.suffix, overwrite)
    module = _module(chosen.module, format)
    try:
        with replacing(target) as temporary:
            module.write(temporary, model, details)
            difference = 0.0 if model is None else _largest_difference(model, module.read(temporary))
            if not difference < module.TOLERANCE:
                raise MlpLmError(f"{target}: not written, as its log-probabilities differ by {difference:.1e}")
    except OSError as error:
        raise SettingsError(f"{target}: cannot be written ({error.strerror or error})") from error
    size = sum(path.stat().st_size for path in (target.iterdir() if target.is_dir() else [target]))
    print(f"saved: {target}, {size:,} bytes")
    if model is not None:
        print(f"checked: log-probabilities differ by at most {difference:.1e} on {NUM_CONTEXTS} contexts")
    print(f"next: {module.usage(target)}")


def _counts(counts: str, file: str, model: LanguageModel, format: str) -> LanguageModel:
    """The count model to show beside `model`. Raises SettingsError if the two do not go together."""
    beside = load(counts)
    if format != "html" or model.kind != "network":
        raise SettingsError("counts: for the page of a network, which shows them beside it")
    if beside.kind != "counts":
        raise SettingsError(f"counts: found a model of kind {beside.kind} in {counts}; expected counts")
    if beside.vocab.tokens != model.vocab.tokens or beside.facts.fingerprint != model.facts.fingerprint:
        raise SettingsError(f"counts: {counts} was counted on another text or split than {file} was trained on")
    return beside


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


def _details(source: Path, model: LanguageModel, beside: LanguageModel | None) -> Details:
    """Beside the model: the losses in the report of its run, if that is there."""
    report = run_folder(source) / REPORT
    if source.suffix != ".ckpt" or not report.exists():
        return Details(source.stem, (source, model), beside=beside)
    figures = json.loads(report.read_text(encoding="utf-8"))["losses"]
    losses = {split: loss["nats_per_token"] for split, loss in figures.items()}
    run = run_folder(source)
    name = run.parent.name if run.name.startswith("version_") else run.name
    return Details(name, (source, model), losses, beside)


def _largest_difference(model: LanguageModel, written: LanguageModel) -> float:
    """The largest difference of log-probabilities on some contexts that `model` generates."""
    contexts = _contexts(model)
    with torch.inference_mode():
        one, other = (lm.log_probs(contexts[:, -lm.context_size :]).double() for lm in (model, written))
    return (one - other)[one.isfinite() | other.isfinite()].abs().max().item()


def _contexts(model: LanguageModel) -> Tensor:
    """Contexts (B, T) from what `model` generates, always the same ones."""
    try:
        samples = model.sample(1 if model.is_of_text else NUM_CONTEXTS, Sampling(seed=0, allow_unk=True))
    except DataError:  # counts without smoothing can get to where nothing follows
        return torch.randint(len(model.vocab), (NUM_CONTEXTS, model.context_size), generator=torch.Generator())
    ids = [[*model.vocab.encode(model.tokenizer.split(sample.text)), BOUNDARY] for sample in samples]
    windows = Windows(np.concatenate(ids), model.context_size)
    step = max(1, len(windows) // NUM_CONTEXTS)
    return windows[torch.arange(0, len(windows), step)[:NUM_CONTEXTS]][0]
