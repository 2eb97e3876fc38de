"""What TensorBoard serves of a run, asked as its own page asks.

    python scripts/check_tensorboard.py runs/names/version_0 [--screenshots FOLDER]

Starts TensorBoard on 127.0.0.1, asks its data endpoints for scalars, texts, images, histograms, hyperparameters and
embeddings, compares them with what the run's config.yaml asks for (`trainer.log_…`), and stops it. With
`--screenshots`, headless Chromium (`apt install chromium`) takes a picture of each tab. Exit code 1 where something
is missing, or there though it was turned off.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

TABS = ("timeseries", "scalars", "custom_scalars", "images", "text", "histograms", "hparams", "projector")
SECONDS_TO_START, SECONDS_TO_LOAD = 60, 30


@contextmanager
def tensorboard(run: Path) -> Iterator[str]:
    """The address of a TensorBoard that shows `run` alone, for as long as it is needed."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            yield address_of(server)
        finally:
            server.terminate()


def address_of(server: subprocess.Popen[str]) -> str:
    """The address that TensorBoard says on stderr once it listens."""
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
            return found[0]
    raise SystemExit("TensorBoard did not start")


def ask(address: str, endpoint: str, post: dict[str, Any] | None = None, **query: str) -> Any:
    """The answer of one of TensorBoard's data endpoints; None where it has no such data."""
    url = f"{address}data/plugin/{endpoint}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
    body = None if post is None else json.dumps(post).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"} if body else {})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS_TO_START) as response:
            text = response.read().decode()
    except urllib.error.HTTPError as error:
        if error.code in (400, 404):
            return None
        raise
    return json.loads(text) if text[:1] in "[{" else text


def served(address: str) -> dict[str, list[str]]:
    """What there is to see, by kind."""
    found = {kind: tags(ask(address, f"{kind}/tags")) for kind in ("scalars", "text", "images", "histograms")}
    layout = ask(address, "custom_scalars/layout") or {}
    found["layout"] = [
        tag
        for category in layout.get("category", [])
        for chart in category.get("chart", [])
        for tag in chart["multiline"]["tag"]
    ]
    every = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    query = {"startIndex": 0, "sliceSize": 10, "colParams": [], "allowedStatuses": every}
    groups = ask(address, "hparams/session_groups", query) or {}
    found["hparams"] = [
        name
        for group in groups.get("sessionGroups", [])
        for name in (*sorted(group["hparams"]), *(metric["name"]["tag"] for metric in group["metricValues"]))
    ]
    runs = ask(address, "projector/runs") or []
    found["projector"] = [label for run in runs for label in embedding_labels(address, run)]
    return found


def tags(by_run: dict[str, Any] | None) -> list[str]:
    """The different tags of all runs, sorted."""
    return sorted({tag.split("/text_summary")[0] for of_run in (by_run or {}).values() for tag in of_run})


def embedding_labels(address: str, run: str) -> list[str]:
    """The labels of the embeddings of a run, one a row."""
    info = ask(address, "projector/info", run=run) or {}
    texts = [
        ask(address, "projector/metadata", run=run, name=embedding["tensorName"])
        for embedding in info.get("embeddings", [])
    ]
    return [label for text in texts for label in (text or "").splitlines()]


def problems(found: dict[str, list[str]], config: dict[str, Any]) -> Iterator[str]:
    """What is missing, or there though it was turned off."""
    expected = {
        "layout": ("layout", "dev/loss"),
        "config": ("text", "config"),
        "samples": ("text", "samples"),
        "hparams": ("hparams", "hp/dev_loss"),
        "histograms": ("histograms", "activations/hidden.0"),
        "embedding_map": ("images", "embedding map"),
        "projector": ("projector", "."),
    }
    for name in ("train/loss", "dev/loss", "lr"):
        if name not in found["scalars"]:
            yield f"scalars: {name} is missing"
    for setting, (kind, tag) in expected.items():
        wanted = config["trainer"][f"log_{setting}"]
        if wanted != (tag in found[kind]):
            yield f"{kind}: {tag} is {'missing' if wanted else 'there, although turned off'}"


def take_screenshots(address: str, folder: Path) -> None:
    """A PNG of each tab."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        print("no screenshots: no Chromium found on the PATH (Debian: apt install chromium)")
        return
    folder.mkdir(parents=True, exist_ok=True)
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-unsafe-swiftshader",
        "--window-size=1500,1100",
    ]
    flags += [f"--virtual-time-budget={SECONDS_TO_LOAD * 1000}"]  # of the page's own clock, which runs faster
    for tab in TABS:
        file = folder / f"{tab}.png"
        command = [browser, *flags, f"--screenshot={file}", f"{address}#{tab}"]
        subprocess.run(command, check=True, capture_output=True, timeout=4 * SECONDS_TO_LOAD)
        print(f"{tab}: {file}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run, with its config.yaml")
    parser.add_argument("--screenshots", type=Path, help="folder for a picture of each tab")
    args = parser.parse_args()
    if not (args.run / "config.yaml").exists():
        parser.error(f"{args.run}: no config.yaml; expected the folder of one run, such as runs/names/version_0")
    config = yaml.safe_load((args.run / "config.yaml").read_text(encoding="utf-8"))
    with tensorboard(args.run) as address:
        end = time.monotonic() + SECONDS_TO_LOAD
        while (mistakes := [*problems(found := served(address), config)]) and time.monotonic() < end:
            time.sleep(0.5)  # it listens before it has read the events
        for kind, names in found.items():
            print(f"{kind}: {', '.join(names) or '(none)'}")
        if args.screenshots:
            take_screenshots(address, args.screenshots)
    if mistakes:
        sys.exit("\n".join(mistakes))
    print("as config.yaml asks")


if __name__ == "__main__":
    main()
