"""The short report that ends a fit."""

from __future__ import annotations

import platform
import shlex
from pathlib import Path
from typing import Any

import lightning
import torch

from mlp_lm import __version__
from mlp_lm.models.checkpoint import language_model, read
from mlp_lm.models.metrics import evaluate
from mlp_lm.models.sampling import Sampling
from mlp_lm.runs import starred
from mlp_lm.terminal import escape, pluralize
from mlp_lm.text.corpus import SPLITS
from mlp_lm.text.datasets import resolve_path
from mlp_lm.text.windows import eval_batch_size
from mlp_lm.training.datamodule import TextDataModule
from mlp_lm.training.module import MLPModule
from mlp_lm.training.optim import total_steps

NUM_SAMPLES, TEXT_TOKENS = 10, 100


def build_report(
    checkpoint: Path,
    module: MLPModule,
    data: TextDataModule,
    *,
    seconds: float,
    first_step: int,
    with_test: bool,
    seed: int,
) -> dict[str, Any]:
    """The figures of a finished run; losses are those of `checkpoint`, reloaded from disk.

    Args:
        checkpoint: `best.ckpt`; `last.ckpt` where no validation has chosen one.
        module: The trained module.
        data: Its data.
        seconds: Wall time of training, over all fits of the run.
        first_step: Where this fit began; 0 unless it resumed a run.
        with_test: Whether to read test.
        seed: Seed of the samples.
    """
    content = read(checkpoint)
    model, best_step = language_model(content), content["global_step"]
    del content  # whose optimizer state may be twice as large as the model
    losses = {}
    for split in ("dev", "test"):
        if split == "dev" or with_test:
            batches = data.windows(split).batches(eval_batch_size(data.vocab_size))
            losses[split] = evaluate(model.nats, batches).as_dict()
    if model.is_of_text:
        samples = model.sample(1, Sampling(seed=seed, num_tokens=TEXT_TOKENS))
    else:
        samples = model.sample(NUM_SAMPLES, Sampling(seed=seed))
    return {
        "losses": losses,
        "best_step": best_step,
        "vocab_size": data.vocab_size,
        "weights": module.network.count_weights(),
        "windows": {split: len(getattr(data.corpus, split)) for split in SPLITS},
        "threads": torch.get_num_threads(),
        "device": str(module.trainer.strategy.root_device),  # the module is back on the CPU
        "first_step": first_step,
        "steps": module.trainer.global_step,
        "max_steps": total_steps(module.trainer) or module.trainer.global_step,
        "seconds": round(seconds, 2),
        "samples": [{"text": str(sample), "seen_in": sample.seen_in} for sample in samples],
        "settings": {"seed_everything": seed, "data": dict(data.hparams), "model": dict(module.hparams)},
        "versions": {
            "mlp_lm": __version__,
            "torch": torch.__version__,
            "lightning": lightning.__version__,
            "python": platform.python_version(),
        },
    }


def render(report: dict[str, Any], run_dir: Path, checkpoint: Path) -> str:
    """The report as text for the terminal."""
    steps, best_step = report["steps"], report["best_step"]
    early = steps < report["max_steps"]
    taken = f"{steps:,} of {report['max_steps']:,} steps" if early else pluralize(steps, "step")
    now = f", {steps - report['first_step']:,} of them now," if report["first_step"] else ""
    lines = [
        "",
        f"{report['weights']:,} weights, {taken} in {report['seconds']:.1f} s{now} "
        f"on {report['device']}; losses of {checkpoint.name}, step {best_step:,}:",
        "        nats/token  perplexity  bits/token",
    ]
    for split, loss in report["losses"].items():
        lines.append(
            f"  {split:<4}{loss['nats_per_token']:>12.4f}{loss['perplexity']:>12.3f}{loss['bits_per_token']:>12.4f}"
        )
    if report["losses"]["dev"]["perplexity"] >= report["vocab_size"]:
        lines.append(
            f"  dev is no better than guessing uniformly among {report['vocab_size']} tokens: the network has diverged "
            "or memorised train. What helps: more text, fewer steps, a smaller network; or counts (ngram)"
        )
    elif best_step < 0.7 * steps and not early:
        lines.append(
            f"  dev has not been better since step {best_step:,}; to end such a run sooner: "
            "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=dev/loss"
        )
    samples = [starred(**sample) for sample in report["samples"]]
    legend = " (* = in the training set)" if any(s["seen_in"] == "train" for s in report["samples"]) else ""
    file = shlex.quote(str(checkpoint))
    data = report["settings"]["data"]
    items = shlex.quote(str(resolve_path(data["path"]) if data["dev_path"] is None else data["dev_path"]))
    lines += [
        f"samples{legend}:",
        *(f"  {escape(line)}" for sample in samples for line in sample.split("\n")),
        "next:",
        *([f"  tensorboard --logdir {shlex.quote(str(run_dir))}"] if any(run_dir.glob("events.*")) else []),
        f"  python -m mlp_lm sample {file}",
        f"  python -m mlp_lm score {file} {items}",
        f"  python -m mlp_lm test --ckpt_path {file}",
    ]
    return "\n".join(lines)
