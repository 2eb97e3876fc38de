"""What figures show of a model, as arrays. B batch, T context, H hidden, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mlp_lm.models.language_model import LanguageModel
from mlp_lm.models.network import MLP
from mlp_lm.models.sampling import Sampling
from mlp_lm.text.vocab import BOUNDARY, UNKNOWN, Vocab
from mlp_lm.text.windows import Batch, Windows, eval_batch_size

MAX_WORDS = 300  # of an embedding map: more cover each other
FloatArray = npt.NDArray[np.floating[Any]]


@torch.inference_mode()
def next_token_probs(model: LanguageModel, num_items: int, max_tokens: int) -> tuple[list[int], FloatArray]:
    """P(next token | last token), averaged over all contexts of items that the model generates.

    So every context that ends with a token counts as often as the model itself gets into it, and no corpus is needed.

    Args:
        model: A network or counts.
        num_items: How many items or texts to generate; always the same ones.
        max_tokens: Show only so many tokens, those that it generates most often.

    Returns:
        The ids (n,) of the tokens shown, and the probabilities (n, n), a row for each last token; NaN in the rows of
        tokens that were never generated.
    """
    size = len(model.vocab)
    items = [model.tokenizer.split(sample.text) for sample in model.sample(num_items, Sampling(seed=0))]
    stream = np.concatenate([[*model.vocab.encode(item), BOUNDARY] for item in items])
    most_frequent = np.argsort(-np.bincount(stream, minlength=size), kind="stable")[:max_tokens]
    ids = torch.from_numpy(np.sort(most_frequent))
    row_of = torch.full((size,), -1)
    row_of[ids] = torch.arange(len(ids))
    sums, counts = torch.zeros(len(ids), len(ids), dtype=torch.float64), torch.zeros(len(ids))
    for contexts, _ in Windows(stream, model.context_size).batches(eval_batch_size(size)):
        rows = row_of[contexts[:, -1]]  # (B, T) -> (B,)
        shown = rows >= 0
        probs = model.log_probs(contexts[shown]).double().exp()  # (B, V)
        sums.index_add_(0, rows[shown], probs[:, ids])
        counts += torch.bincount(rows[shown], minlength=len(ids))
    return ids.tolist(), (sums / counts.unsqueeze(1)).numpy()


def embedding_table(network: MLP, vocab: Vocab) -> tuple[FloatArray, list[str]]:
    """What an embedding map shows: embeddings (n, E) and names of all characters, or of the most frequent words."""
    shown = min(len(vocab), MAX_WORDS) if UNKNOWN in vocab else len(vocab)
    table = network.embedding.weight[:shown].detach().float().cpu().numpy()
    return table, [vocab.show(i) for i in range(shown)]


def nearest(network: MLP, token_id: int, num: int) -> list[tuple[int, float]]:
    """The tokens whose embeddings make the smallest angles with that of a token: ids and cosines, the nearest first."""
    table = torch.nn.functional.normalize(network.embedding.weight.detach(), dim=1)  # (V, E)
    cosines = table @ table[token_id]
    cosines[[token_id, BOUNDARY]] = -torch.inf
    values, ids = cosines.topk(min(num, len(cosines) - 2))
    return [*zip(ids.tolist(), values.tolist(), strict=True)]


@torch.inference_mode()
def activation_shares(
    network: MLP, batches: Iterable[Batch], threshold: float, bins: int = 80
) -> list[tuple[FloatArray, float]]:
    """Of each tanh layer: the share of its outputs in each of `bins` from -1 to 1, and the share beyond `threshold`.

    `batches`: contexts (B, T) and targets, which are not looked at.
    """
    histograms = torch.zeros(len(network.hidden), bins, dtype=torch.float64)
    saturated = torch.zeros(len(network.hidden), dtype=torch.float64)
    for contexts, _ in batches:
        for i, h in enumerate(network.activations(contexts)):  # (B, H)
            histograms[i] += torch.histc(h.float(), bins, -1, 1)
            saturated[i] += (h.abs() > threshold).sum()
    totals = histograms.sum(1)
    return list(zip((histograms / totals.unsqueeze(1)).numpy(), (saturated / totals).tolist(), strict=True))
