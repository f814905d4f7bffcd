"""``zoo show``: describe one component, or print a config."""

from __future__ import annotations

import argparse
from typing import Any

name = "show"
help = "describe a component: its arguments, paper and configs; or print a config"

# How a component is used on the command line, by its kind.
EXAMPLES = {
    "model": "zoo fit --model {name} --data Digits",
    "data": "zoo fit --model MLPClassifier --data {name}",
    "augmentation": "zoo fit -c configs/small_cnn_digits.yaml --data.augment+={name}",
    "callback": "zoo fit -c configs/mlp_digits.yaml --trainer.callbacks+={name}",
    "slot": "zoo fit -c configs/mlp_digits.yaml --{slot} '{{}}'",
    "optimizer": "zoo fit -c configs/mlp_digits.yaml --model.optimizer {name}",
    "schedule": "zoo fit -c configs/mlp_digits.yaml --model.lr_scheduler {name}",
    "loss": "zoo fit -c configs/mlp_digits.yaml --model.loss {name}",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="a model, dataset, callback, ..., or config")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: Any) -> None:
    from zoo.catalog.components import Catalog, Config, did_you_mean
    from zoo.cli.commands.list import config_as_json, print_json
    from zoo.errors import UserError

    if args.name is None:
        raise UserError("zoo show needs a name; `zoo list` lists them")
    catalog = Catalog()
    found = catalog.find(args.name)
    if found is None:
        suggestion = did_you_mean(args.name, catalog.names(), "`zoo list` lists all names")
        raise UserError(f"there is no '{args.name}'{suggestion}")
    if isinstance(found, Config):
        if args.json:
            print_json({**config_as_json(catalog, found), "text": found.text})
        else:
            print(found.text, end="")
    elif args.json:
        print_json(found.as_json())
    else:
        print(describe(found, catalog.slots.get(found.name)))


def describe(component: Any, slot: str | None = None) -> str:
    """Return all there is to know about a component as text.

    Args:
        component: the component.
        slot: the option of its own that a callback has, such as ``ema``.
    """
    from zoo.cli.tables import text_table

    kind = component.kind
    if component.source != "zoo":
        kind += f" of {component.source}"
    facts = [
        ("paper", component.paper or ""),
        ("import", f"from {component.module} import {component.name}"),
        ("file", component.file),
        ("configs", ", ".join(component.configs)),
        ("example", example(component, slot)),
    ]
    parts = [
        f"{component.name}: {component.summary or 'undocumented'} ({kind})",
        text_table(None, [(title, text) for title, text in facts if text], indent=2),
    ]
    for owner in dict.fromkeys(parameter.owner for parameter in component.parameters):
        rows = [parameter_row(parameter) for parameter in component.parameters if parameter.owner == owner]
        title = "arguments" if owner == component.name else f"arguments of {owner}"
        parts.append(f"{title}\n{text_table(('name', 'type', 'default', 'meaning'), rows, indent=2)}")
    return "\n\n".join(parts)


def parameter_row(parameter: Any) -> tuple[str, ...]:
    """Return the cells of an argument."""
    default = parameter.default or ""
    if is_required(parameter):
        default = "required"
    return (parameter.name, parameter.type, default, parameter.doc)


def is_required(parameter: Any) -> bool:
    """Return whether an argument has no default; ``*args`` needs none."""
    return parameter.default is None and not parameter.name.startswith("*")


def example(component: Any, slot: str | None = None) -> str:
    """Return a command that uses a component: a callback by its own option, if it has one and needs no arguments."""
    needs_arguments = any(is_required(parameter) for parameter in component.parameters)
    if component.configs and (slot is None or needs_arguments):
        return f"zoo fit -c {component.configs[0]}"
    kind = "slot" if slot else component.kind
    return EXAMPLES.get(kind, "").format(name=component.name, slot=slot)
