"""The table of commands. A command is one module here and one line in ``COMMANDS``.

A command module has four names: ``name`` and ``help``, texts; ``add_arguments(parser)``; and ``run(args)``, which
returns the exit code or None for 0. It imports nothing heavy at module level, as ``zoo --help`` reads ``name`` and
``help``. By default ``parser`` is an argparse parser and ``run`` gets what it parsed.

With ``needs_trainer = True`` the parser is jsonargparse's, has the options of model, data and trainer already, and
``run`` gets a :class:`zoo.cli.lightning_cli.ZooCLI` with ``.model``, ``.datamodule`` and ``.trainer``. Such a command
may have ``trainer_arguments(cli)``, which returns arguments of the trainer; its ``callbacks`` are added to the others.

With ``passes_options_on = True`` a command also takes options that its parser does not know.

Other packages add commands by the entry point group ``zoo.commands``: the name of the command, and its module.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from types import SimpleNamespace
from typing import Any

# In the order of `zoo --help`; the module of lr-find is lr_find.
COMMANDS = (
    "fit",
    "validate",
    "test",
    "predict",
    "plan",
    "diagnose",
    "show-data",
    "lr-find",
    "verify",
    "export",
    "generate",
    "sample",
    "list",
    "show",
    "inspect",
    "config",
)
ENTRY_POINT_GROUP = "zoo.commands"


def load_command(name: str) -> Any:
    """Return the module of a command, or None if there is no such command.

    Entry points are read only for a name that is not in the table.
    """
    if name in COMMANDS:
        return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    for entry_point in _entry_points():
        if entry_point.name == name:
            return entry_point.load()
    return None


def all_commands() -> Iterator[Any]:
    """Yield the commands of zoo, then those of other packages by name.

    A package that cannot be imported takes no other command with it: its command stays in the list, with the error as
    its help.
    """
    for name in COMMANDS:
        yield load_command(name)
    for entry_point in _entry_points():
        try:
            yield entry_point.load()
        except Exception as error:
            text = f"cannot be loaded from {entry_point.value}: {error}"
            yield SimpleNamespace(name=entry_point.name, help=text)


def command_names() -> list[str]:
    """Return the names of all commands, without importing those of other packages."""
    return [*COMMANDS, *(entry_point.name for entry_point in _entry_points())]


def _entry_points() -> list[EntryPoint]:
    found = []
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        if entry_point.name not in COMMANDS:
            found.append(entry_point)
    return sorted(found, key=lambda entry_point: entry_point.name)
