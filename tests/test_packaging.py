"""What an installation contains."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_wheel_contains_the_bundled_names_and_their_licence(tmp_path: Path) -> None:
    source = tmp_path / "source"  # building in the checkout would leave files there, and find old ones
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "mlp_lm", source / "mlp_lm")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    content = zipfile.ZipFile(wheel)
    assert {"mlp_lm/text/names.txt", "mlp_lm/text/names.md", "mlp_lm/py.typed"} <= set(content.namelist())
    assert content.read("mlp_lm/text/names.txt") == (ROOT / "mlp_lm" / "text" / "names.txt").read_bytes()
    assert not any(name.startswith(("tests/", "scripts/", "configs/")) for name in content.namelist())
