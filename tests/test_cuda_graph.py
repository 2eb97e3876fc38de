"""When steps are replayed from a CUDA graph; but for the last test, something like a capture stands in for torch's."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mlp_lm.models.cuda_graph import MAX_GRAPHS, GraphedSteps
from mlp_lm.models.fused import FusedSGD
from mlp_lm.models.network import MLP
from tests.test_fused import T, assert_close, batches, network


class FakeCapture:
    """Like torch's: recording computes nothing that counts, a replay computes on the tensors that were recorded."""

    def __init__(self, net: MLP) -> None:
        self.net, self.captures, self.replays = net, 0, 0

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        before = {name: p.detach().clone() for name, p in self.net.named_parameters()}
        result = work().clone()
        self.net.load_state_dict(before)
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            result.copy_(work())

        return replay, result


def graphed(net: MLP) -> tuple[GraphedSteps, FakeCapture]:
    capture = FakeCapture(net)
    return GraphedSteps(FusedSGD(net).run, capture), capture


def test_replayed_steps_are_the_same_steps() -> None:
    one, other = network(), network()
    steps, capture = graphed(one)
    contexts, targets = batches(20)
    for first in range(0, 20, 5):
        chunk = contexts[first : first + 5], targets[first : first + 5]
        losses = steps.run(*chunk, [0.1] * 5)
        assert torch.equal(losses, FusedSGD(other).run(*chunk, [0.1] * 5))
    assert_close(one, other, 0.0)
    assert (capture.captures, capture.replays) == (1, 3)  # the first chunk warms up


def test_other_rates_and_other_shapes_are_other_graphs() -> None:
    steps, capture = graphed(network())
    for rate, num_steps in ((0.1, 5), (0.1, 5), (0.01, 5), (0.01, 5), (0.01, 3), (0.1, 5)):
        steps.run(
            torch.zeros(num_steps, 4, T, dtype=torch.int64),
            torch.ones(num_steps, 4, dtype=torch.int64),
            [rate] * num_steps,
        )
    assert (capture.captures, capture.replays) == (2, 3)


def test_rates_that_never_come_back_are_never_captured_and_graphs_do_not_pile_up() -> None:
    steps, capture = graphed(network())
    contexts, targets = batches(1)
    for i in range(10):
        steps.run(contexts, targets, [0.1 / (i + 1)])
    assert capture.captures == 0
    for i in range(10):
        for _ in range(2):
            steps.run(contexts, targets, [0.1 / (i + 1)])
    assert capture.captures == 10 and len(steps._graphs) == MAX_GRAPHS


def test_where_capturing_fails_steps_go_on_with_one_warning() -> None:
    def broken(_: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        raise RuntimeError("operation not permitted")

    one, other = network(), network()
    steps, (contexts, targets) = GraphedSteps(FusedSGD(one).run, broken), batches(2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            steps.run(contexts, targets, [0.1, 0.1])
    assert [str(w.message) for w in caught] == [
        "no CUDA graph (operation not permitted); steps are launched one by one"
    ]
    for _ in range(4):
        FusedSGD(other).run(contexts, targets, [0.1, 0.1])
    assert_close(one, other, 0.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_replayed_steps_equal_those_launched_one_by_one() -> None:
    one, other = network().cuda(), network().cuda()
    steps, (contexts, targets) = GraphedSteps(FusedSGD(one).run), batches(20)
    contexts, targets = contexts.cuda(), targets.cuda()
    for first in range(0, 20, 5):
        steps.run(contexts[first : first + 5], targets[first : first + 5], [0.1] * 5)
        FusedSGD(other).run(contexts[first : first + 5], targets[first : first + 5], [0.1] * 5)
    assert_close(one, other, 1e-9)  # index_add_ adds in any order there
    assert steps._graphs
