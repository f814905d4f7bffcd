"""Hyperparameters in a checkpoint: whoever wrote the file chose them, so they are checked before anything is built.

A checkpoint may name classes (:mod:`zoo.trust.class_paths` decides which) and set what zoo saves there. It may not
choose an optimizer, other files with weights, or where files are written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.errors import UserError
from zoo.terminal import printable
from zoo.trust.allowed_classes import FRAMEWORKS
from zoo.trust.class_paths import Allowed, RefusedClassPath, current, resolve
from zoo.trust.own_code import defines

MAX_DEPTH = 40  # of lists and dictionaries within each other
INSTANTIATORS = ("lightning.pytorch.cli.instantiate_module", "pytorch_lightning.cli.instantiate_module")
SECTIONS = {"hyper_parameters": "model", "datamodule_hyper_parameters": "data"}
BASES = {"model": "LightningModule", "data": "LightningDataModule"}

# What a checkpoint of Lightning and zoo consists of, as far as it is read here.
KINDS: dict[str, tuple[type, ...]] = {
    "zoo_format": (int,),
    "epoch": (int,),
    "global_step": (int,),
    "state_dict": (dict,),
    "ema_params": (dict,),
    "raw_params": (dict,),
    "callbacks": (dict,),
    "loops": (dict,),
    "optimizer_states": (list,),
    "lr_schedulers": (list,),
}
OF_TENSORS = ("state_dict", "ema_params", "raw_params")

# Arguments of zoo's models that no checkpoint of zoo has a value for.
NEVER_SAVED = ("optimizer", "lr_scheduler", "param_groups", "init", "weights")
# Files with weights, which zoo saves as sizes: the weights themselves are in the checkpoint.
SAVED_AS_SIZES = ("autoencoder", "text_encoder")
# Arguments of the data that name a place to write to, or fetch files: those are the user's to give.
NOT_TAKEN_OVER = {"cache_dir": None, "download": False}
# A second checkpoint is the user's to give, too. Its name stays, behind this mark, for the error of who needs the file.
SECOND_CHECKPOINT = "teacher_checkpoint"
NOT_READ = "named by a checkpoint, not read: "


def check_hyperparameters(checkpoint: Mapping[str, Any], source: str | Path, expected: type | None = None) -> None:
    """Raise an error for hyperparameters that zoo does not save, or that name what a checkpoint may not name.

    Args:
        checkpoint: its content.
        source: the file, for the error.
        expected: class of the model or the data, where the checkpoint need not name it.

    Raises:
        UserError: in one line, with the file and where in it.
    """
    check_values(checkpoint, source)
    allowed = current()
    for key, section in SECTIONS.items():
        arguments = checkpoint.get(key)
        if arguments is None:
            continue
        is_of_zoo = expected is not None and expected.__module__.startswith("zoo.")
        if "_class_path" in arguments:
            found = _resolve(arguments["_class_path"], source, section, allowed)
            bases = [base.__name__ for base in getattr(found, "__mro__", ())]
            if BASES[section] not in bases:
                path = printable(arguments["_class_path"])
                raise UserError(f"{source}: {section}: {path} is not a {BASES[section]}")
            is_of_zoo = found.__module__.startswith("zoo.")
        if is_of_zoo and section == "model":
            _check_saved(arguments, source)
        for where, path in named_classes(arguments, section):
            _resolve(path, source, where, allowed)
        for where, text in _texts(arguments, section):
            if _names_something(text, allowed):
                _resolve(text, source, where, allowed)


def check_values(checkpoint: Mapping[str, Any], source: str | Path) -> None:
    """Raise an error for a checkpoint whose parts are of other kinds than Lightning and zoo save.

    What its hyperparameters name is not looked at.

    Args:
        checkpoint: its content.
        source: the file, for the error.

    Raises:
        UserError: in one line, with the file and where in it.
    """
    for key, kinds in KINDS.items():
        value = checkpoint.get(key)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise UserError(f"{source}: {key} is a {type(value).__name__}, not a {names}")
    for key in OF_TENSORS:
        if key in checkpoint and checkpoint[key] is None:
            raise UserError(f"{source}: {key} is null, not tensors by name")
        for name, value in checkpoint.get(key, {}).items():
            if not isinstance(name, str):
                raise UserError(f"{source}: {key}: the name {printable(name)} is a {type(name).__name__}, not text")
            if key == "ema_params" and not isinstance(value, Tensor):
                raise UserError(f"{source}: {key}: {printable(name)} is a {type(value).__name__}, not a tensor")
    for key, section in SECTIONS.items():
        arguments = checkpoint.get(key)
        if arguments is None:
            continue
        _check_plain(arguments, source, section)
        instantiator = arguments.get("_instantiator")
        if instantiator is not None and instantiator not in INSTANTIATORS:
            raise UserError(f"{source}: {section}: {printable(instantiator)} may not build it")
        class_path = arguments.get("_class_path", "")
        if not isinstance(class_path, str):
            raise UserError(f"{source}: {section}: the class path is a {type(class_path).__name__}, not text")
        if class_path.startswith("zoo.") and section == "model":
            _check_saved(arguments, source)


def drop_choices_of_user(checkpoint: dict[str, Any]) -> bool:
    """Remove from the hyperparameters, in place, what a checkpoint may not choose; return whether there was something.

    Args:
        checkpoint: its content, whose hyperparameters were checked.
    """
    changed = False
    for key in SECTIONS:
        arguments = checkpoint.get(key)
        if not isinstance(arguments, Mapping):
            continue
        kept = _without_choices(arguments)
        if kept != arguments:
            checkpoint[key] = kept
            changed = True
    return changed


def _without_choices(arguments: Mapping[str, Any]) -> dict[str, Any]:
    kept = {}
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            value = _without_choices(value)
        if name in NOT_TAKEN_OVER and isinstance(value, (str, bool)):
            value = NOT_TAKEN_OVER[name]
        if name == SECOND_CHECKPOINT and isinstance(value, str) and not value.startswith(NOT_READ):
            value = NOT_READ + value
        kept[name] = value
    return kept


def named_classes(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of a key ``class_path``, at any depth, with its place, such as ``model.net``."""
    if isinstance(value, Mapping):
        if "class_path" in value:
            yield where, value["class_path"]
        for name, item in value.items():
            inner = where if name in ("init_args", "dict_kwargs") else f"{where}.{name}"
            yield from named_classes(item, inner)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from named_classes(item, where)


# Helpers --------------------------------------------------------------------------------------------------------------


def _check_plain(value: Any, source: str | Path, where: str, depth: int = 0) -> None:
    """Raise an error unless a section holds names with plain values, nested as deep as such values are."""
    if depth == 0 and not isinstance(value, Mapping):
        raise UserError(f"{source}: {where}: expected arguments by name, got a {type(value).__name__}")
    if depth > MAX_DEPTH:
        raise UserError(f"{source}: {where}: values are nested more than {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        for name, item in value.items():
            if depth == 0 and not isinstance(name, str):
                raise UserError(f"{source}: {where}: the name of an argument is a {type(name).__name__}, not text")
            _check_plain(item, source, f"{where}.{printable(name)}" if depth == 0 else where, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_plain(item, source, where, depth + 1)


def _check_saved(arguments: Mapping[str, Any], source: str | Path) -> None:
    for name in NEVER_SAVED:
        if arguments.get(name) is not None:
            raise UserError(f"{source}: model.{name}: no checkpoint of zoo holds this argument: give it yourself")
    for name in SAVED_AS_SIZES:
        if isinstance(arguments.get(name), str):
            raise UserError(f"{source}: model.{name}: a checkpoint may not name another file with weights")


def _resolve(path: Any, source: str | Path, where: str, allowed: Allowed) -> type:
    if not isinstance(path, str):
        raise UserError(f"{source}: {where}: the class path is a {type(path).__name__}, not text")
    if not all(part.isidentifier() for part in path.split(".")) or "." not in path:
        raise UserError(f"{source}: {where}: {printable(path)!r} is no class path")
    try:
        found = resolve(path, "checkpoint", allowed)
    except RefusedClassPath as error:
        raise UserError(f"{source}: {where}: {error.sentence}") from None
    except (ImportError, AttributeError) as error:
        raise UserError(f"{source}: {where}: there is no class {path}: {printable(error)}") from None
    return found


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield all texts that are not the class path of their own mapping."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name not in ("class_path", "_class_path", "_instantiator"):
                inner = where if name in ("init_args", "dict_kwargs") else f"{where}.{name}"
                yield from _texts(item, inner)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item, where)
    elif isinstance(value, str):
        yield where, value


def _names_something(text: str, allowed: Allowed) -> bool:
    """Return whether a text would be taken for a class path by an argument that takes a class or a function."""
    module, _, name = text.rpartition(".")
    if not module or not all(part.isidentifier() for part in text.split(".")):
        return False
    if module.partition(".")[0] not in FRAMEWORKS and not allowed.is_own(module):
        return False
    return bool(defines(module, name))
