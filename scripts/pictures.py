"""Draw the picture at the top of the README: embeddings of two dimensions beside names that a network made up.

    python -m mlp_lm fit --config configs/names.yaml
    python -m mlp_lm fit --config configs/names.yaml --model.embedding_dim 2 --run_dir runs/map
    python scripts/pictures.py runs/names/version_0 runs/map

The picture is committed, so that nobody needs a run to look at the README.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from mlp_lm import Sampling, load
from mlp_lm.figures import curves, networks

FOLDER = Path(__file__).resolve().parent / "pictures"
NUM_NAMES = 14


def main() -> None:
    model, flat = load(sys.argv[1]), load(sys.argv[2])
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
    path = FOLDER / "names.png"
    FOLDER.mkdir(exist_ok=True)
    curves.save(figure, str(path))
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)  # half the size


if __name__ == "__main__":
    main()
