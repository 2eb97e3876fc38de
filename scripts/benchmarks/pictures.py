"""Draw the pictures of the README: an embedding map beside names that a network made up, and the exported page.

    python -m mlp_lm fit --config configs/names.yaml
    python -m mlp_lm fit --config configs/names.yaml --model.embedding_dim 2 --run_dir runs/map
    python -m mlp_lm ngram names --orders 5 --save counts.safetensors
    python scripts/benchmarks/pictures.py runs/names/version_0 runs/map counts.safetensors

They are committed, so that nobody needs a run to look at the README. The page needs the extra `test`, and Chromium.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from mlp_lm import Sampling, load
from mlp_lm.cli import main as mlp_lm
from mlp_lm.figures import curves, networks

FOLDER = Path(__file__).resolve().parent / "pictures"
NUM_NAMES = 14


def draw_names(run: str, flat_run: str, path: Path) -> None:
    """The map of the embeddings of `flat_run` beside names that the network of `run` made up."""
    model, flat = load(run), load(flat_run)
    assert flat.network is not None
    figure = curves.new_figure(10, 5.6)
    left, right = figure.subplots(1, 2, width_ratios=[2.2, 1])
    table = flat.network.embedding.weight.detach().numpy()
    networks.embedding_map(left, table, [flat.vocab.show(i) for i in range(len(flat.vocab))])
    names = model.sample(NUM_NAMES, Sampling(seed=1, only_new=True))
    right.set_title("Names the network made up\n(none is in its data)", loc="left", x=0.1)
    for row, name in enumerate(names):
        right.text(0.1, 1 - (row + 0.5) / NUM_NAMES, str(name), size=15, va="center")
    right.set_axis_off()
    curves.save(figure, str(path))


def chromium() -> str:
    """The browser."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    sys.exit("Chromium is not installed; on Debian: apt-get install chromium")


def take_page(run: str, counts: str, path: Path) -> None:
    """The upper part of the page of `run`, after "mari" was typed and while a unit is looked at."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = Path(folder) / "names.html"
        assert mlp_lm(["export", run, f"--counts={counts}", f"--output={page}"]) == 0
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1000, "height": 1180})
        tab.goto(page.as_uri())
        tab.wait_for_selector("body[data-ready]")
        tab.fill("#text", "mari")
        tab.hover("#layers canvas", position={"x": 203, "y": 12})
        tab.screenshot(path=path)
        browser.close()


def main() -> None:
    run, flat_run, counts = sys.argv[1:]
    FOLDER.mkdir(exist_ok=True)
    draw_names(run, flat_run, FOLDER / "names.png")
    take_page(run, counts, FOLDER / "page.png")
    for path in (FOLDER / "names.png", FOLDER / "page.png"):
        Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)  # half the size


if __name__ == "__main__":
    main()
