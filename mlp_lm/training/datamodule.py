"""The LightningDataModule: a text file to chunks. N windows, B batch, K steps per execution, T context."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule

from mlp_lm.models.checkpoint import check_same_data
from mlp_lm.models.known_items import facts_of
from mlp_lm.settings import check_section
from mlp_lm.text.corpus import DATASETS, Corpus, corpus_of, find
from mlp_lm.text.windows import Batch, Chunk, Order, Windows, eval_batch_size
from mlp_lm.training.trainer import Trainer


class TextDataModule(LightningDataModule):
    """Reads a corpus, splits it into train, dev and test, and serves their windows."""

    def __init__(
        self,
        path: str = "names",
        train_path: str | None = None,
        dev_path: str | None = None,
        test_path: str | None = None,
        unique: bool = True,
        split_seed: int = 42,
        context_size: int = 8,
        batch_size: int = 1024,
        steps_per_execution: int = 25,
        max_item_length: int = 10_000,
    ) -> None:
        """Which text, how it is split, and how much of it a step sees.

        Args:
            path: UTF-8 text file with one item a line; or names (bundled) or makemore (the lecture's names.txt,
                fetched once).
            train_path: File of the train split, together with dev_path and test_path; path is not read then.
            dev_path: File of the dev split.
            test_path: File of the test split.
            unique: Drop repeated items before the split, so that none stands in two splits.
            split_seed: Seed of the shuffle before the split.
            context_size: T, previous tokens that the network sees.
            batch_size: B, windows in a step, over all processes together.
            steps_per_execution: K, steps in one call of training_step; changes speed, never results.
            max_item_length: Longest item allowed, in characters.

        Raises:
            SettingsError: A setting is out of its range.
        """
        # Every argument by name: what the checkpoint keeps.
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        check_section("data", settings)
        super().__init__()
        self.settings = settings
        self.order_seed: int | None = None  # of the order of examples; from the checkpoint when a run is resumed

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus, read when it is first asked for. Raises DataError."""
        return corpus_of(self.settings)

    @property
    def source(self) -> str:
        """What the corpus was read from, for messages."""
        return str(self.settings["train_path"] or self.settings["path"])

    @property
    def vocab_size(self) -> int:
        """V, tokens including the boundary."""
        return len(self.corpus.vocab)

    def windows(self, split: str) -> Windows:
        """The windows of train, dev or test."""
        if split not in self._windows:
            self._windows[split] = Windows(getattr(self.corpus, split), self.settings["context_size"])
        return self._windows[split]

    @cached_property
    def _windows(self) -> dict[str, Windows]:
        return {}

    def batches(self, split: str) -> Batches:
        """All windows of a split, whatever the number of processes."""
        return Batches(self.windows(split), self.vocab_size)

    def _own_batches(self, split: str) -> Batches:
        """This process's share of the windows of a split."""
        assert self.trainer is not None
        share = self.windows(split).share(self.trainer.global_rank, self.trainer.world_size)
        return Batches(share, self.vocab_size)

    def train_dataloader(self) -> Chunks:
        """Chunks from the trainer's step to its next validation."""
        if self.order_seed is None:
            self.order_seed = torch.initial_seed()
        windows = self.windows("train")
        order = Order(len(windows), self.settings["batch_size"], self.order_seed)
        return Chunks(windows, order, self.settings["steps_per_execution"], cast(Trainer, self.trainer))

    def val_dataloader(self) -> Batches:
        """The windows of dev, shared out among the processes."""
        return self._own_batches("dev")

    def test_dataloader(self) -> Batches:
        """The windows of test, shared out among the processes."""
        return self._own_batches("test")

    def predict_dataloader(self) -> Batches:
        """All windows of dev, in one process: test data is for `test` alone."""
        return self.batches("dev")

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of the data; see `models.checkpoint`."""
        return {
            "settings": {**self.settings, **self._absolute_paths()},
            "vocab": self.corpus.vocab.tokens,
            "fingerprint": self.corpus.fingerprint,
            "order_seed": self.order_seed,
            **self.facts,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the order of examples. Raises CheckpointError that names the difference where the data is another."""
        check_same_data("the checkpoint", state_dict, self.corpus)
        self.order_seed = state_dict["order_seed"]

    def _absolute_paths(self) -> dict[str, str]:
        """Files by their absolute path, so that the checkpoint works from any folder."""
        names = ("path", "train_path", "dev_path", "test_path")
        paths = {name: self.settings[name] for name in names}
        return {n: str(find(p).absolute()) for n, p in paths.items() if p is not None and p not in DATASETS}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """See `known_items.facts_of`."""
        return facts_of(self.corpus)


class Batches:
    """All windows of a split in their order, as (contexts (B, T), targets (B,))."""

    def __init__(self, windows: Windows, vocab_size: int) -> None:
        self.windows = windows
        self.batch_size = eval_batch_size(vocab_size)

    def __len__(self) -> int:
        return max(1, -(-len(self.windows) // self.batch_size))

    def __iter__(self) -> Iterator[Batch]:
        return self.windows.batches(self.batch_size)


class Chunks:
    """The training examples from the trainer's current step to its next validation, as chunks.

    A chunk is (contexts (K, B, T), targets (K, B), B). It ends at the next multiple of K of the global step, or
    earlier where an epoch of the data ends, where something is logged or validated, or where training ends: so
    no interval need be a multiple of K, and a resumed run makes the same chunks.

    Several processes share the rows of each batch out: contexts (K, b, T) and targets (K, b) are this one's,
    and b is 0 where a batch has fewer rows than there are processes.
    """

    def __init__(self, windows: Windows, order: Order, steps_per_execution: int, trainer: Trainer) -> None:
        self.windows = windows.to(trainer.strategy.root_device)
        self.order = order
        self.steps_per_execution = steps_per_execution
        self.trainer = trainer

    def __iter__(self) -> Iterator[Chunk]:
        step = self.trainer.global_step
        end = self.trainer.next_validation(step)
        rank, num_ranks = self.trainer.global_rank, self.trainer.world_size
        while step < end:
            num_steps = min(
                self.steps_per_execution - step % self.steps_per_execution,
                self.trainer.next_stop(step) - step,
                self.order.steps_of_one_shape(step),
            )
            indices = self.order.indices(step, num_steps)  # (K, B)
            own = indices if num_ranks == 1 else indices[:, rank::num_ranks]  # (K, b)
            contexts, targets = self.windows[own.to(self.windows.starts.device)]
            yield contexts, targets, indices.shape[1]
            step += num_steps
