"""A model as one web page: the files of this folder put together, and one block of data filled in.

The data are JSON; arrays are {"dtype", "shape", "data"}, with the numbers little-endian, gzipped and in base64.
Matrices of a large network are 16-bit integers with one of "scales" a row: on words of Brown, log-probabilities are
then off by at most 4e-4; with float16 it would be 4e-3.
"""

from __future__ import annotations

import base64
import copy
import gzip
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import torch

from mlp_lm.exports.info import ExportInfo, corpus_name, dev_loss, find_corpus
from mlp_lm.figures.labels import spread
from mlp_lm.figures.networks import MAX_SPREAD, in_the_plane
from mlp_lm.files import write_text
from mlp_lm.models.language_model import LanguageModel
from mlp_lm.models.network import ARCHITECTURE, MLP
from mlp_lm.models.ngram import NGramModel, count, modified_kneser_ney
from mlp_lm.models.views import embedding_table
from mlp_lm.text.corpus import SPLITS, Corpus
from mlp_lm.text.datasets import DATASETS

NUM_CONTEXTS = 200  # on which a rounded network is compared with the original
MAX_FLOAT32 = 800_000  # weights of a network that is not rounded; 4 MB in base64
MAX_LIST = 50_000  # items that the page recognises, by four bytes each

Array = npt.NDArray[Any]


def write(model: LanguageModel | None, info: ExportInfo, path: Path) -> list[str]:
    """Write the page of a model, or the one that only trains. Returns lines for the user."""
    data = {"names": _pack(_bundled_names()), **({} if model is None else _describe(model, info))}
    # Nothing in the data may end the script element that contains them.
    pieces = {"data": json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", r"\u003c")}
    page = re.sub(
        r"/\* ([a-z.]+) \*/", lambda found: pieces.get(found[1]) or _text(found[1]).strip(), _text("page.html")
    )
    write_text(path, page)
    parts = [] if model is None else [part for _, part in model.parts]
    rounded = [
        f"rounded to 16 bits: log-probabilities change by at most {_difference(part.network, part.context_size):.1e} "
        f"on {NUM_CONTEXTS} random contexts"
        for part in parts
        if _is_large(part.network)
    ]
    return [*rounded, f"next: open {path} in a browser; it needs no server and no network"]


def _text(name: str) -> str:
    return (files("mlp_lm.exports.page") / name).read_text(encoding="utf-8")


def _bundled_names() -> bytes:
    path = DATASETS["names"]
    assert isinstance(path, Path)
    return path.read_bytes()


# -- the block of data -------------------------------------------------------------------------------------------------


def _describe(model: LanguageModel, info: ExportInfo) -> dict[str, Any]:
    """The block of data of a model; `app.js` reads it."""
    parts, corpus = _label(model, info), find_corpus(model, info)
    data = {
        "name": info.name,
        "corpus": corpus_name(model),
        "vocab": model.vocab.tokens,
        "tokenizer": vars(model.tokenizer),
        "longest_item": model.facts.longest_item,
        "parts": [
            {"label": label, "weight": weight, **_describe_part(part)} for label, (weight, part) in parts.items()
        ],
        "losses": _losses(model, parts, corpus, info.losses),
    }
    if model.network is not None:
        data["map"] = _map(*embedding_table(model.network, model.vocab))
    if corpus is not None and not model.is_of_text:
        train, *others = (corpus.items(split) for split in SPLITS)
        seen = [train, [*chain(*others)]]
        if sum(map(len, seen)) <= MAX_LIST:
            data["seen"] = [_pack_array(np.unique(np.fromiter(map(item_hash, items), np.uint32))) for items in seen]
    return data


def _label(model: LanguageModel, info: ExportInfo) -> dict[str, tuple[float, LanguageModel]]:
    """The parts of the page and their weights, by label: network, counts, or network 1, network 2."""
    parts = [*model.parts, *([] if info.counts is None else [(0.0, info.counts)])]
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


def _losses(
    model: LanguageModel,
    parts: Mapping[str, tuple[float, LanguageModel]],
    corpus: Corpus | None,
    reported: Mapping[str, float],
) -> dict[str, float]:
    """Dev losses of baselines, parts and model, nats/token; infinite ones are omitted."""
    losses = {"uniform": math.log(len(model.vocab))}
    if corpus is not None:
        levels, _ = modified_kneser_ney(count(corpus.train, len(corpus.vocab), 2))
        bigram = NGramModel(levels, len(corpus.vocab))
        losses["bigram"] = dev_loss(LanguageModel.of_counts(bigram, corpus.vocab, model.facts), corpus)
        for label, (_, part) in parts.items():
            if part.kind in ("network", "counts") and not (part is model and reported):
                losses[label] = dev_loss(part, corpus)
        if model.kind == "mixture":
            losses["mixture"] = dev_loss(model, corpus)
    if "dev" in reported:
        losses[model.kind] = reported["dev"]
    return {label: loss for label, loss in losses.items() if math.isfinite(loss)}


def _describe_part(part: LanguageModel) -> dict[str, Any]:
    description: dict[str, Any] = {"kind": part.kind, "context_size": part.context_size}
    if part.network is not None:
        description["sizes"] = {name: getattr(part.network, name) for name in ARCHITECTURE}
        description["num_weights"] = part.network.count_weights()
        weights = {name: weight.detach().float().numpy() for name, weight in part.network.named_parameters()}
        is_large = _is_large(part.network)
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
    rounded, scales = _round(matrix)
    return {**_pack_array(rounded), "scales": _pack_array(scales)}


# -- rounding ----------------------------------------------------------------------------------------------------------


def _is_large(network: MLP | None) -> TypeGuard[MLP]:
    """Whether the matrices of a network are rounded."""
    return network is not None and network.count_weights() > MAX_FLOAT32


def _round(matrix: Array) -> tuple[Array, Array]:
    """A matrix as 16-bit integers, and the scale of each row."""
    scales = np.maximum(np.abs(matrix).max(1), np.finfo(np.float32).tiny) / 32767
    return np.round(matrix / scales[:, None]).astype(np.int16), scales


@torch.no_grad()
def _difference(network: MLP, context_size: int) -> float:
    """The largest change of a log-probability that rounding causes."""
    rounded = copy.deepcopy(network).float()
    for weight in rounded.parameters():
        if weight.ndim == 2:
            integers, scales = _round(weight.numpy())
            weight.copy_(torch.from_numpy(integers * scales[:, None]))
    vocab_size, generator = network.embedding.num_embeddings, torch.Generator().manual_seed(0)
    contexts = torch.randint(vocab_size, (NUM_CONTEXTS, context_size), generator=generator)
    return (network.log_probs(contexts) - rounded.log_probs(contexts)).abs().max().item()


# -- items -------------------------------------------------------------------------------------------------------------


def item_hash(item: str) -> int:
    """32 bits of FNV-1a over the UTF-16 code units of an item, as the page computes it."""
    value = 0x811C9DC5
    for unit in np.frombuffer(item.encode("utf-16-le", "surrogatepass"), "<u2").tolist():
        value = (value ^ unit) * 0x01000193 & 0xFFFFFFFF
    return value
