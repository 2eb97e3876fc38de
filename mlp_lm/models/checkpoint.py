"""What our files hold, and how they are written and read.

A `.ckpt` is a Lightning checkpoint. Beside Lightning's own entries (`state_dict`, whose weights are under
`network.`, `global_step`, `optimizer_states`, …) it has two of ours, which make it enough by itself:

    mlp_lm           format_version  int, FORMAT_VERSION
                     model           settings of the model: plain scalars and strings
                     trainer         max_steps, val_check_interval, log_every_n_steps, precision
                     seed            int, of dropout
    TextDataModule   settings        settings of the data: plain scalars and strings
                     vocab           list of V strings, the boundary "" first
                     fingerprint     str, of the items of the three splits
                     order_seed      int, of the order of examples
                     item_hashes     {"train": int64 tensor, "dev": …, "test": …}; None beyond a million items
                     longest_item    int, tokens of the longest item of train
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlp_lm.errors import CheckpointError
from mlp_lm.files import write_atomically
from mlp_lm.models import count_file
from mlp_lm.models.known_items import KnownItems, hash_items
from mlp_lm.models.language_model import LanguageModel
from mlp_lm.models.network import MLP, SHAPE
from mlp_lm.models.untrusted import UNFIT, check_checkpoint
from mlp_lm.ranges import COUNT, Range
from mlp_lm.settings import RUN, STORED, check_ranges
from mlp_lm.text.corpus import SPLITS, Corpus
from mlp_lm.text.vocab import Vocab

FORMAT_VERSION = 2
KEY, DATA_KEY = "mlp_lm", "TextDataModule"
PARTS = {"epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops", "callbacks", "optimizer_states"}
PARTS |= {"lr_schedulers", KEY, DATA_KEY}
NETWORK_PREFIX = "network."


def write(content: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint, whole or not at all. Raises CheckpointError where it cannot be written."""
    try:
        write_atomically(path, lambda file: torch.save(content, file))
    except (OSError, RuntimeError) as error:  # torch wraps a full disk in an error of its own
        reason = getattr(error, "strerror", None) or getattr(error.__context__, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be written ({reason}); the checkpoint there is as it was") from error


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a checkpoint, read without running any code that it may contain.

    Raises CheckpointError: missing, a folder, a URL, damaged, of another program or of a newer format.
    """
    _refuse_other_than_files(path)
    if Path(path).suffix == ".npz":
        raise CheckpointError(f"{path}: a file of counts; expected the checkpoint of a network (.ckpt)")
    try:
        check_checkpoint(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        _check_tensors(path, content)
    except CheckpointError:
        raise
    except PermissionError:
        raise CheckpointError(f"{path}: no permission to read it") from None
    except Exception as error:  # damaged bytes can make an unpickler raise anything
        if isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(
                f"{path}: a checkpoint of another program; it holds objects that ours never do"
            ) from error
        raise CheckpointError(f"{path}: damaged, or not a checkpoint of mlp_lm") from error
    ours, data = (content.get(key) if isinstance(content, dict) else None for key in (KEY, DATA_KEY))
    if not isinstance(ours, dict) or not isinstance(ours.get("format_version"), int) or not isinstance(data, dict):
        raise CheckpointError(f"{path}: a checkpoint of another program; expected one that mlp_lm wrote")
    if ours["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format {ours['format_version']}, this mlp_lm reads up to {FORMAT_VERSION}; install a newer mlp_lm"
        )
    if not all(isinstance(part, dict) for part in (ours.get("model"), data.get("settings"), content.get("state_dict"))):
        raise CheckpointError(f"{path}: damaged; settings or weights are missing")
    try:
        check_ranges({name: value for name, value in settings(content).items() if name != "seed_everything"})
        wrong = _wrong_parts(content)
    except UNFIT as error:
        raise CheckpointError(f"{path}: damaged; its settings are none ({error})") from error
    if wrong:
        raise CheckpointError(f"{path}: damaged; wrong or missing are {', '.join(wrong)}")
    return dict(content)


def _check_tensors(path: str | os.PathLike[str], content: object) -> None:
    """Raise CheckpointError where tensors are views that repeat a few numbers, and so claim to be larger than the file.

    torch's fused optimizers, which take each number to have its own place, would write beyond them.
    """
    tensors = [*_tensors(content)]
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) > os.path.getsize(path):
        raise CheckpointError(f"{path}: damaged, or made to harm; its tensors claim to be larger than the file")
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise CheckpointError(f"{path}: damaged, or made to harm; its tensors are not stored as ours are")


def _tensors(content: object) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, (dict, list, tuple)):
        for part in content.values() if isinstance(content, dict) else content:
            yield from _tensors(part)


def _wrong_parts(content: dict[str, Any]) -> list[str]:
    """The names of our own parts, see the head of this file, that are missing or of the wrong kind."""
    ours, data = content[KEY], content[DATA_KEY]
    hashes = data["item_hashes"]
    good = {
        "settings": {*RUN} <= settings(content).keys() <= STORED,  # no others, as they become defaults
        "vocab": len(Vocab(data["vocab"])) == ours["model"]["vocab_size"],
        "fingerprint": isinstance(data["fingerprint"], str),
        "order_seed": data["order_seed"] in Range(0, 2**64 - 1, whole=True),  # torch's own, unless one was chosen
        "longest_item": data["longest_item"] in COUNT,
        "item_hashes": hashes is None
        or (hashes.keys() == {*SPLITS} and all(h.dtype == torch.int64 and h.ndim == 1 for h in hashes.values())),
        "global_step": content["global_step"] in Range(0, 2**31 - 1, whole=True),
        "parts that ours never have": content.keys() <= PARTS,  # Lightning would take some for settings
    }
    return [name for name, is_good in good.items() if not is_good]


def _refuse_other_than_files(path: str | os.PathLike[str]) -> None:
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):  # one letter is a Windows drive
        raise CheckpointError(f"{path}: a URL; expected a file. Download it first")
    if Path(path).is_dir():
        raise CheckpointError(f"{path}: a folder; expected a checkpoint file inside it (checkpoints/best.ckpt)")
    if not Path(path).exists():
        raise CheckpointError(f"{path}: no such file; expected a checkpoint (…/checkpoints/best.ckpt)")
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: a device or pipe; expected a checkpoint file")


def settings(content: dict[str, Any]) -> dict[str, Any]:
    """The settings that a checkpoint was trained with, as in a config: `data.path`, `model.hidden_dim`, …"""
    trainer = {f"trainer.{name}": value for name, value in content[KEY].get("trainer", {}).items()}
    data = {f"data.{name}": value for name, value in content[DATA_KEY]["settings"].items()}
    model = {f"model.{name}": value for name, value in content[KEY]["model"].items()}
    linked = ("model.vocab_size", "model.context_size")  # they follow from the data
    seed = {"seed_everything": content[DATA_KEY]["order_seed"]}
    return seed | trainer | data | {name: value for name, value in model.items() if name not in linked}


def load(path: str | os.PathLike[str]) -> LanguageModel:
    """The language model in a checkpoint or a `.npz` file of counts, on the CPU, ready to sample and score.

    Raises CheckpointError where `path` is not a file of ours that this version can read.
    """
    if Path(path).suffix == ".npz":
        _refuse_other_than_files(path)
        return count_file.load(path)
    return language_model(path, read(path))


def language_model(path: str | os.PathLike[str], content: dict[str, Any]) -> LanguageModel:
    """The language model in the `content` of the checkpoint at `path`. Raises CheckpointError."""
    network, context_size = load_network(path, content)
    try:
        data = content[DATA_KEY]
        return LanguageModel(
            vocab=Vocab(data["vocab"]),
            context_size=context_size,
            log_probs=network.log_probs,
            longest_item=data["longest_item"],
            known_items=None if data["item_hashes"] is None else KnownItems(data["item_hashes"]),
            network=network,
        )
    except UNFIT as error:
        raise CheckpointError(f"{path}: damaged; its parts do not fit together ({error})") from error


def load_network(path: str | os.PathLike[str], content: dict[str, Any]) -> tuple[MLP, int]:
    """The network in the `content` of a checkpoint, ready to predict, and its context size.

    Raises CheckpointError, which names `path`, where the parts do not fit together.
    """
    try:
        model, data = content[KEY]["model"], content[DATA_KEY]
        context_size = data["settings"]["context_size"]
        shape = {name: model[name] for name in (*SHAPE, "dropout")}
        weights = {name.removeprefix(NETWORK_PREFIX): weight for name, weight in content["state_dict"].items()}
        return MLP.from_weights(weights, len(data["vocab"]), context_size, **shape), context_size
    except UNFIT as error:
        raise CheckpointError(f"{path}: damaged; its parts do not fit together ({error})") from error


def check_same_data(path: str | os.PathLike[str], data: Mapping[str, Any], corpus: Corpus) -> None:
    """Raise CheckpointError that says what of the `corpus` is not as the `data` of the checkpoint at `path` has it."""
    if data["fingerprint"] == corpus.fingerprint:
        return
    hashes, tokens = data["item_hashes"], corpus.vocab.tokens
    if data["vocab"] != tokens:
        new, gone = (sorted(set(a) - set(b))[:10] for a, b in ((tokens, data["vocab"]), (data["vocab"], tokens)))
        what = "; ".join(f"{word} {' '.join(map(repr, of))}" for word, of in (("with", new), ("without", gone)) if of)
        what = f"has other characters ({what})"
    elif hashes is not None and set(torch.cat([*hashes.values()]).tolist()) == _all_hashes(corpus):
        what = "has the same items, but split in another way (unique, split_seed)"
    else:
        what = "has other items"
    source = data["settings"].get("train_path") or data["settings"].get("path")
    raise CheckpointError(
        f"{path}: the data {what} than the checkpoint was trained with, which was {source}; expected that text"
    )


def _all_hashes(corpus: Corpus) -> set[int]:
    return {h for split in SPLITS for h in hash_items(corpus.items(split)).tolist()}
