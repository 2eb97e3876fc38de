"""The rooms of the package and the direction between them; what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "mlp_lm"
FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))
ROOMS = ["text", "models", "exports", "training", "commands"]  # data walks through them in this order
ROOT = {"__version__", "errors", "files", "function_parser", "parsing", "runs", "settings", "terminal"}  # for everybody
# What entry points may import beside, named in full.
EXCEPTIONS = {
    "__init__.py": {"mlp_lm.models.checkpoint.load", "mlp_lm.models.sampling.Sampling"},
    "__main__.py": {"mlp_lm.cli.run_and_end"},
    "cli.py": {"mlp_lm.commands.COMMANDS"},
}
TRAIN = {f"commands/{name}.py" for name in ("fit", "evaluation", "lr_find", "study")}


def imports(file: str) -> Iterator[str]:
    """What a file imports, wherever in it, with the module's name in front."""
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: expected absolute imports"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def allowed(file: str, room: str) -> bool:
    """Whether a file may import from a room, or from a module of the root."""
    own = file.split("/")[0]
    if own == "figures":
        return room in {*ROOT, "figures"}
    if own not in ROOMS:  # of the root
        return room in ROOT
    earlier = ROOMS[: ROOMS.index(own) + 1]
    drawing = {"figures"} if own in ("exports", "training", "commands") else set()
    return room in {*ROOT, *earlier, *drawing}


@pytest.mark.parametrize("file", FILES)
def test_a_room_imports_only_from_rooms_before_it_and_from_the_root(file: str) -> None:
    ours = {name for name in imports(file) if name.split(".")[0] == "mlp_lm"} - EXCEPTIONS.get(file, set())
    assert [name for name in ours if not allowed(file, name.split(".")[1])] == []


@pytest.mark.parametrize("file", FILES)
def test_only_training_and_the_commands_that_train_know_lightning(file: str) -> None:
    known = {name.split(".")[0] for name in imports(file)} & {"lightning", "pytorch_lightning", "torchmetrics"}
    assert not known or file.startswith("training/") or file in TRAIN


def test_datamodule_and_module_do_not_know_each_other() -> None:
    assert not any(name.startswith("mlp_lm.training.module") for name in imports("training/datamodule.py"))
    assert not any(name.startswith("mlp_lm.training.datamodule") for name in imports("training/module.py"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import mlp_lm", "torch lightning numpy jsonargparse"),
        ("import mlp_lm.cli; mlp_lm.cli.main(['--help'])", "torch lightning numpy jsonargparse optuna"),
        ("import mlp_lm.cli; mlp_lm.cli.main(['--version'])", "torch lightning numpy jsonargparse"),
        ("import mlp_lm.cli; mlp_lm.cli.main(['inspect', 'names', '--item=emma'])", "torch lightning matplotlib"),
        ("import mlp_lm.runs", "torch lightning tensorboard"),
        ("import mlp_lm.commands.plot", "lightning torchmetrics matplotlib tensorboard"),
        ("import mlp_lm.commands.sweep", "torch lightning matplotlib"),
        (
            "import mlp_lm.commands.fit",
            "optuna mlp_lm.models.ngram mlp_lm.models.mixture mlp_lm.models.views mlp_lm.text.statistics "
            "mlp_lm.training.teacher mlp_lm.training.fast_lane",
        ),
        ("import mlp_lm.commands.sample, mlp_lm.commands.score; mlp_lm.load", "lightning torchmetrics matplotlib"),
    ],
)
def test_importing_loads_no_more_than_it_needs(code: str, absent: str) -> None:
    check = f"import sys; {code}; sys.exit(', '.join(m for m in {absent.split()!r} if m in sys.modules))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert result.stderr.strip() == ""
