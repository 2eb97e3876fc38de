"""The learning rate of a step, and which weights shrink."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mlp_lm.models.network import MLP
from mlp_lm.training.optim import build_optimizer, learning_rate_at, set_learning_rate

MATRICES = {"hidden.0.weight", "hidden.1.weight", "output.weight"}
RATE, DECAY = 0.5, 0.1


def rate(step: int, lr_schedule: str, warmup: int = 0, drop_at: float = 0.5, end_factor: float = 0.1) -> float:
    """The learning rate at a step of a schedule from 2.0 over 100 steps."""
    return learning_rate_at(
        step,
        learning_rate=2.0,
        lr_schedule=lr_schedule,
        lr_warmup_steps=warmup,
        lr_decay_steps=100,
        lr_drop_at=drop_at,
        lr_end_factor=end_factor,
    )


@pytest.mark.parametrize(
    ("lr_schedule", "step", "expected"),
    [
        ("constant", 0, 2.0),
        ("constant", 99, 2.0),
        ("constant", 1000, 2.0),
        ("step", 0, 2.0),
        ("step", 49, 2.0),
        ("step", 50, 0.2),
        ("step", 99, 0.2),
        ("step", 1000, 0.2),
        ("cosine", 0, 2.0),
        ("cosine", 25, 0.2 + 1.8 * 0.8535534),
        ("cosine", 50, 1.1),
        ("cosine", 75, 0.2 + 1.8 * 0.1464466),
        ("cosine", 100, 0.2),
        ("cosine", 1000, 0.2),
    ],
)
def test_the_learning_rate_of_a_step(lr_schedule: str, step: int, expected: float) -> None:
    assert rate(step, lr_schedule) == pytest.approx(expected)


@pytest.mark.parametrize(("step", "share"), [(0, 0.2), (1, 0.4), (3, 0.8), (4, 1.0), (5, 1.0)])
@pytest.mark.parametrize("lr_schedule", ["constant", "step", "cosine"])
def test_warm_up_grows_linearly_whatever_the_schedule(lr_schedule: str, step: int, share: float) -> None:
    assert rate(step, lr_schedule, warmup=4) == pytest.approx(share * rate(step, lr_schedule))


def test_the_learning_rate_drops_where_it_is_told_to() -> None:
    assert [rate(step, "step", drop_at=0.25) for step in (24, 25)] == pytest.approx([2.0, 0.2])
    assert rate(0, "step", drop_at=0.0) == pytest.approx(0.2)
    assert [rate(step, "step", drop_at=1.0) for step in (99, 100)] == pytest.approx([2.0, 0.2])


def test_the_learning_rate_drops_at_the_very_step_of_a_round_share() -> None:
    too_late = [percent for percent in range(101) if rate(percent, "step", drop_at=percent / 100) > 1]
    too_early = [percent for percent in range(1, 101) if rate(percent - 1, "step", drop_at=percent / 100) < 1]
    assert (too_late, too_early) == ([], [])


def test_a_cosine_may_end_at_nothing() -> None:
    assert rate(100, "cosine", end_factor=0.0) == pytest.approx(0, abs=1e-12)


# -- optimizers --------------------------------------------------------------------------------------------------


@pytest.fixture
def network() -> MLP:
    """A small network of two layers with a gradient everywhere but at 0 for tokens 3 and 4, which do not occur."""
    torch.manual_seed(1)
    network = MLP(5, context_size=2, embedding_dim=3, hidden_dim=4, num_layers=2).double()
    torch.autograd.backward(F.cross_entropy(network(torch.tensor([[0, 1], [1, 2]])), torch.tensor([1, 2])))
    return network


def build(
    network: MLP, name: str, weight_decay: float = DECAY, decay_all: bool = False, momentum: float = 0.0
) -> torch.optim.Optimizer:
    return build_optimizer(
        network,
        optimizer=name,
        learning_rate=RATE,
        momentum=momentum,
        weight_decay=weight_decay,
        decay_all=decay_all,
    )


def values(network: MLP) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in network.named_parameters()}


def gradients(network: MLP) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}


def shrinking(name: str, decay_all: bool) -> float:
    """The weight decay that a weight should have."""
    return DECAY if decay_all or name in MATRICES else 0.0


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_is_for_matrices_unless_for_all(network: MLP, optimizer: str, decay_all: bool) -> None:
    groups = build(network, optimizer, decay_all=decay_all).param_groups
    found = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
    expected = {id(weight): shrinking(name, decay_all) for name, weight in network.named_parameters()}
    assert found == expected
    assert sum(len(group["params"]) for group in groups) == len(expected)


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, DECAY])
def test_a_step_of_sgd_is_worked_out_by_hand(network: MLP, weight_decay: float, decay_all: bool) -> None:
    before, gradient = values(network), gradients(network)
    build(network, "sgd", weight_decay, decay_all).step()
    for name, weight in values(network).items():
        decay = shrinking(name, decay_all) * weight_decay / DECAY
        torch.testing.assert_close(weight, before[name] - RATE * (gradient[name] + decay * before[name]))


def test_momentum_carries_the_last_step_on(network: MLP) -> None:
    before, gradient = values(network), gradients(network)
    optimizer = build(network, "sgd", weight_decay=0.0, momentum=0.9)
    optimizer.step()
    optimizer.step()
    for name, weight in values(network).items():
        torch.testing.assert_close(weight, before[name] - RATE * (1 + 1.9) * gradient[name])


def test_the_weight_decay_of_adamw_is_decoupled_from_the_gradient(network: MLP) -> None:
    before = values(network)
    network.zero_grad(set_to_none=False)
    build(network, "adamw").step()
    for name, weight in values(network).items():
        torch.testing.assert_close(weight, before[name] * (1 - RATE * shrinking(name, decay_all=False)))


def test_the_first_step_of_adamw_is_the_learning_rate_along_the_sign(network: MLP) -> None:
    before, gradient = values(network), gradients(network)
    build(network, "adamw", weight_decay=0.0).step()
    for name, weight in values(network).items():
        expected = before[name] - RATE * gradient[name] / (gradient[name].abs() + 1e-8)
        torch.testing.assert_close(weight, expected)


def test_a_new_learning_rate_is_for_all_weights(network: MLP) -> None:
    before, gradient = values(network), gradients(network)
    optimizer = build(network, "sgd", weight_decay=0.0)
    set_learning_rate(optimizer, 0.25)
    optimizer.step()
    for name, weight in values(network).items():
        torch.testing.assert_close(weight, before[name] - 0.25 * gradient[name])


def test_every_number_that_is_learnt_is_counted(network: MLP) -> None:
    assert network.count_weights() == 5 * 3 + (6 * 4 + 4) + (4 * 4 + 4) + (4 * 5 + 5)
