"""The parser of the command line: what may be imported, and errors of one line."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

ALLOWED = ("zoo", "lightning", "torch", "torchvision", "torchmetrics")
# Within the allowed packages: what fetches or builds code.
DENIED = ("*", "torch.hub", "torch.utils.cpp_extension", "torch.utils.model_zoo", "torch.load", "torch.package")


class UserError(ValueError):
    """A mistake of the user, told in one line."""


def allow_imports(extra: Iterable[str] = ()) -> None:
    """Limit what a class path may name: zoo, the frameworks, and the modules of the working directory."""
    here = Path.cwd()
    if str(here) not in sys.path:
        sys.path.append(str(here))  # last: a file here must not hide an installed package
    own = [p.stem for p in here.glob("*.py")] + [p.parent.name for p in here.glob("*/*.py")]
    own = [name for name in dict.fromkeys(own) if name.isidentifier() and _is_here(name, here)]
    given = [name for name in (*extra, *os.environ.get("ZOO_ALLOW_IMPORT", "").split(",")) if name]
    for name in given:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(f"--allow-import takes a package name such as my_package, got {name!r}")
    set_parsing_settings(
        import_path_denylist=list(DENIED),
        import_path_allowlist=[*ALLOWED, *own, *given],
        instantiate_subclass_spec_in_any=False,
    )


def _is_here(name: str, here: Path) -> bool:
    if name in sys.stdlib_module_names:
        return False
    spec = PathFinder.find_spec(name, [p for p in sys.path if p])
    places = [spec.origin, *(spec.submodule_search_locations or [])] if spec else []
    return any(place and Path(place).resolve().is_relative_to(here.resolve()) for place in places)


class ZooParser(LightningArgumentParser):
    """Lightning's parser without abbreviations, and with errors of one line that name the nearest allowed value."""

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


def one_line(message: str, parser: LightningArgumentParser | None = None) -> str:
    """Make one sentence of jsonargparse's many lines, with the nearest allowed name."""
    if m := re.search(r"Importing '([\w.]+)' is not allowed", message):
        package = m[1].partition(".")[0]
        return f"{m[1]} is outside {', '.join(ALLOWED)} and this folder; allow it with --allow-import {package}"
    if m := re.search(r"Expected a dot import path string: (.+)", message):
        where = re.search(r'Parser key "([\w.]+)"', message)
        return f"{where[1] + ': ' if where else ''}unknown class {m[1].strip()!r}{nearest(m[1].strip(), class_names())}"
    for pattern in (r"[Oo]ption '([\w.-]+)' is not accepted", r"does not accept option '([\w.-]+)'"):
        if m := re.search(pattern, message):
            return f"unknown option {m[1]!r}{nearest(m[1], option_names(parser))}"
    if m := re.search(r"Key '([\w.]+)' is not expected|No action for (?:destination )?key \"([\w.]+)\"", message):
        name = m[1] or m[2]
        return f"unknown key {name!r}{nearest(name, option_names(parser))}"
    if m := re.search(r"unrecognized arguments: (\S+)", message, re.IGNORECASE):
        name = m[1].lstrip("-").partition("=")[0]
        return f"unknown option {m[1].partition('=')[0]}{nearest(name, option_names(parser))}"
    skip = ("Does not validate", "Subtypes:", "Errors:", "Given value", "Expected a <class 'NoneType'>")
    lines = [line.strip(" -\t") for line in message.splitlines()]
    lines = [line for line in lines if line and not line.startswith(skip)]
    text = ": ".join(line.rstrip(":") for line in lines[:4])
    return re.sub(r'Parser key "([\w.]+)"', r"\1", text)


def check_config(path: str) -> None:
    """Refuse a config that is absent or not YAML, naming the file and the line."""
    file = Path(path)
    if not file.is_file():
        folder = file.parent if file.parent.is_dir() else Path("configs")
        known = [str(p) for p in folder.glob("*.y*ml")]
        raise UserError(f"no config {path}{nearest(path, known)}")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{path}, line {line}: broken YAML, {error.problem}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a config: it holds {type(content).__name__}, not keys with values")


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` for the names close to a wrong one, or nothing."""
    known = sorted(set(known))
    close = difflib.get_close_matches(name, known, 2)
    if not close:  # compare the last part only: a misspelt key deep in a config
        by_tail = {k.rpartition(".")[2]: k for k in known}
        close = [by_tail[k] for k in difflib.get_close_matches(name.rpartition(".")[2], by_tail, 2)]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def class_names() -> set[str]:
    """Short names of the classes that may stand in a config."""
    from torch.optim.lr_scheduler import LRScheduler

    import zoo.callbacks
    import zoo.data
    import zoo.models

    names = {*zoo.callbacks.__all__, *zoo.data.__all__, *zoo.models.__all__}
    for base in (torch.optim.Optimizer, LRScheduler, L.Callback, L.LightningModule, L.LightningDataModule):
        todo = [base]
        while todo:
            for child in todo.pop().__subclasses__():
                todo.append(child)
                if not child.__name__.startswith("_"):
                    names.add(child.__name__)
    return names


def option_names(parser: LightningArgumentParser | None) -> set[str]:
    """Every key of the parser, and the arguments of all models and datasets."""
    import zoo.data
    import zoo.models

    names = {a.dest for a in getattr(parser, "_actions", [])}
    for room in (zoo.models, zoo.data):
        for cls in (getattr(room, name) for name in room.__all__):
            for base in inspect.getmro(cls):
                if base.__module__.startswith("zoo.") and "__init__" in vars(base):
                    names |= {p for p in inspect.signature(base).parameters if p not in ("kwargs", "args")}
    return names
