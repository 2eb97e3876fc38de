"""What an installation contains, and from where it can be used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from mlp_lm import __version__
from tests.conftest import ROOT, fit


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what is packaged, as building may leave files there; the folder is named as `git clone` names it."""
    copy = tmp_path / "mlp_lm"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "mlp_lm", copy / "mlp_lm")
    return copy


def pip(*args: str | Path) -> None:
    """Run pip with the build backend that is installed here, so that it fetches nothing."""
    subprocess.run([sys.executable, "-m", "pip", *args, "--quiet", "--no-deps", "--no-build-isolation"], check=True)


@pytest.mark.slow
def test_the_wheel_contains_the_bundled_names_and_their_licence(checkout: Path, tmp_path: Path) -> None:
    pip("wheel", checkout, "--wheel-dir", tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    content = zipfile.ZipFile(wheel)
    licence = f"mlp_lm-{__version__}.dist-info/licenses/LICENSE"
    page = {f"mlp_lm/exports/page/{name}" for name in ("page.html", "page.css", "app.js")}
    data = {"mlp_lm/text/names.txt", "mlp_lm/text/names.md", "mlp_lm/py.typed", licence, *page}
    assert data <= set(content.namelist())
    assert content.read("mlp_lm/text/names.txt") == (ROOT / "mlp_lm" / "text" / "names.txt").read_bytes()
    assert not any(name.startswith(("tests/", "scripts/", "configs/")) for name in content.namelist())


@pytest.fixture
def environment(checkout: Path, tmp_path: Path) -> Path:
    """A virtual environment with an editable install of that checkout."""
    folder = tmp_path / "environment"
    venv.create(folder)
    pip("install", "--ignore-installed", "--prefix", folder, "--editable", checkout)
    return folder


def python(environment: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python in an environment, in the folder above the checkout; the dependencies come from here."""
    variables = {**os.environ, "PYTHONPATH": str(Path(torch.__file__).parents[1])}
    command = [environment / "bin" / "python", *args]
    return subprocess.run(command, cwd=environment.parent, env=variables, capture_output=True, text=True)


@pytest.mark.slow
def test_the_python_example_runs_in_the_folder_above_an_editable_checkout(
    environment: Path, checkout: Path, tmp_path: Path
) -> None:
    fit("names", tmp_path / "runs" / "names" / "version_0")
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [text for text in examples if "from mlp_lm import" in text]
    result = python(environment, "-c", f"{example}import mlp_lm; print(mlp_lm.__file__)")
    assert result.returncode == 0, result.stderr
    *items, file = result.stdout.split()
    assert len(items) == 10 and file == str(checkout / "mlp_lm" / "__init__.py")


@pytest.mark.slow
def test_the_console_script_does_what_the_module_does(environment: Path) -> None:
    for args, code in ((["--version"], 0), (["inspect", "absent"], 2)):
        script = python(environment, environment / "bin" / "mlp_lm", *args)
        module = python(environment, "-m", "mlp_lm", *args)
        assert (script.returncode, script.stdout, script.stderr) == (code, module.stdout, module.stderr)
