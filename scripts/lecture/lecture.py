# %% [markdown]
# # The lecture as a program
#
# Seventeen exercises from the lecture "Building makemore, part 2: MLP": from a list of names to a network that makes
# up new ones, first by hand, then with a look at where each piece stands in `mlp_lm`.
#
# Every exercise says what to do, leaves a place for your code, checks it, and names the place in the program.
# `hint(3)` prints a hint for exercise 3, `solution(3)` one right answer of many. Exercises 1 to 13 follow part 2 of
# the lecture, with additions in 11 and 12; 14 and 15 come from parts 3 and 4, 16 begins with part 1, and 17 is the
# paper's own.
#
# A token is what a network reads and predicts: here a letter, or the boundary of a name. Logits are the network's
# scores for the next token, before softmax turns them into probabilities. The loss is the mean of -ln(probability of
# the right token), in nats per token.
#
# Letters for shapes: B rows of a batch, T context, E embedding, H hidden units, V vocabulary, N windows.

# %% tags=["master"]
# The file with the solutions, which runs from top to bottom: python scripts/lecture/lecture.py
# A copy to work in: python scripts/lecture/lecture.py --exercises DIR [--notebook] [--names FILE]
import sys

if __name__ == "__main__" and len(sys.argv) > 1 and "ipykernel" not in sys.modules:
    from lecture_copy import main

    raise SystemExit(main(sys.argv[1:]))

# %%
import math
import random
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from lecture_checks import NAMES, check, hint, show, solution  # noqa: F401  hint and solution are for you
from torch import Tensor

torch.set_num_threads(1)  # tensors this small are not worth a second thread
print("the names:", NAMES)

# %% [markdown]
# ## 1. Read the names
#
# `read_names` returns the names in a text file with one name a line. White space around a name is not part of it;
# skip blank lines. `summary` returns how many names there are, the first ten, a shortest one and a longest one.
#
# The bundled names are not the lecture's 32,033, which have no licence, so your counts and losses differ from those
# in the video. `--exercises DIR --names makemore` fetches that list.


# %%
def read_names(path: Path) -> list[str]:
    # BEGIN SOLUTION
    lines = path.read_text(encoding="utf-8").split("\n")
    return [line.strip() for line in lines if line.strip()]
    # END SOLUTION


def summary(names: list[str]) -> tuple[int, list[str], str, str]:
    # BEGIN SOLUTION
    return len(names), names[:10], min(names, key=len), max(names, key=len)
    # END SOLUTION


# %%
check(1, read_names, summary)
names = read_names(NAMES)
print(*summary(names), sep="\n")

# %% [markdown]
# The program does this in `mlp_lm/text/reading.py:parse_items`, after `read_text`. They name file and line where
# something is wrong, and treat é as the same, whether it was typed as one character or as an e and an accent.
# `python -m mlp_lm inspect names` prints much more.

# %% [markdown]
# ## 2. A vocabulary
#
# A network sees numbers. `build_vocab` gives every character that occurs in the names an id, and the boundary,
# written `"."`, the id 0: it will stand before the first letter and after the last. All V ids together are 0 … V - 1.
# `encode` turns a name into the ids of its letters, `decode` turns ids back into a name; neither adds or removes the
# boundary.


# %%
def build_vocab(names: list[str]) -> dict[str, int]:
    # BEGIN SOLUTION
    return {character: i for i, character in enumerate([".", *sorted(set("".join(names)))])}
    # END SOLUTION


def encode(name: str, stoi: dict[str, int]) -> list[int]:
    # BEGIN SOLUTION
    return [stoi[character] for character in name]
    # END SOLUTION


def decode(tokens: list[int], stoi: dict[str, int]) -> str:
    # BEGIN SOLUTION
    itos = {i: character for character, i in stoi.items()}
    return "".join(itos[i] for i in tokens)
    # END SOLUTION


# %%
check(2, build_vocab, encode, decode)
stoi = build_vocab(names)
V = len(stoi)
print(V, stoi, encode(names[0], stoi))

# %% [markdown]
# The program does this in `mlp_lm/text/vocab.py:Vocab`, and differs in the boundary's name, the empty string, so that
# a text may contain dots, and in words: an unknown one is an error that says what is known, or `<unk>`.

# %% [markdown]
# ## 3. Windows
#
# One example is a window: T ids of context and the id that comes next. The name "ab" has three for T = 2: `.. → a`,
# `.a → b`, `ab → .`. Every name begins with a context of boundaries, and its end is predicted, too. `windows` returns
# the contexts of all names, shape (N, T), and the targets, shape (N,).


# %%
def windows(names: list[str], stoi: dict[str, int], context_size: int) -> tuple[Tensor, Tensor]:
    # BEGIN SOLUTION
    contexts, targets = [], []
    for name in names:
        context = [0] * context_size
        for target in [*encode(name, stoi), 0]:
            contexts.append(context)
            targets.append(target)
            context = [*context[1:], target]
    return torch.tensor(contexts), torch.tensor(targets)
    # END SOLUTION


# %%
check(3, windows)


def examples(names: list[str], context_size: int) -> tuple[Tensor, Tensor]:
    """Your windows as int64 tensors, whatever you made them of."""
    contexts, targets = windows(names, stoi, context_size)
    return torch.as_tensor(np.asarray(contexts)).long(), torch.as_tensor(np.asarray(targets)).long()


for context, target in zip(*examples(names[:1], 3), strict=True):
    print(decode(context.tolist(), stoi), "→", decode([int(target)], stoi))

# %% [markdown]
# The program does this in `mlp_lm/text/windows.py:Windows`, and differs in copying nothing: all windows are a view of
# one stream of bytes. For a book that saves hundreds of megabytes.

# %% [markdown]
# ## 4. Train, dev and test
#
# Shuffle the names with `random.Random(seed).shuffle`, then cut them at int(0.8 n) and int(0.9 n). Train is for the
# weights, dev for the choices, and test is looked at once, at the end.


# %%
def split(names: list[str], seed: int) -> tuple[list[str], list[str], list[str]]:
    # BEGIN SOLUTION
    shuffled = list(names)
    random.Random(seed).shuffle(shuffled)
    n = len(names)
    return shuffled[: int(0.8 * n)], shuffled[int(0.8 * n) : int(0.9 * n)], shuffled[int(0.9 * n) :]
    # END SOLUTION


# %%
check(4, split)
train_names, dev_names, test_names = split(list(names), 42)
T = 3
X_train, Y_train = examples(train_names, T)
X_dev, Y_dev = examples(dev_names, T)
print(f"windows: {len(X_train):,} of train, {len(X_dev):,} of dev; the lecture's list has 182,625 and 22,655")

# %% [markdown]
# The program does this in `mlp_lm/text/corpus.py:split_items`, and differs in dropping repeated names before the
# split, unless `data.unique` is false: in the lecture's list, one name of dev in eight stands in train as well, where
# memorising is enough.

# %% [markdown]
# ## 5. An embedding is a matrix product
#
# The table C (V, E) has a row for each token. Looking up rows, `C[X]`, and multiplying one-hot vectors with the table
# are the same function, with the same gradient. Write the second one: X (B, T) and C (V, E) to embeddings (B, T, E).


# %%
def one_hot_times_table(C: Tensor, X: Tensor) -> Tensor:
    # BEGIN SOLUTION
    return F.one_hot(X, len(C)).to(C.dtype) @ C
    # END SOLUTION


# %%
check(5, one_hot_times_table)

# %% [markdown]
# The program does this in `mlp_lm/models/network.py:MLP`, and differs in looking the rows up, as `nn.Embedding`:
# nobody multiplies with zeros who can avoid it.

# %% [markdown]
# ## 6. Side by side, for free
#
# The hidden layer sees the T embeddings of a context side by side: (B, T, E) becomes (B, T·E). `torch.cat` copies
# every number. `view` copies none: the numbers of one row already lie in a row in memory, and only the shape is new.


# %%
def side_by_side(embeddings: Tensor) -> Tensor:
    # BEGIN SOLUTION
    B, T, E = embeddings.shape
    return embeddings.view(B, T * E)
    # END SOLUTION


# %%
check(6, side_by_side)

# %% [markdown]
# The program does this in `mlp_lm/models/network.py:MLP._features`, and differs in writing `flatten(1)`, which is the
# same view.

# %% [markdown]
# ## 7. Logits and their loss
#
# The network: embeddings side by side, times W1 plus b1, tanh, times W2 plus b2. `forward` returns the logits (B, V).
#
# `written_out` is the loss in the lecture's first version: exp of the logits, divided by the sum of their row, which
# makes probabilities; the mean over the batch of -log of the probability of the target.
#
# Use exp, sum and log, no softmax of torch. That version breaks down for large logits. Find the smallest whole number
# z for which the loss of the logits `[[z, 0]]` and the target 0 is not a finite number, and put it into `breaks_at`.
# Why there?


# %%
def new_params(
    vocab_size: int,
    context_size: int,
    embedding_dim: int,
    hidden_dim: int,
    generator: torch.Generator,
    std: float = 1.0,
) -> list[Tensor]:
    """C from a standard normal distribution, W1, b1, W2, b2 with a standard deviation of `std`: in the lecture, 1.

    The generator makes the draws repeatable; `requires_grad_` asks autograd for gradients.
    """
    V, T, E, H = vocab_size, context_size, embedding_dim, hidden_dim
    C = torch.randn((V, E), generator=generator)
    layers = [std * torch.randn(shape, generator=generator) for shape in [(T * E, H), (H,), (H, V), (V,)]]
    return [p.requires_grad_() for p in [C, *layers]]


def forward(params: list[Tensor], X: Tensor) -> Tensor:
    C, W1, b1, W2, b2 = params
    # BEGIN SOLUTION
    hidden = torch.tanh(side_by_side(C[X]) @ W1 + b1)  # (B, T) -> (B, T, E) -> (B, T·E) -> (B, H)
    return hidden @ W2 + b2  # (B, V)
    # END SOLUTION


def written_out(logits: Tensor, targets: Tensor) -> Tensor:
    # BEGIN SOLUTION
    counts = logits.exp()
    probs = counts / counts.sum(1, keepdim=True)  # each row sums to 1
    return -probs[torch.arange(len(targets)), targets].log().mean()
    # END SOLUTION


# %%
check(7, forward, written_out)

# %%
breaks_at = 0
# BEGIN SOLUTION
while written_out(torch.tensor([[float(breaks_at), 0.0]]), torch.tensor([0])).isfinite():
    breaks_at += 1
# END SOLUTION

# %%
check("7b", breaks_at, written_out)
for z in (1.0, 10.0, 100.0):
    logits, target = torch.tensor([[z, 0.0]]), torch.tensor([0])
    print(f"z = {z:>5}: written out {written_out(logits, target):.4f}, torch {F.cross_entropy(logits, target):.4f}")

# %% [markdown]
# float32 ends at 3.4e38, and exp(88.8) is more than that: inf / inf is NaN. `F.cross_entropy` subtracts the largest
# logit of each row first, which changes no probability and lets exp see nothing above 0.
#
# The program does this in `mlp_lm/models/network.py:MLP.loss`, and differs on a CPU in large vocabularies,
# whose logits are never in memory all at once.

# %% [markdown]
# ## 8. Overfit 32 windows
#
# A network that cannot learn 32 windows by heart has a mistake in it. `step` takes one step of gradient descent on
# all of X and Y, changes the parameters in place, and returns the loss before the step.
#
# The loss cannot reach 0. After `...` comes "a" in one window and "b" in another: the best that a network can do is
# to give each its share, here 1/2, and lose ln 2 in both. `lower_bound` is the loss of that best network, the mean
# over all windows of -log of the share of the window's target among the targets of its context. Then train on the 32
# windows, at a learning rate of 0.1, until the loss is within 0.01 of that bound.


# %%
def step(params: list[Tensor], X: Tensor, Y: Tensor, learning_rate: float) -> float:
    # BEGIN SOLUTION
    loss = F.cross_entropy(forward(params, X), Y)
    for p in params:
        p.grad = None
    loss.backward()
    with torch.no_grad():
        for p in params:
            p -= learning_rate * p.grad
    return loss.item()
    # END SOLUTION


def lower_bound(X: Tensor, Y: Tensor) -> float:
    # BEGIN SOLUTION
    contexts = [tuple(row) for row in X.tolist()]
    windows = list(zip(contexts, Y.tolist(), strict=True))
    of_context, of_window = Counter(contexts), Counter(windows)
    return sum(-math.log(of_window[window] / of_context[window[0]]) for window in windows) / len(windows)
    # END SOLUTION


# %%
check(8, step, lower_bound)
generator = torch.Generator().manual_seed(2147483647)
X_few, Y_few = examples(names[:: max(1, len(names) // 64)], T)  # from all over the list, which may be sorted
X_few, Y_few = X_few[:32], Y_few[:32]
params = new_params(V, T, 2, 100, generator)
print(f"the first loss is {step(params, X_few, Y_few, 0.0):.4f}; no network gets below {lower_bound(X_few, Y_few):.4f}")

# %%
# BEGIN SOLUTION
for _ in range(3000):
    step(params, X_few, Y_few, 0.1)
# END SOLUTION

# %%
check("8b", forward(params, X_few), X_few, Y_few)

# %% [markdown]
# The program does this in `mlp_lm/models/fused.py:FusedSGD`, and differs in the gradients, which are written out by
# hand (exercise 15). That 32 windows can be learnt by heart is one of its tests.

# %% [markdown]
# ## 9. Minibatches and a schedule
#
# A step on 32 windows is rough, and thousands of times cheaper than one on all of them. `draw_batch` returns the
# indices (B,) of windows drawn at random, anew at each step. `learning_rate_at` is the lecture's schedule, step
# decay: 0.1 in the first half of all steps, which are counted from 0, and 0.01 from there on. `train` puts them
# together: `max_steps` steps, each a call of `update` (your `step`) on a batch of 32, and returns the loss of each.


# %%
def draw_batch(num_windows: int, batch_size: int, generator: torch.Generator) -> Tensor:
    # BEGIN SOLUTION
    return torch.randint(num_windows, (batch_size,), generator=generator)
    # END SOLUTION


def learning_rate_at(i: int, max_steps: int) -> float:
    # BEGIN SOLUTION
    return 0.1 if i < max_steps // 2 else 0.01
    # END SOLUTION


def train(
    params: list[Tensor],
    X: Tensor,
    Y: Tensor,
    max_steps: int,
    generator: torch.Generator,
    update: Callable[[list[Tensor], Tensor, Tensor, float], float] = step,
) -> list[float]:
    # BEGIN SOLUTION
    losses = []
    for i in range(max_steps):
        batch = draw_batch(len(X), 32, generator)
        losses.append(update(params, X[batch], Y[batch], learning_rate_at(i, max_steps)))
    return losses
    # END SOLUTION


# %%
check(9, draw_batch, learning_rate_at, train)
params = new_params(V, T, 10, 200, generator)
losses = train(params, X_train, Y_train, 10_000, generator)

# %%
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
axes.plot(losses, linewidth=0.3, color="tab:blue", alpha=0.5)
axes.plot(range(250, 10_000, 500), np.array(losses).reshape(-1, 500).mean(1), color="tab:red")
axes.set(xlabel="step", ylabel="train loss, nats/token", ylim=(1.8, 4), title="Each batch, and the mean of 500")
show(figure, "9 losses")

# %% [markdown]
# The drop in the middle is the step decay: smaller steps stop jumping around the bottom of the valley.
#
# The program does this in `mlp_lm/text/windows.py:Order` and `mlp_lm/training/optim.py:learning_rate_at`, and differs
# in shuffling instead of drawing: every window is seen once before any is seen again.

# %% [markdown]
# ## 10. A learning rate, found in one run
#
# A range test: a run whose learning rate grows by the same factor at each step. `growing_rates` returns the rates
# from `low` to `high`, both included. `range_test` takes one step at each and returns the losses. Look at the curve,
# and put a rate into `good_rate` that is as high as it can be before the loss jumps about.


# %%
def growing_rates(low: float, high: float, num_steps: int) -> list[float]:
    # BEGIN SOLUTION
    return [low * (high / low) ** (i / (num_steps - 1)) for i in range(num_steps)]
    # END SOLUTION


def range_test(
    params: list[Tensor], X: Tensor, Y: Tensor, rates: list[float], generator: torch.Generator
) -> list[float]:
    # BEGIN SOLUTION
    losses = []
    for rate in rates:
        batch = draw_batch(len(X), 32, generator)
        losses.append(step(params, X[batch], Y[batch], rate))
    return losses
    # END SOLUTION


# %%
check(10, growing_rates, range_test)
rates = growing_rates(1e-3, 10, 1000)
losses_by_rate = range_test(new_params(V, T, 10, 200, generator), X_train, Y_train, rates, generator)
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
axes.plot(rates, losses_by_rate, linewidth=0.4, alpha=0.6)
axes.plot(rates[20:-20], np.convolve(losses_by_rate, np.ones(41) / 41, "valid"), color="tab:red")
axes.set(xscale="log", xlabel="learning rate", ylabel="loss of the batch, nats/token", ylim=(0, 40), title="Range test")
show(figure, "10 range test")

# %%
good_rate = 0.0
# BEGIN SOLUTION
good_rate = 0.1
# END SOLUTION

# %%
check("10b", good_rate, rates, losses_by_rate)

# %% [markdown]
# The program does this in `mlp_lm/commands/lr_find.py:range_test`, and differs in reading the curve itself: it smooths
# it without shifting it, stops when the loss blows up, and divides the rate at the minimum by a factor found from
# complete runs.

# %% [markdown]
# ## 11. Underfitting and overfitting
#
# `mean_loss` is the mean over all windows, for any number of them, without a gradient. `step_with_decay` is `step`
# with weight decay: W1 and W2, and nothing else, are also multiplied by 1 - learning rate · `decay`.
#
# Then look at the table of four runs, and say of each whether it "underfits" (train is no better than dev, and both
# could be lower), or "overfits" (train is far below dev).


# %%
def mean_loss(params: list[Tensor], X: Tensor, Y: Tensor) -> float:
    # BEGIN SOLUTION
    with torch.no_grad():
        return F.cross_entropy(forward(params, X), Y).item()
    # END SOLUTION


def step_with_decay(params: list[Tensor], X: Tensor, Y: Tensor, learning_rate: float, decay: float) -> float:
    # BEGIN SOLUTION
    with torch.no_grad():
        for p in (params[1], params[3]):
            p *= 1 - learning_rate * decay
    return step(params, X, Y, learning_rate)
    # END SOLUTION


# %%
check(11, mean_loss, step_with_decay)


def decayed_step(params: list[Tensor], X: Tensor, Y: Tensor, learning_rate: float) -> float:
    return step_with_decay(params, X, Y, learning_rate, 0.02)


runs = {  # names of train, context, hidden units, update
    "the lecture's": (len(train_names), 3, 200, step),
    "3 hidden units": (len(train_names), 3, 3, step),
    "500 names": (500, 5, 200, step),
    "500 names, weight decay": (500, 5, 200, decayed_step),
}
table = {}
for name, (num_names, context_size, hidden_dim, update) in runs.items():
    X, Y = examples(train_names[:num_names], context_size)
    weights = new_params(V, context_size, 10, hidden_dim, generator, std=0.2)  # why: exercise 14
    train(weights, X, Y, 4_000, generator, update)
    table[name] = mean_loss(weights, X, Y), mean_loss(weights, *examples(dev_names, context_size))
    print(f"{name:<24} train {table[name][0]:.3f}  dev {table[name][1]:.3f}")

# %%
verdicts = {"3 hidden units": "", "500 names": ""}
# BEGIN SOLUTION
verdicts = {"3 hidden units": "underfits", "500 names": "overfits"}
# END SOLUTION

# %%
check("11b", verdicts, table)

# %% [markdown]
# A network that underfits needs more units, a longer context or more steps; one that overfits, more data, weight
# decay or dropout. `python -m mlp_lm sweep --config configs/names.yaml --vary model.hidden_dim=64,256` makes such a
# table.
#
# The program does this in `mlp_lm/models/metrics.py:evaluate` and `mlp_lm/training/optim.py:build_optimizer`, and
# differs in large splits, which go through the network in parts; the mean is over windows even then.

# %% [markdown]
# ## 12. A map of the letters
#
# With E = 2 the table is a map. For more dimensions, `principal_components` projects its rows, after their mean is
# subtracted, onto the two directions in which they differ most: (V, E) becomes (V, 2).


# %%
def principal_components(table: Tensor) -> Tensor:
    # BEGIN SOLUTION
    centred = table - table.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    return centred @ directions[:2].T
    # END SOLUTION


# %%
check(12, principal_components)
maps = {}
for E in (2, 10):
    weights = new_params(V, T, E, 200, generator, std=0.2)
    weights[0].data *= 0.1  # so that the map shows what was learnt, not where it began
    train(weights, X_train, Y_train, 5_000, generator)
    maps[f"E = {E}"] = principal_components(weights[0].detach()).numpy()
figure, panels = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
for axes, (title, points) in zip(panels, maps.items(), strict=True):
    for character, i in stoi.items():
        colour = "tab:red" if character in "aeiou" else "tab:green" if i == 0 else "tab:blue"
        label = "(.)" if i == 0 else character
        axes.text(*points[i], label, color=colour, ha="center", va="center", weight="bold")
    axes.set(title=title, xlim=(points[:, 0].min() - 0.3, points[:, 0].max() + 0.3))
    axes.set_ylim(points[:, 1].min() - 0.3, points[:, 1].max() + 0.3)
show(figure, "12 letters")

# %% [markdown]
# Vowels (red) find each other, as similar letters follow them, and y, which is both, lies between.
#
# The program does this in `mlp_lm/figures/networks.py:draw_embeddings`, and differs in saying how much of the table
# the two directions show. `python -m mlp_lm plot FILE --what embeddings` draws it for any model.

# %% [markdown]
# ## 13. New names
#
# `sample` makes up one name: begin with T boundaries, draw the next id with the probabilities that the network gives
# it (`torch.multinomial`), move the context on by one, and stop at a boundary.


# %%
def sample(params: list[Tensor], stoi: dict[str, int], context_size: int, generator: torch.Generator) -> str:
    # BEGIN SOLUTION
    context, drawn = [0] * context_size, list[int]()
    with torch.no_grad():
        while True:
            probs = F.softmax(forward(params, torch.tensor([context])), 1)
            token = int(torch.multinomial(probs, 1, generator=generator))
            if token == 0:
                return decode(drawn, stoi)
            drawn.append(token)
            context = [*context[1:], token]
    # END SOLUTION


# %%
check(13, sample, params, stoi, T)
print(*(sample(params, stoi, T, generator) for _ in range(20)))

# %% [markdown]
# The program does this in `mlp_lm/models/sampling.py:generate`, and differs in drawing thousands of names at a time,
# and in temperature, `top_k` and `top_p`.

# %% [markdown]
# ## 14. The first loss
#
# A network that knows nothing should give each of V tokens the same probability, and lose ln V. The lecture's begins
# at about 27: it is sure, and wrong. And most of its tanh units are at ±1, where the slope is 0 and nothing can be
# learnt. Write `better_params`: the same shapes, less than 30 % of the units beyond ±0.97 at the start, and logits
# near 0. Which weights have to be smaller, and by how much? The variance of a sum of independent numbers is the sum
# of their variances.


# %%
def better_params(
    vocab_size: int, context_size: int, embedding_dim: int, hidden_dim: int, generator: torch.Generator
) -> list[Tensor]:
    C, W1, b1, W2, b2 = new_params(vocab_size, context_size, embedding_dim, hidden_dim, generator)
    # BEGIN SOLUTION
    with torch.no_grad():
        W1 /= math.sqrt(len(W1))  # a sum of T·E products of variance 1
        W2 *= 0.1 / math.sqrt(len(W2))
        b1.zero_()
        b2.zero_()
    # END SOLUTION
    return [C, W1, b1, W2, b2]


# %%
check(14, better_params, X_dev, Y_dev)
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
for name, init in {"standard normal": new_params, "better": better_params}.items():
    start = init(V, T, 10, 200, generator)
    with torch.no_grad():
        units = torch.tanh(start[0][X_dev].flatten(1) @ start[1] + start[2])
    beyond = (units.abs() > 0.97).float().mean()
    loss = mean_loss(start, X_dev, Y_dev)
    axes.hist(units.flatten().numpy(), 80, alpha=0.5, label=f"{name}: first loss {loss:.2f}, {beyond:.0%} beyond ±0.97")
axes.set(xlabel="output of a tanh unit", ylabel="how often", title=f"Before the first step; ln {V} = {math.log(V):.2f}")
axes.legend()
show(figure, "14 first loss")

# %%
better = better_params(V, T, 10, 200, generator)
train(better, X_train, Y_train, 10_000, generator)
print(f"dev after 10,000 steps: {mean_loss(params, X_dev, Y_dev):.3f}, better {mean_loss(better, X_dev, Y_dev):.3f}")

# %% [markdown]
# The program does this in `mlp_lm/models/network.py:MLP.init_weights`, and differs in further layers, and in tables
# of thousands of words, which have to start small.

# %% [markdown]
# ## 15. The backward pass by hand
#
# There is no magic in autograd. `backward` returns the gradients of the mean cross-entropy for C, W1, b1, W2 and b2,
# each in its parameter's shape, without `.backward()` or `torch.autograd`. Begin at the end: the derivative with
# respect to the logits is the probabilities, minus 1 at the target, divided by B. The derivative of tanh is
# `1 - tanh²`.


# %%
@torch.no_grad()
def backward(params: list[Tensor], X: Tensor, Y: Tensor) -> list[Tensor]:
    C, W1, b1, W2, b2 = params
    # BEGIN SOLUTION
    B, T = X.shape
    e = C[X].view(B, -1)  # (B, T·E)
    h = torch.tanh(e @ W1 + b1)  # (B, H)
    d_logits = F.softmax(h @ W2 + b2, 1)  # (B, V)
    d_logits[torch.arange(B), Y] -= 1
    d_logits /= B
    d_z = (d_logits @ W2.T) * (1 - h**2)  # (B, H)
    d_e = d_z @ W1.T  # (B, T·E)
    d_C = torch.zeros_like(C).index_add_(0, X.flatten(), d_e.view(B * T, -1))  # a token may stand there many times
    return [d_C, e.T @ d_z, d_z.sum(0), h.T @ d_logits, d_logits.sum(0)]
    # END SOLUTION


# %%
check(15, backward)

# %% [markdown]
# The program does this in `mlp_lm/models/fused.py:FusedSGD.run`, and differs in storing no gradient of a weight: each
# matrix product is added to the weights at once. Without an autograd graph, and with many steps in one call, it is
# faster than the notebook's loop, although Lightning drives it.

# %% [markdown]
# ## 16. How far counting gets
#
# Before training a network, ask how far counting gets you. `bigram_counts` is the lecture's first model: how often
# each token follows each other one, (V, V), the boundary before and after each name included. `num_contexts` tells
# how many different contexts there are in X. And `best_weight` mixes two models: which weight w between 0 and 1 makes
# the mean of -log(w·p + (1 - w)·q) smallest, where p and q are the probabilities that each model gave to the same
# targets?


# %%
def bigram_counts(names: list[str], stoi: dict[str, int]) -> Tensor:
    # BEGIN SOLUTION
    counts = torch.zeros(len(stoi), len(stoi), dtype=torch.int64)
    for name in names:
        stream = [0, *encode(name, stoi), 0]
        for first, second in pairwise(stream):
            counts[first, second] += 1
    return counts
    # END SOLUTION


def num_contexts(X: Tensor) -> int:
    # BEGIN SOLUTION
    return len(X.unique(dim=0))
    # END SOLUTION


def best_weight(p: Tensor, q: Tensor) -> float:
    # BEGIN SOLUTION
    weights = torch.linspace(0, 1, 1001, dtype=torch.float64)
    losses = [-(w * p + (1 - w) * q).log().mean() for w in weights]
    return float(weights[torch.stack(losses).argmin()])
    # END SOLUTION


# %%
check(16, bigram_counts, num_contexts, best_weight)

from mlp_lm.models.ngram import NGramModel, count, modified_kneser_ney

counts = bigram_counts(train_names, stoi)
bigram_probs = (counts + 1) / (counts + 1).sum(1, keepdim=True)
print(f"bigrams: dev {-bigram_probs[X_dev[:, -1], Y_dev].log().mean():.3f}")
stream = np.array([token for name in train_names for token in [*encode(name, stoi), 0]])
for order in range(2, 7):
    X, _ = examples(train_names, order - 1)
    contexts, targets = examples(dev_names, order - 1)
    levels, _ = modified_kneser_ney(count(stream, V, order))
    kneser_ney = NGramModel(levels, V)
    print(
        f"order {order}: {num_contexts(X):>7,} of {V ** (order - 1):>12,} contexts seen, "
        f"Kneser–Ney dev {kneser_ney.nats(contexts, targets).mean():.3f}"
    )


# %%
def target_probs(names: list[str]) -> tuple[Tensor, Tensor]:
    """What the network and the counts give to the right tokens."""
    X, Y = examples(names, T)
    with torch.no_grad():
        p = F.softmax(forward(better, X), 1)[torch.arange(len(Y)), Y].double()
    return p, (-kneser_ney.nats(*examples(names, 5))).exp()


p, q = target_probs(dev_names)
w = best_weight(p, q)
print(
    f"network {-p.log().mean():.3f}, counts {-q.log().mean():.3f}, {w:.2f} of the network and the rest of the counts:"
)
print(f"mixture {-(w * p + (1 - w) * q).log().mean():.3f}")
p, q = target_probs(test_names)
print(f"test, looked at once: {-p.log().mean():.3f}, {-q.log().mean():.3f}, {-(w * p + (1 - w) * q).log().mean():.3f}")

# %% [markdown]
# The number of possible contexts explodes with the order; few of them ever occur. Kneser–Ney falls back on shorter
# ones. It is hard to beat, and together both are better than each alone: they make different mistakes.
#
# The program does this in `mlp_lm/models/ngram.py:count` and `mlp_lm/models/mixture.py:best_weights`, and differs in
# any number of models, by expectation-maximisation. The commands are `ngram` and `mix`.

# %% [markdown]
# ## 17. From letters to words
#
# The paper's tokens are words, and its example is a sentence: whoever has read "the cat is walking in the bedroom"
# should not be surprised by "a dog was running in a room". Counts are surprised. A network is not, if "cat" and "dog"
# have similar embeddings. Here are 200 such sentences for it, and others to try it on.
#
# `tokenize` splits a text into words and punctuation marks; an apostrophe inside a word is part of it. `nearest`
# returns the `num` tokens whose rows in the table (V, E) have the largest cosines with that of `token`, the nearest
# first, without `token` itself.


# %%
def tokenize(text: str) -> list[str]:
    # BEGIN SOLUTION
    return re.findall(r"\w+(?:'\w+)*|[^\w\s]", text)
    # END SOLUTION


def nearest(table: Tensor, tokens: list[str], token: str, num: int) -> list[str]:
    # BEGIN SOLUTION
    unit = F.normalize(table, dim=1)
    cosines = unit @ unit[tokens.index(token)]
    return [tokens[i] for i in cosines.argsort(descending=True).tolist() if tokens[i] != token][:num]
    # END SOLUTION


# %%
check(17, tokenize, nearest)

from mlp_lm.models.network import MLP
from mlp_lm.text.windows import Windows

KINDS = [  # animals, what they do, where
    ("cat dog hamster kitten", "sleeping eating playing hiding", "bedroom kitchen hall room"),
    ("hen duck goose swan", "swimming flying singing nesting", "lake river pond reed"),
    ("horse cow sheep goat", "walking running grazing waiting", "field meadow barn yard"),
]
rng = random.Random(42)


def make_sentence() -> str:
    animal, verb, place = (rng.choice(words.split()) for words in rng.choice(KINDS))
    article, be, another = rng.choice(["the", "a"]), rng.choice(["is", "was"]), rng.choice(["the", "a"])
    return f"{article} {animal} {be} {verb} in {another} {place}."


sentences = list(dict.fromkeys(make_sentence() for _ in range(400)))  # each once
seen, unseen = sentences[:200], sentences[200:]
tokens = ["", *sorted(set(tokenize("\n".join(sentences))))]  # the boundary, then the words


def as_stream(sentences: list[str]) -> np.ndarray:
    return np.array([i for text in sentences for i in [*map(tokens.index, tokenize(text)), 0]])


torch.manual_seed(42)
paper = MLP(len(tokens), context_size=4, embedding_dim=8, hidden_dim=16, direct=True)
optimizer = torch.optim.AdamW(paper.parameters(), lr=0.01, weight_decay=0.5)
X, Y = Windows(as_stream(seen), 4)[:]
for _ in range(400):
    batch = draw_batch(len(X), 64, generator)
    optimizer.zero_grad()
    paper.loss(X[batch], Y[batch]).backward()
    optimizer.step()

for word in ("dog", "flying", "pond", "the"):
    print(f"nearest to {word}:", *nearest(paper.embedding.weight.detach(), tokens, word, 3))
levels, _ = modified_kneser_ney(count(as_stream(seen), len(tokens), 5))
X, Y = Windows(as_stream(unseen), 4)[:]
with torch.no_grad():
    print(f"{len(unseen)} sentences that neither has seen: network {paper.loss(X, Y):.3f}, ", end="")
print(f"counts {NGramModel(levels, len(tokens)).nats(X, Y).mean():.3f}")

# %% [markdown]
# The program does this in `mlp_lm/text/tokenizer.py:Tokenizer` and `mlp_lm/models/views.py:nearest`, and differs in
# putting words back together as text, in `<unk>` for rare ones, and in a large softmax that is computed in parts.
#
# ## Go on
#
# `python -m mlp_lm fit --config configs/lecture.yaml` is the lecture's final run, as one command;
# `configs/names.yaml` and `configs/best.yaml` leave it behind. The README says what else is there.
