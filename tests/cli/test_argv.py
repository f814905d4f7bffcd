"""What is read from the arguments before any parser: values of options, and ``--resume``."""

import os
from pathlib import Path

import pytest

from zoo.cli.argv import Arguments, expand_resume, option, options, without_option


def test_values_of_an_option():
    argv = ["-c", "a", "--config=b", "--x", "1", "-c"]
    assert options(argv, "-c", "--config") == ["a", "b"]
    assert option(argv, "--x") == "1"
    assert option(argv, "--y") is None
    assert without_option(argv, "-c", "--config") == ["--x", "1"]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs of the config x; the second is the newest."""
    monkeypatch.chdir(tmp_path)
    for n in ("1", "2"):
        folder = Path("runs/x") / n
        (folder / "checkpoints" / "last.ckpt").mkdir(parents=True)  # a sharded one, which is a folder
        (folder / "config.yaml").write_text("trainer: {}\n")
        os.utime(folder / "checkpoints" / "last.ckpt", (int(n), int(n)))
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "run", "rest"),
    [
        (["--resume"], "runs/x/2", []),
        (["--resume", "x/1"], "runs/x/1", []),
        (["--resume=runs/x/1", "--a", "b"], "runs/x/1", ["--a", "b"]),
        (["--a", "b", "--resume", "--c", "d"], "runs/x/2", ["--a", "b", "--c", "d"]),
        (["-c", "configs/x.yaml", "--resume"], "runs/x/2", []),
    ],
)
def test_resume_becomes_the_config_and_the_checkpoint_of_a_run(runs, argv, run, rest):
    before = dict(os.environ)
    expected = ["-c", f"{run}/config.yaml", *rest, "--ckpt_path", f"{run}/checkpoints/last.ckpt"]
    assert expand_resume(argv) == Arguments(expected, resumed=Path(run))
    assert dict(os.environ) == before, "nothing is passed on by the environment"


def test_other_configs_change_that_of_the_run(runs):
    expanded = expand_resume(["-c", "x.yaml", "-c", "more.yaml", "--resume"])
    assert options(expanded.argv, "-c") == ["runs/x/2/config.yaml", "more.yaml"]
    expanded = expand_resume(["-c", "more.yaml", "--resume", "x/1"])
    assert options(expanded.argv, "-c") == ["runs/x/1/config.yaml", "more.yaml"]


def test_processes_of_lightning_resume_the_run_of_the_first(runs, monkeypatch):
    monkeypatch.setenv("ZOO_RUN_DIR", "runs/x/1")
    assert expand_resume(["--resume"]).resumed == Path("runs/x/1")


def test_without_resume_nothing_changes():
    assert expand_resume(["-c", "a.yaml"]) == Arguments(["-c", "a.yaml"], resumed=None)
