"""Which items a language model has met: 64-bit hashes of the items of each split, small enough for a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlp_lm.text.corpus import SPLITS, Corpus, item_lengths

SPLIT_LABELS = {"train": "in train", "dev or test": "in dev or test", "new": "new"}  # what `where` says, for people
MAX_ITEMS = 1_000_000  # of all splits together: beyond it, a checkpoint would grow by more than 8 MB


def item_hash(item: str) -> int:
    """64 bits of BLAKE2b, signed. Two of a million items share a hash once in some 40 million corpora."""
    return int.from_bytes(hashlib.blake2b(item.encode(), digest_size=8).digest(), "little", signed=True)


def hash_items(items: Iterable[str]) -> Tensor:
    """Sorted, different hashes of `items`, int64."""
    return torch.from_numpy(np.unique(np.fromiter(map(item_hash, items), np.int64)))


def facts_of(corpus: Corpus) -> dict[str, Any]:
    """What a model keeps of its corpus: `item_hashes` of each split, None where there are too many; `longest_item`."""
    lengths = {split: item_lengths(getattr(corpus, split)) for split in SPLITS}
    few = sum(map(len, lengths.values())) <= MAX_ITEMS
    return {
        "item_hashes": {split: hash_items(corpus.items(split)) for split in SPLITS} if few else None,
        "longest_item": int(lengths["train"].max()),
    }


class KnownItems:
    """Tells whether an item stands in train, in dev or test, or in neither."""

    def __init__(self, hashes: dict[str, Tensor]) -> None:
        """`hashes`: for each split what `hash_items` made of it."""
        train = set(hashes["train"].tolist())
        held_out = {h for split in ("dev", "test") for h in hashes[split].tolist()}
        self._where = {**dict.fromkeys(held_out, "dev or test"), **dict.fromkeys(train, "train")}

    def where(self, item: str) -> str:
        """`"train"`, `"dev or test"` or `"new"`."""
        return self._where.get(item_hash(item), "new")
