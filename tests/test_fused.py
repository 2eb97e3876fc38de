"""The handwritten SGD step against autograd, in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mlp_lm.models.fused import FusedSGD
from mlp_lm.models.network import MLP
from mlp_lm.training.optim import build_optimizer, set_learning_rate
from tests.conftest import CONSTANT_SGD, LOGGED, Capture, fit, scalars, state

V, T, B = 27, 3, 32


def network() -> MLP:
    """The lecture's, with output weights large enough for every gradient to matter."""
    torch.manual_seed(1)
    net = MLP(V, T, embedding_dim=10, hidden_dim=200).double()
    torch.nn.init.normal_(net.output.weight, std=0.1)
    return net


def batches(num_steps: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    contexts = torch.randint(0, V, (num_steps, B, T), generator=generator)
    return contexts, torch.randint(0, V, (num_steps, B), generator=generator)


def autograd_steps(
    net: MLP, contexts: Tensor, targets: Tensor, rates: list[float], decay: float, decay_all: bool
) -> list[float]:
    """The same with torch's own SGD; returns the losses."""
    optimizer = build_optimizer(net, optimizer="sgd", momentum=0.0, weight_decay=decay, decay_all=decay_all)
    losses = []
    for x, y, rate in zip(contexts, targets, rates, strict=True):
        set_learning_rate(optimizer, rate)
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_close(one: MLP, other: MLP, tolerance: float) -> None:
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert (p - q).abs().max() <= tolerance, name


def test_the_gradients_are_those_of_autograd() -> None:
    net, contexts, targets = network(), *batches(1)
    torch.autograd.backward(F.cross_entropy(net(contexts[0]), targets[0]))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    FusedSGD(net).run(contexts, targets, [1.0])
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 1e-4, f"{name}: nothing to compare"
        assert (before[name] - p.detach() - p.grad).abs().max() < 1e-10, name


@pytest.mark.parametrize(("decay", "decay_all"), [(0.0, False), (0.1, False), (0.1, True)])
def test_hundreds_of_steps_end_where_autograd_ends(decay: float, decay_all: bool) -> None:
    one, other, (contexts, targets) = network(), network(), batches(300)
    rates = [0.1] * 200 + [0.01] * 100
    losses = FusedSGD(one, decay, decay_all).run(contexts, targets, rates)
    expected = autograd_steps(other, contexts, targets, rates, decay, decay_all)
    assert_close(one, other, 1e-9)
    assert losses.tolist() == pytest.approx(expected, abs=1e-9)


def test_how_many_steps_a_call_runs_changes_no_bit() -> None:
    one, other, (contexts, targets) = network().float(), network().float(), batches(7)
    together = FusedSGD(one).run(contexts, targets, [0.1] * 7)
    stepwise = [FusedSGD(other).run(contexts[k : k + 1], targets[k : k + 1], [0.1]) for k in range(7)]
    assert torch.equal(together, torch.cat(stepwise))
    assert_close(one, other, 0.0)


SMALL_SGD = [*CONSTANT_SGD, "--model.learning_rate=0.1", "--trainer.precision=64-true"]
INTERVALS = ["--trainer.max_steps=12", "--trainer.val_check_interval=6", "--trainer.log_every_n_steps=6"]


def test_a_run_in_the_fast_lane_ends_where_one_through_autograd_ends(corpus_file: Path, tmp_path: Path) -> None:
    one, six = (
        fit(corpus_file, tmp_path / k, LOGGED, *SMALL_SGD, *INTERVALS, f"--data.steps_per_execution={k}")
        for k in ("1", "6")
    )
    torch.testing.assert_close(state(one)["state_dict"], state(six)["state_dict"], rtol=0, atol=1e-9)
    torch.testing.assert_close(scalars(one), scalars(six), rtol=1e-6, atol=0)
    rates = [run["optimizer_states"][0]["param_groups"][0]["lr"] for run in (state(one), state(six))]
    assert rates == [0.1, 0.1]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model.momentum=0.5"], "model.momentum 0.5"),
        (["--model.dropout=0.1", "--model.num_layers=2"], "model.num_layers 2, model.dropout 0.1"),
        (["--model.optimizer=adamw"], "model.optimizer adamw"),
        (["--trainer.gradient_clip_val=1"], "trainer.gradient_clip_val 1"),
        (["--trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches 2"),
        (["--trainer.max_epochs=2"], "trainer.max_epochs 2"),
        (["--trainer.max_steps=null", "--trainer.max_epochs=2"], "trainer.max_epochs 2"),
        (["--trainer.val_check_interval=0.5"], "trainer.val_check_interval 0.5"),
        (["--trainer.fast_dev_run=true"], "trainer.fast_dev_run True"),
        (["--trainer.limit_train_batches=5"], "trainer.limit_train_batches 5"),
        (["--trainer.detect_anomaly=true"], "trainer.detect_anomaly True"),
        (["--trainer.devices=2"], "2 processes"),
        (["--trainer.callbacks+=EMAWeightAveraging"], "EMAWeightAveraging"),
        (["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=2"], "ModelCheckpoint"),
    ],
)
def test_what_does_not_go_with_several_steps_a_call_is_one_line_with_the_remedy(
    flags: list[str], expected: str, corpus_file: Path, tmp_path: Path, capfd: Capture
) -> None:
    run = fit(corpus_file, tmp_path / "run", *SMALL_SGD, *INTERVALS, "--data.steps_per_execution=6", *flags, expected=2)
    assert capfd.readouterr().err == (
        f"mlp_lm fit: error: data.steps_per_execution: found 6, which cannot be combined with {expected}; "
        "set --data.steps_per_execution 1\n"
    )
    assert not run.exists()


def test_intervals_that_k_does_not_divide_are_named_with_the_nearest_k(
    corpus_file: Path, tmp_path: Path, capfd: Capture
) -> None:
    fit(corpus_file, tmp_path / "run", *SMALL_SGD, *INTERVALS, "--data.steps_per_execution=4", expected=2)
    assert "found 4, expected a divisor of trainer.val_check_interval 6, trainer.log_every_n_steps 6; the nearest" in (
        error := capfd.readouterr().err
    )
    assert error.endswith("that divides all intervals is 3\n")
