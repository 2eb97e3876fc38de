"""The lecture as a program: that it runs, and that its checks tell right from wrong."""

from __future__ import annotations

import ast
import json
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lecture_checks
import lecture_copy
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lecture_checks import CheckError, check, hint, solution
from torch import Tensor

from tests.conftest import ROOT

LECTURE = ROOT / "scripts" / "lecture" / "lecture.py"
SOLUTION = re.compile(r"# BEGIN SOLUTION.*?# END SOLUTION", re.DOTALL)


def code_cells() -> list[str]:
    """The code of the lecture's notebook, cell by cell."""
    notebook = json.loads(lecture_copy.as_notebook(LECTURE.read_text(encoding="utf-8")))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_notebook_runs_and_each_missing_solution_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lecture.py"])
    cells, globals_ = code_cells(), {"__name__": "__main__"}
    solutions = 0
    for number, cell in enumerate(cells):
        found = list(SOLUTION.finditer(cell))
        for gap in found:
            trial = globals_.copy()
            exec(cell[: gap.start()] + "..." + cell[gap.end() :], trial)
            checked = next(later for later in cells[number + 1 :] if later.startswith("check("))
            key = re.findall(r'check\("?(\w+)', checked)[0]
            with pytest.raises(CheckError, match=f"^Exercise {key} is not right yet"):
                exec(checked, trial)
        solutions += len(found)
        exec(cell, globals_)
    assert solutions == LECTURE.read_text(encoding="utf-8").count("# BEGIN SOLUTION") > 17
    assert capsys.readouterr().out.count(": right.") == sum(cell.startswith("check(") for cell in cells)
    assert {path.stem for path in tmp_path.glob("runs/lecture/*.png")} == {
        "9_losses",
        "10_range_test",
        "12_letters",
        "14_first_loss",
    }


def test_every_place_that_the_lecture_names_is_in_the_program() -> None:
    places = re.findall(r"`([\w/]+\.py):([\w.]+)`", LECTURE.read_text(encoding="utf-8"))
    assert len(places) >= 17
    for path, name in places:
        body: list[ast.stmt] = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
        for part in name.split("."):
            (found,) = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part]
            body = found.body


# -- the exercises -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_exercises_stop_at_the_first_check(tmp_path: Path) -> None:
    lecture_copy.main(["--exercises", str(tmp_path / "mine")])
    script = tmp_path / "mine" / "lecture_exercises.py"
    ended = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert ended.returncode == 1
    assert (
        ended.stderr.splitlines()[0]
        == "Exercise 1 is not right yet: read_names returns nothing yet (a missing `return`?)"
    )
    assert "Traceback" not in ended.stderr


def test_exercises_have_places_for_solutions_and_no_cells_for_the_master() -> None:
    script = (
        '# %% tags=["master"]\nimport sys\n\n# %% [markdown]\n# Add.\n\n# %%\ndef add(a, b):\n    # BEGIN SOLUTION\n'
        "    return a + b\n    # END SOLUTION\n"
    )
    assert lecture_copy.without_solutions(script) == (
        "# %% [markdown]\n# Add.\n\n# %%\ndef add(a, b):\n    ...  # your code\n"
    )
    notebook = json.loads(lecture_copy.as_notebook("# %% [markdown]\n# # Sums\n#\n# Add.\n\n# %%\nprint(1 + 1)\n"))
    assert notebook["cells"] == [
        {"id": "cell-0", "metadata": {}, "source": ["# Sums\n", "\n", "Add."], "cell_type": "markdown"},
        {
            "id": "cell-1",
            "metadata": {},
            "source": ["print(1 + 1)"],
            "cell_type": "code",
            "execution_count": None,
            "outputs": [],
        },
    ]
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)


def test_exercises_come_with_names_and_are_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "some.txt"
    names.write_text("ava\nemma\n", encoding="utf-8")
    args = ["--exercises", str(tmp_path / "mine"), "--notebook", "--names", str(names)]
    assert lecture_copy.main(args) == 0
    assert (tmp_path / "mine" / "names.txt").read_text(encoding="utf-8") == "ava\nemma\n"
    (tmp_path / "mine" / "lecture_exercises.ipynb").write_text("work", encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        lecture_copy.main(args)
    assert "lecture_exercises.py: exists, and may have your work in it" in capsys.readouterr().err
    assert (tmp_path / "mine" / "lecture_exercises.ipynb").read_text(encoding="utf-8") == "work"


def test_names_come_as_the_checks_read_them(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_bytes(b"\xef\xbb\xbf  rene\xcc\x81\r\n\r\nava")  # a BOM, an accent of its own
    lecture_copy.write_exercises(tmp_path / "mine", str(tmp_path / "some.txt"), notebook=False)
    assert (tmp_path / "mine" / "names.txt").read_text(encoding="utf-8") == "ren\u00e9\nava\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, ": no such file; expected a text file"),
        ("ava\nst. john\n", ":2: found 'st. john', but the dot is the boundary in the exercises; leave it out"),
    ],
)
def test_names_that_are_no_good_are_one_line(
    content: str | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "some.txt").write_text(content)
    with pytest.raises(SystemExit, match="2"):
        lecture_copy.main(["--exercises", str(tmp_path / "mine"), "--names", str(tmp_path / "some.txt")])
    err = capsys.readouterr().err
    assert err.startswith(f"lecture.py: {tmp_path / 'some.txt'}{told}") and err.count("\n") == 1
    assert not (tmp_path / "mine").exists()


def test_hints_and_solutions_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    hint(6)
    solution(6)
    solution(18)
    said = capsys.readouterr().out
    assert said.startswith("`embeddings.view(B, T * E)`")
    assert "return embeddings.view(B, T * E)" in said and "SOLUTION" not in said
    assert said.endswith("there are exercises 1 to 17\n")


# -- right in another way ----------------------------------------------------------------------------------------------


def test_windows_may_be_arrays_of_bytes_in_any_order() -> None:
    def windows(names: list[str], ids: dict[str, int], context_size: int) -> Any:
        rows = []
        for name in reversed(names):
            stream = [0] * context_size + [ids[letter] for letter in name] + [0]
            rows += [stream[i : i + context_size + 1] for i in range(len(name) + 1)]
        table = np.array(rows, np.uint8)
        return table[:, :-1], table[:, -1]

    check(3, windows)


def test_a_vocabulary_may_have_any_order() -> None:
    def build_vocab(names: list[str]) -> dict[str, int]:
        return {".": 0} | {letter: i for i, letter in enumerate(dict.fromkeys("".join(names)), start=1)}

    def encode(name: str, ids: dict[str, int]) -> Tensor:
        return torch.tensor([ids[letter] for letter in name], dtype=torch.int32)

    def decode(numbers: list[int], ids: dict[str, int]) -> str:
        return "".join(next(letter for letter, i in ids.items() if i == number) for number in numbers)

    check(2, build_vocab, encode, decode)


def test_a_split_may_shuffle_in_its_own_way(capsys: pytest.CaptureFixture[str]) -> None:
    def split(names: list[str], seed: int) -> list[list[str]]:
        order = np.random.default_rng(seed).permutation(len(names))
        cuts = [int(0.8 * len(names)), int(0.9 * len(names))]
        return [[names[i] for i in part] for part in np.split(order, cuts)]

    check(4, split)
    assert "another shuffle than random.Random(seed)'s" in capsys.readouterr().out


# -- wrong, and told by a message of its own ---------------------------------------------------------------------------


def forward(params: list[Tensor], X: Tensor) -> Tensor:
    C, W1, b1, W2, b2 = params
    return torch.tanh(C[X].flatten(1) @ W1 + b1) @ W2 + b2


def sliding(stream: list[int], context_size: int) -> Iterator[list[int]]:
    return (stream[i : i + context_size + 1] for i in range(len(stream) - context_size))


def windows_across_names(names: list[str], ids: dict[str, int], context_size: int) -> Any:
    stream = [0] * context_size + [i for name in names for i in [*(ids[c] for c in name), 0]]
    rows = torch.tensor([*sliding(stream, context_size)])
    return rows[:, :-1], rows[:, -1]


def windows_without_an_end(names: list[str], ids: dict[str, int], context_size: int) -> Any:
    streams = ([0] * context_size + [ids[c] for c in name] for name in names)
    rows = torch.tensor([row for stream in streams for row in sliding(stream, context_size)])
    return rows[:, :-1], rows[:, -1]


def vocab_without_boundary(names: list[str]) -> dict[str, int]:
    return {letter: i for i, letter in enumerate(sorted(set("".join(names))))}


def shuffled_after_the_cut(names: list[str], seed: int) -> list[list[str]]:
    parts = [names[: int(0.8 * len(names))], names[int(0.8 * len(names)) : int(0.9 * len(names))]]
    parts.append(names[int(0.9 * len(names)) :])
    for part in parts:
        random.Random(seed).shuffle(part)
    return parts


def below_each_other(embeddings: Tensor) -> Tensor:
    return torch.cat(torch.unbind(embeddings, 1), dim=0)


def copied(embeddings: Tensor) -> Tensor:
    return torch.cat(torch.unbind(embeddings, 1), dim=1)


def softmax_of_columns(logits: Tensor, targets: Tensor) -> Tensor:
    return -logits.softmax(0)[torch.arange(len(targets)), targets].log().mean()


def without_keepdim(logits: Tensor, targets: Tensor) -> Tensor:
    counts = logits.exp()
    return -(counts / counts.sum(1))[torch.arange(len(targets)), targets].log().mean()


def no_overflow(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets)


def step_without_zeroing(params: list[Tensor], X: Tensor, Y: Tensor, learning_rate: float) -> float:
    loss = F.cross_entropy(forward(params, X), Y)
    torch.autograd.backward(loss)
    with torch.no_grad():
        for p in params:
            assert p.grad is not None
            p -= learning_rate * p.grad
    return loss.item()


def draw_batch(num_windows: int, batch_size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(num_windows, (batch_size,), generator=generator)


def a_step_too_late(step: int, max_steps: int) -> float:
    return 0.1 if step <= max_steps // 2 else 0.01


def half_and_half(i: int, max_steps: int) -> float:
    return 0.1 if i < max_steps // 2 else 0.01


def train_on_one_batch(
    params: list[Tensor], X: Tensor, Y: Tensor, max_steps: int, generator: torch.Generator, update: Any
) -> list[float]:
    batch = draw_batch(len(X), 32, generator)
    return [update(params, X[batch], Y[batch], half_and_half(i, max_steps)) for i in range(max_steps)]


def by_argmax(params: list[Tensor], ids: dict[str, int], context_size: int, generator: torch.Generator) -> str:
    return "aaaa"


def unzeroed_rows(params: list[Tensor], X: Tensor, Y: Tensor) -> list[Tensor]:
    weights = [p.clone().requires_grad_() for p in params]
    e = weights[0][X]
    logits = torch.tanh(e.flatten(1) @ weights[1] + weights[2]) @ weights[3] + weights[4]
    d_e, *gradients = torch.autograd.grad(F.cross_entropy(logits, Y), [e, *weights[1:]])
    d_table = torch.zeros_like(weights[0])
    d_table[X] = d_e  # overwrites where it should add
    return [d_table, *gradients]


@pytest.mark.parametrize(
    ("key", "work", "told"),
    [
        (2, [vocab_without_boundary, None, None], "The boundary is missing"),
        (3, [windows_across_names], "A context reaches into the name before"),
        (3, [windows_without_an_end], "The boundary is missing as a target"),
        (4, [shuffled_after_the_cut], "Shuffle first, then cut"),
        (6, [below_each_other], "below each other, as with dim=0; they belong in one row"),
        (6, [copied], "The numbers are right, but copied"),
        (7, [forward, softmax_of_columns], "The probabilities are those of columns"),
        (7, [forward, without_keepdim], "`keepdim=True` is missing"),
        (7, [forward, no_overflow], "This version does not overflow"),
        (8, [step_without_zeroing, None], "Gradients add up"),
        (9, [draw_batch, a_step_too_late, None], "The drop comes at the wrong step"),
        (9, [draw_batch, half_and_half, train_on_one_batch], "Draw a new batch inside the loop"),
        (13, [by_argmax, [], {}, 3], "The most probable letter each time"),
        (15, [unzeroed_rows], "they add up: `index_add_`"),
    ],
)
def test_a_typical_mistake_is_told_by_its_own_message(key: int, work: list[Callable[..., Any]], told: str) -> None:
    with pytest.raises(CheckError, match=re.escape(told)):
        check(key, *work)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="without signals there is no limit")
def test_a_loop_that_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(*_: object) -> str:
        while True:
            pass

    monkeypatch.setattr(lecture_checks, "SECONDS", 0.2)
    with pytest.raises(CheckError, match=r"sample has not ended after 0\.2 seconds"):
        check(13, sample, [], {}, 3)


def test_an_error_in_the_reader_s_function_is_one_message() -> None:
    def read_names(path: Path) -> list[str]:
        return path.read_lines()  # type: ignore[attr-defined, no-any-return]

    with pytest.raises(CheckError) as told:
        check(1, read_names, len)
    assert str(told.value).startswith("Exercise 1 is not right yet: read_names raised AttributeError: ")
    assert "in its line `return path.read_lines()" in str(told.value)
