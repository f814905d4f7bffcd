"""``zoo inspect``: what a file or run holds, without building or importing any of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

name = "inspect"
help = "describe a checkpoint, weights, a tokenizer or a run, without building or running anything in it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        help="checkpoint, .safetensors, .pt, tokenizer.json, config.yaml, or the folder of a run or sharded checkpoint",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: Any) -> None:
    from zoo.cli.commands.list import print_json
    from zoo.cli.file_report import describe
    from zoo.cli.tables import key_value_table
    from zoo.terminal import printable

    found = describe(Path(args.file))
    if args.json:
        print_json(found)
        return
    rows = []
    for key, value in found.items():
        for label, text in lines_of(key, value):
            rows.append((printable(label, 60), printable(text, 300)))
    print(key_value_table(rows))


def lines_of(key: str, value: Any) -> list[tuple[str, Any]]:
    """Return the lines of a value in a table: one, or for a mapping or list one for each item."""
    label = key.replace("_", " ")
    if isinstance(value, dict):
        rows: list[tuple[str, Any]] = [(label, "")]
        for name, item in value.items():
            rows.append((f"  {name}", item))
        return rows
    if isinstance(value, list):
        return [(label if i == 0 else "", item) for i, item in enumerate(value)]
    if isinstance(value, int) and not isinstance(value, bool):
        return [(label, f"{value:,}")]
    return [(label, value)]
