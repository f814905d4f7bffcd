"""On a full disk every command that writes ends in one line with exit code 2, and what was there before stays."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.processes import Fork

FIT = ["fit", "-c", "configs/mlp_digits.yaml", "--trainer.max_epochs", "1"]


def small_disk(limit: int = 20_000) -> None:
    """Let no file have more bytes; the default is less than a checkpoint, and more than a config."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@pytest.fixture
def trained(zoo, here) -> str:
    assert zoo(*FIT, "--run_dir", "a")[0] == 0
    return "a/checkpoints/last.ckpt"


COMMANDS = {
    "export": ("export --ckpt_path CKPT --out out.safetensors", "out.safetensors"),
    "predictions": ("predict --ckpt_path CKPT --out out.jsonl --trainer.enable_progress_bar false", "out.jsonl"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_written_stays_as_it_was(name, trained, here):
    command, out = COMMANDS[name]
    Path(out).write_text("old")
    before = sorted(path.name for path in here.iterdir())
    done = Fork(*command.replace("CKPT", trained).split(), folder=here, before=lambda: small_disk(3000)).wait()
    assert done.code == 2, done.err
    assert done.err.splitlines()[-1] == f"zoo: error: cannot write {out}: File too large"
    assert sorted(path.name for path in here.iterdir()) == before
    assert Path(out).read_text() == "old"


def test_a_fit_that_cannot_save(here):
    done = Fork(*FIT, "--run_dir", "b", folder=here, before=small_disk).wait()
    assert done.code == 2, done.err
    assert done.err.splitlines()[-1] == "zoo: error: cannot write b/checkpoints/last.ckpt: File too large"
    assert not Path("b").exists(), "a run without a checkpoint is not kept"


def test_a_resumed_fit_that_cannot_save_keeps_its_checkpoints(trained, here):
    before = {path: path.read_bytes() for path in Path("a/checkpoints").iterdir()}
    done = Fork("fit", "--resume", "a", "--trainer.max_epochs", "2", folder=here, before=small_disk).wait()
    assert done.code == 2, done.err
    assert "cannot write a/checkpoints/last.ckpt: File too large" in done.err.splitlines()[-1]
    assert {path: path.read_bytes() for path in Path("a/checkpoints").iterdir()} == before
