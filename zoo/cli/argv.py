"""The arguments as typed, read before any parser: values of single options, and ``fit --resume``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.distributed import say
from zoo.runs import run_folder

RESUME = "--resume"


@dataclass(frozen=True)
class Arguments:
    """The options of a command.

    Args:
        argv: the options to parse.
        resumed: folder of the run that they continue; None for a new run.
    """

    argv: list[str]
    resumed: Path | None = None


def options(argv: Sequence[str], *names: str) -> list[str]:
    """Return all values of an option in order, given as ``--name value`` or ``--name=value``.

    Args:
        argv: the arguments.
        names: names of the option, dashes included.
    """
    values = []
    for i, arg in enumerate(argv):
        name, equals, value = arg.partition("=")
        if name not in names:
            continue
        if equals:
            values.append(value)
        else:
            values.extend(argv[i + 1 : i + 2])
    return values


def option(argv: Sequence[str], *names: str) -> str | None:
    """Return the first value of an option, or None if it is not there."""
    values = options(argv, *names)
    return values[0] if values else None


def without_option(argv: Sequence[str], *names: str) -> list[str]:
    """Return the arguments without an option and its values."""
    kept = []
    is_value = False
    for arg in argv:
        if is_value:
            is_value = False
            continue
        name, equals, _ = arg.partition("=")
        if name in names:
            is_value = not equals
        else:
            kept.append(arg)
    return kept


def expand_resume(argv: list[str]) -> Arguments:
    """Replace ``--resume [RUN]`` by the config of the run and its last checkpoint.

    Without RUN the first config names the run: ``-c configs/x.yaml --resume`` continues the newest run of x with the
    config that this run has. All other configs change the config of the run.

    Args:
        argv: the options of ``zoo fit``.
    """
    position = _position_of_resume(argv)
    if position is None:
        return Arguments(argv)
    _, equals, value = argv[position].partition("=")
    before = argv[:position]
    after = argv[position + 1 :]
    which = None
    if equals:
        which = value
    elif after and not after[0].startswith("-"):
        which = after[0]
        after = after[1:]
    others = before + after
    changes = options(others, "-c", "--config")
    config_name = None
    if which is None and changes:
        config_name = Path(changes[0]).stem
        changes = changes[1:]
    # Processes launched by Lightning continue the run of the first one, as another run may be the newest by now.
    run = run_folder.find(os.environ.get("ZOO_RUN_DIR") or which, config_name)
    run_folder.upgrade_saved_config(run)
    expanded = []
    for config in (str(run / "config.yaml"), *changes):
        expanded += ["-c", config]
    expanded += without_option(others, "-c", "--config")
    checkpoint = run_folder.newest_checkpoint(run)
    if checkpoint is None:
        say(f"{run} has no checkpoint yet: it begins again")
    else:
        expanded += ["--ckpt_path", str(checkpoint)]
    return Arguments(expanded, resumed=run)


def has_option(argv: Sequence[str], name: str) -> bool:
    """Return whether an option was given, with a value or without."""
    return any(arg.partition("=")[0] == name for arg in argv)


def _position_of_resume(argv: Sequence[str]) -> int | None:
    for i, arg in enumerate(argv):
        if arg == RESUME or arg.startswith(f"{RESUME}="):
            return i
    return None
