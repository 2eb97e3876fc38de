"""The handwritten SGD step against autograd, in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mlp_lm.cli import main
from mlp_lm.models.fused import FusedSGD
from mlp_lm.models.network import MLP
from mlp_lm.training.optim import build_optimizer, set_learning_rate
from tests.conftest import Capture, fit, state

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
    optimizer = build_optimizer(
        net, optimizer="sgd", learning_rate=1.0, momentum=0.0, weight_decay=decay, decay_all=decay_all
    )
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


CLASSIC = ["--model.optimizer=sgd", "--model.learning_rate=0.1", "--model.dropout=0", "--trainer.precision=64-true"]
NOTE = "SGD steps with gradients written by hand"


def test_a_run_can_be_resumed_with_the_other_kind_of_step(corpus_file: Path, tmp_path: Path, capfd: Capture) -> None:
    schedule = ["--model.lr_schedule=step", "--model.lr_decay_steps=20", "--model.lr_warmup_steps=0"]
    whole = fit(
        corpus_file, tmp_path / "whole", *CLASSIC, *schedule, "--model.handwritten_step=false", "--trainer.max_steps=20"
    )
    assert NOTE not in capfd.readouterr().err
    for first, second in (("true", "false"), ("false", "true")):
        run = tmp_path / first
        fit(corpus_file, run, *CLASSIC, *schedule, f"--model.handwritten_step={first}", "--trainer.max_steps=10")
        flags = ["--trainer.max_steps=20", "--trainer.val_check_interval=5", "--trainer.precision=64-true"]
        assert main(["fit", f"--ckpt_path={run}", f"--model.handwritten_step={second}", *flags]) == 0
        assert capfd.readouterr().err.count(NOTE) == 1
        found, expected = state(run), state(whole)
        rate, expected_rate = (s["optimizer_states"][0]["param_groups"][0]["lr"] for s in (found, expected))
        assert rate == expected_rate
        torch.testing.assert_close(found["state_dict"], expected["state_dict"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "flag", ["--model.momentum=0.5", "--model.dropout=0.1", "--model.num_layers=2", "--model.optimizer=adamw"]
)
def test_the_handwritten_step_is_taken_only_if_it_applies(
    corpus_file: Path, tmp_path: Path, capfd: Capture, flag: str
) -> None:
    fit(corpus_file, tmp_path / "run", *CLASSIC, flag, "--trainer.max_steps=1", "--trainer.enable_progress_bar=false")
    assert capfd.readouterr().err == ""
