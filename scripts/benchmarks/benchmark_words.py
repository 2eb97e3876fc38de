"""The step of `configs/brown.yaml` through `fit` against a straightforward PyTorch loop around the same network.

    python scripts/benchmarks/benchmark_words.py --path brown.txt [--repeats 5] [--steps 40]

Both take so many steps in turn, in this process, with the same batch, sizes and threads, in float32. The loop has its
windows in two tensors, all logits of a batch at once, F.cross_entropy, and AdamW as it comes. Of `fit`, the time of
Trainer.fit is measured, checkpoints and two batches of dev included.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from mlp_lm.cli import main as mlp_lm
from mlp_lm.text.corpus import CorpusSettings, load_corpus
from mlp_lm.text.windows import Windows
from mlp_lm.training.trainer import Trainer

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "brown.yaml"


class Plain(nn.Module):
    """The network of the config, from torch's own layers."""

    def __init__(self, vocab_size: int, context_size: int, model: dict[str, Any]) -> None:
        super().__init__()
        embedding_dim, hidden_dim = model["embedding_dim"], model["hidden_dim"]
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        widths = [context_size * embedding_dim] + [hidden_dim] * (model["num_layers"] - 1)
        self.hidden = nn.ModuleList(nn.Linear(width, hidden_dim) for width in widths)
        self.projection = nn.Linear(hidden_dim, embedding_dim, bias=False)
        self.output = nn.Linear(embedding_dim, vocab_size)
        self.output.weight = self.embedding.weight
        self.embedding_dropout, self.dropout = nn.Dropout(model["embedding_dropout"]), nn.Dropout(model["dropout"])

    def forward(self, contexts: Tensor) -> Tensor:
        x = h = self.embedding_dropout(self.embedding(contexts).flatten(1))
        for i, layer in enumerate(self.hidden):
            z = torch.tanh(layer(x))
            h = h + z if i > 0 else z
            x = self.dropout(h)
        logits: Tensor = self.output(self.projection(x))
        return logits


def loop(contexts: Tensor, targets: Tensor, config: dict[str, Any], vocab_size: int, steps: int) -> float:
    """Seconds of so many steps of the straightforward loop."""
    network = Plain(vocab_size, contexts.shape[1], config["model"])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    order, size = torch.randperm(len(targets)), config["data"]["batch_size"]
    start = time.perf_counter()
    for step in range(steps):
        batch = order[step * size : (step + 1) * size]
        loss = F.cross_entropy(network(contexts[batch]), targets[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return time.perf_counter() - start


def ours(path: str, steps: int) -> float:
    """Seconds of so many steps of `fit`."""
    seconds, fit = [], Trainer.fit

    def timed_fit(self: Trainer, *args: Any, **kwargs: Any) -> None:
        start = time.perf_counter()
        fit(self, *args, **kwargs)
        seconds.append(time.perf_counter() - start)

    Trainer.fit = timed_fit  # type: ignore[method-assign,assignment]
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--data.path={path}", f"--run_dir={folder}", f"--trainer.max_steps={steps}", "--report_test=false"]
        flags += ["--trainer.limit_val_batches=2", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
        if mlp_lm(["fit", f"--config={CONFIG}", *flags]) != 0:
            raise SystemExit("fit failed")
    Trainer.fit = fit  # type: ignore[method-assign]
    return seconds[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, help="the Brown corpus, a sentence a line, without tags")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    corpus = load_corpus(CorpusSettings.of({**config["data"], "path": args.path}))
    contexts, targets = Windows(corpus.train, config["data"]["context_size"])[:]
    times: dict[str, list[float]] = {"loop": [], "fit": []}
    for _ in range(args.repeats):
        times["loop"].append(loop(contexts, targets, config, len(corpus.vocab), args.steps))
        times["fit"].append(ours(args.path, args.steps))
    medians = {name: statistics.median(seconds) / args.steps * 1000 for name, seconds in times.items()}
    print(f"{torch.get_num_threads()} threads; ms a step, medians of {args.repeats}: {medians}")
    print(f"fit ÷ loop: {medians['fit'] / medians['loop']:.2f}")


if __name__ == "__main__":
    main()
