"""The order of zoo's packages: who may import whom, read from the source text."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "zoo"
# A package imports those below it only. Modules at the root (errors, files, distributed, ...) are below all of them.
ORDER = (
    "cli",
    "export",
    "catalog",
    "runs",
    "diagnosis",
    "models",
    "tasks",
    "prediction",
    "callbacks",
    "data",
    "adapters",
    "metrics",
    "optim",
    "losses",
    "layers",
    "diffusion",
    "text",
    "weights",
    "checkpoints",
    "trust",
)
MAX_FILES_AT_THE_ROOT = 6
# Plain PyTorch: other projects can use these packages without Lightning.
WITHOUT_LIGHTNING = ("layers", "losses", "weights", "text", "diffusion", "optim", "metrics", "checkpoints", "adapters")


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """Yield the full names that a file imports, within functions too; but not for annotations alone."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        pending += ast.iter_child_nodes(node)


def imported_modules(name: str) -> set[str]:
    """Return the modules of zoo that one of them imports."""
    found = set()
    for target in imports(MODULES[name]):
        module = target
        if module not in MODULES:  # a name in a module
            module = target.rpartition(".")[0]
        if module in MODULES and module != name:
            found.add(module)
    return found


GRAPH = {name: imported_modules(name) for name in MODULES}


def package_of(module: str) -> str | None:
    """Return the package of a module directly below zoo, or None for a module at the root."""
    parts = module.split(".")
    is_package = len(parts) > 1 and (ROOT / parts[1]).is_dir()
    return parts[1] if is_package else None


def test_the_graph_is_read():
    assert len(GRAPH) > 150
    assert "zoo.files" in GRAPH["zoo.runs.record"]
    assert "zoo._lightning" in GRAPH["zoo.checkpoints.checkpoint"], "an import within a function"


def find_circle() -> list[str]:
    """Return modules that import each other in a circle; an empty list if there are none."""
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        for target in sorted(GRAPH[name]):
            circle = visit(target)
            if circle:
                return circle
        path.pop()
        done.add(name)
        return []

    for name in sorted(GRAPH):
        circle = visit(name)
        if circle:
            return circle
    return []


def test_no_circle_of_modules():
    assert find_circle() == []


def test_few_files_at_the_root():
    loose = sorted(path.name for path in ROOT.glob("*.py") if path.stem not in ("__init__", "__main__"))
    assert len(loose) <= MAX_FILES_AT_THE_ROOT, loose


def test_order_names_all_packages():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == set(ORDER)


@pytest.mark.parametrize("package", ORDER)
def test_packages_import_those_below_them_only(package):
    below = ORDER[ORDER.index(package) :]
    upwards = []
    for name, targets in GRAPH.items():
        if package_of(name) != package:
            continue
        for target in targets:
            of_target = package_of(target)
            if of_target is not None and of_target not in below:
                upwards.append(f"{name} -> {target}")
    assert upwards == []


def test_modules_at_the_root_import_no_package():
    """But for the two entry points: ``python -m zoo`` and ``zoo.diagnose``."""
    for name, targets in GRAPH.items():
        if package_of(name) is None and name not in ("zoo", "zoo.__main__"):
            assert [target for target in targets if package_of(target) is not None] == [], name


def test_packages_that_need_no_lightning_do_not_load_it():
    names = ", ".join(f"zoo.{package}" for package in WITHOUT_LIGHTNING)
    code = f"import sys, {names}; print([m for m in ('lightning', 'jsonargparse') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_networks_do_not_import_lightning():
    """A file of a model has the network and its LightningModule, whose base comes from ``zoo.tasks``."""
    for name, path in MODULES.items():
        if package_of(name) in ("models", *WITHOUT_LIGHTNING):
            lightning = [target for target in imports(path) if target.split(".")[0] == "lightning"]
            assert lightning == [] or name == "zoo.checkpoints.checkpoint", name
