"""The parser of models, data and trainers: which class paths it imports, and errors of one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import set_parsing_settings
from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningArgumentParser

from zoo._lightning import set_name_resolver, set_yaml_loader, share_long_lists, subclass_paths, untested
from zoo.cli.error_messages import one_line
from zoo.cli.suggestions import near_config
from zoo.distributed import is_main_process
from zoo.errors import UserError
from zoo.trust.allowed_classes import FRAMEWORKS
from zoo.trust.class_paths import allow_in_process
from zoo.trust.reading import bounded_loader, parse_yaml, read_yaml

# A short name that several packages have means the class of the first of these.
PREFERRED = ("zoo", "torch", "torchvision", "torchmetrics", "lightning")


class ZooParser(LightningArgumentParser):
    """Lightning's parser without abbreviations, and with errors of one line that suggest the nearest allowed value."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("dump_header", [])
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        if ex is not None and os.environ.get("ZOO_DEBUG") == "1":
            raise ex
        raise UserError(one_line(str(message), self))


# Values ---------------------------------------------------------------------------------------------------------------


def read_tensor(value: Any) -> torch.Tensor:
    """Return a float32 tensor of a number or a list of numbers, such as the class weights of torch's losses."""
    try:
        if isinstance(value, str):
            value = parse_yaml(value)
        return torch.as_tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, yaml.YAMLError):
        raise ValueError(f"expected a number or a list of numbers, got {value!r}") from None


register_type(torch.Tensor, serializer=torch.Tensor.tolist, deserializer=read_tensor)


# Class paths ----------------------------------------------------------------------------------------------------------


def allow_imports(extra: Iterable[str] = ()) -> None:
    """Let parsers accept the class paths that :mod:`zoo.trust.class_paths` allows, and no others.

    Args:
        extra: packages of ``--allow-import``.
    """
    allowed = allow_in_process(extra)
    set_yaml_loader(bounded_loader)
    if untested("jsonargparse") is None:
        share_long_lists()
    resolve_short_names()
    # The second lock: it goes by package, and holds for paths of modules, too.
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*FRAMEWORKS, *allowed.own],
        instantiate_subclass_spec_in_any=False,
    )


def resolve_short_names() -> None:
    """Make a short name that several packages have mean the class of the first of ``PREFERRED``, or print why not."""
    reason = untested("jsonargparse")
    if reason is None and not set_name_resolver(resolve_short_name):
        reason = "this jsonargparse has no resolver of class names to replace"
    if reason is not None and is_main_process():
        print(f"zoo: {reason}: a class name that several packages have needs its full path", file=sys.stderr)


def resolve_short_name(original: Callable[[Any, str], str], cls: Any, name: str) -> str:
    """Return the class path of a short name, the same whatever else the process has imported.

    Args:
        original: jsonargparse's resolver, which refuses a name that several classes have.
        cls: the base class, or a tuple of them.
        name: the short name.
    """
    try:
        return original(cls, name)
    except ValueError:
        bases = cls if isinstance(cls, tuple) else (cls,)
        candidates = set()
        for base in bases:
            candidates.update(path for path in subclass_paths(base) if path.rpartition(".")[2] == name)
        for package in PREFERRED:
            of_package = [path for path in candidates if path.partition(".")[0] == package]
            if len(of_package) == 1:
                return of_package[0]
        raise


# Configs --------------------------------------------------------------------------------------------------------------


def check_config(path: str) -> None:
    """Raise an error for a config that is absent or not YAML, with the file and the line."""
    file = Path(path)
    if file.is_dir():
        raise UserError(f"{path} is a folder, not a config")
    if not file.is_file():
        raise UserError(f"no config {path}{near_config(path) or '; `zoo list configs` lists the configs'}")
    read_yaml(file)
