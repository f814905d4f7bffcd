"""What a checkpoint keeps of its training data, such as vocabularies and means, beside the configs given with it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace

from zoo.data.base import DataModule


def restore_fitted(config: Namespace, saved: dict[str, Any] | None, argv: Sequence[str]) -> dict[str, Any]:
    """Put what a checkpoint's data was fitted to into the config, unless an option on the command line gives it.

    A config, as that of the run itself, has null there, or the option from which it was fitted.

    Args:
        config: of the command, changed in place.
        saved: class path and arguments of the checkpoint's data; null if it names none.
        argv: options of the command.

    Returns:
        The values that were replaced, by the name of their argument.
    """
    data = config.get("data")
    if data is None or saved is None or _class_name(data.class_path) != _class_name(saved["class_path"]):
        return {}
    module, _, name = data.class_path.rpartition(".")
    cls = getattr(sys.modules.get(module), name, None)
    if not (isinstance(cls, type) and issubclass(cls, DataModule)):
        return {}
    replaced = {}
    for argument in cls.fitted_names:
        kept = saved["init_args"].get(argument)
        if kept is None or _is_given(argument, argv) or data.init_args.get(argument) == kept:
            continue
        replaced[argument] = data.init_args.get(argument)
        data.init_args[argument] = kept
    return replaced


def without_fitted(config: dict[str, Any], replaced: dict[str, Any]) -> dict[str, Any]:
    """Return a config, as it is saved, with the values that ``restore_fitted`` replaced."""
    if replaced:
        config["data"]["init_args"].update(replaced)
    return config


def _class_name(class_path: str) -> str:
    return class_path.rpartition(".")[2]


def _is_given(argument: str, argv: Sequence[str]) -> bool:
    for name in (f"--data.{argument}", f"--data.init_args.{argument}"):
        for arg in argv:
            typed = arg.partition("=")[0]
            if typed == name or typed.startswith(f"{name}."):
                return True
    return False
