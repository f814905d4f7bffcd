"""Killed by SIGKILL or other signals at random steps and resumed, a run equals one without kills, bit for bit."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
import yaml

from zoo.cli.resume_check import KillAt, compare_runs, difference, run_in_fork, verify_resume
from zoo.runs import run_folder

SHORT = ["fit", "-c", "configs/mlp_dropout_wine.yaml", "--trainer.max_epochs"]

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
    assert verify_resume(CASES[case], kills=4, seed=len(case)) is None


def test_two_kills_leave_no_trace(here):
    events = []
    assert verify_resume(CASES["dropout"], kills=2, seed=1, report=events.append) is None
    assert [event.split()[0] for event in events[1:]] == ["SIGTERM", "SIGKILL"]


def test_a_step_that_is_not_reproducible_is_found(here):
    (here / "unsteady.py").write_text(
        "import os, torch\n"
        "from zoo.models import MLPClassifier\n"
        "class Unsteady(MLPClassifier):\n"
        "    def step(self, batch, stage):\n"
        "        noise = torch.frombuffer(bytearray(os.urandom(8)), dtype=torch.int64) % 1000\n"
        "        return super().step(batch, stage) * (1 + noise[0] * 1e-3)\n"
    )
    found = verify_resume(["--model", "unsteady.Unsteady", "--data", "Quadrants", "--trainer.max_epochs", "2"], kills=1)
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


def test_what_a_resume_changes_outlives_a_kill(zoo, here):
    assert zoo(*SHORT, 2, "--run_dir", "a")[0] == 0
    longer = ["fit", "--resume", "a", "--trainer.max_epochs", "6"]
    steps = torch.load(here / "a/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert run_in_fork(longer, [KillAt(2 * steps)]) == -signal.SIGKILL
    assert zoo("fit", "--resume", "a")[0] == 0
    assert zoo(*SHORT, 6, "--run_dir", "b")[0] == 0
    assert compare_runs(here / "a", here / "b") is None
    assert (here / "a/config.yaml").read_text() == (here / "b/config.yaml").read_text()
    resumed = json.loads((here / "a/environment.json").read_text())["resumed"]
    assert [entry["changes"] for entry in resumed] == [{"trainer.max_epochs": [2, 6]}, {}]


@pytest.mark.parametrize("limit", ["max_epochs", "max_steps"])
def test_a_finished_run_says_that_it_is(zoo, here, limit):
    assert zoo(*SHORT, -1 if limit == "max_steps" else 2, f"--trainer.{limit}", 2, "--run_dir", "a")[0] == 0
    before = {path: path.read_bytes() for path in (here / "a").rglob("*") if path.is_file()}
    code, out, err = zoo("fit", "--resume", "a")
    assert (code, err) == (0, "")
    (line,) = out.splitlines()[1:]
    assert line.startswith("trained already (")
    assert line.endswith(f"zoo fit --resume a --trainer.{limit} N")
    assert {path: path.read_bytes() for path in (here / "a").rglob("*") if path.is_file()} == before


def test_a_resume_that_cannot_be_is_refused_and_leaves_no_trace(zoo, here):
    assert zoo(*SHORT, 2, "--run_dir", "a")[0] == 0
    before = {path: path.read_bytes() for path in (here / "a").rglob("*") if path.is_file()}
    refused = {"--model.lr": 0.5, "--model.optimizer": "SGD", "--trainer.max_epochs": 1}
    for option, value in refused.items():
        code, _, err = zoo("fit", "--resume", "a", option, value)
        assert (code, err.count("\n")) == (2, 1)
        assert option.rpartition(".")[2] in err
    assert {path: path.read_bytes() for path in (here / "a").rglob("*") if path.is_file()} == before


def test_configs_beside_resume_change_the_runs_own(zoo, here):
    assert zoo(*SHORT, 1)[0] == 0
    (here / "more.yaml").write_text("trainer: {max_epochs: 2, limit_val_batches: 1}\n")
    run = here / "runs/mlp_dropout_wine/1"

    def saved() -> tuple[int, int]:
        trainer = yaml.safe_load((run / "config.yaml").read_text())["trainer"]
        return trainer["max_epochs"], trainer["limit_val_batches"]

    assert zoo("fit", "--resume", "mlp_dropout_wine/1", "-c", "more.yaml")[0] == 0
    assert saved() == (2, 1)
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 2
    options = ["--trainer.max_epochs", "3", "--config=more.yaml"]
    assert zoo("fit", "-c", "configs/mlp_dropout_wine.yaml", "--resume", *options)[0] == 0
    assert saved() == (3, 1), "the first config names the run, and options stand above files"
    code, _, err = zoo("fit", "--resume", "mlp_dropout_wine/1", "-c", "absent.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert "absent.yaml" in err


def test_the_newest_run_is_the_one_that_saved_last(here):
    for run, time in (("a/1", 30), ("a/2", 20), ("a/3", None), ("b/1", 10), ("c/1", None)):
        folder = here / "runs" / run / "checkpoints"
        folder.mkdir(parents=True)
        (folder.parent / "config.yaml").write_text("{}")
        if time:
            (folder / "last.ckpt").touch()
            os.utime(folder / "last.ckpt", (time, time))
    assert run_folder.find(None) == run_folder.find("a") == Path("runs/a/1")
    assert run_folder.find("b") == Path("runs/b/1")
    assert run_folder.find("a/3") == Path("runs/a/3"), "named, it is taken at the word"
    assert run_folder.find("c") == Path("runs/c/1"), "it was killed before its first checkpoint"
    with pytest.raises(ValueError, match="no run to resume under runs/d"):
        run_folder.find(None, "d")
