"""Weights & Biases: what the user's environment variables set counts."""

from __future__ import annotations

import pytest

from zoo.runs.loggers import wandb_logger


@pytest.fixture
def wandb_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")

    def run(**env: str):
        for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_TAGS", "WANDB_RUN_ID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        logger = wandb_logger(tmp_path, "mlp-1", "abcd1234", {"lr": 0.1})
        return logger.experiment

    return run


def test_environment_variables_of_wandb_count(wandb_run):
    run = wandb_run(WANDB_PROJECT="my_lab", WANDB_NAME="mine", WANDB_RUN_GROUP="sweep", WANDB_TAGS="a,b")
    assert (run.project, run.name, run.group, run.tags, run.id) == ("my_lab", "mine", "sweep", ("a", "b"), "abcd1234")
    run.finish()


def test_without_them_the_project_is_zoo(wandb_run):
    run = wandb_run()
    assert (run.project, run.name, run.id) == ("zoo", "mlp-1", "abcd1234")
    run.finish()
