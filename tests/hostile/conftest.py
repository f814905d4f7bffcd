"""Files and options of somebody who means harm: each is refused in one line, nothing runs, nothing is left behind."""

import copy
from pathlib import Path

import pytest
import torch

from zoo.trust import class_paths

GOLDEN = Path(__file__).parent.parent / "golden"


class Runs:
    """An object whose unpickling makes a file called ``ran``."""

    def __reduce__(self):
        return open, ("ran", "w")


@pytest.fixture
def runs():
    return Runs()


@pytest.fixture(scope="session")
def golden_content():
    return torch.load(GOLDEN / "mlp.ckpt", weights_only=True)


@pytest.fixture
def good(golden_content):
    """The content of a checkpoint of an MLPClassifier on Digits."""
    return copy.deepcopy(golden_content)


@pytest.fixture(autouse=True)
def nothing_happens(tmp_path, monkeypatch):
    """Work in a folder beside another one, and look at the end whether anything ran or was changed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(class_paths, "_of_process", None)
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    yield outside
    assert not list(tmp_path.rglob("ran")), "code ran"
    assert [path.name for path in outside.iterdir()] == ["precious"]
    assert (outside / "precious").read_text() == "precious"


@pytest.fixture
def refused(zoo):
    """Run a command that has to end with exit code 2 and one printable line; return the line."""

    def run(*args: object) -> str:
        code, _, err = zoo(*args)
        lines = err.strip().splitlines()
        assert (code, len(lines)) == (2, 1), err
        assert lines[0].startswith("zoo: error: ")
        assert lines[0].isprintable()
        return lines[0]

    return run
