"""A count model, or the mixture of one with a network, as a `.npz` file: plain arrays, nothing that could run.

header              JSON text: format_version, vocab, longest_item, fingerprint, smoothing; for a mixture also its
                    weight, and context_size and settings of the network
level<k>_keys, level<k>_probs, level<k>_backoff      see `ngram.Level`
item_hashes_train, item_hashes_dev, item_hashes_test absent beyond a million items
network_<name>      weights of a mixture's network
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mlp_lm.errors import CheckpointError
from mlp_lm.models.known_items import KnownItems
from mlp_lm.models.language_model import LanguageModel, Mixture
from mlp_lm.models.network import MLP
from mlp_lm.models.ngram import Level, NGramModel
from mlp_lm.text.vocab import Vocab

FORMAT_VERSION = 1
NETWORK_SETTINGS = ("embedding_dim", "hidden_dim", "num_layers")


@dataclass(frozen=True)
class Facts:
    """What a file holds beside the model: of the corpus, and how it was smoothed."""

    vocab: Vocab
    longest_item: int
    fingerprint: str
    smoothing: str
    item_hashes: dict[str, torch.Tensor] | None


def save(path: str | os.PathLike[str], model: NGramModel, facts: Facts, mixture: Mixture | None = None) -> None:
    """Write a count model, or `mixture`, of which it is the count part; whole or not at all."""
    header: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "vocab": facts.vocab.tokens,
        "longest_item": facts.longest_item,
        "fingerprint": facts.fingerprint,
        "smoothing": facts.smoothing,
    }
    arrays: dict[str, npt.NDArray[Any]] = {}
    for k, level in enumerate(model.levels, start=1):
        arrays |= {f"level{k}_{name}": getattr(level, name) for name in ("keys", "probs", "backoff")}
    for split, hashes in (facts.item_hashes or {}).items():
        arrays[f"item_hashes_{split}"] = hashes.numpy()
    if mixture is not None:
        network = mixture.network
        header |= {
            "weight": mixture.weight,
            "context_size": mixture.context_size,
            "network": {
                "embedding_dim": network.embedding.embedding_dim,
                "hidden_dim": network.output.in_features,
                "num_layers": len(network.hidden),
            },
        }
        arrays |= {f"network_{name}": tensor.numpy() for name, tensor in network.state_dict().items()}
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> LanguageModel:
    """The language model in a `.npz` file. Raises CheckpointError where it is not one of ours."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(str(arrays["header"]))
        version = header["format_version"]
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; expected a checkpoint or a count model") from None
    except Exception as error:  # damaged bytes can make a reader raise anything
        raise CheckpointError(f"{path}: damaged, or not a count model of mlp_lm") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format {version}, this mlp_lm reads up to {FORMAT_VERSION}; install a newer one"
        )
    try:
        return _unpack(header, arrays)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged; its parts do not fit together ({error})") from error


def _unpack(header: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> LanguageModel:
    vocab = Vocab(header["vocab"])
    order = sum(name.endswith("_backoff") for name in arrays)
    levels = [
        Level(*(arrays[f"level{k}_{name}"] for name in ("keys", "probs", "backoff"))) for k in range(1, order + 1)
    ]
    counts = NGramModel(levels, len(vocab))
    hashes = {
        name: torch.from_numpy(arrays[key])
        for name in ("train", "dev", "test")
        if (key := f"item_hashes_{name}") in arrays
    }
    log_probs, context_size = counts.log_probs, max(order - 1, 1)
    if "network" in header:
        network = MLP(
            len(vocab), header["context_size"], **{name: header["network"][name] for name in NETWORK_SETTINGS}
        )
        prefix = "network_"
        weights = {n.removeprefix(prefix): torch.from_numpy(a) for n, a in arrays.items() if n.startswith(prefix)}
        network.load_state_dict(weights)
        mixture = Mixture(network.eval(), header["context_size"], counts, header["weight"])
        log_probs, context_size = mixture.log_probs, max(header["context_size"], context_size)
    return LanguageModel(
        vocab=vocab,
        context_size=context_size,
        log_probs=log_probs,
        longest_item=header["longest_item"],
        known_items=KnownItems(hashes) if hashes else None,
    )
