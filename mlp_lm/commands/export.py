"""`python -m mlp_lm export`: a trained model as one web page, or in the formats of other programs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlp_lm.errors import CheckpointError, DataError, MlpLmError, SettingsError
from mlp_lm.exports import page
from mlp_lm.exports.details import Details
from mlp_lm.files import replacing
from mlp_lm.models.checkpoint import is_exported, load, resolve
from mlp_lm.models.language_model import LanguageModel, ModelKind
from mlp_lm.models.sampling import Sampling
from mlp_lm.runs import best_checkpoint, read_report, run_folder
from mlp_lm.text.vocab import BOUNDARY
from mlp_lm.text.windows import Windows

NUM_CONTEXTS = 200  # on which what was written is compared with the model
NOUNS = {"network": "a network", "counts": "counts", "mixture": "a mixture"}


class Format(NamedTuple):
    """A format; its module in `exports` writes it, reads it back and says how to use it."""

    module: str
    suffix: str  # of the file; "" for a folder
    kinds: Sequence[ModelKind] = ("network", "counts", "mixture")
    what: str = ""  # it is for, unless for all


FORMATS = {
    "html": Format("page", ".html"),
    "safetensors": Format("folder", ""),
    "onnx": Format("onnx", ".onnx", ["network"], "networks"),
    "arpa": Format("arpa", ".arpa", ["counts"], "counts, which ngram TEXT --save counts.npz writes"),
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
    one's own; without FILE, the page for training alone. safetensors: a folder for sharing, with a model card, which
    sample, score, plot and mix read like a checkpoint. onnx: a network's log-probabilities, for ONNX Runtime and
    similar runtimes. arpa: counts in the back-off format of kenlm and SRILM. Every export is checked against FILE on
    200 contexts before it is put in place.

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
            raise SettingsError("file: missing; without one, only --format html works, for a page that trains")
        target = _target("mlp_lm.html" if output is None else output, chosen.suffix, overwrite)
        with _write(target) as temporary:
            page.write(temporary, None, Details("mlp_lm"))
        _report(target, page.usage(target))
        return
    source = resolve(file)
    model = load(source)
    if model.kind not in chosen.kinds:
        raise SettingsError(f"{file}: found {NOUNS[model.kind]}, but {format} is for {chosen.what}")
    beside = None if counts is None else _counts(counts, file, model, format)
    beside_source = str(source.with_name(source.stem + (chosen.suffix or "_exported")))
    target = _target(beside_source if output is None else output, chosen.suffix, overwrite)
    module = _module(chosen.module, format)
    contexts = _contexts(model)
    with _write(target) as temporary:
        module.write(temporary, model, _details(source, model, beside))
        written = module.read(temporary)
        pairs = [(model, written), *zip(_parts(model, beside), _parts(written), strict=True)]
        difference = max(_largest_difference(contexts, *pair) for pair in pairs)
        if not difference < module.TOLERANCE:
            raise MlpLmError(
                f"{target}: not written, as its log-probabilities differ by {difference:.1e} from {file}'s, more than "
                f"{module.TOLERANCE:g}; {format} cannot hold this model"
            )
    checked = f"log-probabilities differ by at most {difference:.1e} on {NUM_CONTEXTS} contexts"
    _report(target, module.usage(target), f"{checked} (limit {module.TOLERANCE:g})")


@contextmanager
def _write(target: Path) -> Iterator[Path]:
    """A temporary place for what then gets the name `target`. Raises SettingsError if it cannot be written."""
    try:
        with replacing(target) as temporary:
            yield temporary
    except OSError as error:
        raise SettingsError(f"{target}: cannot be written ({error.strerror or error})") from error


def _report(target: Path, usage: str, checked: str | None = None) -> None:
    size = sum(path.stat().st_size for path in (target.iterdir() if target.is_dir() else [target]))
    print(f"saved: {target}, {size:,} bytes")
    if checked is not None:
        print(f"checked: {checked}")
    print(f"next: {usage}")


def _counts(counts: str, file: str, model: LanguageModel, format: str) -> LanguageModel:
    """The count model to show beside `model`. Raises SettingsError if the two do not go together."""
    if format != "html" or model.kind != "network":
        raise SettingsError("counts: only for --format html of a network")
    try:
        beside = load(counts)
    except CheckpointError as error:
        raise SettingsError(f"counts: {error}; ngram TEXT --save counts.npz writes one") from error
    if beside.kind != "counts":
        raise SettingsError(f"counts: found {NOUNS[beside.kind]} in {counts}; expected counts")
    if beside.vocab.tokens != model.vocab.tokens or beside.facts.fingerprint != model.facts.fingerprint:
        raise SettingsError(f"counts: {counts} is from another text or split than the one {file} was trained on")
    return beside


def _target(output: str, suffix: str, overwrite: bool) -> Path:
    """Where to write. Raises SettingsError if that cannot be written, or must not be overwritten."""
    target = Path(output).absolute() if output in ("", ".") else Path(output)
    if not suffix and target.suffix == ".safetensors":
        raise SettingsError(f"output: found {output!r}, expected the name of a folder")
    if suffix and target.suffix != suffix:
        raise SettingsError(f"output: found {output!r}, expected a file that ends in {suffix}")
    if not target.absolute().parent.is_dir():
        raise SettingsError(f"output: {output!r} cannot be written; expected a place in a folder that exists")
    if not os.path.lexists(target):
        return target
    if suffix and not target.is_file():
        raise SettingsError(f"output: {target} is no regular file; name another place")
    if not suffix and not target.is_dir():
        raise SettingsError(f"output: {target} is a file; expected a folder")
    if not suffix and not is_exported(target):
        raise SettingsError(f"output: {target} is a folder that export did not write; name another place")
    if not overwrite:
        raise SettingsError(f"output: {target} exists; --overwrite replaces it")
    return target


def _module(name: str, format: str) -> ModuleType:
    """The module of a format. Raises SettingsError if its extra is not installed."""
    try:
        return import_module(f"mlp_lm.exports.{name}")
    except ImportError as error:
        raise SettingsError(
            f"format: {format} needs {error.name}, which is not installed: pip install 'mlp_lm[{format}]'"
        ) from error


def _details(source: Path, model: LanguageModel, beside: LanguageModel | None) -> Details:
    """Beside the model: of a run's best.ckpt, the losses in the run's report."""
    run = run_folder(source)
    name = run.parent.name if run.name.startswith("version_") else run.name
    if (report := read_report(run)) is None or source.absolute() != best_checkpoint(run):
        return Details(source.stem if source.suffix != ".ckpt" else name, (source, model), beside=beside)
    losses = {split: loss["nats_per_token"] for split, loss in report["losses"].items()}
    return Details(name, (source, model), losses, beside)


def _parts(model: LanguageModel, beside: LanguageModel | None = None) -> Sequence[LanguageModel]:
    return [*(part for _, part in model.parts), *([] if beside is None else [beside])]


def _largest_difference(contexts: Tensor, model: LanguageModel, written: LanguageModel) -> float:
    """The largest difference of log-probabilities after `contexts` (B, T); infinite if one alone is finite."""
    with torch.inference_mode():
        one, other = (lm.log_probs(contexts[:, -lm.context_size :]).double() for lm in (model, written))
    return (one - other)[one.isfinite() | other.isfinite()].abs().nan_to_num(nan=math.inf).max().item()


def _contexts(model: LanguageModel) -> Tensor:
    """Contexts (B, T) from what `model` generates, always the same ones. Raises DataError if it computes NaN."""
    try:
        samples = model.sample(1 if model.is_of_text else NUM_CONTEXTS, Sampling(seed=0, allow_unk=True))
    except DataError:
        if model.kind != "counts":
            raise
        # Counts without smoothing can get to where nothing follows.
        return torch.randint(len(model.vocab), (NUM_CONTEXTS, model.context_size), generator=torch.Generator())
    ids = [[*model.vocab.encode(model.tokenizer.split(sample.text)), BOUNDARY] for sample in samples]
    windows = Windows(np.concatenate(ids), model.context_size)
    step = max(1, len(windows) // NUM_CONTEXTS)
    return windows[torch.arange(0, len(windows), step)[:NUM_CONTEXTS]][0]
