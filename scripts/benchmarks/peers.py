"""Other programs' models of names, written after their descriptions, as plain PyTorch.

`figures.py` measures what they reach on our splits, next to our own figures. Nothing of this project is imported
here, so that a benchmark of one of them starts as fast as it would alone. Shapes: B batch, L length of a sequence,
V vocabulary; id 0 is the boundary.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Items = Sequence[Sequence[int]]  # token ids of each, without boundaries
CONTEXT = 16  # of both transformers, on names of up to 15 letters


def lecture_parameters(vocab_size: int) -> list[Tensor]:
    """C, W1, b1, W2, b2 of the lecture "Building makemore, part 2: MLP", as drawn there: 11,897 weights for V = 27."""
    generator = torch.Generator().manual_seed(2147483647)
    shapes: list[tuple[int, ...]] = [(vocab_size, 10), (30, 200), (200,), (200, vocab_size), (vocab_size,)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def lecture_logits(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    """Logits (B, V) after contexts (B, 3)."""
    table, w1, b1, w2, b2 = parameters
    return torch.tanh(table[x].view(-1, 30) @ w1 + b1) @ w2 + b2


def train_lecture(
    parameters: Sequence[Tensor], x: Tensor, y: Tensor, steps: int, after_step: Callable[[int], None] | None = None
) -> None:
    """The lecture's loop: batches of 32 contexts (N, 3) and targets (N,) drawn with replacement, SGD by hand, 0.1 and
    from half of the steps on 0.01."""
    losses = []
    for i in range(steps):
        ix = torch.randint(0, x.shape[0], (32,))
        loss = F.cross_entropy(lecture_logits(parameters, x[ix]), y[ix])
        for p in parameters:
            p.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        rate = 0.1 if i < steps / 2 else 0.01
        for p in parameters:
            assert p.grad is not None
            p.data += -rate * p.grad
        losses.append(loss.log10().item())
        if after_step:
            after_step(i + 1)


class GPT(nn.Module):
    """A decoder-only transformer with learned positions.

    `plain` is microgpt's: RMSNorm without weights, after the embeddings too, no biases, ReLU. Otherwise it is
    makemore's: LayerNorm, before the logits too, biases, GELU.
    """

    def __init__(self, vocab_size: int, layers: int, width: int, heads: int, *, plain: bool) -> None:
        super().__init__()
        self.heads, self.plain = heads, plain
        self.tokens, self.positions = nn.Embedding(vocab_size, width), nn.Embedding(CONTEXT, width)

        def norm() -> nn.Module:
            return nn.RMSNorm(width, eps=1e-5, elementwise_affine=False) if plain else nn.LayerNorm(width)

        def linear(n: int, m: int) -> nn.Linear:
            return nn.Linear(n, m, bias=not plain)

        self.blocks = nn.ModuleList()
        for _ in range(layers):
            attention = nn.Sequential(norm(), linear(width, 3 * width))
            activation = nn.ReLU() if plain else nn.GELU("tanh")
            mlp = nn.Sequential(norm(), linear(width, 4 * width), activation, linear(4 * width, width))
            self.blocks.append(nn.ModuleList([attention, linear(width, width), mlp]))
        self.first = norm() if plain else nn.Identity()
        self.last = nn.Identity() if plain else norm()
        self.output = nn.Linear(width, vocab_size, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.08 if plain else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, L, V) after each of the tokens (B, L)."""
        batch, length = x.shape
        h = self.first(self.tokens(x) + self.positions.weight[:length])  # (B, L, width)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleList)
            attention, projection, mlp = block
            q, k, v = attention(h).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, L, ·)
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + projection(seen.transpose(1, 2).reshape(batch, length, -1))
            h = h + mlp(h)
        logits: Tensor = self.output(self.last(h))
        return logits


def sequences(items: Items) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, 16) of items, a boundary before each and after; targets beyond that are -1."""
    x, y = torch.zeros(len(items), CONTEXT, dtype=torch.int64), torch.full((len(items), CONTEXT), -1)
    for row, item in enumerate(items):
        ids = torch.tensor([0, *item, 0])
        x[row, : len(ids) - 1], y[row, : len(ids) - 1] = ids[:-1], ids[1:]
    return x, y


def train_microgpt(vocab_size: int, items: Items, steps: int) -> GPT:
    """microgpt (Karpathy 2026): one layer 16 wide, a step on one item, Adam, a rate that falls to 0: 4,192 weights."""
    model = GPT(vocab_size, layers=1, width=16, heads=4, plain=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.85, 0.99))
    for step, item in zip(range(steps), itertools.cycle(random.Random(42).sample(items, len(items))), strict=False):
        x, y = torch.tensor([[0, *item]]), torch.tensor([*item, 0])
        _step(optimizer, F.cross_entropy(model(x).flatten(0, 1), y), 0.01 * (1 - step / steps))
    return model


def train_makemore(vocab_size: int, items: Items, dev: Items, steps: int) -> GPT:
    """makemore.py with its defaults: 4 layers 64 wide, steps on 32 items; the weights of the lowest dev loss, looked at
    every 500 steps, as it overfits."""
    model = GPT(vocab_size, layers=4, width=64, heads=4, plain=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.99), weight_decay=0.01)
    (x, y), lowest, best = sequences(items), math.inf, model
    for step in range(1, steps + 1):
        ix = torch.randint(0, len(x), (32,))
        _step(optimizer, F.cross_entropy(model(x[ix]).flatten(0, 1), y[ix].flatten(), ignore_index=-1), 5e-4)
        if step % 500 == 0 and (loss := gpt_loss(model, dev)) < lowest:
            lowest, best = loss, copy.deepcopy(model)
    return best


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


@torch.no_grad()
def gpt_loss(model: GPT, items: Items) -> float:
    """The mean loss over all tokens of `items`, their ends included, nats/token."""
    x, y = sequences(items)
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-1).item()
