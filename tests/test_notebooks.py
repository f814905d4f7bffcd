"""The notebooks run from top to bottom, and what is stored in them is of such a run and of no machine."""

import ast
import base64
import importlib
import json
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What the first cell sets, small: the rest is run as it stands.
SMALL = {"epochs": 1, "steps": 3, "length": 12, "overfit_steps": 20}
PATH = re.compile(r"/(?:home|root|Users|tmp|opt|usr|work|var)/|[A-Z]:\\|site-packages")
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def run(path: Path, **settings: int) -> dict:
    """Run the cells, with those settings that the first one makes replaced; return the names there are then."""
    scope: dict = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(path)):
        exec(compile(source(cell), f"{path.name}, cell {number}", "exec"), scope)
        scope.update({name: value for name, value in settings.items() if number == 0 and name in scope})
    return scope


def pictures(path: Path) -> list[bytes]:
    outputs = [output.get("data", {}) for cell in code_cells(path) for output in cell["outputs"]]
    return [base64.b64decode(data["image/png"]) for data in outputs if "image/png" in data]


def test_first_steps_runs(here):
    scope = run(ROOT / "notebooks" / "first_steps.ipynb", **SMALL)
    assert set(scope["scores"]) == {"CNN", "linear", "last", "averaged"}
    assert "activation on outputs" in [finding.name for finding in scope["report"].of("error")]
    assert len(scope["predicted"]["class"]) == len(scope["true"]) == 719
    kept = {path.name for path in (here / scope["folder"]).iterdir()}
    assert kept >= {"averaged.ckpt", "misclassified.png", "confusion_matrix.png", "nan_report.json"}


@pytest.mark.slow
def test_text_and_images_runs(here):
    scope = run(ROOT / "notebooks" / "text_and_images.ipynb", **SMALL)
    assert scope["end"] < scope["start"], "three steps of training help"
    assert 1 <= len(scope["new"]) <= SMALL["length"]
    assert scope["images"].shape == (50, 1, 8, 8)


@pytest.mark.slow
def test_results_are_as_told(here):
    scope = run(ROOT / "notebooks" / "first_steps.ipynb")
    assert scope["scores"]["CNN"] > 0.97 > scope["scores"]["linear"] > 0.92
    assert scope["scores"]["averaged"] > 0.97
    scope = run(ROOT / "notebooks" / "text_and_images.ipynb")
    assert scope["end"] < 1.6
    assert scope["painter"].trainer.callback_metrics["val/loss"] < 0.3


@each
def test_outputs_are_stored(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "of one run, in order"
    assert sum(bool(cell["outputs"]) for cell in cells) >= len(cells) - 2
    assert pictures(path)
    assert sum(map(len, pictures(path))) < 60_000


@each
def test_outputs_hold_no_warning_and_no_path_of_a_machine(path):
    outputs = [output for cell in code_cells(path) for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result"}, "no error"
    assert {output.get("name") for output in outputs} <= {"stdout", None}, "nothing on stderr"
    texts = [json.dumps({**output, "data": {**output.get("data", {}), "image/png": ""}}) for output in outputs]
    assert [text for text in texts if PATH.search(text)] == []


def test_path_of_a_machine_is_seen():
    for text in ("/home/me/x", "a /tmp/y.py:3", r"C:\x", "lib/site-packages/torch"):
        assert PATH.search(text), text
    assert not PATH.search("runs/first_steps/nan_report.json")


@each
def test_imports_exist(path):
    taken = [node for cell in code_cells(path) for node in ast.walk(ast.parse(source(cell)))]
    found = [
        (node.module, alias.name)
        for node in taken
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("zoo")
        for alias in node.names
    ]
    assert found
    for module, name in found:
        assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"
