"""The code of every notebook runs from top to bottom."""

import json

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_runs(path, here):
    cells = json.loads(path.read_text())["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    scope: dict = {}
    exec(compile(code, str(path), "exec"), scope)
    assert scope["predicted"]["name"], "the last cell predicts"
