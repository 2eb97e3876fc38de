"""Learning from another model, whose probabilities are the targets (distillation, Hinton et al. 2015).

A mixture knows more than any of its parts. A network that learns what the mixture would predict, on train and on items
that the mixture makes up, comes close to it on its own. T context, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mlp_lm.errors import SettingsError
from mlp_lm.models import checkpoint
from mlp_lm.models.language_model import LanguageModel
from mlp_lm.models.network import LARGE_VOCAB
from mlp_lm.models.sampling import Sampling
from mlp_lm.text.corpus import Corpus
from mlp_lm.text.tokenizer import Ids
from mlp_lm.text.vocab import BOUNDARY
from mlp_lm.text.windows import Batch, Windows, eval_batch_size


class TaughtWindows(Windows):
    """Windows whose targets are probabilities (…, V) instead of ids."""

    def __init__(self, stream: Ids, context_size: int, probs: Tensor) -> None:
        """`probs`: of the token at each place of `stream` (N, V), float16."""
        super().__init__(stream, context_size)
        self.probs = probs

    def to(self, device: torch.device) -> TaughtWindows:
        """These windows with their data on `device`."""
        moved = super().to(device)
        assert isinstance(moved, TaughtWindows)
        moved.probs = self.probs.to(device)
        return moved

    def __getitem__(self, index: Tensor | slice) -> Batch:
        """Contexts (…, T) as int64, and probabilities (…, V)."""
        contexts, _ = super().__getitem__(index)
        return contexts, self.probs[index].float()


def load_teacher(path: str, corpus: Corpus) -> LanguageModel:
    """The model in a checkpoint, or another file of ours, to learn from it on a corpus.

    Raises:
        SettingsError: The corpus is running text, or has a large vocabulary.
        CheckpointError: The model cannot be read, or was trained on other data.
    """
    if corpus.settings.layout != "items" or len(corpus.vocab) >= LARGE_VOCAB:
        raise SettingsError(f"data.teacher: for items with a vocabulary below {LARGE_VOCAB:,} tokens")
    model = checkpoint.load(path)
    checkpoint.check_same_corpus(path, model, corpus)
    return model


@torch.inference_mode()
def teach(model: LanguageModel, train: Ids, context_size: int, num_items: int, seed: int) -> TaughtWindows:
    """The windows of train and of generated items, with the probabilities that a model gives to what may follow.

    Args:
        model: The teacher; it sees as many tokens as it needs.
        train: Its token stream, see `Corpus`.
        context_size: T of the windows.
        num_items: How many items the model makes up; those that it does not end are left out.
        seed: Seed of these items.
    """
    generated = [sample.text for sample in model.sample(num_items, Sampling(seed=seed)) if not sample.cut]
    ids = [i for text in generated for i in [*model.vocab.encode(model.tokenizer.split(text)), BOUNDARY]]
    stream = np.concatenate([train, np.array(ids, train.dtype)])
    batches = Windows(stream, model.context_size).batches(eval_batch_size(len(model.vocab)))
    probs = [model.log_probs(contexts).exp().half() for contexts, _ in batches]
    return TaughtWindows(stream, context_size, torch.cat(probs))
