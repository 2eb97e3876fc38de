"""The LightningDataModule: a text file to batches. N windows, B batch, K steps a call, T context, W processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any

import torch
from lightning.pytorch import LightningDataModule
from tqdm import tqdm

from mlp_lm.errors import DataError, SettingsError
from mlp_lm.files import absolute
from mlp_lm.models.checkpoint import check_same_data
from mlp_lm.models.language_model import CorpusFacts, LanguageModel
from mlp_lm.settings import COUNT, Range, check_section, refuse
from mlp_lm.terminal import pluralize
from mlp_lm.text.corpus import SPLITS, Corpus, CorpusSettings, item_lengths, load_corpus
from mlp_lm.text.windows import Batch, Chunk, Order, Windows, eval_batch_size


class TextDataModule(LightningDataModule):
    """Reads a corpus, splits it into train, dev and test, and serves their windows."""

    def __init__(
        self,
        *,
        context_size: Annotated[int, Range(1, 1024)] = 8,
        batch_size: Annotated[int, COUNT] = 1024,
        steps_per_execution: Annotated[int, Range(1, 100_000)] = 1,
        teacher: str | None = None,
        teacher_items: Annotated[int, Range(0, 10**9)] = 100_000,
        **kwargs: Any,
    ) -> None:
        """Which text, how it is split, and how much of it a step sees.

        Args:
            context_size: T, previous tokens that the network sees.
            batch_size: B, windows in a step, over all processes together.
            steps_per_execution: K, steps in one call of training_step; above 1 only for the lecture's kind of network,
                whose gradients are then written by hand: plain sgd, one layer, no dropout. Changes speed, not results.
            teacher: A model trained on the same data, such as a mixture, whose probabilities are the targets of
                training; only for layout items.
            teacher_items: How many items the teacher makes up to train on, in addition to those of train.
            kwargs: Those of `CorpusSettings`.

        Raises:
            SettingsError: A setting is out of its range.
        """
        super().__init__()
        settings = CorpusSettings(**kwargs)
        sizes = {"context_size": context_size, "batch_size": batch_size, "steps_per_execution": steps_per_execution}
        taught = {"teacher": None if teacher is None else absolute(teacher), "teacher_items": teacher_items}
        check_section("data", {**vars(settings), **sizes, **taught}, TextDataModule, CorpusSettings)
        refuse(settings.conflicts())
        self.source = settings.paths[0]  # for messages
        self.settings = settings.absolute()  # so that a checkpoint works from any folder
        self.save_hyperparameters({**vars(self.settings), **sizes, **taught})
        self._windows: dict[str, Windows] = {}
        self.order_seed: int | None = None  # of the order of examples; from the checkpoint when a run is resumed

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus, read when it is first asked for. Raises DataError, also for a text without a window."""
        corpus, window = load_corpus(self.settings), self.hparams["context_size"] + 1
        paths = self.settings.paths if len(self.settings.paths) > 1 else [self.source] * len(SPLITS)
        for split, path in zip(SPLITS, paths, strict=True) if self.settings.layout == "text" else ():
            if (tokens := len(getattr(corpus, split)) - 1) < window:
                raise DataError(
                    f"{path}: {split} has {pluralize(tokens, 'token')}, fewer than a window of {window}; "
                    "lower data.context_size, or use a longer text"
                )
        return corpus

    @cached_property
    def teacher(self) -> LanguageModel | None:
        """The model to learn from, if any; see `teacher.load_teacher` for the errors."""
        if self.hparams["teacher"] is None:
            return None
        from mlp_lm.training.teacher import load_teacher  # here: most training does without

        return load_teacher(self.hparams["teacher"], self.corpus)

    @property
    def vocab_size(self) -> int:
        """V, tokens including the boundary."""
        return len(self.corpus.vocab)

    @property
    def steps_per_epoch(self) -> float:
        """Steps that see each window of train once, and those of the teacher's items, taken to be as long as others."""
        num_items = len(item_lengths(self.corpus.train))
        made_up = 0 if self.hparams["teacher"] is None else int(self.hparams["teacher_items"]) / num_items
        return len(self.corpus.train) * (1 + made_up) / int(self.hparams["batch_size"])

    def setup(self, stage: str | None = None) -> None:
        """Read the corpus, which is else read when it is first asked for."""
        _ = self.corpus

    def windows(self, split: str) -> Windows:
        """The windows of train, dev or test."""
        if split not in self._windows:
            self._windows[split] = Windows(getattr(self.corpus, split), self.hparams["context_size"])
        return self._windows[split]

    def batches(self, split: str) -> Batches:
        """This process's share of the windows of a split."""
        return Batches(self.windows(split).share(*self._rank_and_world_size()), self.vocab_size)

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> TrainBatches:
        """The batches of training, from the first, or from where the trainer is."""
        rank, world_size = self._rank_and_world_size()
        self.check_shares(world_size)
        if self.order_seed is None:
            self.order_seed = torch.initial_seed() % 2**32  # such as --seed_everything takes
        windows = self.windows("train")
        if self.teacher is not None:
            from mlp_lm.training.teacher import teach

            num_items, context_size = self.hparams["teacher_items"], self.hparams["context_size"]
            tqdm.write(
                f"the teacher makes up {num_items:,} items, and predicts all tokens of these and of train", sys.stderr
            )
            windows = teach(self.teacher, self.corpus.train, context_size, num_items, self.order_seed)
        trainer, k = self.trainer, self.hparams["steps_per_execution"]
        if k > 1 and trainer is not None and trainer.lightning_module.automatic_optimization:
            raise SettingsError(
                f"data.steps_per_execution: found {k:,}, which needs a FastLane as the module; set it to 1"
            )
        batches = TrainBatches(
            windows.to(trainer.strategy.root_device) if trainer else windows,
            Order(len(windows), self.hparams["batch_size"], self.order_seed),
            steps_per_execution=k,
            accumulate=trainer.accumulate_grad_batches if trainer else 1,
            repeat=trainer.overfit_batches if trainer else 0,  # type: ignore[attr-defined]  # public, but not declared
            rank=rank,
            num_ranks=world_size,
        )
        if trainer is not None:  # Lightning restores the position within an epoch, but not that of a new epoch
            batches.position = (trainer.fit_loop.total_batch_idx + 1) * k
        return batches

    def check_shares(self, world_size: int) -> None:
        """Raise SettingsError unless each of `world_size` processes gets the same number of rows of a batch."""
        batch_size = self.hparams["batch_size"]
        if batch_size % world_size:
            raise SettingsError(f"data.batch_size: found {batch_size:,}, expected a multiple of {world_size} processes")

    def val_dataloader(self) -> Batches:
        """The windows of dev."""
        return self.batches("dev")

    def test_dataloader(self) -> Batches:
        """The windows of test."""
        return self.batches("test")

    def predict_dataloader(self) -> Batches:
        """The windows of dev: only `test` reads test data."""
        return self.batches("dev")

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of the data; see `models.checkpoint`."""
        return {
            "vocab": self.corpus.vocab.tokens,
            "fingerprint": self.corpus.fingerprint,
            "order_seed": self.order_seed,
            "longest_item": self.facts.longest_item,
            "item_hashes": self.facts.item_hashes,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the order of examples. Raises CheckpointError that names the difference if the data differ."""
        check_same_data("the checkpoint", state_dict, self.corpus)
        self.order_seed = state_dict["order_seed"]

    @cached_property
    def facts(self) -> CorpusFacts:
        """What a model keeps of the corpus."""
        return CorpusFacts.of(self.corpus)


class Batches:
    """All windows of a split in their order, as (contexts (B, T), targets (B,))."""

    def __init__(self, windows: Windows, vocab_size: int) -> None:
        self.windows = windows
        self.batch_size = eval_batch_size(vocab_size)

    def __len__(self) -> int:
        return max(1, -(-len(self.windows) // self.batch_size))

    def __iter__(self) -> Iterator[Batch]:
        return self.windows.batches(self.batch_size)


class TrainBatches:
    """The batches of training in their endless order, see `Order`; an epoch starts where the last one ended.

    A batch is (contexts (B/W, T), targets (B/W,)): each of W processes takes its rows of it. With K steps a call, an
    element is the batches of K steps, (K, B, T) and (K, B), for `FastLane`. Lightning keeps the position in its
    checkpoints.
    """

    def __init__(
        self,
        windows: Windows,
        order: Order,
        *,
        steps_per_execution: int = 1,
        accumulate: int = 1,
        repeat: int | float = 0,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        """Start at step 0.

        Args:
            windows: Those of train, on the device where batches are made.
            order: Which of them each step sees.
            steps_per_execution: K.
            accumulate: Batches in an optimizer step; the length of an epoch is a multiple of it.
            repeat: Lightning's overfit_batches: serve this number of batches, or this share of an epoch, over and over.
            rank: Index of this process.
            num_ranks: W.
        """
        self.windows, self.order = windows, order
        self.steps_per_execution, self.repeat = steps_per_execution, repeat
        self.rank, self.num_ranks = rank, num_ranks
        multiple = steps_per_execution * accumulate * order.batch_size
        self._length = -(-len(windows) // multiple) * accumulate
        self.position = 0  # batches served so far

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch | Chunk]:
        k = self.steps_per_execution
        repeat = self.repeat if isinstance(self.repeat, int) else max(1, int(self.repeat * len(self)))
        for _ in range(len(self)):
            first = self.position % repeat if self.repeat else self.position
            self.position += k  # before the yield: nothing runs after the last one
            rows = self.order.indices(first, k)[:, self.rank :: self.num_ranks].to(self.windows.starts.device)
            yield self.windows[rows if k > 1 else rows[0]]

    def state_dict(self) -> dict[str, int]:
        """The position in the endless order, in batches."""
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from a position."""
        self.position = state_dict["position"]
