"""What our files hold, and how they are written and read: networks, counts, and mixtures of both.

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

A `.npz` of counts, or of a mixture, holds plain arrays:

    header                                  JSON: format_version, vocab, longest_item, fingerprint, data; parts, with
                                            the sizes of each; weights of the parts; arrays, the names of the others
    item_hashes_train, _dev, _test          absent beyond a million items
    part<i>_level<k>_keys, _probs, _backoff of a part that counts, see `ngram.Level`
    part<i>_<name>                          the weights of a part that is a network

A folder for strangers (`export --format safetensors`) holds the same of any model: the arrays in model.safetensors and
the header in config.json, without the place of the corpus on this machine and with the checksum of the arrays.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlp_lm.errors import CheckpointError, is_out_of_memory
from mlp_lm.files import write_atomically, write_or_explain
from mlp_lm.models.language_model import CorpusFacts, LanguageModel, hash_items
from mlp_lm.models.mixture import cache_model, mix
from mlp_lm.models.network import ARCHITECTURE, MLP
from mlp_lm.models.ngram import Level, NGramModel
from mlp_lm.text.corpus import SPLITS, Corpus, CorpusSettings
from mlp_lm.text.vocab import Vocab

FORMAT_VERSION = {".ckpt": 3, ".npz": 3}
LEVEL = ("keys", "probs", "backoff")
KEY, DATA_KEY = "mlp_lm", "TextDataModule"
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
EXPORTED = (".html", ".onnx", ".arpa")
NETWORK_PREFIX = "network."

PathLike = str | os.PathLike[str]
Content = dict[str, Any]


def load(path: PathLike) -> LanguageModel:
    """The language model in a checkpoint, a file of counts, a mixture or an exported folder, on the CPU.

    A run folder stands for its best.ckpt. Raises CheckpointError if there is no file of ours that can be read.
    """
    path = resolve(path)
    content = _read_folder(path) if path.is_dir() else _read(path)
    return _from_parts(content) if "header" in content else language_model(content)


def resolve(path: PathLike) -> Path:
    """What a path means: a run folder stands for its `checkpoints/best.ckpt`. Raises CheckpointError."""
    if not str(path):
        raise CheckpointError("found '' as the name of a file; expected a checkpoint or a run folder")
    if (Path(path) / WEIGHTS).exists():
        return Path(path) if Path(path).name not in ("", "..") else Path(path).resolve()  # for files beside it
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
    return Path(path)


def read(path: PathLike) -> Content:
    """The content of the checkpoint of a network, without running any code that it may contain.

    Raises CheckpointError: missing, damaged, of another program or of another format.
    """
    if (file := resolve(path)).is_dir():
        raise CheckpointError(f"{path}: an exported model; expected the checkpoint of a network (.ckpt)")
    content = _read(file)
    if "header" in content:
        raise CheckpointError(f"{path}: a file of counts or a mixture; expected the checkpoint of a network (.ckpt)")
    return content


def _read(path: Path) -> Content:
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch itself never looks at the checksums
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
            if any(entry.external_attr & 0x10 for entry in archive.infolist()):  # torch takes it for a folder
                raise zipfile.BadZipFile("an entry is marked as a folder, and would be read as what memory holds")
            is_counts = "header.npy" in archive.namelist()
        current = FORMAT_VERSION[".npz" if is_counts else ".ckpt"]
        if is_counts:
            with np.load(path, allow_pickle=False) as file:
                content = {name: file[name] for name in file.files}
            content["header"] = json.loads(str(content["header"]))
            version = content["header"]["format_version"]
            if version == current and content.keys() != {"header", *content["header"]["arrays"]}:
                raise zipfile.BadZipFile("damage to the table of contents, which has no checksum, hides an array")
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
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
        hint = "; it was exported for other programs: name what it was exported from" if path.suffix in EXPORTED else ""
        raise CheckpointError(f"{path}: damaged, or not a file of mlp_lm{hint}") from error
    _check_version(path, version, current)
    if not is_counts and DATA_KEY not in content:
        raise CheckpointError(f"{path}: has no vocabulary, as it was trained without a TextDataModule")
    return content


def _check_version(path: Path, version: int | None, current: int) -> None:
    if version is None:
        raise CheckpointError(f"{path}: a checkpoint of another program; expected one that mlp_lm wrote")
    if version != current:
        remedy = "install a newer mlp_lm" if version > current else "make it again"
        raise CheckpointError(f"{path}: format {version}, but this mlp_lm reads {current}; {remedy}")


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


# -- counts, mixtures and exported models ------------------------------------------------------------------------------


def save_parts(path: PathLike, model: LanguageModel) -> None:
    """Write a count model or a mixture, whole or not at all. Raises SettingsError if it cannot be written."""
    header, arrays = _describe(model)
    write_or_explain(path, lambda file: np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays))


def save_folder(folder: Path, model: LanguageModel) -> None:
    """Write any model into a new folder, as safetensors and JSON. Raises OSError if it cannot be written."""
    from safetensors.numpy import save

    header, arrays = _describe(model)
    paths = {name: Path(value).name for name, value in header["data"].items() if name.endswith("path") and value}
    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata={"format": "np"})
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(data)
    config = {"model_type": KEY, **header, "data": header["data"] | paths, "sha256": hashlib.sha256(data).hexdigest()}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def is_exported(folder: Path) -> bool:
    """Whether a folder has nothing but an exported model and its card, or nothing at all."""
    names = {path.name for path in folder.iterdir()}
    try:
        ours = bool(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_type"] == KEY)
    except (OSError, ValueError, LookupError, TypeError):
        return not names
    return ours and names <= {WEIGHTS, CONFIG, CARD}


def _read_folder(folder: Path) -> Content:
    """The content of an exported model. Raises CheckpointError: incomplete, damaged or of another format."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        header, data = json.loads((folder / CONFIG).read_text(encoding="utf-8")), (folder / WEIGHTS).read_bytes()
        version = header.get("format_version") if header.get("model_type") == KEY else None
        arrays = load(data)
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read ({error.strerror})") from error
    except (SafetensorError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder}: damaged, or not a model of mlp_lm") from error
    _check_version(folder, version, FORMAT_VERSION[".npz"])
    if hashlib.sha256(data).hexdigest() != header["sha256"]:
        raise CheckpointError(f"{folder}: damaged; {WEIGHTS} is not the file that {CONFIG} describes")
    return {"header": header, **arrays}


def _describe(model: LanguageModel) -> tuple[Content, dict[str, Any]]:
    """The header and the arrays of a file that holds `model`."""
    facts = model.facts
    arrays: dict[str, Any] = {f"item_hashes_{split}": h.numpy() for split, h in (facts.item_hashes or {}).items()}
    described = []
    for i, (_, part) in enumerate(model.parts):
        description: dict[str, Any] = {"context_size": part.context_size}
        if part.kind == "network":
            assert part.network is not None
            description["network"] = {name: getattr(part.network, name) for name in ARCHITECTURE}
            arrays |= {f"part{i}_{name}": weight.detach().numpy() for name, weight in part.network.named_parameters()}
        elif part.kind == "counts":
            assert part.counts is not None
            description["order"] = part.counts.order
            for k, level in enumerate(part.counts.levels, start=1):
                arrays |= {f"part{i}_level{k}_{name}": getattr(level, name) for name in LEVEL}
        described.append(description)
    header = {
        "format_version": FORMAT_VERSION[".npz"],
        "vocab": model.vocab.tokens,
        "longest_item": facts.longest_item,
        "fingerprint": facts.fingerprint,
        "data": dict(facts.settings),
        "parts": described,
        "weights": [weight for weight, _ in model.parts],
        "arrays": [*arrays],
    }
    return header, arrays


def _from_parts(content: Content) -> LanguageModel:
    """The count model or the mixture in the content of a file."""
    header = content["header"]
    vocab = Vocab(header["vocab"])
    hashes = {s: torch.from_numpy(content[f"item_hashes_{s}"]) for s in SPLITS if f"item_hashes_{s}" in content}
    facts = CorpusFacts(header["longest_item"], hashes or None, header["fingerprint"], header["data"])
    parts = []
    for i, part in enumerate(header["parts"]):
        prefix = f"part{i}_"
        arrays = {n.removeprefix(prefix): array for n, array in content.items() if n.startswith(prefix)}
        if "network" in part:
            weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
            network = MLP.from_weights(weights, len(vocab), part["context_size"], **part["network"])
            parts.append(LanguageModel.of_network(network, part["context_size"], vocab, facts))
        elif "order" in part:
            levels = [Level(*(arrays[f"level{k}_{name}"] for name in LEVEL)) for k in range(1, part["order"] + 1)]
            parts.append(LanguageModel.of_counts(NGramModel(levels, len(vocab)), vocab, facts))
        else:
            parts.append(cache_model(part["context_size"], vocab, facts))
    return parts[0] if len(parts) == 1 else mix(parts, header["weights"])
