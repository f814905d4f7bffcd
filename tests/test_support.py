"""pyproject.toml, .ci, the workflow and the README agree on what is supported; zoo does without fork and file locks.

.ci/matrix tries the range itself.
"""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
import yaml
from packaging.requirements import Requirement

from tests.conftest import CONFIGS, ROOT, load_support

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
RUN, MATRIX = ((ROOT / ".ci" / name).read_text() for name in ("run", "matrix"))
JOBS = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
FIRST_COMMAND = "zoo fit -c configs/mlp_digits.yaml"


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def names(requirements: list[str]) -> set[str]:
    return {normal(Requirement(requirement).name) for requirement in requirements}


@pytest.fixture(scope="module")
def support():
    return load_support()


def commands(job: str) -> str:
    return "\n".join(step.get("run", "") for step in JOBS[job]["steps"])


def lower_bound(requirement: Requirement) -> str | None:
    return next((bound.version for bound in requirement.specifier if bound.operator == ">="), None)


def test_the_matrix_pins_every_dependency_to_its_lower_bound(support):
    bounds = {r.name: lower_bound(r) for r in map(Requirement, support.requirements())}
    assert support.lowest() == [f"{name}=={bound}" for name, bound in bounds.items() if bound]
    needed = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["text"]]
    assert [r for r in needed if lower_bound(Requirement(r)) is None] == []


def test_every_package_that_zoo_imports_is_a_dependency():
    distributions = packages_distributions()
    declared = names(PROJECT["dependencies"])
    optional = names([r for extra in ("text", "onnx", "test") for r in PROJECT["optional-dependencies"][extra]])
    for path in sorted((ROOT / "zoo").rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            for package in imported(node) - {"zoo", *sys.stdlib_module_names}:
                allowed = declared if node in tree.body else declared | optional
                providers = {normal(name) for name in distributions[package]}
                assert providers & allowed, f"{path.relative_to(ROOT)} imports {package}"


def imported(node: ast.AST) -> set[str]:
    """The top-level packages that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return {node.module.partition(".")[0]}
    return set()


def test_python_versions_agree():
    found = re.search(r"\*\*Supported:\*\* Python 3\.(\d+) to 3\.(\d+),", README)
    versions = [f"3.{minor}" for minor in range(int(found[1]), int(found[2]) + 1)]
    prefix = "Programming Language :: Python :: "
    assert [c.removeprefix(prefix) for c in PROJECT["classifiers"] if c.startswith(prefix)] == versions
    assert PROJECT["requires-python"] == f">={versions[0]}"
    assert re.search(r"for version in ([\d. ]+); do", MATRIX)[1].split() == versions
    assert re.search(r"newest\) echo ([\d. ]+) ;;", MATRIX)[1].split() == versions[::-1]
    # The workflow tries each with the newest, and those that .ci/matrix has for the lowest with the lowest.
    grid = JOBS["matrix"]["strategy"]["matrix"]
    assert grid["python"] == versions
    for_lowest = re.search(r"lowest\) echo ([\d. ]+) ;;", MATRIX)[1].split()
    without = [v for v in versions if v not in for_lowest]
    assert grid["exclude"] == [{"python": v, "environment": "lowest"} for v in without]
    assert for_lowest[0] == versions[0]


def test_the_range_of_torch_is_told():
    found = re.search(r"torch from ([\d.]+) without ([\d.]+),", README)
    assert PROJECT["dependencies"][0] == f"torch>={found[1]},!={found[2]}"


def test_the_environments_are_those_of_the_matrix():
    environments = re.findall(r"^        (\w+)\) pip install|^        (\w+)\) PIP_", MATRIX, re.MULTILINE)
    defined = {a or b for a, b in environments}
    assert defined == {"lowest", "default", "newest"}
    assert set(JOBS["matrix"]["strategy"]["matrix"]["environment"]) == {"lowest", "newest"}
    assert set(re.search(r"for name in ([\w ]+); do", RUN)[1].split()) == {"lowest", "newest"}
    assert ".ci/matrix --python ${{ matrix.python }} ${{ matrix.environment }}" in commands("matrix")
    assert ".ci/run" in commands("run")


def test_an_environment_that_is_not_there_is_refused():
    done = subprocess.run([ROOT / ".ci" / "matrix", "oldest"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage: .ci/matrix" in done.stderr


def test_the_first_command_is_the_readmes():
    command = re.search(r"^pip install -e \. && (zoo fit .*)$", README, re.MULTILINE)[1]
    assert command == FIRST_COMMAND
    for script in (RUN, MATRIX, commands("smoke")):
        assert f"{command} --run_dir" in script


def test_portable_tests_are_there_and_have_one_config_for_each_model(support):
    paths = [argument for argument in support.portable() if "[" not in argument]
    assert all((ROOT / path).exists() for path in paths)
    configs = [argument.rpartition("[")[2].rstrip("]") for argument in support.portable() if "[" in argument]
    models = [model_of(ROOT / "configs" / f"{config}.yaml") for config in configs]
    assert len(set(models)) == len(models)
    assert set(models) == {model_of(config) for config in CONFIGS}


def model_of(config) -> str:
    model = yaml.safe_load(config.read_text())["model"]
    return model if isinstance(model, str) else model["class_path"]


def test_the_smoke_of_other_systems_runs_tests_that_are_there():
    assert {name.partition("-")[0] for name in JOBS["smoke"]["strategy"]["matrix"]["os"]} == {"macos", "windows"}
    assert "macOS and Windows" in README
    paths = re.search(r"pytest (.*)", commands("smoke"))[1].split()
    assert all((ROOT / path).exists() for path in paths)


def test_verify_says_what_it_needs_where_nothing_can_be_forked(zoo, monkeypatch):
    monkeypatch.delattr(os, "fork")
    code, _, err = zoo("verify", "resume", "-c", "configs/mlp_digits.yaml")
    assert code == 2
    assert re.fullmatch(r"zoo: error: zoo verify forks .*: use Linux, WSL or macOS\n", err)


def test_weights_are_fetched_where_files_cannot_be_locked(tmp_path, monkeypatch):
    fetch = importlib.import_module("zoo.weights.fetch")  # the package has a function of this name
    monkeypatch.setattr(fetch, "fcntl", None)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "x.pth").write_bytes(b"weights")
    assert fetch.fetch((tmp_path / "x.pth").as_uri()).read_bytes() == b"weights"


def test_datasets_are_locked_where_files_cannot_be(tmp_path, monkeypatch):
    from zoo.data.downloads import locked

    monkeypatch.setitem(sys.modules, "fcntl", None)
    with locked(tmp_path / "lock"):
        assert not (tmp_path / "lock").exists()


def test_free_memory_is_guessed_where_the_system_does_not_tell(monkeypatch):
    from zoo.data.images import image_cache

    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(image_cache, "Path", lambda path: ROOT / "nothing" / path.lstrip("/"))
    monkeypatch.setattr(os, "sysconf", unknown)  # macOS
    assert image_cache.free_memory() == 4 << 30
    monkeypatch.delattr(os, "sysconf")  # Windows
    assert image_cache.free_memory() == 4 << 30
