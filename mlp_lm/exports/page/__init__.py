"""A model as one web page: the files of this folder put together, and one block of data filled in.

The data are JSON; arrays are {"dtype", "shape", "data"}, with the numbers little-endian, gzipped and in base64.
Matrices of a large network are 16-bit whole numbers with one of "scales" a row: on words of Brown, log-probabilities
are then off by 4e-4 at most, where float16 makes it 4e-3.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mlp_lm.exports.details import Details, dev_loss
from mlp_lm.figures.labels import spread
from mlp_lm.figures.networks import MAX_SPREAD, in_the_plane
from mlp_lm.models.language_model import CorpusFacts, LanguageModel
from mlp_lm.models.mixture import cache_model, mix
from mlp_lm.models.network import ARCHITECTURE, MLP
from mlp_lm.models.ngram import Level, NGramModel, count, modified_kneser_ney
from mlp_lm.models.views import embedding_table
from mlp_lm.text.corpus import SPLITS
from mlp_lm.text.datasets import DATASETS
from mlp_lm.text.vocab import Vocab

TOLERANCE = 1e-3  # between log-probabilities: large networks are rounded to 16 bits
MAX_FLOAT32 = 800_000  # weights of a network that is not rounded; 4 MB in base64
MAX_LIST = 50_000  # items that the page recognises, by four bytes each

Array = npt.NDArray[Any]


def write(path: Path, model: LanguageModel | None, details: Details) -> None:
    """Write the page of `model`, or that for training alone."""
    data = {"names": _pack(_bundled_names()), **({} if model is None else _describe(model, details))}
    # Nothing in the data may end the script element that they stand in.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    pieces = {"data": text.replace("<", r"\u003c")}
    page = re.sub(r"/\* ([a-z.]+) \*/", lambda found: pieces.get(found[1]) or _text(found[1]).strip(), _text("page.html"))
    path.write_text(page, encoding="utf-8")


def read(path: Path) -> LanguageModel:
    """The model in a page, from its data."""
    (text,) = re.findall('<script id="data" type="application/json">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    data = json.loads(text)
    vocab, facts = Vocab(data["vocab"]), CorpusFacts(data["longest_item"], None, "", data["tokenizer"])
    parts = [_read_part(part, vocab, facts) for part in data["parts"]]
    return mix(parts, [part["weight"] for part in data["parts"]]) if len(parts) > 1 else parts[0]


def usage(path: Path) -> str:
    """How to use the page."""
    return f"open {path} in a browser; it needs no server and no network"


def _text(name: str) -> str:
    return (files("mlp_lm.exports.page") / name).read_text(encoding="utf-8")


def _bundled_names() -> bytes:
    path = DATASETS["names"]
    assert isinstance(path, Path)
    return path.read_bytes()


# -- the block of data -------------------------------------------------------------------------------------------------


def _describe(model: LanguageModel, details: Details) -> dict[str, Any]:
    """The block of data of a model; `app.js` reads it."""
    parts = _label(model, details)
    data = {
        "name": details.name,
        "corpus": details.corpus_name,
        "vocab": model.vocab.tokens,
        "tokenizer": vars(model.tokenizer),
        "longest_item": model.facts.longest_item,
        "parts": [
            {"label": label, "weight": weight, **_describe_part(part)} for label, (weight, part) in parts.items()
        ],
        "losses": _losses(model, details),
    }
    if model.network is not None:
        data["map"] = _map(*embedding_table(model.network, model.vocab))
    if details.corpus is not None and not model.is_of_text:
        train, *others = (details.corpus.items(split) for split in SPLITS)
        seen = [train, [*chain(*others)]]
        if sum(map(len, seen)) <= MAX_LIST:
            data["seen"] = [_pack_array(np.unique(np.fromiter(map(item_hash, items), np.uint32))) for items in seen]
    return data


def _label(model: LanguageModel, details: Details) -> dict[str, tuple[float, LanguageModel]]:
    """The parts of the page and their weights, by label: network, counts, or network 1, network 2."""
    parts = [*model.parts, *([] if details.beside is None else [(0.0, details.beside)])]
    kinds = [part.kind for _, part in parts]
    numbers = [f" {kinds[:i].count(kind) + 1}" if kinds.count(kind) > 1 else "" for i, kind in enumerate(kinds)]
    return {f"{kind}{number}": part for kind, number, part in zip(kinds, numbers, parts, strict=True)}


def _map(table: Array, labels: Sequence[str]) -> dict[str, Any]:
    """Where the labels of an embedding map stand in a box, pushed apart as `plot` does."""
    points, _, note = in_the_plane(table.astype(np.float64))
    size = 20 if len(labels) <= 40 else 15 if len(labels) <= 100 else 11
    box, margin = np.array([800, 600]), 2 * size
    points -= points.min(0)
    points *= (box - 2 * margin) / np.maximum(points.max(0), 1e-12)
    if len(labels) <= MAX_SPREAD:
        points = spread(points, np.array([(0.65 * len(label) * size, size) for label in labels]))
    low, high = points.min(0) - margin, points.max(0) + margin
    width, height = np.round(high - low).tolist()
    note = note.strip() or "the two dimensions as they are"
    return {"points": np.round(points - low, 1).tolist(), "size": size, "width": width, "height": height, "note": note}


def _losses(model: LanguageModel, details: Details) -> dict[str, float]:
    """Losses on dev, nats/token: what to compare the model with, its parts, and itself; none that is infinite."""
    losses = {"uniform": math.log(len(model.vocab))}
    corpus = details.corpus
    if corpus is not None:
        levels, _ = modified_kneser_ney(count(corpus.train, len(corpus.vocab), 2))
        bigram = NGramModel(levels, len(corpus.vocab))
        losses["bigram"] = dev_loss(LanguageModel.of_counts(bigram, corpus.vocab, model.facts), corpus)
        for label, (_, part) in _label(model, details).items():
            if part.kind in ("network", "counts") and not (part is model and details.losses):
                losses[label] = dev_loss(part, corpus)
        if model.kind == "mixture":
            losses["mixture"] = dev_loss(model, corpus)
    if "dev" in details.losses:
        losses[model.kind] = details.losses["dev"]
    return {label: loss for label, loss in losses.items() if math.isfinite(loss)}


def _describe_part(part: LanguageModel) -> dict[str, Any]:
    description: dict[str, Any] = {"kind": part.kind, "context_size": part.context_size}
    if part.network is not None:
        description["sizes"] = {name: getattr(part.network, name) for name in ARCHITECTURE}
        description["num_weights"] = part.network.count_weights()
        weights = {name: weight.detach().float().numpy() for name, weight in part.network.named_parameters()}
        is_large = description["num_weights"] > MAX_FLOAT32
        description["arrays"] = {
            name: _pack_rounded(weight) if is_large and weight.ndim == 2 else _pack_array(weight)
            for name, weight in weights.items()
        }
    if part.counts is not None:
        description["order"] = part.counts.order
        description["num_weights"] = part.counts.count_parameters()
        description["arrays"] = {name: _pack_array(array) for name, array in _describe_levels(part.counts)}
    return description


def _describe_levels(counts: NGramModel) -> Iterable[tuple[str, Array]]:
    """The levels of counts; the k-grams of a context stand together, so their number and their targets are enough."""
    for k, level in enumerate(counts.levels, start=1):
        yield f"probs{k}", level.probs.astype(np.float32)
        yield f"backoff{k}", level.backoff.astype(np.float32)
        if k > 1:
            yield f"targets{k}", _smallest(level.keys % counts.vocab_size)
            yield f"children{k}", _smallest(np.bincount(level.keys // counts.vocab_size, minlength=len(level.backoff)))


def _smallest(numbers: Array) -> Array:
    """The same numbers in the smallest unsigned type that holds them."""
    return numbers.astype(np.min_scalar_type(numbers.max(initial=0)))


def _read_part(part: dict[str, Any], vocab: Vocab, facts: CorpusFacts) -> LanguageModel:
    arrays = {name: _unpack_array(array) for name, array in part.get("arrays", {}).items()}
    if part["kind"] == "network":
        weights = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
        network = MLP.from_weights(weights, len(vocab), part["context_size"], **part["sizes"])
        return LanguageModel.of_network(network, part["context_size"], vocab, facts)
    if part["kind"] == "cache":
        return cache_model(part["context_size"], vocab, facts)
    levels = []
    for k in range(1, part["order"] + 1):
        probs, backoff = (arrays[f"{name}{k}"].astype(np.float64) for name in ("probs", "backoff"))
        keys = np.arange(len(vocab))
        if k > 1:
            contexts = np.repeat(np.arange(len(backoff)), arrays[f"children{k}"])
            keys = contexts * len(vocab) + arrays[f"targets{k}"].astype(np.int64)
        levels.append(Level(keys, probs, backoff))
    return LanguageModel.of_counts(NGramModel(levels, len(vocab)), vocab, facts)


def _pack(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


def _pack_array(array: Array) -> dict[str, Any]:
    name = array.dtype.name
    return {
        "dtype": name,
        "shape": list(array.shape),
        "data": _pack(array.astype(array.dtype.newbyteorder("<")).tobytes()),
    }


def _pack_rounded(matrix: Array) -> dict[str, Any]:
    scales = np.maximum(np.abs(matrix).max(1), np.finfo(np.float32).tiny) / 32767
    rounded = np.round(matrix / scales[:, None]).astype(np.int16)
    return {**_pack_array(rounded), "scales": _pack_array(scales.astype(np.float32))}


def _unpack_array(packed: dict[str, Any]) -> Array:
    data = gzip.decompress(base64.b64decode(packed["data"]))
    values = np.frombuffer(data, np.dtype(packed["dtype"]).newbyteorder("<")).reshape(packed["shape"])
    return values * _unpack_array(packed["scales"])[:, None] if "scales" in packed else values


def item_hash(item: str) -> int:
    """32 bits of FNV-1a over the UTF-16 code units of an item, as the page computes it."""
    value = 0x811C9DC5
    for unit in np.frombuffer(item.encode("utf-16-le", "surrogatepass"), "<u2").tolist():
        value = (value ^ unit) * 0x01000193 & 0xFFFFFFFF
    return value
