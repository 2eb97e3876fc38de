"""`python -m mlp_lm export`: a trained model as one web page, or in the formats of other programs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple

from mlp_lm.errors import CheckpointError, DataError, SettingsError
from mlp_lm.exports.info import ExportInfo
from mlp_lm.exports.safetensors import MODEL_CARD
from mlp_lm.files import check_outputs
from mlp_lm.models.checkpoint import MODEL_SUFFIX, load, resolve
from mlp_lm.models.language_model import LanguageModel, ModelKind
from mlp_lm.runs import best_checkpoint, read_report, run_folder

NOUNS = {"network": "a network", "counts": "counts", "mixture": "a mixture"}


class Format(NamedTuple):
    """A format; `write(model, info, path)` of its module in `exports` writes it and returns lines for the user."""

    module: str
    suffixes: Sequence[str]  # of the file, and of what is written next to it
    kinds: Sequence[ModelKind] = ("network", "counts", "mixture")
    what: str = ""  # which models it is for, unless for all


FORMATS = {
    "html": Format("page", [".html"]),
    "safetensors": Format("safetensors", [MODEL_SUFFIX, MODEL_CARD]),
    "onnx": Format("onnx", [".onnx"], ["network"], "networks"),
    "arpa": Format("arpa", [".arpa"], ["counts"], "counts, which ngram TEXT --save counts.safetensors writes"),
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

    html: a page that opens offline on double-click, in which you can type, generate, score, and train a network of your
    own; without FILE, a page that only trains. safetensors: a file to share, with a model card, which sample, score,
    plot and mix read like a checkpoint. onnx: a network's log-probabilities, for ONNX Runtime and similar runtimes.
    arpa: counts in the back-off format of kenlm and SRILM.

    Args:
        file: Checkpoint, count model, mixture or exported network; a run folder means its best.ckpt.
        format: html, safetensors, onnx or arpa.
        counts: For html: a count model of the same text to show next to a network.
        output: File to write; by default next to FILE, with its name and the suffix of the format.
        overwrite: Replace an existing file.
    """
    chosen = FORMATS[format]
    if file is None:
        if format != "html" or counts is not None:
            raise SettingsError("file: missing; without one, only --format html works, for a page that trains")
        target = _target("mlp_lm.html" if output is None else output, chosen, [], overwrite)
        lines = _module(chosen, format).write(None, ExportInfo("mlp_lm"), target)
    else:
        source = resolve(file)
        model = load(source)
        _check(model, file, format)
        info = _info(source, model, None if counts is None else _counts(counts, file, model, format))
        exported = "_exported" if source.suffix == chosen.suffixes[0] else ""
        default = str(source.with_name(source.stem + exported + chosen.suffixes[0]))
        target = _target(default if output is None else output, chosen, [str(source), counts], overwrite)
        lines = _module(chosen, format).write(model, info, target)
    print(f"saved: {target}, {target.stat().st_size:,} bytes", *lines, sep="\n")


def _check(model: LanguageModel, file: str, format: str) -> None:
    """Raise SettingsError if a format cannot hold a model, DataError if the model is of no use."""
    chosen = FORMATS[format]
    if model.kind not in chosen.kinds:
        raise SettingsError(f"{file}: found {NOUNS[model.kind]}, but {format} is for {chosen.what}")
    networks = [part.network for _, part in model.parts if part.network is not None]
    if not all(weight.isfinite().all() for network in networks for weight in network.parameters()):
        raise DataError(f"{file}: some weights are NaN or infinite; its training diverged, or the file is damaged")


def _counts(counts: str, file: str, model: LanguageModel, format: str) -> LanguageModel:
    """The count model to show next to `model`. Raises SettingsError if the two do not go together."""
    if format != "html" or model.kind != "network":
        raise SettingsError("counts: only for --format html of a network")
    try:
        found = load(counts)
    except CheckpointError as error:
        raise SettingsError(f"counts: {error}; ngram TEXT --save counts.safetensors writes one") from error
    if found.kind != "counts":
        raise SettingsError(f"counts: found {NOUNS[found.kind]} in {counts}; expected counts")
    if found.vocab.tokens != model.vocab.tokens or found.facts.fingerprint != model.facts.fingerprint:
        raise SettingsError(f"counts: {counts} is from another text or split than the one {file} was trained on")
    return found


def _info(source: Path, model: LanguageModel, counts: LanguageModel | None) -> ExportInfo:
    """The name of a model; for the best.ckpt of a run, also the losses in the run's report."""
    if source.suffix != ".ckpt":
        return ExportInfo(source.stem, source, counts=counts)
    run = run_folder(source)
    name = run.parent.name if run.name.startswith("version_") else run.name
    report = read_report(run) if source.absolute() == best_checkpoint(run) else None
    losses = {} if report is None else {split: loss["nats_per_token"] for split, loss in report["losses"].items()}
    return ExportInfo(name, source, losses, counts)


def _target(output: str, chosen: Format, inputs: Sequence[str | None], overwrite: bool) -> Path:
    """The file to write. Raises SettingsError if it cannot be written, or must not be overwritten."""
    check_outputs(inputs, output=(output, (chosen.suffixes[0],)))
    for target in (Path(output).with_suffix(suffix) for suffix in chosen.suffixes):
        if target.exists() and not target.is_file():
            raise SettingsError(f"output: {target} is not a regular file; choose another name")
        if target.exists() and not overwrite:
            raise SettingsError(f"output: {target} exists; --overwrite replaces it")
    return Path(output)


def _module(chosen: Format, format: str) -> ModuleType:
    """The module of a format. Raises SettingsError if its extra is not installed."""
    try:
        return import_module(f"mlp_lm.exports.{chosen.module}")
    except ImportError as error:
        raise SettingsError(
            f"format: {format} needs {error.name}, which is not installed: pip install 'mlp_lm[{format}]'"
        ) from error
