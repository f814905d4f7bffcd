"""``zoo config``: copy a config that comes with zoo, to edit it."""

from __future__ import annotations

import argparse
from typing import Any

name = "config"
help = "copy a config that comes with zoo into a file, to edit it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["copy"], help="what to do")
    parser.add_argument("config", metavar="NAME", help="a config of `zoo list configs`")
    parser.add_argument("out", nargs="?", metavar="FILE", help="the new file (default: NAME.yaml)")


def run(args: Any) -> None:
    from pathlib import Path

    from zoo.catalog.components import did_you_mean
    from zoo.catalog.shipped_configs import shipped_configs
    from zoo.errors import UserError

    configs = shipped_configs()
    config_name = args.config.removesuffix(".yaml")
    if config_name not in configs:
        suggestion = did_you_mean(config_name, list(configs), "`zoo list configs` lists the configs")
        raise UserError(f"no config {args.config}{suggestion}")
    source = configs[config_name]
    out = Path(args.out or source.name)
    if out.is_dir():
        out = out / source.name
    try:
        # Opened exclusively: an edited copy is never overwritten.
        with open(out, "x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise UserError(
            f"{out} exists already; give another file, as in `zoo config copy {config_name} my.yaml`"
        ) from None
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None
    print(f"wrote {out}; `zoo fit -c {out}` trains it")
