"""One thread a process (two spinning pools on two cores slow each other tenfold), and a clean folder for each run."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"

import lightning as L
import pytest
import torch
from shape_checks import install_import_hook

install_import_hook()
torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def load_support() -> ModuleType:
    """The module .ci/support.py, which lies in no package."""
    spec = importlib.util.spec_from_file_location("support", ROOT / ".ci" / "support.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def abandoned(path: Path) -> Path:
    """The temporary name beside a path that a process which has ended would have left."""
    code = "import pathlib, sys, zoo.files; print(zoo.files.temporary_path(pathlib.Path(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PL_GLOBAL_SEED", "ZOO_RUN_DIR", "ZOO_DEBUG", "ZOO_ALLOW_IMPORT"):
        monkeypatch.delenv(name, raising=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which share of the planted bugs was named rightly, and how often something sound raised an alarm."""

    def count(*tests: str) -> tuple[int, int]:
        reports = [r for kind in ("passed", "failed") for r in terminalreporter.getreports(kind)]
        mine = [r.passed for r in reports if r.nodeid.partition("[")[0].endswith(tests)]
        return sum(mine), len(mine)

    named, bugs = count("test_faults.py::test_planted_bug_is_named", "test_faults.py::test_rate_far_off_is_named")
    quiet, sound = count("::test_sound_module_raises_no_alarm", "::test_healthy_config_raises_no_alarm")
    if bugs or sound:
        text = (
            f"diagnose: {named} of {bugs} planted bugs named, false alarms on {sound - quiet} of {sound} sound modules"
        )
        terminalreporter.write_line(text)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory that sees zoo's configs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


@pytest.fixture
def zoo(here: Path, capfd: pytest.CaptureFixture):
    """Run a command in this process, with callbacks of the test's own; return (exit code, stdout, stderr)."""
    from zoo.cli import main

    def run(*args: object, callbacks: Sequence[L.Callback] = ()) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(a) for a in args], callbacks)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def zoo_process(here: Path):
    """Run a command as a user would, in a process of its own."""

    def run(*args: str, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "zoo", *map(str, args)],
            capture_output=True,
            text=True,
            cwd=here,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            timeout=300,
        )

    return run
