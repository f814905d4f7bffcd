"""Killed with SIGKILL at random steps and resumed, a run equals the one that was never killed, bit for bit."""

import pytest
import torch

from zoo.verify import difference, resume

# Between them: shuffling, dropout, BatchNorm, workers, accumulation, clipping, bf16, averages, validation within
# epochs, early stopping, manual optimisation, and schedules stepped by step (one with its momentum) and by plateau.
CASES = {
    "dropout": ["-c", "configs/mlp_dropout_wine.yaml", "--trainer.max_epochs", "6",
                "--model.optimizer", "zoo.optim.Lion", "--model.lr", "1e-3",
                "--model.lr_scheduler", "WarmupStableDecay", "--ema.decay", "0.9"],
    "accumulation and bf16": ["-c", "configs/mlp_regularized_breast_cancer.yaml", "--trainer.max_epochs", "5",
                              "--trainer.accumulate_grad_batches", "4", "--trainer.precision", "bf16-mixed",
                              "--trainer.val_check_interval", "5", "--early_stopping.patience", "20"],
    "workers": ["-c", "configs/small_cnn_digits.yaml", "--model.stages", "[[8],[8]]", "--trainer.max_epochs", "2",
                "--data.num_workers", "2", "--ema.start_step", "5", "--checkpoint.save_every", "4 steps"],
    "plateau": ["-c", "configs/mlp_diabetes.yaml", "--trainer.max_epochs", "6", "--model.lr_scheduler", "Plateau",
                "--model.lr_scheduler.patience", "0", "--model.optimizer", "SGD", "--model.optimizer.momentum", "0.9"],
    "by hand": ["-c", "configs/scratch_mlp_quadrants.yaml", "--trainer.max_epochs", "4"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_four_kills_leave_no_trace(here, case):
    assert resume(CASES[case], kills=4, seed=len(case)) is None


def test_two_kills_leave_no_trace(here):
    assert resume(CASES["dropout"], kills=2, seed=1) is None


def test_a_step_that_is_not_reproducible_is_found(here):
    (here / "unsteady.py").write_text(
        "import os, torch\n"
        "from zoo.models import MLPClassifier\n"
        "class Unsteady(MLPClassifier):\n"
        "    def step(self, batch, stage):\n"
        "        noise = torch.frombuffer(bytearray(os.urandom(8)), dtype=torch.int64) % 1000\n"
        "        return super().step(batch, stage) * (1 + noise[0] * 1e-3)\n"
    )
    found = resume(["--model", "unsteady.Unsteady", "--data", "Quadrants", "--trainer.max_epochs", "2"], kills=1)
    assert found is not None
    assert found.startswith("last.ckpt: state_dict.net")


def test_first_difference_is_named():
    a = {"x": [torch.ones(2), {"y": 3}]}
    assert difference(a, {"x": [torch.ones(2), {"y": 3}]}) is None
    assert difference(a, {"x": [torch.tensor([1.0, 1.5]), {"y": 3}]}) == "x[0]: largest difference 0.5"
    assert difference(a, {"x": [torch.ones(2), {"y": 4}]}) == "x[1].y: 3 and 4"
    assert difference(a, {"z": 1}) == ": only one of them has x"
    assert "(2,)" in difference(a, {"x": [torch.ones(3), {"y": 3}]})


def test_verify_command(zoo):
    code, out, _ = zoo("verify", "resume", "-c", "configs/mlp_iris.yaml", "--trainer.max_epochs", "3", "--kills", "1")
    assert code == 0
    assert "resumed equals uninterrupted, bit for bit" in out
    code, _, err = zoo("verify", "resume", "-c", "configs/absent.yaml")
    assert code == 2
    assert "no config" in err


def test_more_epochs_after_the_end_equal_a_longer_run(here):
    from zoo.cli import main
    from zoo.verify import compare_runs

    short = ["fit", "-c", "configs/mlp_dropout_wine.yaml"]
    assert main([*short, "--trainer.max_epochs", "2", "--run_dir", "a"]) == 0
    assert main(["fit", "--resume", "a", "--trainer.max_epochs", "4"]) == 0
    assert main([*short, "--trainer.max_epochs", "4", "--run_dir", "b"]) == 0
    assert compare_runs(here / "a", here / "b") is None


def test_more_steps_after_an_end_within_an_epoch_equal_a_longer_run(here):
    from zoo.cli import main

    short = ["fit", "-c", "configs/mlp_dropout_wine.yaml", "--trainer.max_epochs", "-1"]
    assert main([*short, "--trainer.max_steps", "6", "--run_dir", "a"]) == 0
    assert main(["fit", "--resume", "a", "--trainer.max_steps", "12"]) == 0
    assert main([*short, "--trainer.max_steps", "12", "--run_dir", "b"]) == 0
    weights = [torch.load(here / run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in "ab"]
    assert difference(*weights) is None
