"""One ONNX file: the network, from contexts to log-probabilities, with its vocabulary in the metadata."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnxscript  # noqa: F401  (torch.onnx.export needs it, and would say so in many lines)
import torch
from torch import nn

from mlp_lm.exports.info import ExportInfo
from mlp_lm.files import write_or_explain
from mlp_lm.models.language_model import LanguageModel

FORMAT_VERSION = 1


def write(model: LanguageModel, info: ExportInfo, path: Path) -> list[str]:
    """Write a file with input `contexts` (B, T) int64 and output `log_probs` (B, V) float32, for any B.

    Returns lines for the user. The file has no place for `info`.
    """
    assert model.network is not None
    network = copy.deepcopy(model.network).float()
    with _quietly():
        program = torch.onnx.export(
            nn.Sequential(OrderedDict(network=network, log_probs=nn.LogSoftmax(-1))).eval(),
            (torch.zeros(2, model.context_size, dtype=torch.int64),),  # with one row, torch would take B for a constant
            input_names=["contexts"],
            output_names=["log_probs"],
            dynamic_shapes=({0: torch.export.Dim("B")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")  # torch's, which tell where its source is on this machine
    metadata = {
        "model_type": "mlp_lm",
        "format_version": str(FORMAT_VERSION),
        "vocab": json.dumps(model.vocab.tokens),
        "context_size": str(model.context_size),
        "tokenizer": json.dumps(vars(model.tokenizer)),
        "longest_item": str(model.facts.longest_item),
    }
    onnx.helper.set_model_props(proto, metadata)
    write_or_explain(path, lambda file: file.write(proto.SerializeToString()))
    return [
        f"next: onnxruntime.InferenceSession({str(path)!r}) in Python; the README has the lines that sample from it"
    ]


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the exporter's warnings about torch itself: missing torchvision, and deprecated functions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            yield
    finally:
        logger.setLevel(level)
