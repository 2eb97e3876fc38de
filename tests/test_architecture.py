"""The rooms of the package and the direction between them; what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "mlp_lm"
ROOMS = ["text", "models", "training", "commands"]  # data walks through them in this order
MAY_CALL_ANY_ROOM = {"cli.py", "__init__.py"}  # the entry points
WITHOUT_TORCH = {"vocab.py", "corpus.py", "datasets.py", "statistics.py", "inspect.py", "runs.py", "curves.py"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_from_rooms_before_it_and_from_the_root(path: Path) -> None:
    own = room(path)
    for module in imports(path):
        parts = module.split(".")
        target = parts[1] if parts[0] == "mlp_lm" and len(parts) > 1 and parts[1] in ROOMS else ""
        if target and own in ROOMS:
            assert ROOMS.index(target) <= ROOMS.index(own), f"{path} imports {module}"
            assert not (own == target == "commands"), f"{path}: commands never import each other"
        elif target:
            assert own == "" and path.name in MAY_CALL_ANY_ROOM, f"{path} in the root imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_torch_and_lightning_stay_in_their_rooms(path: Path) -> None:
    top_level = {module.split(".")[0] for module in imports(path)}
    if room(path) != "training":
        assert not top_level & {"lightning", "pytorch_lightning", "torchmetrics"}
    if room(path) in ("", "figures") or path.name in WITHOUT_TORCH:
        assert "torch" not in top_level
    if path.parent.name == "sweep" and path.name != "points.py":  # sweep has no need to wait for them
        assert not top_level & {"torch", "lightning"}


def test_datamodule_and_module_do_not_know_each_other() -> None:
    assert "mlp_lm.training.module" not in imports(PACKAGE / "training" / "datamodule.py")
    assert "mlp_lm.training.datamodule" not in imports(PACKAGE / "training" / "module.py")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import mlp_lm", "torch lightning numpy jsonargparse"),
        ("import mlp_lm.cli; mlp_lm.cli.main(['--help'])", "torch lightning numpy jsonargparse"),
        ("import mlp_lm.text.corpus, mlp_lm.training.runs", "torch lightning"),
        ("import mlp_lm.cli; mlp_lm.cli.main(['inspect', 'names', '--item=emma'])", "torch lightning matplotlib"),
        ("import mlp_lm.commands.plot", "lightning torchmetrics matplotlib tensorboard"),
        ("import mlp_lm.commands.sweep", "torch lightning matplotlib"),
        ("import mlp_lm.commands.sample, mlp_lm.commands.score; mlp_lm.load", "lightning torchmetrics matplotlib"),
    ],
)
def test_importing_loads_no_more_than_it_needs(code: str, absent: str) -> None:
    check = f"import sys; {code}; sys.exit(', '.join(m for m in {absent.split()!r} if m in sys.modules))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert result.stderr.strip() == ""
