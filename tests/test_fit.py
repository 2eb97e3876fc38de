"""`fit` and its Lightning neighbours from the command line, on a small corpus."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from mlp_lm import load
from mlp_lm.cli import main
from mlp_lm.models.metrics import evaluate
from mlp_lm.models.sampling import generate
from mlp_lm.text.corpus import load_corpus
from mlp_lm.text.windows import Order, Windows
from mlp_lm.training.datamodule import Chunks, TextDataModule
from mlp_lm.training.module import MLPModule
from mlp_lm.training.trainer import Trainer
from tests.conftest import fit, scalars


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    content = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    state: dict[str, torch.Tensor] = content["state_dict"]
    return state


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_a_run_leaves_checkpoints_config_events_and_report(run_dir: Path) -> None:
    assert (run_dir / "config.yaml").exists()
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    report = json.loads((run_dir / "report.json").read_text())
    assert report["steps"] == 12
    assert report["weights"] == 10 * 4 + (3 * 4 * 16 + 16) + (16 * 10 + 10)
    assert report["settings"]["data"]["context_size"] == report["settings"]["model"]["context_size"] == 3
    assert report["settings"]["model"]["lr_decay_steps"] == 12
    assert len(report["samples"]) == 10


def test_the_reported_losses_are_those_of_best_ckpt_reloaded(run_dir: Path, best: Path, corpus_file: Path) -> None:
    corpus = load_corpus(str(corpus_file), None, unique=True, split_seed=42, max_item_length=100)
    report = json.loads((run_dir / "report.json").read_text())
    for split in ("dev", "test"):
        loss = evaluate(load(best).log_probs, [Windows(getattr(corpus, split), 3)[:]])
        assert report["losses"][split]["nats_per_token"] == pytest.approx(loss.nats_per_token, abs=1e-6)
        assert report["losses"][split]["tokens"] == loss.tokens


def test_curves_are_drawn_over_steps(run_dir: Path) -> None:
    curves = scalars(run_dir)
    assert [step for step, _ in curves["train/loss"]] == [4, 5, 8, 10, 12]  # every validation is a log point, too
    assert [step for step, _ in curves["dev/loss"]] == [5, 10, 12]
    assert {"dev/perplexity", "dev/bits_per_token", "lr"} <= curves.keys()


def test_best_ckpt_is_that_of_the_lowest_dev_loss(run_dir: Path, best: Path) -> None:
    lowest = min(scalars(run_dir)["dev/loss"], key=lambda point: point[1])
    assert torch.load(best, weights_only=True)["global_step"] == lowest[0]


def test_last_ckpt_is_there_before_the_first_validation(corpus_file: Path, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MLPModule, "training_step", stop)
        with pytest.raises(StoppedError):
            fit(corpus_file, tmp_path / "run")
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 0


@pytest.mark.parametrize("steps_per_execution", [7, 100])
def test_steps_per_execution_changes_no_result(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps_per_execution: int
) -> None:
    # Dropout on, batches that span two epochs, validations and log points at odds with K.
    flags = ["--data.batch_size=50", "--trainer.log_every_n_steps=3", "--model.dropout=0.3", "--trainer.max_steps=40"]
    one = fit(corpus_file, tmp_path / "one", *flags, "--data.steps_per_execution=1")
    validated = MLPModule.on_validation_epoch_end

    def and_sample(module: MLPModule) -> None:
        validated(module)
        generate(module.network.log_probs, 3, 3, max_length=5, generator=torch.Generator().manual_seed(1))

    monkeypatch.setattr(MLPModule, "on_validation_epoch_end", and_sample)  # nor does sampling in between
    many = fit(corpus_file, tmp_path / "many", *flags, f"--data.steps_per_execution={steps_per_execution}")
    assert_same_weights(one, many)
    assert scalars(one) == scalars(many)


def test_lightning_counts_the_steps_of_one_call(corpus_file: Path, tmp_path: Path) -> None:
    # MLPModule._count_steps rests on a private counter of Lightning: without it, this would train for ever.
    run = fit(corpus_file, tmp_path / "run", "--trainer.max_steps=31", "--data.steps_per_execution=4")
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 31


def test_the_saved_config_gives_the_same_run(run_dir: Path, tmp_path: Path) -> None:
    assert main(["fit", "--config", str(run_dir / "config.yaml"), "--run_dir", str(tmp_path / "again")]) == 0
    assert_same_weights(run_dir, tmp_path / "again")
    assert scalars(run_dir) == scalars(tmp_path / "again")


def test_a_resumed_run_ends_like_an_uninterrupted_one(corpus_file: Path, tmp_path: Path) -> None:
    flags = ["--model.dropout=0.3", "--model.lr_decay_steps=20"]
    whole = fit(corpus_file, tmp_path / "whole", *flags, "--trainer.max_steps=20")
    parts = fit(corpus_file, tmp_path / "parts", *flags, "--trainer.max_steps=10")
    last = parts / "checkpoints" / "last.ckpt"
    intervals = ["--trainer.val_check_interval=5", "--trainer.max_steps=20"]
    assert main(["fit", "--ckpt_path", str(last), *intervals]) == 0
    assert_same_weights(whole, parts)
    assert scalars(whole)["dev/loss"] == scalars(parts)["dev/loss"]


def test_a_continued_run_may_stand_in_another_folder_and_have_another_default_seed(
    corpus_file: Path, tmp_path: Path
) -> None:
    flags = ["--seed_everything=7", "--model.lr_decay_steps=20"]
    whole = fit(corpus_file, tmp_path / "whole", *flags, "--trainer.max_steps=20")
    fit(corpus_file, tmp_path / "part", *flags, "--trainer.max_steps=10")
    (tmp_path / "moved").mkdir()
    last = shutil.copy(tmp_path / "part" / "checkpoints" / "last.ckpt", tmp_path / "moved")
    assert main(["fit", "--ckpt_path", str(last), "--trainer.max_steps=20"]) == 0
    assert_same_weights(whole, tmp_path / "moved")
    assert (tmp_path / "moved" / "checkpoints" / "best.ckpt").exists()


def test_another_seed_is_another_run(corpus_file: Path, tmp_path: Path) -> None:
    # Same start weights would do for a wrong test: the order of examples must differ, too.
    runs = [fit(corpus_file, tmp_path / str(seed), f"--seed_everything={seed}") for seed in (1, 2)]
    first, second = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in runs)
    assert [c["TextDataModule"]["order_seed"] for c in (first, second)] == [1, 2]
    assert not torch.equal(first["state_dict"]["network.output.weight"], second["state_dict"]["network.output.weight"])


DIVERGING = ["--model.optimizer=sgd", "--model.dropout=0", "--model.lr_schedule=constant"]


def test_a_rising_dev_loss_leaves_best_ckpt_alone_also_in_a_continued_run(corpus_file: Path, tmp_path: Path) -> None:
    run = fit(corpus_file, tmp_path / "run", *DIVERGING, "--model.learning_rate=0.1", "--trainer.max_steps=10")
    before = (run / "checkpoints" / "best.ckpt").read_bytes()
    flags = ["--model.learning_rate=30", "--trainer.max_steps=20"]
    assert main(["fit", "--ckpt_path", str(run / "checkpoints" / "last.ckpt"), *flags]) == 0
    losses = [loss for _, loss in scalars(run)["dev/loss"]]
    assert min(losses[2:]) > min(losses[:2]), "nothing to test"
    assert (run / "checkpoints" / "best.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--trainer.log_every_n_steps=4"],
            "train loss is nan at step 3, where the learning rate is 1e+35; try a",
        ),
        (["--trainer.val_check_interval=1"], "dev loss is nan, or a weight no number, at step "),
    ],
)
def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_weights(
    flags: list[str], expected: str, corpus_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = fit(corpus_file, tmp_path / "run", *DIVERGING, "--model.learning_rate=1e35", *flags, expected=2)
    assert f"error: {expected}" in capfd.readouterr().err
    assert all(w.isfinite().all() for w in weights(run).values())


def test_a_point_of_the_training_curve_is_the_mean_loss_of_the_steps_before_it(
    corpus_file: Path, tmp_path: Path
) -> None:
    # At next to no learning rate, 3 steps of 644 windows (2 epochs of 966) must have the loss of train itself.
    flags = [*DIVERGING, "--model.learning_rate=1e-30", "--data.batch_size=644", "--trainer.max_steps=3"]
    run = fit(corpus_file, tmp_path / "run", *flags, "--trainer.log_every_n_steps=3")
    corpus = load_corpus(str(corpus_file), None, unique=True, split_seed=42, max_item_length=100)
    loss = evaluate(load(run / "checkpoints" / "last.ckpt").log_probs, [Windows(corpus.train, 3)[:]])
    ((step, train_loss),) = scalars(run)["train/loss"]
    assert step == 3 and train_loss == pytest.approx(loss.nats_per_token, abs=1e-6)


def test_a_corpus_with_fewer_windows_than_a_batch_trains(tmp_path: Path) -> None:
    (tmp_path / "items.txt").write_text("ab\nba\naab\nbba\nabab\nbaba\n")
    run = fit(tmp_path / "items.txt", tmp_path / "run", "--data.batch_size=100")
    assert [step for step, _ in scalars(run)["dev/loss"]] == [5, 10, 12]


def test_a_chunk_ends_at_a_multiple_of_k_or_at_a_log_point(corpus_file: Path) -> None:
    data = TextDataModule(str(corpus_file), context_size=3, batch_size=100)
    trainer = Trainer(max_steps=25, val_check_interval=23, log_every_n_steps=6, accelerator="cpu")
    order = Order(len(data.windows("train")), 100, seed=1)
    chunks = list(Chunks(data.windows("train"), order, 4, trainer))
    sizes = [len(targets) for _, targets in chunks]
    assert [sum(sizes[: i + 1]) for i in range(len(sizes))] == [4, 6, 8, 12, 16, 18, 20, 23]
    assert {contexts.shape[1:] for contexts, _ in chunks} == {(100, 3)}


@pytest.mark.parametrize(
    ("own", "environment", "batch_size", "expected"),
    [
        (None, None, 32, 1),  # a small step
        (None, None, 1024, 3),  # a large one: as many as there are
        (2, None, 32, 2),
        (2, "4", 1024, 2),
        (None, "4", 32, 3),  # OMP_NUM_THREADS is torch's own business
    ],
)
def test_threads_follow_the_step_unless_the_user_says_otherwise(
    own: int | None, environment: str | None, batch_size: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        Trainer(accelerator="cpu", num_threads=own).set_threads(batch_size, num_weights=12_000)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_threads_that_lightning_chose_for_several_processes_are_not_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before, trainer = torch.get_num_threads(), Trainer(accelerator="cpu")
    try:
        torch.set_num_threads(8)
        monkeypatch.setenv("OMP_NUM_THREADS", "8")  # as Lightning does where it starts processes
        monkeypatch.setattr(Trainer, "world_size", 32)
        trainer.set_threads(1024, num_weights=12_000)  # 32 windows for each process: a small step
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_report_test_false_leaves_test_unread(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = TextDataModule.windows

    def all_but_test(data: TextDataModule, split: str) -> Windows:
        assert split != "test", "test data was asked for"
        return windows(data, split)

    monkeypatch.setattr(TextDataModule, "windows", all_but_test)
    run = fit(corpus_file, tmp_path / "run", "--report_test=false")
    assert list(json.loads((run / "report.json").read_text())["losses"]) == ["dev"]


def test_training_never_reads_test(corpus_file: Path, tmp_path: Path) -> None:
    # Other test items, same vocabulary: the trained weights must not change.
    items = corpus_file.read_text().split()
    for name, part in (("train", items[:150]), ("dev", items[150:175]), ("test", items[175:]), ("none", items[:1])):
        (tmp_path / name).write_text("\n".join(part))
    splits = [f"--data.train_path={tmp_path / 'train'}", f"--data.dev_path={tmp_path / 'dev'}"]
    one = fit("names", tmp_path / "one", *splits, f"--data.test_path={tmp_path / 'test'}")
    other = fit("names", tmp_path / "other", *splits, f"--data.test_path={tmp_path / 'none'}")
    assert_same_weights(one, other)


def test_what_fit_prints(corpus_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fit(corpus_file, tmp_path / "run")
    out, err = capfd.readouterr()
    assert err == ""  # no bar where stderr is no terminal, nothing of Lightning's
    for expected in ("weights, 12 steps", "nats/token", "dev ", "test ", "generated", "tensorboard --logdir"):
        assert expected in out
    assert f"sample {tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}" in out


def test_on_a_terminal_there_is_a_bar_in_steps(
    corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    fit(corpus_file, tmp_path / "run", "--data.steps_per_execution=4")
    bar = capsys.readouterr().err
    assert "12/12" in bar and "step/s" in bar and "dev loss 2." in bar


@pytest.mark.parametrize(("command", "split"), [("validate", "dev"), ("test", "test")])
def test_evaluation_needs_the_checkpoint_alone(
    best: Path, run_dir: Path, command: str, split: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--ckpt_path", str(best)]) == 0
    loss = json.loads((run_dir / "report.json").read_text())["losses"][split]["nats_per_token"]
    out, err = capfd.readouterr()
    assert out.startswith(f"{split}: {loss:.4f} nats/token")
    assert err == ""


def test_predict_writes_a_row_for_each_window_of_dev(corpus_file: Path, tmp_path: Path) -> None:
    run = fit(corpus_file, tmp_path / "run")
    assert main(["predict", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")]) == 0
    header, first, *rest = (run / "predictions.csv").read_text().splitlines()
    assert header == "context,target,nats,predicted,probability"
    assert first.startswith("...,")
    assert len(rest) + 1 == json.loads((run / "report.json").read_text())["windows"]["dev"]


def test_runs_are_numbered_under_the_name_of_their_config(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"data": {"path": str(corpus_file)}, "model": {"hidden_dim": 4, "lr_warmup_steps": 0}}
    Path("mine.yaml").write_text(yaml.safe_dump({**settings, "trainer": {"max_steps": 2}}))
    for _ in range(2):
        assert main(["fit", "--config", "mine.yaml", "--report_test=false"]) == 0
    assert main(["fit", "--config", "runs/mine/version_0/config.yaml"]) == 0
    assert sorted(p.name for p in Path("runs/mine").iterdir()) == ["version_0", "version_1", "version_2"]


@pytest.mark.parametrize("flags", [["--model.num_layers=3"], ["--model.optimizer=sgd", "--model.momentum=0.9"]])
def test_other_networks_and_optimizers_train(corpus_file: Path, tmp_path: Path, flags: list[str]) -> None:
    run = fit(corpus_file, tmp_path / "run", *flags, "--trainer.precision=64-true", "--trainer.logger=false")
    assert load(run / "checkpoints" / "best.ckpt").sample(3, seed=1)


def test_a_network_that_is_worse_than_guessing_says_so(
    corpus_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fit(corpus_file, tmp_path / "good")
    assert "guessing" not in capfd.readouterr().out
    fit(corpus_file, tmp_path / "bad", *DIVERGING, "--model.learning_rate=30", "--trainer.val_check_interval=12")
    assert "dev is no better than guessing evenly among 10 tokens" in capfd.readouterr().out
