"""What .ci/matrix asks about the project: its lower bounds as pins, and the tests that run in every environment.

``python .ci/support.py lowest`` prints constraints for pip, ``python .ci/support.py portable`` arguments for pytest.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Outputs and gradients of all architectures, every module, resuming, and the user's mistakes.
PORTABLE = ["tests/parity", "tests/test_all_models.py", "tests/test_resume.py", "tests/cli/test_mistakes.py"]


def requirements() -> list[str]:
    """All requirements of the project and of its tests; those of linters and type checkers are left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *extras["text"], *extras["onnx"], *extras["test"]]


def lowest() -> list[str]:
    """Each requirement that has a lower bound, pinned to it."""
    bounds = (re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\d.]+)", requirement) for requirement in requirements())
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound]


def portable() -> list[str]:
    """The portable tests, with one config of each model class: the first, those that need nothing else before others.

    Configs for pictures of the user's own are left out: they have their own test.
    """
    import yaml

    texts = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "configs").glob("*.yaml")}
    chosen: dict[str, str] = {}
    for config in sorted(texts, key=lambda name: ("\n# Needs: " in texts[name], name)):
        model = yaml.safe_load(texts[config])["model"]
        name = model if isinstance(model, str) else model["class_path"]
        if "ImageFolder" not in texts[config]:
            chosen.setdefault(name, config)
    return PORTABLE + [f"tests/test_configs.py::test_fit_test_and_predict[{config}]" for config in chosen.values()]


if __name__ == "__main__":
    print("\n".join({"lowest": lowest, "portable": portable}[sys.argv[1]]()))
