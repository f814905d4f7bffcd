"""``zoo list``: tables of the components of zoo."""

from __future__ import annotations

import argparse
from typing import Any

name = "list"
help = "list models, data, callbacks, optimizers, configs, commands and more"

HEADER = ("name", "what it is", "parameters", "paper", "configs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kind", nargs="?", metavar="KIND", help=f"one of {', '.join(kinds())} (default: all components of zoo)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: Any) -> None:
    from zoo.catalog.components import Catalog, did_you_mean
    from zoo.errors import UserError

    if args.kind and args.kind not in kinds():
        suggestion = did_you_mean(args.kind, kinds(), "there are " + ", ".join(kinds()))
        raise UserError(f"unknown kind '{args.kind}'{suggestion}")
    if args.kind == "commands":
        list_commands(args.json)
    elif args.kind == "configs":
        list_configs(Catalog(), args.json)
    else:
        list_components(Catalog(), args.kind, args.json)


def kinds() -> list[str]:
    """Return what ``zoo list`` takes."""
    from zoo.catalog.components import KINDS

    return [*KINDS, "commands"]


def list_commands(as_json: bool) -> None:
    """Print the commands, those of other packages too."""
    from zoo.cli.commands import all_commands
    from zoo.cli.tables import text_table

    rows = [(command.name, command.help) for command in all_commands()]
    if as_json:
        print_json([{"name": name, "kind": "command", "summary": text} for name, text in rows])
        return
    print(text_table(("name", "what it does"), rows))


def list_configs(catalog: Any, as_json: bool) -> None:
    """Print the configs with what they use."""
    from zoo.cli.tables import text_table

    if as_json:
        print_json([config_as_json(catalog, config) for config in catalog.configs])
        return
    if not catalog.configs:
        print("no configs in configs/")
        return
    rows = []
    for config in catalog.configs:
        rows.append((config.name, config.summary, ", ".join(catalog.uses(config))))
    print(text_table(("name", "what it is", "uses"), rows))


def list_components(catalog: Any, kind: str | None, as_json: bool) -> None:
    """Print the components of one kind, those of torch too, or all of zoo."""
    from zoo.catalog.components import KINDS
    from zoo.cli.tables import text_table

    components = catalog.components(KINDS[kind] if kind else None)
    if as_json:
        print_json([component.as_json() for component in components])
        return
    sections = []
    for title, name in KINDS.items():
        for source in ("zoo", "torch"):
            rows = [row(c) for c in components if (c.kind, c.source) == (name, source)]
            if rows:
                heading = title if source == "zoo" else f"{title} of {source}"
                sections.append(f"{heading}\n{text_table(HEADER, rows, indent=2)}")
    print("\n\n".join(sections) or f"no {kind or 'components'}")
    if not kind:
        count = len(catalog.configs)
        print(f"\n`zoo list configs` lists {count} configs, `zoo list optimizers` torch's optimizers too.")


def row(component: Any) -> tuple[str, ...]:
    """Return the cells of a component."""
    import re
    from pathlib import PurePath

    from zoo.cli.tables import shorten

    paper = component.paper or ""
    # Links take too much room, unless there is nothing else.
    without_links = re.sub(r",?\s*https?://[^\s;]+", "", paper)
    configs = [PurePath(path).name.removesuffix(".yaml") for path in component.configs]
    return (
        component.name,
        component.summary,
        shorten(parameter.name for parameter in component.parameters),
        without_links or paper,
        shorten(configs),
    )


def config_as_json(catalog: Any, config: Any) -> dict[str, Any]:
    """Return the description of a config for JSON."""
    return {
        "name": config.name,
        "kind": "config",
        "summary": config.summary,
        "path": str(config.path),
        "uses": catalog.uses(config),
    }


def print_json(value: object) -> None:
    """Print indented JSON."""
    import json

    print(json.dumps(value, indent=2))
