"""The parser of the command line: what may be imported, and errors of one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import _typehints, set_parsing_settings
from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from zoo.cli.error_messages import ALLOWED, near_config, one_line
from zoo.errors import UserError

# Within the allowed packages: what fetches or builds code.
DENIED = ("*", "torch.hub", "torch.utils.cpp_extension", "torch.utils.model_zoo", "torch.load", "torch.package")


# Whose class a short name means where several packages have one of that name.
PREFERRED = ("zoo", "torch", "torchvision", "torchmetrics", "lightning")


def _resolve(cls: Any, name: str) -> str:
    """What a short name stands for: the same class whatever else the process has imported."""
    try:
        return _resolve_or_refuse(cls, name)
    except ValueError:
        bases = cls if isinstance(cls, tuple) else (cls,)
        paths = [path for base in bases for path in _typehints.get_all_subclass_paths(base)]
        named = sorted({path for path in paths if path.rpartition(".")[2] == name})
        for package in PREFERRED:
            if len(own := [path for path in named if path.partition(".")[0] == package]) == 1:
                return own[0]
        raise


# Private, as jsonargparse refuses such a name and leaves nobody the choice.
_resolve_or_refuse, _typehints.resolve_class_path_by_name = _typehints.resolve_class_path_by_name, _resolve


def _tensor(value: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(yaml.safe_load(value) if isinstance(value, str) else value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, yaml.YAMLError):
        raise ValueError(f"expected a number or a list of numbers, got {value!r}") from None


register_type(torch.Tensor, serializer=torch.Tensor.tolist, deserializer=_tensor)  # class weights of torch's losses


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


def check_config(path: str) -> None:
    """Refuse a config that is absent or not YAML, naming the file and the line."""
    file = Path(path)
    if file.is_dir():
        raise UserError(f"{path} is a folder, not a config")
    if not file.is_file():
        raise UserError(f"no config {path}{near_config(path) or '; `zoo list configs` tells what there is'}")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{path}, line {line}: broken YAML, {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: broken YAML, {str(error).splitlines()[0]}") from None
    if content is None:
        raise UserError(f"{path} is empty")
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a config: it holds {type(content).__name__}, not keys with values")


def explain(error: BaseException) -> str | None:
    """One line for a mistake of the user; None for what may be a bug, which deserves its traceback."""
    chain, seen = error, []
    while chain is not None:
        seen.append(chain)
        chain = chain.__cause__ or chain.__context__
    for known in seen:
        if isinstance(known, UserError):
            return str(known)
    if isinstance(error, (ValueError, MisconfigurationException, yaml.YAMLError)):
        return one_line(str(error))
    if isinstance(error, OSError):
        return f"{error.filename or ''}: {error.strerror or one_line(str(error))}".lstrip(": ")
    if "does not support dense gradients" in str(error):
        return "SparseAdam takes sparse gradients only, as of nn.Embedding(sparse=True): give --model.optimizer Adam"
    full = "out of memory", "can't allocate memory"  # what CUDA says, and what a CPU's allocator does
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error).lower() for text in full):
        return (
            "out of memory: try a smaller --data.batch_size with --trainer.accumulate_grad_batches to match, "
            "or --trainer.precision bf16-mixed"
        )
    return None
