"""The checks of `lecture.py`: what is right in many ways, and what is typically wrong."""

from __future__ import annotations

import math
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from mlp_lm.models.fused import FusedSGD
from mlp_lm.models.mixture import best_weights
from mlp_lm.models.network import MLP
from mlp_lm.models.sampling import Sampling, generate
from mlp_lm.text.corpus import split_items
from mlp_lm.text.datasets import resolve_path
from mlp_lm.text.reading import parse_items, read_text
from mlp_lm.text.vocab import Vocab
from mlp_lm.text.windows import Windows
from mlp_lm.training.optim import learning_rate_at as rate_of_the_program

HERE = Path(__file__).resolve().parent
NAMES = HERE / "names.txt" if (HERE / "names.txt").exists() else resolve_path("names")
NO_EXERCISE = "there are exercises 1 to 17"
PICTURES = Path("runs/lecture")  # where `show` puts them outside a notebook


class CheckError(Exception):
    """What is not right yet. Shown without a traceback, which would lead into the checks."""

    def _render_traceback_(self) -> list[str]:  # what IPython shows
        return [str(self)]


def _show_error(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if isinstance(error, CheckError):
        print(error, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _show_error
SECONDS: float = 20  # that one call of a reader's function may take
PARAMS = ("C", "W1", "b1", "W2", "b2")
CHECKS: dict[str, Callable[..., str | None]] = {}


def exercise(key: str) -> Callable[[Callable[..., str | None]], Callable[..., str | None]]:
    """Register the check of an exercise. Its docstring is the hint; what it returns is said of what is right."""

    def register(function: Callable[..., str | None]) -> Callable[..., str | None]:
        CHECKS[key] = function
        return function

    return register


def check(key: int | str, *work: Any) -> None:
    """Check the work of an exercise. Raises CheckError that says what was expected and what was found."""
    if str(key) not in CHECKS:
        raise CheckError(NO_EXERCISE)
    try:
        remark = CHECKS[str(key)](*work)
    except Exception as error:
        number, wrong = _number(key), str(error)
        if not isinstance(error, CheckError):
            wrong = (
                f"its results cannot be compared ({type(error).__name__}: {error})\n  see the types in the signatures"
            )
        help_text = f"hint({key!r}) prints a hint, solution({number}) a solution."
        raise CheckError(f"Exercise {key} is not right yet: {wrong}\n  {help_text}") from None
    print(f"Exercise {key}: right.{f' {remark}' if remark else ''}")


def _number(key: int | str) -> int:
    """7 of the exercises 7 and 7b."""
    return int(str(key).rstrip("b"))


def hint(number: int | str) -> None:
    """Print the hint for an exercise, such as 7 or "7b"."""
    found = [function.__doc__ or "" for key, function in CHECKS.items() if key == str(number)]
    print("\n".join(re.sub(r"\s+", " ", text) for text in found) or NO_EXERCISE)


def solution(number: int | str) -> None:
    """Print our solution of an exercise, from lecture.py beside this file."""
    number = _number(number)
    text = (HERE / "lecture.py").read_text(encoding="utf-8")
    section = re.search(rf"^# ## {number}\. .*?(?=^# ## |\Z)", text, re.MULTILINE | re.DOTALL)
    cells = re.split(r"^# %%.*\n", section[0], flags=re.MULTILINE) if section else []
    solved = [cell.strip() for cell in cells if "# BEGIN SOLUTION" in cell]
    print("\n\n".join(re.sub(r" *# (BEGIN|END) SOLUTION\n?", "", cell) for cell in solved) or NO_EXERCISE)


def show(figure: Figure, name: str) -> None:
    """Show a picture: in a notebook below the cell, elsewhere as a file whose path is printed."""
    if "ipykernel" in sys.modules:
        sys.modules["IPython.display"].display(figure)
    else:
        PICTURES.mkdir(parents=True, exist_ok=True)
        path = PICTURES / f"{name.replace(' ', '_')}.png"
        figure.savefig(path, dpi=100)
        print("picture:", path)
    plt.close(figure)


# -- what all checks need ----------------------------------------------------------------------------------------------


def run(function: Callable[..., Any], *args: Any) -> Any:
    """What the reader's function returns; CheckError if it fails, does not end, or returns nothing."""
    try:
        with _time_limit(SECONDS):
            found = function(*args)
    except TimeoutError:
        raise CheckError(f"{function.__name__} has not ended after {SECONDS} seconds; does its loop end?") from None
    except Exception as error:
        lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == function.__name__]
        where = f", in its line `{lines[-1].line}`" if lines and lines[-1].line else ""
        raise CheckError(f"{function.__name__} raised {type(error).__name__}: {error}{where}") from None
    if found is None or found is ...:
        raise CheckError(f"{function.__name__} returns nothing yet (a missing `return`?)")
    return found


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after so many seconds, where signals can do that: not on Windows, and in the main thread."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    if hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    else:
        yield


def expect(ok: bool, what: str, expected: object, found: object, why: str = "") -> None:
    """Raise CheckError with the four unless `ok`."""
    if not ok:
        raise CheckError(
            f"{what}\n  expected {_short(expected)}\n  found    {_short(found)}" + (f"\n  {why}" if why else "")
        )


def _short(value: object) -> str:
    """One line; numbers with four digits, large tensors with their first few."""
    if isinstance(value, Tensor):
        few = value.detach().flatten()[:6].tolist()
        text = ", ".join(f"{number:.4g}" for number in few) + (", …" if value.numel() > 6 else "")
        return f"{text} (shape {tuple(value.shape)})" if value.ndim else text
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def compare(found: Tensor, right: Tensor, what: str, mistakes: Mapping[str, Tensor] | None = None) -> None:
    """Raise CheckError unless `found` is `right`; with the reason, if it is what one of the `mistakes` leads to."""
    if not close(found, right):
        why = next((why for why, wrong in (mistakes or {}).items() if close(found, wrong)), "")
        expect(False, what, right, found, why)


def tensor(value: Any, what: str, shape: Sequence[int]) -> Tensor:
    """`value` as a tensor, whatever it was; CheckError if it has another shape."""
    try:
        found = value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError):
        raise CheckError(f"{what}: expected a tensor of shape {tuple(shape)}, found {_short(value)}") from None
    expect(tuple(found.shape) == tuple(shape), f"the shape of {what}", tuple(shape), tuple(found.shape))
    return found


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal but for rounding, in whatever type."""
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5)


def a_network() -> list[Tensor]:
    """C, W1, b1, W2, b2 of a small network: V = 7, T = 3, E = 4, H = 5."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(7, 4), (12, 5), (5,), (5, 7), (7,)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def as_mlp(params: Sequence[Tensor], context_size: int) -> MLP:
    """The program's network with these weights."""
    C, W1, b1, W2, b2 = (p.detach().clone() for p in params)
    weights = {"embedding.weight": C, "hidden.0.weight": W1.T.contiguous(), "hidden.0.bias": b1}
    weights |= {"output.weight": W2.T.contiguous(), "output.bias": b2}
    return MLP.from_weights(weights, len(C), context_size, embedding_dim=C.shape[1], hidden_dim=W1.shape[1])


def logits_of(params: Sequence[Tensor], X: Tensor) -> Tensor:
    """Logits (B, V) of the contexts X (B, T)."""
    C, W1, b1, W2, b2 = params
    return torch.tanh(C[X].flatten(1) @ W1 + b1) @ W2 + b2


def after_steps(
    params: Sequence[Tensor], X: Tensor, Y: Tensor, rate: float, num_steps: int, zero: bool = True
) -> list[Tensor]:
    """The parameters after so many steps on one batch; without `zero`, gradients add up from step to step."""
    weights = [p.detach() for p in params]
    sums = [torch.zeros_like(p) for p in weights]
    for _ in range(num_steps):
        leaves = [p.clone().requires_grad_() for p in weights]
        gradients = torch.autograd.grad(F.cross_entropy(logits_of(leaves, X), Y), leaves)
        sums = [g if zero else s + g for s, g in zip(sums, gradients, strict=True)]
        weights = [p - rate * s for p, s in zip(weights, sums, strict=True)]
    return weights


def some_windows(num: int = 12) -> tuple[Tensor, Tensor]:
    """Random contexts (num, 3) and targets (num,), of 7 tokens."""
    rows = torch.randint(7, (num, 4), generator=torch.Generator().manual_seed(2))
    return rows[:, :-1], rows[:, -1]


# -- the exercises -----------------------------------------------------------------------------------------------------


@exercise("1")
def _(read_names: Callable[..., Any], summary: Callable[..., Any]) -> str | None:
    """`path.read_text()` and `split("\\n")` give lines, `strip` takes white space away, `if line.strip()` leaves out
    what is blank. `min` and `max` take `key=len`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "some.txt"
        file.write_text("emma\n\n  olivia \nava\n", encoding="utf-8")
        found, right = run(read_names, file), ["emma", "olivia", "ava"]
    what = r'the names in the text "emma\n\n  olivia \nava\n"'
    expect(not isinstance(found, str), what, right, found, "One string of all names is not a list of names.")
    expect(not any("\n" in name for name in found), what, right, found, "The ends of the lines are still in the names.")
    expect(
        "" not in found, what, right, found, "A blank line is no name; the text's last line end begins none, either."
    )
    expect(list(found) == right, what, right, found)
    names = parse_items(read_text(NAMES), NAMES)
    expect(list(run(read_names, NAMES)) == names, f"the names of {NAMES}", f"{len(names):,} names", "others")
    found = run(summary, ["cleo", "ab", *["emma"] * 9, "xy", "olivia"])
    expect(len(found) == 4, "what summary returns", "number, first ten, a shortest, a longest", found)
    number, first, shortest, longest = found
    expect(number == 13, "the number of 13 names", 13, number)
    right = ["cleo", "ab", *["emma"] * 8]
    expect(list(first) == right, "the first ten of 13 names", right, first)
    expect(shortest in ("ab", "xy"), "a shortest of cleo, ab, emma, xy and olivia", "ab or xy", shortest)
    expect(longest == "olivia", "the longest of cleo, ab, emma, xy and olivia", "olivia", longest)
    return f"{len(names):,} names."


@exercise("2")
def _(build_vocab: Callable[..., Any], encode: Callable[..., Any], decode: Callable[..., Any]) -> str | None:
    """`set("".join(names))` has every character once. Number `".", *sorted(...)` with `enumerate`. To decode, turn the
    dict around."""
    ids = run(build_vocab, ["ba", "cab"])
    what = 'the vocabulary of "ba" and "cab"'
    expect("." in ids, what, "ids of '.', 'a', 'b' and 'c'", ids, "The boundary is missing: '.', with the id 0.")
    expect(ids["."] == 0, f"the id of the boundary in {what}", 0, ids["."])
    expect(set(ids) == set(".abc"), what, "ids of '.', 'a', 'b' and 'c'", ids)
    expect(sorted(ids.values()) == [0, 1, 2, 3], what, "ids from 0 to 3, each once", ids)
    numbers = [int(i) for i in run(encode, "cab", ids)]
    right = [ids[c] for c in "cab"]
    why = "The boundary is not a letter of the name; exercise 3 adds it." if 0 in numbers else ""
    expect(numbers == right, f"the ids of 'cab' in {ids}", right, numbers, why)
    expect(run(decode, right, ids) == "cab", f"the name with the ids {right} in {ids}", "cab", run(decode, right, ids))
    names = parse_items(read_text(NAMES), NAMES)
    size = len(Vocab.build(set("".join(names))))
    whole = run(build_vocab, names)
    expect(len(whole) == size, "the size of the whole vocabulary, the boundary included", size, len(whole))
    return f"V = {size}."


@exercise("3")
def _(windows: Callable[..., Any]) -> None:
    """For each name, begin with `[0] * context_size`. For each target among its ids and a final 0, keep (context,
    target), then drop the context's first id and append the target."""
    ids = {".": 0, "a": 1, "b": 2, "c": 3}
    right = [((0, 0), 1), ((0, 1), 2), ((1, 2), 0), ((0, 0), 3), ((0, 3), 0)]
    letters = [".abc"[i] for i in range(4)]

    def shown(rows: Sequence[tuple[tuple[int, ...], int]]) -> str:
        return ", ".join(f"{''.join(letters[i] for i in context)}→{letters[target]}" for context, target in rows)

    found = _rows(run(windows, ["ab", "c"], ids, 2), 2)
    what = 'the windows of "ab" and "c", context 2'
    crossed = [((0, 0), 1), ((0, 1), 2), ((1, 2), 0), ((2, 0), 3), ((0, 3), 0)]
    why = ""
    if sorted(found) == sorted(crossed):
        why = "A context reaches into the name before: begin every name with a context of boundaries."
    elif sorted(found) == sorted(row for row in right if row[1] != 0):
        why = "The boundary is missing as a target: a name's end is predicted, too."
    elif len({context for context, _ in found}) == 1:
        why = "All contexts are one list that is changed later: keep a new one for each window."
    elif sorted(found) == sorted((context[::-1], target) for context, target in right):
        why = "The contexts are the wrong way round: the latest letter stands at the right."
    expect(sorted(found) == sorted(right), what, shown(right), shown(found), why)  # in whatever order
    names = parse_items(read_text(NAMES), NAMES)[::100]
    vocab = Vocab.build(set("".join(names)))
    stream = np.array([i for name in names for i in [*vocab.encode(name), 0]])
    all_ids = {"." if i == 0 else token: i for i, token in enumerate(vocab.tokens)}
    for context_size in (3, 5):
        program = _rows(Windows(stream, context_size)[:], context_size)
        found = _rows(run(windows, names, all_ids, context_size), context_size)
        expect(len(found) == len(program), f"windows of {len(names)} names", len(program), len(found))
        expect(
            sorted(found) == sorted(program),
            f"windows of {len(names)} names, context {context_size}",
            "those",
            "others",
        )


def _rows(found: Any, context_size: int) -> list[tuple[tuple[int, ...], int]]:
    """Windows as (context, target), from tensors, arrays or lists of any integer type."""
    try:
        contexts, targets = found
    except (TypeError, ValueError):
        raise CheckError(f"windows: expected two tensors, contexts and targets, found {_short(found)}") from None
    targets = tensor(targets, "the targets", (len(contexts),))
    contexts = tensor(contexts, "the contexts", (len(targets), context_size))
    return [(tuple(int(i) for i in row), int(y)) for row, y in zip(contexts.tolist(), targets.tolist(), strict=True)]


@exercise("4")
def _(split: Callable[..., Any]) -> str | None:
    """`random.Random(seed).shuffle(copy)` shuffles a list in place; then come three slices."""
    names = [f"{first}{second}" for first in "abcdefghijklmno" for second in "abcdefg"]
    parts = [list(part) for part in run(split, list(names), 42)]
    sizes = list(map(len, parts))
    expect(sizes == [84, 10, 11], "the sizes of train, dev and test of 105 names", [84, 10, 11], sizes)
    together = sorted(name for part in parts for name in part)
    expect(together == sorted(names), "all three together", "each of the 105 names once", f"{len(set(together))} names")
    why = "Shuffle first, then cut: a file may be sorted."
    expect(set(parts[0]) != set(names[:84]), "train", "84 names from all over the list", "its first 84", why)
    again = [list(part) for part in run(split, list(names), 42)]
    expect(again == parts, "a second split with the same seed", "the same", "another")
    if parts != split_items(list(names), 42, ""):
        return "It is another shuffle than random.Random(seed)'s, and figures differ a little from the solution's."
    return None


@exercise("5")
def _(one_hot_times_table: Callable[..., Any]) -> None:
    """`F.one_hot(X, V)` has the shape (B, T, V) and whole numbers; make them floats, then `@ C`."""
    table = torch.randn(27, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    X = torch.tensor([[0, 5, 13], [1, 1, 2]])
    found = run(one_hot_times_table, table, X)
    right = table[X]
    values = tensor(found, "the embeddings", (2, 3, 4))
    expect(close(values, right), "the embeddings of [[0, 5, 13], [1, 1, 2]]", right, values)
    weights = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2))
    expect(bool(found.requires_grad), "the embeddings", "a gradient that can flow back to C", "none")
    (gradient,) = torch.autograd.grad((found * weights).sum(), table)
    (of_lookup,) = torch.autograd.grad((right * weights).sum(), table)
    expect(close(gradient, of_lookup), "the gradient of C", of_lookup, gradient)


@exercise("6")
def _(side_by_side: Callable[..., Any]) -> None:
    """`embeddings.view(B, T * E)`, where `embeddings.shape` tells B, T and E; -1 stands for what is left."""
    embeddings = torch.arange(60.0).view(4, 3, 5)
    found = run(side_by_side, embeddings)
    right = torch.stack([row.flatten() for row in embeddings])
    below = isinstance(found, Tensor) and found.shape == (12, 5)
    why = "The embeddings of a context stand below each other, as with dim=0; they belong in one row."
    expect(not below, "the shape of three embeddings of 5 side by side, for 4 contexts", (4, 15), (12, 5), why)
    compare(tensor(found, "the rows", (4, 15)), right, "three embeddings side by side")
    same = found.untyped_storage().data_ptr() == embeddings.untyped_storage().data_ptr()
    expect(same, "the storage of the result", "that of the embeddings", "a copy", "The numbers are right, but copied.")


@exercise("7")
def _(forward: Callable[..., Any], written_out: Callable[..., Any]) -> None:
    """`torch.tanh(side_by_side(C[X]) @ W1 + b1) @ W2 + b2` for the logits. For the loss: `counts = logits.exp()`,
    divided by `counts.sum(1, keepdim=True)`; the targets' probabilities are `probs[torch.arange(B), targets]`."""
    params, (X, _) = a_network(), some_windows()
    C, W1, b1, W2, b2 = params
    right = logits_of(params, X)
    z = C[X].flatten(1) @ W1 + b1
    mistakes = {
        "The tanh is missing.": z @ W2 + b2,
        "b1 is missing.": torch.tanh(z - b1) @ W2 + b2,
        "b2 is missing.": right - b2,
        "The hidden units are tanh, not relu.": z.relu() @ W2 + b2,
        "These are probabilities; logits come before softmax.": right.softmax(1),
    }
    compare(tensor(run(forward, params, X), "the logits", right.shape), right, "the logits", mistakes)
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(3))
    targets, rows = torch.tensor([0, 3, 1, 1]), torch.arange(4)
    loss, counts, probs = F.cross_entropy(logits, targets), logits.exp(), logits.softmax(1)

    def mean_nll(probs: Tensor) -> Tensor:
        return -probs[rows, targets].log().mean()

    mistakes = {
        "The probabilities are those of columns: each row has to sum to 1, so sum over dim 1.": (
            mean_nll(logits.softmax(0))
        ),
        "`keepdim=True` is missing: each column was divided by the sum of a row.": mean_nll(counts / counts.sum(1)),
        "It is the sum; the mean is asked for.": 4 * loss,
        "The minus sign is missing.": -loss,
        "That is -log of the mean; the mean of -log is asked for.": -probs[rows, targets].mean().log(),
        "`probs[:, targets]` takes all columns of all rows: `probs[torch.arange(B), targets]`.": (
            -probs[:, targets].log().mean()
        ),
    }
    compare(
        tensor(run(written_out, logits, targets), "the loss", ()), loss, "the loss of four rows of logits", mistakes
    )
    found = float(run(written_out, torch.tensor([[800.0, 0.0]]), torch.tensor([0])))
    why = "This version does not overflow, so there is nothing to find in 7b: write exp, sum and division out."
    expect(not math.isfinite(found), "the loss of the logits [[800, 0]]", "inf or NaN", found, why)


@exercise("7b")
def _(breaks_at: Any, written_out: Callable[..., Any]) -> str | None:
    """Where it breaks: try z = 1, 2, 3, … in a loop, with `torch.tensor([[float(z), 0.0]])`. Why: look at
    `torch.tensor(float(z)).exp()` there, and at `torch.finfo(torch.float32).max`."""
    whole = math.isfinite(float(breaks_at)) and float(breaks_at) == int(breaks_at) > 0
    expect(whole, "breaks_at", "a whole number above 0", breaks_at)
    breaks_at = int(breaks_at)

    def breaks(z: int) -> bool:
        return not math.isfinite(float(run(written_out, torch.tensor([[float(z), 0.0]]), torch.tensor([0]))))

    expect(breaks(breaks_at), f"the loss at z = {breaks_at}", "inf or NaN", "a number")
    expect(not breaks(breaks_at - 1), f"the loss at z = {breaks_at - 1}", "a number", "not finite already: look lower")
    return f"exp({breaks_at - 1}) is a number still, exp({breaks_at}) infinite."


@exercise("8")
def _(step: Callable[..., Any], lower_bound: Callable[..., Any]) -> None:
    """A step: `F.cross_entropy`, `p.grad = None` for all parameters, `loss.backward()`, and under `torch.no_grad()`
    `p -= learning_rate * p.grad`. The bound: `Counter` counts contexts, and (context, target) pairs."""
    X, Y = some_windows()
    params, rate = a_network(), 0.3
    before = [p.detach().clone() for p in params]
    first = F.cross_entropy(as_mlp(params, 3)(X), Y).item()
    returned = run(step, params, X, Y, rate)
    expect(not isinstance(returned, Tensor), "what step returns", "a number: `loss.item()`", "a tensor")
    found = float(returned)
    expect(
        abs(found - first) < 1e-4, "the loss that step returns, that before the step", f"{first:.4f}", f"{found:.4f}"
    )
    moved = any(not torch.equal(p, q) for p, q in zip(params, before, strict=True))
    why = "`p -= …` changes a parameter in place; `p = p - …` makes a new tensor, and leaves the old one as it is."
    expect(moved, "the parameters after a step", "new values", "the old ones", why)
    uphill = F.cross_entropy(as_mlp(params, 3)(X), Y).item() > first
    expect(not uphill, "the loss after a step", f"below {first:.4f}", "more", "The step goes uphill: subtract.")
    run(step, params, X, Y, rate)
    once, summed = after_steps(before, X, Y, rate, 2), after_steps(before, X, Y, rate, 2, zero=False)
    why = "Gradients add up: set `p.grad = None` before each backward pass."
    expect(not close(params[1], summed[1]), "W1 after two steps", once[1], params[1].detach(), why)
    for name, p, old, right in zip(PARAMS, params, before, once, strict=True):
        compare(p.detach(), right, f"{name} after two steps", {f"{name} has not changed.": old})
    X = torch.tensor([[0, 0], [0, 0], [0, 0], [1, 0], [1, 0], [0, 1]])
    Y = torch.tensor([1, 1, 2, 3, 3, 1])
    found, bound = float(run(lower_bound, X, Y)), _bound(X, Y)
    what = "the bound for the windows ..→a, ..→a, ..→b, a.→c, a.→c, .a→a"
    expect(abs(found - bound) < 1e-4, what, f"{bound:.4f}, which is (2·ln(3/2) + ln 3) / 6", f"{found:.4f}")


def _bound(X: Tensor, Y: Tensor) -> float:
    """The lowest loss that a function of the context can have: the conditional entropy, nats/token."""
    contexts = [tuple(row) for row in X.tolist()]
    windows = [*zip(contexts, Y.tolist(), strict=True)]
    of_context, of_window = Counter(contexts), Counter(windows)
    return sum(math.log(of_context[context] / of_window[context, target]) for context, target in windows) / len(windows)


@exercise("8b")
def _(logits: Tensor, X: Tensor, Y: Tensor) -> str | None:
    """A few thousand steps at 0.1 are enough; at a much higher rate the loss jumps about."""
    loss, bound = F.cross_entropy(logits, Y).item(), _bound(X, Y)
    expect(loss - bound <= 0.01, "the loss of the 32 windows", f"at most {bound + 0.01:.4f}", f"{loss:.4f}")
    return f"{loss:.4f}, where nothing gets below {bound:.4f}."


@exercise("9")
def _(draw_batch: Callable[..., Any], learning_rate_at: Callable[..., Any], train: Callable[..., Any]) -> None:
    """`torch.randint(num_windows, (batch_size,), generator=generator)` draws numbers. In `train`, each step is one call
    `update(params, X[batch], Y[batch], learning_rate_at(i, max_steps))`, whose result is the loss."""
    generator = torch.Generator().manual_seed(1)
    batches = [tensor(run(draw_batch, 100, 32, generator), "a batch", (32,)).tolist() for _ in range(60)]
    drawn = {i for batch in batches for i in batch}
    run_of_neighbours = any(sorted(batch) == [*range(min(batch), min(batch) + 32)] for batch in batches)
    expect(not run_of_neighbours, "a batch", "windows from all over train", "a block of neighbours")
    tensor(run(draw_batch, 100, 16, generator), "a batch of 16", (16,))
    twice = [torch.as_tensor(run(draw_batch, 100, 32, torch.Generator().manual_seed(5))).tolist() for _ in range(2)]
    why = "Draw with `generator=generator`, so that draws can be repeated."
    expect(twice[0] == twice[1], "two batches, each from a new generator with the same seed", "the same", "others", why)
    expect(drawn <= set(range(100)), "numbers of 100 windows", "0 to 99", sorted(drawn - set(range(100))))
    expect(batches[0] != batches[1], "the second batch", "other windows", "those of the first")
    why = "Every window should be drawn sooner or later, the first and the last included."
    expect(len(drawn) == 100, "how many of 100 windows are in 60 batches of 32", 100, len(drawn), why)

    def right(step: int, max_steps: int) -> float:
        shape = {"lr_schedule": "step", "lr_warmup_steps": 0, "lr_drop_at": 0.5, "lr_end_factor": 0.1}
        return rate_of_the_program(step, learning_rate=0.1, lr_decay_steps=max_steps, **shape)  # type: ignore[arg-type]

    found = [float(run(learning_rate_at, step, 1000)) for step in range(1000)]
    drops = sum(later < earlier for earlier, later in pairwise(found))
    why = "The drop comes at the wrong step: steps are counted from 0, and of 1,000 the first 500 are 0 to 499."
    for step in (0, 499, 500, 999):
        ok, at_end = (
            math.isclose(found[step], right(step, 1000), rel_tol=1e-4),
            math.isclose(found[0], 0.1, rel_tol=1e-4),
        )
        told = why if drops == 1 and at_end and math.isclose(found[-1], 0.01, rel_tol=1e-4) else ""
        expect(ok, f"the rate of step {step} of 1,000", right(step, 1000), found[step], told)

    X, Y = some_windows(200)
    calls: list[tuple[Tensor, Tensor, float]] = []

    def update(params: list[Tensor], X: Tensor, Y: Tensor, learning_rate: float) -> float:
        calls.append((X, Y, learning_rate))
        return float(len(calls))

    returned = run(train, a_network(), X, Y, 10, generator, update)
    expect(isinstance(returned, list), "what `train` returns", "a list of losses", returned)
    losses = [float(loss) for loss in returned]
    expect(len(calls) == 10, "steps of `train` with 10 of them", "10 calls of `update`", len(calls))
    expect(losses == [*range(1, 11)], "what `train` returns", "what `update` returned, one by one", losses)
    expect(calls[0][0].shape == (32, 3), "the contexts of a step", "shape (32, 3)", tuple(calls[0][0].shape))
    pairs = {(tuple(x), y) for x, y in zip(X.tolist(), Y.tolist(), strict=True)}
    drawn_pairs = {(tuple(x), y) for xs, ys, _ in calls for x, y in zip(xs.tolist(), ys.tolist(), strict=True)}
    expect(drawn_pairs <= pairs, "contexts and targets of a batch", "of the same windows", "not", "Index both alike.")
    why = "Draw a new batch inside the loop."
    expect(
        len({tuple(y.tolist()) for _, y, _ in calls}) == 10, "the batches of 10 steps", "different ones", "repeats", why
    )
    rates = [float(rate) for _, _, rate in calls]
    ok = np.allclose(rates, [0.1] * 5 + [0.01] * 5, rtol=1e-4)
    expect(ok, "the rates of 10 steps", "5 times 0.1, then 5 times 0.01", rates)


@exercise("10")
def _(growing_rates: Callable[..., Any], range_test: Callable[..., Any]) -> None:
    """The factor from one rate to the next is (high / low) ** (1 / (num_steps - 1)); or use `torch.logspace`. The test
    is the loop of `train` with another rate at each step."""
    found = tensor(run(growing_rates, 0.001, 10.0, 5), "the rates", (5,)).double()
    right = torch.tensor([0.001, 0.01, 0.1, 1.0, 10.0], dtype=torch.float64)
    mistakes = {
        "They grow by the same sum; by the same factor, as many steps go from 0.001 to 0.01 as from 1 to 10.": (
            torch.linspace(0.001, 10, 5)
        ),
        "`torch.logspace` takes exponents: `math.log10(low)`.": torch.logspace(0.001, 10, 5),
    }
    compare(found, right, "five rates from 0.001 to 10", mistakes)
    params, (X, Y) = a_network(), some_windows(200)
    before, at_zero = params[1].detach().clone(), a_network()
    losses = run(range_test, params, X, Y, [0.01, 0.1, 1.0], torch.Generator().manual_seed(1))
    tensor(losses, "the losses of three rates", (3,))
    expect(not torch.equal(before, params[1]), "the parameters after a range test", "new values", "the old ones")
    run(range_test, at_zero, X, Y, [0.0, 0.0], torch.Generator().manual_seed(1))
    why = "Each step takes its own rate."
    expect(torch.equal(before, at_zero[1]), "the parameters after two steps at a rate of 0", "the old", "others", why)


@exercise("10b")
def _(good_rate: Any, rates: Sequence[float], losses: Sequence[float]) -> str | None:
    """Well to the left of where the curve turns up, a third or a tenth of that rate, and to the right of where it
    falls."""
    from mlp_lm.commands.lr_find import smooth  # here: it imports Lightning, which takes seconds

    curve = smooth(np.nan_to_num(np.asarray(losses, float), nan=1e9, posinf=1e9), len(losses) / 25)
    turn = float(rates[int(curve.argmin())])
    expect(isinstance(good_rate, float | int) and good_rate > 0, "good_rate", "a rate above 0", good_rate)
    where = f"{turn / 30:.3f} to {turn:.3f}; the smoothed curve is lowest at {turn:.3f}"
    why = "There the curve rises already." if good_rate > turn else "There it hardly falls yet."
    expect(turn / 30 <= good_rate <= turn, "good_rate", where, good_rate, why)
    return f"The smoothed curve is lowest at {turn:.2f}."


@exercise("11")
def _(mean_loss: Callable[..., Any], step_with_decay: Callable[..., Any]) -> None:
    """`F.cross_entropy` of all windows under `torch.no_grad()`; in parts, weigh each part's mean by its size. Decay:
    `p *= 1 - learning_rate * decay` for W1 and W2, then `step`."""
    params, (X, Y) = a_network(), some_windows(2600)
    right = F.cross_entropy(as_mlp(params, 3)(X), Y).item()
    found = float(run(mean_loss, params, X, Y))
    why = "A mean of means gives the windows of a short last part too much weight." if abs(found - right) < 0.05 else ""
    expect(abs(found - right) < 1e-4, "the mean loss of 2,600 windows", f"{right:.5f}", f"{found:.5f}", why)
    X, Y = some_windows()
    before = [p.detach().clone() for p in params]
    run(step_with_decay, params, X, Y, 0.01, 5.0)
    why = "W1 and W2 alone also shrink, by the factor 1 - learning rate · decay."
    for name, p, old, stepped in zip(PARAMS, params, before, after_steps(before, X, Y, 0.01, 1), strict=True):
        right_weights = stepped - 0.05 * old * (name in ("W1", "W2"))
        same = torch.allclose(p.detach(), right_weights, atol=0.01)  # whether it shrinks before or after the step
        expect(same, f"{name} after a step with decay", right_weights, p.detach(), why)


@exercise("11b")
def _(verdicts: dict[str, str], table: dict[str, tuple[float, float]]) -> None:
    """Compare the two losses of a run. Where train is as high as dev, the network has no room for more."""
    for name in ("3 hidden units", "500 names"):
        train, dev = table[name]
        right = "overfits" if dev - train > 0.2 else "underfits"
        found = str(verdicts.get(name, "")).strip().lower()
        expect(found in ("underfits", "overfits"), f"the verdict on {name}", "underfits or overfits", repr(found))
        expect(
            found == right,
            f"{name}: train {train:.3f}, dev {dev:.3f}",
            "the other verdict: is train far below dev?",
            repr(found),
        )


@exercise("12")
def _(principal_components: Callable[..., Any]) -> None:
    """`torch.linalg.svd(centred, full_matrices=False)` returns U, S and Vh; the rows of Vh are directions, the most
    important first."""
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(27, 6, generator=generator) * torch.tensor([1.0, 3.0, 0.5, 1.0, 6.0, 0.2]) + 5.0
    found = tensor(run(principal_components, table), "the points", (27, 2)).double()

    def project(rows: Tensor) -> Tensor:
        directions: Tensor = torch.linalg.svd(rows, full_matrices=False)[2]
        return rows @ directions[:2].T

    right = project((table - table.mean(0)).double())

    def same(a: Tensor, b: Tensor) -> bool:  # either sign of a direction is right, and any place of the whole map
        a = a - a.mean(0)
        return all(min((a[:, i] - b[:, i]).abs().max(), (a[:, i] + b[:, i]).abs().max()) < 1e-2 for i in range(2))

    uncentred = project(table.double())
    why = "The first direction leads to the mean of the table: subtract `table.mean(0)` first."
    expect(not same(found, uncentred - uncentred.mean(0)), "the points of a table", right, found, why)
    expect(same(found, right), "the points of a table, signs apart", right, found)


@exercise("13")
def _(sample: Callable[..., Any], params: list[Tensor], ids: dict[str, int], context_size: int) -> str | None:
    """`probs = F.softmax(forward(params, torch.tensor([context])), 1)`, then `int(torch.multinomial(probs, 1,
    generator=generator))`; 0 ends the name."""
    generator = torch.Generator().manual_seed(1)
    few = [run(sample, params, ids, context_size, generator) for _ in range(30)]
    expect(all(isinstance(name, str) for name in few), "a name", "a string", few[0])
    expect(not any("." in name for name in few), "a name", "its letters alone", few[0], "The boundary is no letter.")
    why = "The most probable letter each time makes the same name each time: draw, with `torch.multinomial`."
    expect(len(set(few)) > 5, "30 names", "nearly all different", f"{len(set(few))} different: {few[0]}", why)
    print("Exercise 13: drawing 10,000 names, which takes some seconds …")
    names = few + [sample(params, ids, context_size, generator) for _ in range(9_970)]
    network, of_id = as_mlp(params, context_size), {i: token for token, i in ids.items()}
    drawn = generate(
        network.log_probs, len(names), context_size, Sampling(), max_length=100, generator=generator.manual_seed(2)
    )
    program = ["".join(of_id[i] for i in numbers) for numbers, _ in drawn]
    views: dict[str, Callable[[str], object]] = {
        "the first two letters": lambda name: name[:2],
        "the last two letters": lambda name: name[-2:],
        "the length": len,
    }
    for what, view in views.items():
        p = chi_square([view(name) for name in names], [view(name) for name in program])
        right = "as often as in the program's (p above 0.0001 in a chi-square test)"
        expect(p > 1e-4, f"{what} of 10,000 names", right, f"p = {p:.1e}", "Another distribution than the network's.")
    return "10,000 names are distributed as those of the program."


def chi_square(a: Sequence[object], b: Sequence[object]) -> float:
    """The p-value of Pearson's test that two samples of one size have one distribution; what is rare is one class."""
    kinds = sorted({*a, *b}, key=str)
    place = {kind: i for i, kind in enumerate(kinds)}
    counts = np.stack([np.bincount([place[kind] for kind in sample], minlength=len(kinds)) for sample in (a, b)])
    rare = counts.sum(0) < 20
    counts = np.column_stack([counts[:, ~rare], counts[:, rare].sum(1)])
    counts = counts[:, counts.sum(0) > 0]
    statistic = ((counts[0] - counts[1]) ** 2 / counts.sum(0)).sum()
    freedom = torch.tensor(max(counts.shape[1] - 1, 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64)))


@exercise("14")
def _(better_params: Callable[..., Any], X: Tensor, Y: Tensor) -> str | None:
    """A pre-activation is a sum of T·E products of variance 1, and of b1; divide W1 by the square root of that number,
    and make b1 0. Make W2 small and b2 0. Change values under `torch.no_grad()`, in place: `W1 *= …`."""
    V, T, E, H = int(max(X.max(), Y.max())) + 1, X.shape[1], 10, 200
    params = run(better_params, V, T, E, H, torch.Generator().manual_seed(1))
    shapes = [(V, E), (T * E, H), (H,), (H, V), (V,)]
    for name, p, shape in zip(PARAMS, params, shapes, strict=True):
        tensor(p, name, shape)
        expect(
            p.requires_grad and p.is_leaf,
            name,
            "a leaf that requires a gradient",
            "a new tensor",
            "Change it in place.",
        )
    C, W1, b1, W2, b2 = (p.detach() for p in params)
    z = C[X].flatten(1) @ W1 + b1
    h = torch.tanh(z)
    loss = F.cross_entropy(h @ W2 + b2, Y).item()
    expect(abs(loss - math.log(V)) < 0.05, f"the first loss; ln {V} = {math.log(V):.3f}", f"{math.log(V):.3f}", loss)
    beyond = (h.abs() > 0.97).float().mean().item()
    expect(beyond < 0.3, "units beyond ±0.97", "less than 30 %", f"{beyond:.0%}", "W1, or b1, is still too large.")
    why = "If all units do the same, their gradients are the same as well, and they stay so."
    expect(
        float(z.std(1).mean()) > 0.3, "the spread of the units' pre-activations", "about 1", float(z.std(1).mean()), why
    )
    return f"First loss {loss:.3f}, ln {V} = {math.log(V):.3f}; {beyond:.1%} of the units beyond ±0.97."


@exercise("15")
def _(backward: Callable[..., Any]) -> str | None:
    """`d_logits = (softmax - one-hot) / B`. For `y = x @ W + b`: W gets `x.T @ dy`, b the sum of dy over rows, x gets
    `dy @ W.T`. In C, every row of d_e is added to the row that it came from: `index_add_`."""
    params, (X, Y) = a_network(), some_windows()
    C, W1, b1, W2, b2 = params
    e = C[X]
    e.retain_grad()
    loss = F.cross_entropy(torch.tanh(e.flatten(1) @ W1 + b1) @ W2 + b2, Y)
    loss.backward()  # type: ignore[no-untyped-call]
    found = run(backward, [p.detach() for p in params], X, Y)
    assert e.grad is not None
    overwritten = torch.zeros_like(C)
    overwritten[X] = e.grad
    for name, p, gradient in zip(PARAMS, params, found, strict=True):
        assert p.grad is not None
        values = tensor(gradient, f"the gradient of {name}", p.shape)
        why = ""
        if close(values, len(X) * p.grad):
            why = "It is B times too large: the loss is a mean."
        elif close(values, -p.grad):
            why = "It has the opposite sign."
        elif name == "C" and close(values, overwritten):
            why = "A token that stands in several places got the gradient of one of them; they add up: `index_add_`."
        expect(close(values, p.grad), f"the gradient of {name}", p.grad, values, why)
    network = as_mlp(params, 3).requires_grad_()
    FusedSGD(network).run(X[None], Y[None], [0.3])
    after = C.detach() - 0.3 * found[0].to(C.dtype)
    expect(close(network.embedding.weight.detach(), after), "C after a step", network.embedding.weight.detach(), after)
    return "A step with these gradients is that of the program."


@exercise("16")
def _(bigram_counts: Callable[..., Any], num_contexts: Callable[..., Any], best_weight: Callable[..., Any]) -> None:
    """Count pairs of neighbours in `[0, *encode(name), 0]`. A set of tuples has every context once. For the weight, try
    a thousand values from 0 to 1."""
    found = tensor(run(bigram_counts, ["ab", "b"], {".": 0, "a": 1, "b": 2}), "the counts", (3, 3))
    right = torch.tensor([[0, 1, 1], [0, 0, 1], [2, 0, 0]])
    why = "Rows are what comes first, columns what follows." if close(found, right.T) else ""
    why = why or ("A name begins and ends with a boundary." if found[0].sum() == 0 or found[:, 0].sum() == 0 else "")
    expect(close(found, right), 'the bigrams of "ab" and "b", in the order . a b', right, found, why)
    X = torch.tensor([[0, 0], [0, 1], [0, 0], [1, 0]])
    expect(int(run(num_contexts, X)) == 3, "different contexts in [[0, 0], [0, 1], [0, 0], [1, 0]]", 3, num_contexts(X))
    p = torch.rand(2, 500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p[0] = p[0] ** 0.8
    weight, right_weight = float(run(best_weight, p[0], p[1])), float(best_weights(p)[0])
    expect(abs(weight - right_weight) < 0.02, "the best weight of the first of two models", right_weight, weight)


@exercise("17")
def _(tokenize: Callable[..., Any], nearest: Callable[..., Any]) -> None:
    """`re.findall` with a pattern for a word and one for any other visible character:
    `\\w+(?:'\\w+)*|[^\\w\\s]`. Cosines are products of rows of length 1: `F.normalize(table, dim=1)`."""
    text = "The cat's asleep, isn't it? 'Yes.'"
    found = list(run(tokenize, text))
    right = ["The", "cat's", "asleep", ",", "isn't", "it", "?", "'", "Yes", ".", "'"]
    why = "Punctuation still sticks to words." if any(len(t) > 1 and t[-1] in ",?." for t in found) else ""
    if "cat's" not in found or "'Yes" in found:
        why = "An apostrophe inside a word is part of it, one at its end is not."
    expect(found == right, f"the tokens of {text!r}", right, found, why)
    tokens = ["", "one", "two", "three", "four"]
    table = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [9.0, 2.0], [1.0, 1.0], [20.0, 40.0]])
    found = list(run(nearest, table, tokens, "one", 2))
    why = ""
    if "one" in found:
        why = "A token is not its own neighbour."
    elif found == ["three", "two"]:
        why = "These have the smallest distances; for cosines, lengths do not matter."
    elif found[0] == "four":
        why = "These have the largest products; divide by the lengths."
    what = "the two nearest to one = (1, 0) of two = (9, 2), three = (1, 1), four = (20, 40)"
    expect(found == ["two", "three"], what, ["two", "three"], found, why)
