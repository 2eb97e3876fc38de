"""A count model, or the mixture of one with a network, as a `.npz` file: plain arrays, nothing that could run.

header              JSON text: format_version, vocab, order, longest_item; for a mixture also its weight, and
                    context_size and settings of the network
level<k>_keys, level<k>_probs, level<k>_backoff      see `ngram.Level`
item_hashes_train, item_hashes_dev, item_hashes_test absent beyond a million items
network_<name>      weights of a mixture's network
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mlp_lm.errors import CheckpointError
from mlp_lm.files import write_atomically
from mlp_lm.models.known_items import KnownItems
from mlp_lm.models.language_model import LanguageModel, Mixture
from mlp_lm.models.network import MLP, SHAPE
from mlp_lm.models.ngram import Level, NGramModel
from mlp_lm.models.untrusted import UNFIT, check_zip
from mlp_lm.ranges import COUNT
from mlp_lm.text.corpus import SPLITS
from mlp_lm.text.vocab import Vocab

FORMAT_VERSION = 1
# Ours unpack to 1 to 6 times their size, and deflate packs zeros a thousandfold. A small file may always be large.
MOST_UNPACKED, MOST_UNPACKED_RATIO = 2**26, 30


def save(path: str, model: NGramModel, vocab: Vocab, facts: dict[str, Any], mixture: Mixture | None = None) -> None:
    """Write a count model, or `mixture`, of which it is the count part; whole or not at all.

    Args:
        path: The file.
        model: The count model.
        vocab: Its vocabulary.
        facts: Of its corpus, see `known_items.facts_of`.
        mixture: A mixture to write.
    """
    header: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "vocab": vocab.tokens,
        "order": model.order,
        "longest_item": facts["longest_item"],
    }
    arrays: dict[str, npt.NDArray[Any]] = {}
    for k, level in enumerate(model.levels, start=1):
        arrays |= {f"level{k}_{name}": getattr(level, name) for name in ("keys", "probs", "backoff")}
    for split, hashes in (facts["item_hashes"] or {}).items():
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
    header_text = np.array(json.dumps(header))
    try:
        write_atomically(path, lambda file: np.savez_compressed(file, header=header_text, **arrays))  # type: ignore[arg-type]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error


def load(path: str | os.PathLike[str]) -> LanguageModel:
    """The language model in a `.npz` file. Raises CheckpointError where it is not one of ours."""
    try:
        check_zip(path, max(MOST_UNPACKED, MOST_UNPACKED_RATIO * os.path.getsize(path)))
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(str(arrays["header"]))
        version = header["format_version"]
        if version not in COUNT:
            raise ValueError("no version")
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes can make a reader raise anything
        raise CheckpointError(f"{path}: damaged, or not a count model of mlp_lm") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format {version}, this mlp_lm reads up to {FORMAT_VERSION}; install a newer one"
        )
    try:
        return _unpack(header, arrays)
    except UNFIT as error:
        raise CheckpointError(f"{path}: damaged; its parts do not fit together ({error})") from error


def _unpack(header: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> LanguageModel:
    vocab, order = Vocab(header["vocab"]), header["order"]
    if header["longest_item"] not in COUNT or order not in COUNT:
        raise ValueError("its order, or the length of its longest item, is none")
    levels = [
        Level(*(arrays[f"level{k}_{name}"] for name in ("keys", "probs", "backoff"))) for k in range(1, order + 1)
    ]
    _check_levels(levels, len(vocab))
    counts = NGramModel(levels, len(vocab))
    hashes = {
        split: torch.from_numpy(arrays[f"item_hashes_{split}"]) for split in SPLITS if "item_hashes_train" in arrays
    }
    if any(h.dtype != torch.int64 or h.ndim != 1 for h in hashes.values()):
        raise ValueError("hashes that are none")
    log_probs, context_size = counts.log_probs, max(order - 1, 1)
    network: MLP | None = None
    if "network" in header:
        prefix = "network_"
        weights = {n.removeprefix(prefix): torch.from_numpy(a) for n, a in arrays.items() if n.startswith(prefix)}
        shape = {name: header["network"][name] for name in SHAPE}
        network = MLP.from_weights(weights, len(vocab), header["context_size"], **shape)
        if not 0 <= header["weight"] <= 1:
            raise ValueError("a weight of the mixture that is none")
        mixture = Mixture(network, header["context_size"], counts, header["weight"])
        log_probs, context_size = mixture.log_probs, max(header["context_size"], context_size)
    return LanguageModel(
        vocab=vocab,
        context_size=context_size,
        log_probs=log_probs,
        longest_item=header["longest_item"],
        known_items=KnownItems(hashes) if hashes else None,
        network=network,
    )


def _check_levels(levels: list[Level], vocab_size: int) -> None:
    """Raise ValueError where the arrays of a file cannot be a count model."""
    num_contexts = 1
    if not levels:
        raise ValueError("no levels")
    for k, level in enumerate(levels, start=1):
        floats = {level.probs.dtype, level.backoff.dtype} == {np.dtype(np.float64)}
        if (
            not floats
            or level.keys.dtype != np.int64
            or {a.ndim for a in (level.keys, level.probs, level.backoff)} != {1}
        ):
            raise ValueError(f"level {k} has arrays of another kind")
        if len(level.probs) != len(level.keys) or len(level.backoff) != num_contexts:
            raise ValueError(f"level {k} has arrays of different lengths")
        if k == 1 and not np.array_equal(level.keys, np.arange(vocab_size)):
            raise ValueError("level 1 is not the vocabulary")
        in_order = bool((np.diff(level.keys) > 0).all())
        if not in_order or (len(level.keys) and not 0 <= level.keys[0] <= level.keys[-1] < num_contexts * vocab_size):
            raise ValueError(f"level {k} has keys out of order")
        if not all(((a >= 0) & np.isfinite(a)).all() for a in (level.probs, level.backoff)):
            raise ValueError(f"level {k} has probabilities that are none")
        num_contexts = len(level.keys)
