"""The network against the lecture's written-out tensor maths.

Shapes: B batch, T context, E embedding, H hidden, V vocabulary.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlp_lm.models.metrics import token_nll
from mlp_lm.models.network import MLP, Dropout
from mlp_lm.text.corpus import encode
from mlp_lm.text.vocab import Vocab
from mlp_lm.text.windows import Windows

V, T, E, H, B = 27, 3, 10, 200, 32


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Contexts (B, T) and targets (B,)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(V, (B, T), generator=generator), torch.randint(V, (B,), generator=generator)


def network(num_layers: int = 1, dropout: float = 0.0) -> MLP:
    torch.manual_seed(2)
    return MLP(V, T, E, H, num_layers, dropout)


def pre_activations(net: MLP, contexts: Tensor) -> list[Tensor]:
    """What each tanh layer is given, (B, H) each."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output.detach())

    for layer in net.hidden:
        layer.register_forward_hook(keep)
    net(contexts)
    return seen


# -- forward and backward ----------------------------------------------------------------------------------------


def test_logits_and_gradients_are_those_of_the_lecture(batch: tuple[Tensor, Tensor]) -> None:
    contexts, targets = batch
    net = network().double()
    nn.init.normal_(net.output.bias)  # biases start at 0, where they would go unnoticed
    hidden = net.hidden[0]
    assert isinstance(hidden, nn.Linear)
    nn.init.normal_(hidden.bias)
    weights = [net.embedding.weight, hidden.weight, hidden.bias, net.output.weight, net.output.bias]

    C, W1, b1, W2, b2 = raw = [w.detach().clone().requires_grad_() for w in weights]  # noqa: N806
    emb = C[contexts]  # (B, T, E)
    h = torch.tanh(emb.view(-1, T * E) @ W1.T + b1)  # (B, H)
    logits = h @ W2.T + b2  # (B, V)
    counts = logits.exp()
    prob = counts / counts.sum(1, keepdim=True)
    loss = -prob[torch.arange(B), targets].log().mean()
    torch.autograd.backward(loss)

    found = net(contexts)
    found_loss = F.cross_entropy(found, targets)
    torch.autograd.backward(found_loss)
    torch.testing.assert_close(found, logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found_loss, loss, rtol=1e-12, atol=1e-12)
    for weight, expected in zip(weights, raw, strict=True):
        torch.testing.assert_close(weight.grad, expected.grad, rtol=1e-10, atol=1e-12)


def test_the_gradient_of_the_logits_is_the_probabilities_less_the_target(batch: tuple[Tensor, Tensor]) -> None:
    contexts, targets = batch
    net = network().double()
    torch.autograd.backward(F.cross_entropy(net(contexts), targets))
    with torch.no_grad():
        by_hand = (net(contexts).softmax(1) - F.one_hot(targets, V)) / B  # (B, V)
    torch.testing.assert_close(net.output.bias.grad, by_hand.sum(0), rtol=1e-12, atol=1e-12)


def test_an_embedding_is_a_one_hot_vector_times_the_table(batch: tuple[Tensor, Tensor]) -> None:
    contexts, _ = batch
    table = network().double().embedding
    torch.testing.assert_close(table(contexts), F.one_hot(contexts, V).double() @ table.weight)


def test_a_deeper_network_puts_one_tanh_layer_upon_the_other(batch: tuple[Tensor, Tensor]) -> None:
    contexts, _ = batch
    net = network(num_layers=3).double()
    h = net.embedding(contexts).view(B, T * E)
    for layer in net.hidden:
        h = torch.tanh(layer(h))
    assert len(net.hidden) == 3
    torch.testing.assert_close(net(contexts), net.output(h))


def test_log_probabilities_give_the_cross_entropy(batch: tuple[Tensor, Tensor]) -> None:
    contexts, targets = batch
    net = network().double()
    written_out = -(net(contexts).exp() / net(contexts).exp().sum(1, keepdim=True))[torch.arange(B), targets].log()
    torch.testing.assert_close(token_nll(net.log_probs(contexts), targets), written_out)
    torch.testing.assert_close(F.cross_entropy(net(contexts), targets), written_out.mean())


def test_logits_of_a_thousand_have_a_finite_loss(batch: tuple[Tensor, Tensor]) -> None:
    contexts, _ = batch
    net = network()
    with torch.no_grad():
        net.output.weight.zero_()
        net.output.bias.fill_(-1000).narrow(0, 1, 1).fill_(1000)  # token 1 is all but certain
    nats = token_nll(net.log_probs(contexts), torch.arange(B) % V)
    assert nats[:3].tolist() == [2000, 0, 2000]
    assert F.cross_entropy(net(contexts[:2]), torch.tensor([0, 1])).item() == 1000


def test_the_network_of_the_lecture_has_11_897_weights() -> None:
    assert network().count_weights() == 11_897


# -- initialisation ----------------------------------------------------------------------------------------------

LAYERS = pytest.mark.parametrize("num_layers", [1, 3])


@LAYERS
def test_the_first_loss_is_that_of_a_uniform_choice(num_layers: int) -> None:
    contexts, targets = torch.randint(V, (1000, T)), torch.randint(V, (1000,))
    loss = F.cross_entropy(network(num_layers)(contexts), targets).item()
    assert loss == pytest.approx(math.log(V), rel=0.02)


@LAYERS
def test_tanh_units_start_neither_saturated_nor_idle(num_layers: int) -> None:
    contexts = torch.randint(V, (1000, T), generator=torch.Generator().manual_seed(3))
    layers = pre_activations(network(num_layers), contexts)
    assert len(layers) == num_layers
    for layer in layers:
        assert (layer.tanh().abs() > 0.97).double().mean().item() < 0.10
        assert layer.std().item() == pytest.approx(1, rel=0.15)


def test_the_same_seed_starts_with_the_same_weights() -> None:
    torch.testing.assert_close(network().state_dict(), network().state_dict(), rtol=0, atol=0)


# -- dropout -----------------------------------------------------------------------------------------------------


def test_dropout_does_nothing_outside_training(batch: tuple[Tensor, Tensor]) -> None:
    contexts, _ = batch
    net = network(dropout=0.5)
    assert not torch.equal(net(contexts), network()(contexts))
    assert torch.equal(net.eval()(contexts), network()(contexts))


def test_activations_are_what_the_output_layer_sees_without_dropout(batch: tuple[Tensor, Tensor]) -> None:
    contexts, _ = batch
    net = network(num_layers=3, dropout=0.5)
    first, _, last = net.activations(contexts)
    torch.testing.assert_close(first.atanh(), pre_activations(net, contexts)[0])
    torch.testing.assert_close(net.output(last), net.eval()(contexts))


def test_no_dropout_leaves_everything() -> None:
    x = torch.randn(5, 7)
    assert torch.equal(Dropout(0.0)(x), x)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_preserves_the_mean(rate: float) -> None:
    torch.manual_seed(4)
    x = Dropout(rate)(torch.ones(401, 501))
    share = (x == 0).double().mean().item()
    sigma = math.sqrt(rate * (1 - rate) / x.numel())
    assert abs(share - rate) < 4 * sigma
    assert x.unique().tolist() == pytest.approx([0, 1 / (1 - rate)], rel=1e-4)  # the rate is rounded to 1/65536
    assert abs(x.double().mean().item() - 1) < 4 * sigma / (1 - rate)


def test_units_are_dropped_independently_of_their_neighbours() -> None:
    torch.manual_seed(4)
    dropped = Dropout(0.5)(torch.ones(100_000)) == 0
    for distance in range(1, 9):
        both = (dropped[distance:] & dropped[:-distance]).double().mean().item()
        assert both == pytest.approx(0.25, abs=0.01)


def test_a_dropout_rate_just_below_1_drops_almost_everything() -> None:
    torch.manual_seed(4)
    assert (Dropout(0.999999)(torch.ones(10_000)) == 0).double().mean().item() > 0.99


@pytest.mark.parametrize("shape", [(1,), (3,), (7,), (3, 5)])
def test_dropout_takes_any_shape(shape: tuple[int, ...]) -> None:
    assert Dropout(0.5)(torch.ones(shape)).shape == shape


def test_dropout_is_drawn_from_the_seed_of_torch() -> None:
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(Dropout(0.5)(torch.ones(100)))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[2], Dropout(0.5)(torch.ones(100)))


def test_gradients_pass_where_dropout_kept_a_unit() -> None:
    x = torch.ones(100, requires_grad=True)
    kept: Tensor = Dropout(0.2)(x)
    torch.autograd.backward(kept.sum())
    assert x.grad is not None
    assert torch.equal(x.grad, kept.detach())


# -- learning ----------------------------------------------------------------------------------------------------


def test_the_first_32_windows_of_the_lecture_can_be_learnt_by_heart() -> None:
    vocab = Vocab.build("abcdefghijklmnopqrstuvwxyz")
    windows = Windows(encode(["emma", "olivia", "ava", "isabella", "sophia"], vocab), T)
    contexts, targets = windows[:]
    assert len(windows) == 32
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(400):
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(net(contexts), targets))
        optimizer.step()
    # Five first letters stand after the same context: no network gets below 5 ln 5 / 32 = 0.2515.
    assert 0.2514 < F.cross_entropy(net(contexts), targets).item() <= 0.27
