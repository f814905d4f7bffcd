"""Signals end a fit after its step, with a checkpoint from which it goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path

import lightning as L
import pytest
import torch

from tests.processes import Fork
from zoo.cli.resume_check import compare_runs

# Eleven steps an epoch in a tenth of a second.
FIT = ["fit", "-c", "configs/mlp_dropout_wine.yaml", "--model.lr_scheduler", "null", "--trainer.max_epochs", "3"]
SENDER = """
import os
import signal
import lightning


class Send(lightning.Callback):
    def __init__(self, name: str, epoch: int = 1, batch: int = 2, stage: str = "train", second: str = ""):
        self.names, self.epoch, self.batch, self.stage = [name, second], epoch, batch, stage

    def send(self, trainer, batch_idx, stage):
        if (stage, trainer.current_epoch, batch_idx) == (self.stage, self.epoch, self.batch):
            for name in filter(None, self.names):
                os.kill(os.getpid(), getattr(signal, name))

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.send(trainer, batch_idx, "train")

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self.send(trainer, batch_idx, "validation")
"""


@pytest.fixture
def send(here):
    (here / "sender.py").write_text(SENDER)

    def run(name: str, *options: str, **arguments: object):
        init = {"name": name, **arguments}
        value = json.dumps([{"class_path": "sender.Send", "init_args": init}])
        return Fork(*FIT, "--run_dir", "a", "--trainer.callbacks", value, *options, folder=here).wait()

    return run


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGUSR1", 138), ("SIGINT", 130)])
def test_a_signal_saves_the_step_and_says_how_to_go_on(name, code, send, zoo, here):
    done = send(name)
    assert done.code == code, done.err
    stopped, _, command = done.err.splitlines()[-1].partition(": ")
    assert stopped == "stopped; to resume"
    saved = torch.load("a/checkpoints/last.ckpt", weights_only=True)
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"] == 3
    assert zoo(*shlex.split(command)[1:], "--trainer.callbacks", "null")[0] == 0
    assert zoo(*FIT, "--run_dir", "b")[0] == 0
    assert compare_runs(Path("a"), Path("b")) is None


# In an epoch's last validation, and in one within the epoch.
@pytest.mark.parametrize("interval", ["1.0", "3"])
def test_a_signal_within_a_validation_loses_no_step(interval, send, zoo, here):
    options = ["--trainer.val_check_interval", interval, "--data.eval_batch_size", "8"]
    options += ["--ema", "EMA", "--early_stopping", "EarlyStopping"]
    done = send("SIGTERM", *options, stage="validation", batch=1)
    assert done.code == 143, done.err
    saved = torch.load("a/checkpoints/last.ckpt", weights_only=True)
    epoch = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert epoch["current"]["processed"] == (3 if interval == "3" else epoch["total"]["processed"] // 2)
    assert zoo("fit", "--resume", "a", "--trainer.callbacks", "null")[0] == 0
    assert zoo(*FIT, "--run_dir", "b", *options)[0] == 0
    assert compare_runs(Path("a"), Path("b")) is None


def test_a_second_signal_stops_at_once(send, here):
    done = send("SIGTERM", second="SIGINT", epoch=0, batch=0)
    assert done.code == 143, "the first one counts"
    assert not list(Path("a").glob("checkpoints/*.ckpt"))
    assert done.err.splitlines()[-1] == "stopped; to resume: zoo fit --resume a"


def test_a_test_that_is_terminated_has_the_exit_code_of_the_signal(zoo, here):
    class Terminate(L.Callback):
        def on_test_batch_start(self, *_):
            os.kill(os.getpid(), signal.SIGTERM)

    assert zoo(*FIT, "--run_dir", "a", "--trainer.max_epochs", 1)[0] == 0
    assert zoo("test", "--ckpt_path", "a/checkpoints/last.ckpt", callbacks=[Terminate()])[0] == 143


def test_slurm_requeues_the_job_and_its_command_goes_on(zoo, here, monkeypatch):
    """By a program of the name of SLURM's in PATH, and with the variables that SLURM sets."""

    class Signal(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.current_epoch == 1:
                os.kill(os.getpid(), signal.SIGUSR1)

    program = here / "scontrol"
    program.write_text('#!/bin/sh\necho "$@" > requeued\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{here}:{os.environ['PATH']}")
    for name, value in {"NTASKS": "1", "JOB_ID": "77", "JOB_NAME": "fit", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    code, _, err = zoo(*FIT, callbacks=[Signal()])
    assert code == 138, err
    assert Path("requeued").read_text() == "requeue 77\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    code, _, err = zoo(*FIT)
    assert code == 0, err
    assert "SLURM has requeued the job: runs/mlp_dropout_wine/1 goes on" in err
    assert [path.name for path in Path("runs/mlp_dropout_wine").iterdir()] == ["1"]
    for name in ("NTASKS", "JOB_ID", "JOB_NAME", "PROCID", "LOCALID", "RESTART_COUNT"):
        monkeypatch.delenv(f"SLURM_{name}")
    assert zoo(*FIT, "--run_dir", "b")[0] == 0
    assert compare_runs(Path("runs/mlp_dropout_wine/1"), Path("b")) is None


# Before the first checkpoint ------------------------------------------------------------------------------------------


def test_a_run_killed_before_its_first_checkpoint_begins_again_by_the_same_command(send, zoo, here):
    assert send("SIGKILL", epoch=0).code == -signal.SIGKILL
    assert not list(Path("a").glob("checkpoints/*.ckpt"))
    assert zoo(*FIT, "--run_dir", "a")[0] == 0
    assert zoo(*FIT, "--run_dir", "b")[0] == 0
    assert compare_runs(Path("a"), Path("b")) is None
    assert "resumed" not in json.loads(Path("a/environment.json").read_text())


def test_a_run_killed_before_its_first_checkpoint_is_resumed_from_its_beginning(send, zoo, here):
    assert send("SIGKILL", epoch=0).code == -signal.SIGKILL
    code, _, err = zoo("fit", "--resume", "a", "--trainer.callbacks", "null")
    assert code == 0, err
    assert "a has no checkpoint yet: it begins again" in err
    assert zoo(*FIT, "--run_dir", "b")[0] == 0
    assert compare_runs(Path("a"), Path("b")) is None


def test_what_a_user_put_into_the_folder_is_not_cleared(send, zoo, here):
    assert send("SIGKILL", epoch=0).code == -signal.SIGKILL
    Path("a/notes.txt").write_text("mine")
    code, _, err = zoo(*FIT, "--run_dir", "a")
    assert (code, err.count("\n")) == (2, 1)
    assert "--run_dir a is not empty" in err


# Early stopping -------------------------------------------------------------------------------------------------------


def test_an_early_stopped_run_trains_nothing_more(zoo, here):
    early = ["--early_stopping.patience", "1", "--early_stopping.min_delta", "100"]
    assert zoo(*FIT, "--run_dir", "a", "--trainer.max_epochs", 9, *early)[0] == 0
    before = torch.load("a/checkpoints/last.ckpt", weights_only=True)
    assert before["epoch"] < 8
    code, out, err = zoo("fit", "--resume", "a")
    assert code == 0, err
    assert "early stopping has ended this run (2 epochs, " in out
    after = torch.load("a/checkpoints/last.ckpt", weights_only=True)
    assert after["global_step"] == before["global_step"]
    for patience, more in ((1, 0), (2, 1)):
        assert zoo("fit", "--resume", "a", "--early_stopping.patience", patience)[0] == 0
        after = torch.load("a/checkpoints/last.ckpt", weights_only=True)
        assert after["global_step"] == before["global_step"] // 2 * (2 + more), "another patience counts"
