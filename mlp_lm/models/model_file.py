"""A model that is not a training checkpoint, as one safetensors file: counts, a mixture, or an exported network.

Its metadata has two entries:

    mlp_lm    the header, JSON: see `Header`
    sha256    a digest of the header and of every tensor: name, type, shape and content

Its tensors:

    train_hashes, dev_hashes, test_hashes       see `CorpusFacts`; absent if the model does not know the items
    part<i>.<name>                              the weights of a network
    part<i>.level<k>.keys, .probs, .backoff     the levels of a count model, see `ngram.Level`
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from mlp_lm.errors import CheckpointError, is_out_of_memory
from mlp_lm.files import write_or_explain
from mlp_lm.models.language_model import CorpusFacts, LanguageModel
from mlp_lm.models.mixture import cache_model, mix
from mlp_lm.models.network import ARCHITECTURE, MLP
from mlp_lm.models.ngram import Level, NGramModel
from mlp_lm.text.corpus import SPLITS, CorpusSettings
from mlp_lm.text.vocab import Vocab

FORMAT_VERSION = 1
KEY = "mlp_lm"


class Part(TypedDict):
    """One part of a mixture; any other model has a single part, with weight 1."""

    kind: Literal["network", "counts", "cache"]
    weight: float
    context_size: int
    sizes: dict[str, int | bool]  # a network's `ARCHITECTURE`, or the order of a count model


class Header(TypedDict):
    """Everything about a model that is not a tensor."""

    format_version: int
    vocab: list[str]
    longest_item: int
    fingerprint: str
    data: dict[str, str | int | bool | None]  # `CorpusSettings` by name
    parts: list[Part]


def save(path: str | os.PathLike[str], model: LanguageModel) -> None:
    """Write a model, whole or not at all. Raises SettingsError if the file cannot be written."""
    header, tensors = _describe(model)
    text = json.dumps(header, ensure_ascii=False)
    metadata = {KEY: text, "sha256": _digest(text, tensors)}
    write_or_explain(path, lambda file: file.write(safetensors.torch.save(tensors, metadata)))


def load(path: Path) -> LanguageModel:
    """The model in a file, on the CPU.

    Raises CheckpointError if the file cannot be read, is damaged, or is not ours.
    """
    try:
        header, tensors = _read(path)
        model = _build(header, tensors) if header["format_version"] == FORMAT_VERSION else None
    except Exception as error:  # damaged bytes can make a reader raise anything
        if is_out_of_memory(error):
            raise
        reason = f"cannot be read ({error.strerror or error})" if isinstance(error, OSError) else ""
        raise CheckpointError(f"{path}: {reason or 'damaged, or not written by mlp_lm'}") from error
    if model is None:
        raise CheckpointError(
            f"{path}: format {header['format_version']}, but this mlp_lm reads {FORMAT_VERSION}; install a newer "
            "mlp_lm, or re-create the file"
        )
    return model


def _read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """The header and the tensors that were written. Raises some exception if anything else is in the file."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    text = metadata[KEY]
    _require(metadata == {KEY: text, "sha256": _digest(text, tensors)}, "the digest is wrong")
    header: Header = json.loads(text)
    return header, tensors


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {[*tensor.shape]}\n".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()


# -- from a model to header and tensors, and back ----------------------------------------------------------------------


def _describe(model: LanguageModel) -> tuple[Header, dict[str, Tensor]]:
    """The header and the tensors of a model."""
    facts = model.facts
    tensors = {f"{split}_hashes": hashes for split, hashes in (facts.item_hashes or {}).items()}
    parts: list[Part] = []
    for i, (weight, part) in enumerate(model.parts):
        assert part.kind != "mixture"
        sizes, own = _describe_part(part)
        parts.append({"kind": part.kind, "weight": weight, "context_size": part.context_size, "sizes": sizes})
        tensors |= {f"part{i}.{name}": tensor.contiguous() for name, tensor in own.items()}
    header: Header = {
        "format_version": FORMAT_VERSION,
        "vocab": model.vocab.tokens,
        "longest_item": facts.longest_item,
        "fingerprint": facts.fingerprint,
        "data": dict(facts.settings),
        "parts": parts,
    }
    return header, tensors


def _describe_part(part: LanguageModel) -> tuple[dict[str, int | bool], dict[str, Tensor]]:
    """The sizes and the tensors of a network, of a count model, or of a cache, which has neither."""
    if part.network is not None:
        sizes = {name: getattr(part.network, name) for name in ARCHITECTURE}
        return sizes, {name: weight.detach() for name, weight in part.network.named_parameters()}
    levels = part.counts.levels if part.counts is not None else []
    arrays = {
        f"level{k}.{name}": array for k, level in enumerate(levels, start=1) for name, array in vars(level).items()
    }
    return {"order": len(levels)} if levels else {}, {name: torch.from_numpy(array) for name, array in arrays.items()}


def _build(header: Header, tensors: dict[str, Tensor]) -> LanguageModel:
    """The model of a header and its tensors. Raises some exception unless both are as `_describe` makes them."""
    _require(_conforms(header, Header), "the header has other entries")
    settings = CorpusSettings.of(header["data"])
    hints = get_type_hints(CorpusSettings)
    _require(all(_conforms(value, hints[name]) for name, value in vars(settings).items()), "a setting is invalid")
    hashes = {split: tensors.pop(f"{split}_hashes") for split in SPLITS if f"{split}_hashes" in tensors}
    _require(len(hashes) in (0, len(SPLITS)), "the items of a split are missing")
    _require(all(h.dtype == torch.int64 and h.ndim == 1 for h in hashes.values()), "the items are not hashes")
    vocab = Vocab(header["vocab"])
    facts = CorpusFacts(header["longest_item"], hashes or None, header["fingerprint"], vars(settings))
    parts = []
    for i, part in enumerate(header["parts"]):
        prefix = f"part{i}."
        own = {name.removeprefix(prefix): tensors.pop(name) for name in [*tensors] if name.startswith(prefix)}
        parts.append(_build_part(part, own, vocab, facts))
    _require(not tensors, "there are tensors of no part")
    return parts[0] if len(parts) == 1 else mix(parts, [part["weight"] for part in header["parts"]])


def _build_part(part: Part, tensors: dict[str, Tensor], vocab: Vocab, facts: CorpusFacts) -> LanguageModel:
    size = part["context_size"]
    if part["kind"] == "network":
        _require(len({weight.dtype for weight in tensors.values()}) == 1, "weights have several types")
        network = MLP.from_weights(tensors, len(vocab), size, **part["sizes"])
        return LanguageModel.of_network(network, size, vocab, facts)
    if part["kind"] == "cache":
        _require(not tensors and not part["sizes"] and size > 0, "a cache has only a size")
        return cache_model(size, vocab, facts)
    levels = [*_build_levels(tensors, part["sizes"]["order"], len(vocab))]
    model = LanguageModel.of_counts(NGramModel(levels, len(vocab)), vocab, facts)
    _require(not tensors and size == model.context_size, "the order does not fit the levels")
    return model


def _build_levels(tensors: dict[str, Tensor], order: int, vocab_size: int) -> Iterator[Level]:
    """The levels of a count model, whose tensors are removed from `tensors`."""
    num_contexts = 1
    for k in range(1, order + 1):
        keys, probs, backoff = (tensors.pop(f"level{k}.{name}") for name in ("keys", "probs", "backoff"))
        types = (keys.dtype, probs.dtype, backoff.dtype)
        _require(types == (torch.int64, torch.float64, torch.float64), "a level has other types")
        _require(probs.shape == keys.shape == (len(keys),) and backoff.shape == (num_contexts,), "sizes differ")
        ends = torch.tensor([-1, num_contexts * vocab_size])
        _require(bool((torch.cat([ends[:1], keys, ends[1:]]).diff() > 0).all()), "keys are not sorted or not in range")
        _require(k > 1 or len(keys) == vocab_size, "tokens are missing")
        yield Level(keys.numpy(), probs.numpy(), backoff.numpy())
        num_contexts = len(keys)


# -- the schema of the header ------------------------------------------------------------------------------------------


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)


def _conforms(value: Any, hint: Any) -> bool:
    """Whether a value from JSON has a type: a plain one, a Literal, a union, or a list, dict or TypedDict of such."""
    origin, args = get_origin(hint), get_args(hint)
    if is_typeddict(hint):
        hints = get_type_hints(hint)
        same = isinstance(value, dict) and value.keys() == hints.keys()
        return same and all(_conforms(value[name], hints[name]) for name in hints)
    if origin is Literal:
        return value in args
    if origin in (Union, UnionType):
        return any(_conforms(value, arg) for arg in args)
    if origin is list:
        return isinstance(value, list) and all(_conforms(each, args[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_conforms(each, args[1]) for each in value.values())
    return type(value) is hint
