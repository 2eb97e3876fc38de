"""The learning rate of a step, and which weights shrink."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mlp_lm.models.network import MLP
from mlp_lm.training.optim import build_optimizer, learning_rate_at, set_learning_rate

MATRICES = {"hidden.0.weight", "hidden.1.weight", "output.weight"}
RATE = 0.5


def rate(step: int, lr_schedule: str, warmup: int = 0, drop_at: float = 0.5) -> float:
    """The learning rate at a step of a schedule from 2.0 over 100 steps."""
    return learning_rate_at(
        step,
        learning_rate=2.0,
        lr_schedule=lr_schedule,
        lr_warmup_steps=warmup,
        lr_decay_steps=100,
        lr_drop_at=drop_at,
        lr_end_factor=0.1,
    )


@pytest.mark.parametrize(
    ("lr_schedule", "step", "expected"),
    [
        ("constant", 0, 2.0),
        ("step", 0, 2.0),
        ("step", 49, 2.0),
        ("step", 50, 0.2),
        ("step", 1000, 0.2),
        ("cosine", 0, 2.0),
        ("cosine", 25, 0.2 + 1.8 * 0.8535534),
        ("cosine", 50, 1.1),
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


def test_the_learning_rate_drops_at_the_very_step_of_a_round_share() -> None:
    too_late = [percent for percent in range(101) if rate(percent, "step", drop_at=percent / 100) > 1]
    too_early = [percent for percent in range(1, 101) if rate(percent - 1, "step", drop_at=percent / 100) < 1]
    assert (too_late, too_early) == ([], [])


# -- optimizers --------------------------------------------------------------------------------------------------


@pytest.fixture
def network() -> MLP:
    """A small network of two layers with a gradient everywhere but at 0 for tokens 3 and 4, which do not occur."""
    torch.manual_seed(1)
    network = MLP(5, context_size=2, embedding_dim=3, hidden_dim=4, num_layers=2).double()
    torch.autograd.backward(F.cross_entropy(network(torch.tensor([[0, 1], [1, 2]])), torch.tensor([1, 2])))
    return network


def steps(
    network: MLP, name: str, num_steps: int = 1, decay: float = 0.0, decay_all: bool = False, momentum: float = 0.0
) -> None:
    """Steps with the same gradient each time, at RATE."""
    optimizer = build_optimizer(network, optimizer=name, momentum=momentum, weight_decay=decay, decay_all=decay_all)
    set_learning_rate(optimizer, RATE)
    for _ in range(num_steps):
        optimizer.step()


def values(network: MLP) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in network.named_parameters()}


def gradient(network: MLP, name: str) -> torch.Tensor:
    found = network.get_parameter(name).grad
    assert found is not None
    return found


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_step_of_sgd_decays_matrices_alone_unless_all(network: MLP, decay: float, decay_all: bool) -> None:
    before = values(network)
    steps(network, "sgd", decay=decay, decay_all=decay_all)
    for name, weight in values(network).items():
        own = decay if decay_all or name in MATRICES else 0.0
        torch.testing.assert_close(weight, before[name] - RATE * (gradient(network, name) + own * before[name]))


def test_momentum_carries_the_last_step_on(network: MLP) -> None:
    before = values(network)
    steps(network, "sgd", num_steps=2, momentum=0.9)
    for name, weight in values(network).items():
        torch.testing.assert_close(weight, before[name] - RATE * (1 + 1.9) * gradient(network, name))


def test_the_weight_decay_of_adamw_is_decoupled_from_the_gradient(network: MLP) -> None:
    before = values(network)
    network.zero_grad(set_to_none=False)
    steps(network, "adamw", decay=0.1)
    for name, weight in values(network).items():
        torch.testing.assert_close(weight, before[name] * (1 - RATE * 0.1 if name in MATRICES else 1))


@pytest.mark.parametrize(("vocab_size", "expected"), [(1023, 0.99), (1024, 0.999)])
def test_adamw_averages_squared_gradients_over_more_steps_if_the_vocabulary_is_large(
    vocab_size: int, expected: float
) -> None:
    network = MLP(vocab_size, context_size=1, embedding_dim=1, hidden_dim=1)
    optimizer = build_optimizer(network, optimizer="adamw", momentum=0.0, weight_decay=0.1, decay_all=False)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.9, expected)] * 2
