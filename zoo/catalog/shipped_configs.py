"""The configs that come with zoo, in a clone or installed from a wheel, by their names. It imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

DISTRIBUTION = "lightning-zoo"
CONFIG_OPTIONS = ("-c", "--config")


@cache
def shipped_configs() -> dict[str, Path]:
    """Map the names of the configs to their files: in ``configs/`` of a clone, or among the files of the wheel."""
    beside_package = Path(__file__).parents[2] / "configs"
    files = list(beside_package.glob("*.yaml"))
    if not files:
        files = _installed_files()
    return {file.stem: file for file in sorted(files)}


def _installed_files() -> list[Path]:
    try:
        installed = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        return []
    # pyproject.toml puts them below share/, which lies where the environment has it, or, after an installation with
    # `pip install --target`, beside the package.
    pattern = f"share/{DISTRIBUTION}/configs/*.yaml"
    listed = [Path(str(file.locate())) for file in installed.files or [] if file.match(pattern)]
    beside_package = Path(str(installed.locate_file(""))).glob(pattern)
    return [path for path in (*listed, *beside_package) if path.is_file()]


def find_config(name: str) -> Path | None:
    """Return the file of a config that comes with zoo, or None.

    Args:
        name: such as ``mlp_digits`` or ``mlp_digits.yaml``. A file of that path goes first, and a path with folders in
            it is never looked up.
    """
    if Path(name).name != name or Path(name).exists():
        return None
    return shipped_configs().get(name.removesuffix(".yaml"))


def expand_configs(argv: Sequence[str]) -> list[str]:
    """Return the arguments with the files of configs that are given by name, as in ``-c mlp_digits``."""
    expanded = []
    is_value = False
    for arg in argv:
        name, equals, value = arg.partition("=")
        if is_value:
            arg = str(find_config(arg) or arg)
        elif equals and name in CONFIG_OPTIONS:
            arg = f"{name}={find_config(value) or value}"
        is_value = not is_value and arg in CONFIG_OPTIONS
        expanded.append(arg)
    return expanded
