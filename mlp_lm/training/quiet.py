"""What Lightning says that our users do not need, silenced message by message; everything else is heard."""

from __future__ import annotations

import logging
import re
import warnings

MESSAGES = {
    "Seed set to": "the seed stands in config.yaml and report.json",
    "GPU available": "the report names the device",
    "TPU available": "the report names the device",
    "💡 Tip:": "an advertisement",
    "`Trainer.fit` stopped: `max_steps=": "the normal end, which the report announces",
    "Restoring states from the checkpoint path at": "the user has just typed that path",
    "Restored all states from the checkpoint at": "the user has just typed that path",
    "Loaded model weights from the checkpoint at": "the user has just typed that path",
    "Detected KeyboardInterrupt": "the user has just pressed Ctrl-C",
    "Received SIGTERM": "the last line says it",
    "Initializing distributed:": "the first line of a fit says how many processes there are",
    "-" * 100 + "\ndistributed_backend=": "the first line of a fit says how many processes there are",
}
WARNINGS = {
    # Evaluation writes no checkpoints.
    r".*callbacks used to create the checkpoint need to be provided": UserWarning,
    # Lightning 2.6 itself calls what torch 2.13 deprecates; nothing that a user could change.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated": Warning,
    # Our losses are sums over all processes before they are logged.
    r"It is recommended to use `self\.log\(": UserWarning,
}


def silence() -> None:
    """Filter the messages above out of Lightning's loggers and Python's warnings."""
    names = (
        "lightning.pytorch",
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.seed",
        "lightning.fabric.utilities.distributed",
    )
    for name in names:
        logging.getLogger(name).addFilter(_is_heard)
    for message, category in WARNINGS.items():
        warnings.filterwarnings("ignore", message=message, category=category)


def _is_heard(record: logging.LogRecord) -> bool:
    message = re.sub(r"^\s*(\[rank: \d+\] )?", "", record.getMessage())
    return not message.startswith(tuple(MESSAGES))
