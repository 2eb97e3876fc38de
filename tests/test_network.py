"""The network against the lecture's written-out tensor maths.

Shapes: B batch, T context, E embedding, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlp_lm.models.cross_entropy import linear_cross_entropy
from mlp_lm.models.metrics import token_nll
from mlp_lm.models.network import MLP, Dropout
from mlp_lm.text.tokenizer import Tokenizer
from mlp_lm.text.vocab import Vocab
from mlp_lm.text.windows import Windows

V, T, E, H, B = 27, 3, 10, 200, 32


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Contexts (B, T) and targets (B,)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(V, (B, T), generator=generator), torch.randint(V, (B,), generator=generator)


def network(num_layers: int = 1, dropout: float = 0.0, **more: Any) -> MLP:
    torch.manual_seed(2)
    return MLP(V, T, E, H, num_layers, dropout=dropout, **more)


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

    found = token_nll(net.log_probs(contexts), targets).mean()
    torch.autograd.backward(found)
    torch.testing.assert_close(net(contexts), logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, loss, rtol=1e-12, atol=1e-12)
    for weight, expected in zip(weights, raw, strict=True):
        torch.testing.assert_close(weight.grad, expected.grad, rtol=1e-10, atol=1e-12)


def test_every_number_that_is_learnt_is_counted() -> None:
    assert network().count_weights() == 11_897  # the lecture's
    two_layers = MLP(5, context_size=2, embedding_dim=3, hidden_dim=4, num_layers=2)
    assert two_layers.count_weights() == 5 * 3 + (6 * 4 + 4) + (4 * 4 + 4) + (4 * 5 + 5)


def test_a_deeper_network_stacks_its_tanh_layers(batch: tuple[Tensor, Tensor]) -> None:
    contexts, _ = batch
    net = network(num_layers=3, dropout=0.5)
    h = net.embedding(contexts).view(B, T * E)
    for layer, activations in zip(net.hidden, net.activations(contexts), strict=True):
        h = torch.tanh(layer(h))
        torch.testing.assert_close(activations, h)
    assert not torch.equal(net(contexts), net.output(h))
    torch.testing.assert_close(net.eval()(contexts), net.output(h))  # without dropout


def test_a_residual_layer_adds_to_what_it_sees(batch: tuple[Tensor, Tensor]) -> None:
    contexts, _ = batch
    net = network(num_layers=3, residual=True)
    first, second, third = net.hidden
    h = a = torch.tanh(first(net.embedding(contexts).flatten(1)))
    h = h + (b := torch.tanh(second(h)))
    h = h + (c := torch.tanh(third(h)))
    torch.testing.assert_close(net(contexts), net.output(h))
    torch.testing.assert_close(net.activations(contexts), [a, b, c])


def test_a_residual_layer_sees_dropped_units_but_adds_to_all(batch: tuple[Tensor, Tensor]) -> None:
    contexts, _ = batch
    net = network(num_layers=2, residual=True, dropout=0.5)
    first, second = net.hidden
    torch.manual_seed(5)
    h = torch.tanh(first(net.embedding(contexts).flatten(1)))
    h = h + torch.tanh(second(net.dropout(h)))
    expected = net.output(net.dropout(h))
    torch.manual_seed(5)
    torch.testing.assert_close(net(contexts), expected)


def test_weights_that_do_not_fit_are_refused() -> None:
    weights = network().state_dict()
    sizes = {"embedding_dim": E, "hidden_dim": H, "num_layers": 1}
    loaded = MLP.from_weights(weights, V, T, **sizes)
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), weights, rtol=0, atol=0)
    for wrong in ({**weights, "more": torch.ones(1)}, {k: w for k, w in weights.items() if k != "output.bias"}):
        with pytest.raises(RuntimeError, match="key"):
            MLP.from_weights(wrong, V, T, **sizes)


def test_direct_connections_add_a_linear_function_of_the_embeddings(batch: tuple[Tensor, Tensor]) -> None:
    contexts, _ = batch
    net = network(direct=True)
    e = net.embedding(contexts).flatten(1)
    h = torch.tanh(net.hidden[0](e))
    by_units, direct = net.output.weight[:, :H], net.output.weight[:, H:]
    torch.testing.assert_close(net(contexts), h @ by_units.t() + e @ direct.t() + net.output.bias)
    torch.manual_seed(2)
    alone = MLP(V, T, E, hidden_dim=0, direct=True)
    torch.testing.assert_close(alone(contexts), alone.output(alone.embedding(contexts).flatten(1)))
    assert alone.activations(contexts) == []


def test_a_tied_network_has_one_table_before_and_after_training_and_loading(batch: tuple[Tensor, Tensor]) -> None:
    contexts, _ = batch
    net = network(tied=True)
    assert net.projection is not None
    h = torch.tanh(net.hidden[0](net.embedding(contexts).flatten(1)))
    expected = net.projection(h) @ net.embedding.weight.t() + net.output.bias
    torch.testing.assert_close(net(contexts), expected)
    assert net.count_weights() == V * E + T * E * H + H + H * E + V
    sizes = {"embedding_dim": E, "hidden_dim": H, "tied": True}
    loaded = MLP.from_weights(net.state_dict(), V, T, **sizes)
    torch.testing.assert_close(loaded(contexts), expected)
    assert loaded.output.weight is loaded.embedding.weight


def test_the_loss_in_parts_and_its_gradients_are_those_of_cross_entropy() -> None:
    torch.manual_seed(3)
    x, weight, bias = (torch.randn(n, dtype=torch.float64) for n in ((600, 5), (7, 5), (7,)))
    targets = torch.randint(7, (600,))
    found, expected = ([t.clone().requires_grad_() for t in (x, weight, bias)] for _ in range(2))
    loss = linear_cross_entropy(found[0], found[1], found[2], targets)
    plain = F.cross_entropy(F.linear(*expected), targets)
    torch.testing.assert_close(loss, plain)
    for each in (loss, plain):
        torch.autograd.backward(3 * each)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("vocab_size", [V, 2000])
def test_the_loss_is_the_cross_entropy_of_the_logits(vocab_size: int, batch: tuple[Tensor, Tensor]) -> None:
    contexts, targets = batch
    net = MLP(vocab_size, T, E, H)
    torch.testing.assert_close(net.loss(contexts, targets), F.cross_entropy(net(contexts), targets))


def test_dropped_embeddings_change_a_training_step_alone(batch: tuple[Tensor, Tensor]) -> None:
    contexts, _ = batch
    net = network(embedding_dropout=0.5)
    assert not torch.equal(net(contexts), network()(contexts))
    torch.testing.assert_close(net.eval()(contexts), network()(contexts))


# -- initialisation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [{}, {"num_layers": 3}, {"num_layers": 2, "residual": True}, {"direct": True}])
def test_training_starts_from_a_uniform_choice_with_tanh_units_neither_saturated_nor_idle(kind: dict[str, Any]) -> None:
    net = network(**kind)  # which seeds torch
    contexts, targets = torch.randint(V, (1000, T)), torch.randint(V, (1000,))
    assert F.cross_entropy(net(contexts), targets).item() == pytest.approx(math.log(V), rel=0.02)
    for i, h in enumerate(net.activations(contexts)):
        assert (h.abs() > 0.97).double().mean().item() < 0.10
        assert h.double().atanh().std().item() == pytest.approx(0.5 if net.residual and i > 0 else 1, rel=0.15)


@pytest.mark.parametrize(("vocab_size", "tied"), [(2000, False), (2000, True), (V, True)])
def test_many_embeddings_and_those_of_the_output_start_small(vocab_size: int, tied: bool) -> None:
    torch.manual_seed(2)
    net = MLP(vocab_size, T, E, H, tied=tied)
    contexts = torch.randint(vocab_size, (1000, T))
    assert net(contexts).std().item() == pytest.approx(0.01, rel=0.2)  # a nearly uniform prediction
    assert net.embedding.weight.std().item() == pytest.approx(0.1, rel=0.1)
    assert net.activations(contexts)[0].std().item() == pytest.approx(0.1, rel=0.1)


# -- dropout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_preserves_the_mean(rate: float) -> None:
    torch.manual_seed(4)
    x = Dropout(rate)(torch.ones(401, 501))  # an odd number of units: draws come four at a time
    assert x.shape == (401, 501)
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


# -- learning ----------------------------------------------------------------------------------------------------


def test_the_first_32_windows_of_the_lecture_can_be_memorised() -> None:
    vocab = Vocab.build("abcdefghijklmnopqrstuvwxyz")
    windows = Windows(Tokenizer().encode("emma\nolivia\nava\nisabella\nsophia\n", vocab), T)
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
