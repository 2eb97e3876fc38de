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
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from mlp_lm.exports.details import Details
from mlp_lm.models.language_model import CorpusFacts, LanguageModel
from mlp_lm.text.vocab import Vocab

FORMAT_VERSION = 1
TOLERANCE = 1e-4  # between log-probabilities: weights become float32, and sums are taken in another order


def write(path: Path, model: LanguageModel, details: Details) -> None:
    """Write the file `path`: input `contexts` (B, T) int64, output `log_probs` (B, V) float32, for any B."""
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
    path.write_bytes(proto.SerializeToString())


def read(path: Path) -> LanguageModel:
    """The model in the file, computed by the reference implementation of ONNX."""
    proto = onnx.load(path)
    evaluator = ReferenceEvaluator(proto)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}

    def log_probs(contexts: Tensor) -> Tensor:
        (output,) = evaluator.run(None, {"contexts": contexts.contiguous().numpy()})  # before onnx 1.21, views fail
        return torch.from_numpy(output)

    settings = json.loads(metadata["tokenizer"])
    line_ends = settings.pop("line_ends")
    settings |= {"layout": "items"} if line_ends == "items" else {"layout": "text", "newlines": line_ends}
    facts = CorpusFacts(int(metadata["longest_item"]), None, "", settings)
    return LanguageModel(Vocab(json.loads(metadata["vocab"])), int(metadata["context_size"]), log_probs, facts)


def usage(path: Path) -> str:
    """How to use the file."""
    return f"onnxruntime.InferenceSession({str(path)!r}) in Python; the README has the lines that sample from it"


@contextmanager
def _quietly() -> Iterator[None]:
    """Drop what the exporter says of torch itself: that torchvision is missing, and that torch calls what it
    deprecates."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            yield
    finally:
        logger.setLevel(level)
