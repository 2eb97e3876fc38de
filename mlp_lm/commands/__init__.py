"""The table of commands: what the top-level help says of each, and where it is."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """`module:function` is a plain function whose signature is the command line; a module alone has a `run`, which
    parses it itself with LightningCLI."""

    summary: str
    target: str


COMMANDS = {
    "fit": Command("train a language model on a text file", "mlp_lm.commands.fit"),
    "validate": Command("loss of a checkpoint on the dev split", "mlp_lm.commands.evaluation"),
    "test": Command("loss of a checkpoint on the test split", "mlp_lm.commands.evaluation"),
    "predict": Command(
        "most probable next token for every window of the dev split, as CSV", "mlp_lm.commands.evaluation"
    ),
    "sample": Command("generate new items, or text, from a trained model", "mlp_lm.commands.sample:sample"),
    "score": Command("log-probability of items, or of the lines of a text", "mlp_lm.commands.score:score"),
    "inspect": Command("what is in a corpus", "mlp_lm.commands.inspect:inspect"),
    "ngram": Command("count baselines on the same split", "mlp_lm.commands.ngram:ngram"),
    "mix": Command("the best mixture of networks and counts", "mlp_lm.commands.mix:mix"),
    "lr-find": Command(
        "learning-rate range test: how high a learning rate the config can take", "mlp_lm.commands.lr_find"
    ),
    "sweep": Command("search over settings: many runs, one table", "mlp_lm.commands.sweep:sweep"),
    "plot": Command("embedding map and other figures", "mlp_lm.commands.plot:plot"),
    "export": Command("a model as one web page, or in other programs' formats", "mlp_lm.commands.export:export"),
}
