"""Checkpoints: what they hold, and how they are written and read. See `model_file` for all other models.

A `.ckpt` is a Lightning checkpoint, enough by itself to sample, score, and resume. Beside what Lightning keeps:

    hyper_parameters               settings of the model, those of `MLPModule`
    datamodule_hyper_parameters    settings of the data, those of `TextDataModule`; files by their absolute path
    mlp_lm                         format_version; settings: all of the run, as in its config.yaml
    TextDataModule
        vocab           V strings, the boundary "" first
        fingerprint     of text, split and vocabulary
        order_seed      of the order of examples
        item_hashes     {"train": int64 tensor, "dev": …, "test": …}; None beyond a million items
        longest_item    tokens of the longest item of train
"""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from mlp_lm.errors import CheckpointError, is_out_of_memory
from mlp_lm.files import write_atomically
from mlp_lm.models.language_model import CorpusFacts, LanguageModel, hash_items
from mlp_lm.models.network import ARCHITECTURE, MLP
from mlp_lm.text.corpus import SPLITS, Corpus, CorpusSettings
from mlp_lm.text.vocab import Vocab

FORMAT_VERSION = 3
KEY, DATA_KEY = "mlp_lm", "TextDataModule"
MODEL_SUFFIX = ".safetensors"  # of `model_file`
FOREIGN_SUFFIXES = (".html", ".onnx", ".arpa")
NETWORK_PREFIX = "network."

PathLike = str | os.PathLike[str]
Content = dict[str, Any]


def load(path: PathLike) -> LanguageModel:
    """The language model in a checkpoint or in any other file of ours, on the CPU; a run folder means its best.ckpt.

    Raises CheckpointError if there is no such file, or if it cannot be read.
    """
    path = resolve(path)
    if path.suffix == MODEL_SUFFIX:
        from mlp_lm.models import model_file  # here: training does without counts and mixtures

        return model_file.load(path)
    return language_model(read(path))


def resolve(path: PathLike) -> Path:
    """What a path means: a run folder stands for its `checkpoints/best.ckpt`. Raises CheckpointError."""
    if not str(path):
        raise CheckpointError("found '' as the name of a file; expected a checkpoint or a run folder")
    best = Path(path) / "checkpoints" / "best.ckpt"
    if best.exists():
        return best
    if Path(path).is_dir():
        inside = sorted(Path(path).glob("*/checkpoints/best.ckpt"), key=lambda file: file.stat().st_mtime)
        hint = f"; did you mean {inside[-1].parent.parent}?" if inside else ""
        if (last := best.with_name("last.ckpt")).exists():  # stopped before its first validation
            hint = f"; there is {last}"
        raise CheckpointError(f"{path}: a folder without checkpoints/best.ckpt; expected a run folder{hint}")
    if not Path(path).exists():
        hint = "; download it first" if "://" in str(path) else ""
        raise CheckpointError(f"{path}: no such file; expected a checkpoint or a run folder{hint}")
    if Path(path).suffix == ".npz":
        raise CheckpointError(f"{path}: written by an older mlp_lm; re-create it with ngram --save or mix --save")
    return Path(path)


def read(path: PathLike) -> Content:
    """The content of the checkpoint of a network, without running any code that it may contain.

    Raises CheckpointError: missing, damaged, of another program or of another format.
    """
    path = resolve(path)
    if path.suffix == MODEL_SUFFIX:
        raise CheckpointError(f"{path}: not a training checkpoint; expected the .ckpt file of a run")
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch itself never looks at the checksums
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
            if any(entry.external_attr & 0x10 for entry in archive.infolist()):  # torch takes it for a folder
                raise zipfile.BadZipFile("an entry is marked as a folder, and would be read as what memory holds")
        content: Content = torch.load(path, map_location="cpu", weights_only=True)
        version = content.get(KEY, {}).get("format_version")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: a checkpoint of another program; it contains objects that mlp_lm never writes"
        ) from error
    except Exception as error:  # damaged bytes can make a reader raise anything
        if is_out_of_memory(error):
            raise
        is_foreign = path.suffix in FOREIGN_SUFFIXES
        hint = "; it was exported for other programs: name what it was exported from" if is_foreign else ""
        raise CheckpointError(f"{path}: damaged, or not a file of mlp_lm{hint}") from error
    _check_version(path, version)
    if DATA_KEY not in content:
        raise CheckpointError(f"{path}: has no vocabulary, as it was trained without a TextDataModule")
    return content


def _check_version(path: Path, version: int | None) -> None:
    if version is None:
        raise CheckpointError(f"{path}: a checkpoint of another program; expected one that mlp_lm wrote")
    if version != FORMAT_VERSION:
        remedy = "install a newer mlp_lm" if version > FORMAT_VERSION else "re-create it"
        raise CheckpointError(f"{path}: format {version}, but this mlp_lm reads {FORMAT_VERSION}; {remedy}")


def write(content: Content, path: PathLike) -> None:
    """Write a checkpoint, whole or not at all. Raises CheckpointError if it cannot be written."""
    try:
        write_atomically(path, lambda file: torch.save(content, file))
    except (OSError, RuntimeError) as error:  # torch wraps a full disk in an error of its own
        reason = getattr(error, "strerror", None) or getattr(error.__context__, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be written ({reason}); last.ckpt is unchanged") from error


# -- networks ----------------------------------------------------------------------------------------------------------


def settings(content: Content) -> dict[str, Any]:
    """The settings that a checkpoint was trained with, nested as in a config, but those that follow from the data.

    One that `fit` did not write has those of data and model only.
    """
    model = {n: v for n, v in content["hyper_parameters"].items() if n not in ("vocab_size", "context_size")}
    data = {"data": content["datamodule_hyper_parameters"], "model": model}
    return {"seed_everything": content[DATA_KEY]["order_seed"], **content[KEY].get("settings", {}), **data}


def load_network(content: Content) -> tuple[MLP, int]:
    """The network in the content of a checkpoint, ready to predict, and its context size T."""
    model = content["hyper_parameters"]
    weights = {name.removeprefix(NETWORK_PREFIX): weight for name, weight in content["state_dict"].items()}
    shape = {name: model[name] for name in ARCHITECTURE if name in model}
    return MLP.from_weights(weights, model["vocab_size"], model["context_size"], **shape), model["context_size"]


def language_model(content: Content) -> LanguageModel:
    """The language model in the content of a network's checkpoint."""
    network, context_size = load_network(content)
    data = content[DATA_KEY]
    settings = vars(CorpusSettings.of(content["datamodule_hyper_parameters"]))
    facts = CorpusFacts(data["longest_item"], data["item_hashes"], data["fingerprint"], settings)
    return LanguageModel.of_network(network, context_size, Vocab(data["vocab"]), facts)


def check_same_data(path: PathLike, data: Content, corpus: Corpus) -> None:
    """Raise CheckpointError, which says what differs, unless a checkpoint was trained on this corpus.

    Args:
        path: The checkpoint.
        data: Its state of the datamodule.
        corpus: What the settings say now.
    """
    if data["fingerprint"] == corpus.fingerprint:
        return
    hashes, tokens = data["item_hashes"], corpus.vocab.tokens
    if {*data["vocab"]} != {*tokens}:
        new, gone = (sorted(set(a) - set(b))[:10] for a, b in ((tokens, data["vocab"]), (data["vocab"], tokens)))
        what = "; ".join(f"{word} {' '.join(map(repr, of))}" for word, of in (("with", new), ("without", gone)) if of)
        what = f"has other {'characters' if corpus.settings.tokens == 'characters' else 'words'} ({what}) than"
    elif hashes and set(torch.cat([*hashes.values()]).tolist()) == {
        item_hash for split in SPLITS for item_hash in hash_items(corpus.items(split)).tolist()
    }:
        what = "has the same items, but split differently (unique, split_seed) from"
    else:
        what = "has other items than" if corpus.settings.layout == "items" else "is another text than"
    raise CheckpointError(
        f"{path}: the data {what} the checkpoint's data; name that data, or use `score` to evaluate other text"
    )


def check_same_corpus(path: PathLike, model: LanguageModel, corpus: Corpus) -> None:
    """`check_same_data` for the model in the file `path`."""
    facts = model.facts
    data = {"vocab": model.vocab.tokens, "fingerprint": facts.fingerprint, "item_hashes": facts.item_hashes}
    check_same_data(path, data, corpus)
