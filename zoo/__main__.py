"""The command line's front door: answers what needs no torch by itself, and leaves the rest to ``zoo.cli.lightning_cli``."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterable
from typing import NoReturn

from zoo import __version__
from zoo.catalog.components import COMMANDS, KINDS, Catalog, Component, Config, did_you_mean

HELP = """\
usage: zoo COMMAND [options]

Train, inspect and reuse architectures, datasets and callbacks for PyTorch Lightning.

commands:
{commands}

options:
  -h, --help  this text; `zoo COMMAND --help` tells a command's options
  --version   the version of zoo

examples:
  zoo fit -c configs/mlp_digits.yaml
  zoo list models
"""

HEADER = ("name", "what it is", "parameters", "paper", "configs")
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


def main(argv: list[str] | None = None) -> int | None:
    """Run a command and return its exit code."""
    try:
        code = dispatch(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has left. Python would flush once more at exit and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def dispatch(args: list[str]) -> int | None:
    command = args[0] if args else "--help"
    if command in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print(HELP.format(commands="\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())), end="")
    elif command == "--version":
        print(f"zoo {__version__}")
    elif command == "list":
        list_components(args[1:])
    elif command == "show":
        show(args[1:])
    elif command in COMMANDS:
        if any(arg in ("-h", "--help") or arg.endswith(".help") for arg in args):
            help_without_plots()
        from zoo.cli.lightning_cli import main as cli

        return cli(args)
    elif command.startswith("-"):
        near = did_you_mean(command, ["--help", "--version"], "see `zoo --help`")
        fail(f"unknown option '{command}' before the command{near}")
    else:
        fail(f"unknown command '{command}'{did_you_mean(command, COMMANDS, 'see `zoo --help`')}")
    return 0


def help_without_plots() -> None:
    """Keep torchmetrics, which Lightning imports, from importing matplotlib and transformers for a help text.

    Its module of flags is loaded first and those of the two lowered; a process that goes on to train must not do this.
    """
    package = importlib.util.find_spec("torchmetrics")
    if package is None or not package.submodule_search_locations:
        return
    name, path = "torchmetrics.utilities.imports", package.submodule_search_locations[0] + "/utilities/imports.py"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        return
    flags = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(flags)
    for flag in [name for name in vars(flags) if name.startswith(("_MATPLOTLIB", "_TRANSFORMERS"))]:
        setattr(flags, flag, False)
    sys.modules[name] = flags


def fail(message: str) -> NoReturn:
    print(f"zoo: error: {message}", file=sys.stderr)
    sys.exit(2)


def list_components(args: list[str]) -> None:
    """Print a table of the components of one kind or of all."""
    kind, as_json = parse("list", args, "KIND", f"one of {', '.join(KINDS)}; all but configs if left out")
    if kind and kind not in KINDS:
        fail(f"unknown kind '{kind}'{did_you_mean(kind, KINDS, 'there are ' + ', '.join(KINDS))}")
    catalog = Catalog()
    if kind == "configs":
        if as_json:
            return print_json([config_json(catalog, config) for config in catalog.configs])
        rows = [(c.name, c.summary, ", ".join(catalog.uses(c))) for c in catalog.configs]
        return print(table(("name", "what it is", "uses"), rows) if rows else "no configs in configs/")
    found = catalog.components(KINDS[kind] if kind else None)
    if as_json:
        return print_json([component.as_json() for component in found])
    sections = [
        f"{title if source == 'zoo' else f'{title} of {source}'}\n{table(HEADER, rows, indent=2)}"
        for title, name in KINDS.items()
        for source in ("zoo", "torch")
        if (rows := [row(c) for c in found if (c.kind, c.source) == (name, source)])
    ]
    print("\n\n".join(sections) or f"no {kind or 'components'}")
    if not kind:
        print(
            f"\n`zoo list configs` lists {len(catalog.configs)} configs, `zoo list optimizers` torch's optimizers too."
        )


def show(args: list[str]) -> None:
    """Print all there is to know about one component, or a config's text."""
    name, as_json = parse("show", args, "NAME", "a model, dataset, callback, ... or config")
    if name is None:
        fail("zoo show needs a name; `zoo list` lists them")
    catalog = Catalog()
    found = catalog.find(name)
    if found is None:
        fail(f"there is no '{name}'{did_you_mean(name, catalog.names(), '`zoo list` tells what there is')}")
    if isinstance(found, Config):
        print_json({**config_json(catalog, found), "text": found.text}) if as_json else print(found.text, end="")
    else:
        print_json(found.as_json()) if as_json else print(describe(found, catalog.slots.get(found.name)))


def parse(command: str, args: list[str], metavar: str, help: str) -> tuple[str | None, bool]:
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            fail(message)

    parser = Parser(prog=f"zoo {command}", description=COMMANDS[command].capitalize() + ".", allow_abbrev=False)
    parser.add_argument("name", nargs="?", metavar=metavar, help=help)
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parsed = parser.parse_args(args)
    return parsed.name, parsed.json


def print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2))


def config_json(catalog: Catalog, config: Config) -> dict:
    return {
        "name": config.name,
        "kind": "config",
        "summary": config.summary,
        "path": str(config.path),
        "uses": catalog.uses(config),
    }


def row(component: Component) -> tuple[str, ...]:
    cited = re.sub(r",?\s*https?://[^\s;]+", "", component.paper or "") or component.paper or ""
    configs = [os.path.basename(path).removesuffix(".yaml") for path in component.configs]
    return component.name, component.summary, shorten(p.name for p in component.parameters), cited, shorten(configs)


def shorten(names: Iterable[str], room: int = 26) -> str:
    """Join names, with dots for those that have no room; the first is always there."""
    text, *more = *names, ""
    for name in more[:-1]:
        if len(text) + len(name) > room:
            return f"{text}, ..."
        text = f"{text}, {name}"
    return text


def describe(component: Component, slot: str | None = None) -> str:
    facts = {
        "paper": component.paper or "",
        "import": f"from {component.module} import {component.name}",
        "file": component.file,
        "configs": ", ".join(component.configs),
        "example": example(component, slot),
    }
    parts = [f"{component.name}: {component.summary or 'undocumented'}"]
    parts[0] += f" ({component.kind}" + (")" if component.source == "zoo" else f" of {component.source})")
    parts.append(table(None, [(name, text) for name, text in facts.items() if text], indent=2))
    owners = dict.fromkeys(p.owner for p in component.parameters)
    for owner in owners:
        rows = [
            (p.name, p.type, "required" if p.default is None and p.name[0] != "*" else p.default or "", p.doc)
            for p in component.parameters
            if p.owner == owner
        ]
        title = "arguments" if owner == component.name else f"arguments of {owner}"
        parts.append(f"{title}\n{table(('name', 'type', 'default', 'meaning'), rows, indent=2)}")
    return "\n\n".join(parts)


def example(component: Component, slot: str | None = None) -> str:
    """A command that takes a component: a callback by its own option, if it has one."""
    kind = "slot" if slot else component.kind
    enough = all(p.default is not None or p.name[0] == "*" for p in component.parameters)
    if component.configs and not (slot and enough):
        return f"zoo fit -c {component.configs[0]}"
    return EXAMPLES.get(kind, "").format(name=component.name, slot=slot)


def table(header: tuple[str, ...] | None, rows: list[tuple[str, ...]], indent: int = 0) -> str:
    """Set rows in columns that fit the terminal: empty ones are left out, long cells wrap, the longest gets most."""
    import shutil
    import textwrap

    filled = [i for i in range(len(rows[0]) if rows else 0) if any(row[i] for row in rows)]
    lines = [[row[i] for i in filled] for row in ([header] if header else []) + rows]
    columns = list(zip(*lines, strict=True))
    widths = [max(map(len, column)) for column in columns]
    room = shutil.get_terminal_size((120, 40)).columns - indent - 2 * (len(widths) - 1)
    words = [max((len(word) for cell in column for word in cell.split()), default=0) for column in columns]
    weights = [2 if width == max(widths) else 1 for width in widths]
    while sum(widths) > room and max(widths[1:], default=0) > 8:
        # The first column, the names, stays whole; words of the others are broken only if there is no other way.
        i = max(range(1, len(widths)), key=lambda i: (widths[i] > words[i], widths[i] / weights[i]))
        widths[i] -= 1
    text = []
    for line in lines:
        cells = [textwrap.wrap(c, w, break_on_hyphens=False) or [""] for c, w in zip(line, widths, strict=True)]
        for i in range(max(map(len, cells))):
            parts = (f"{cell[i] if i < len(cell) else '':{width}}" for cell, width in zip(cells, widths, strict=True))
            text.append((" " * indent + "  ".join(parts)).rstrip())
    return "\n".join(text)


if __name__ == "__main__":
    sys.exit(main())
