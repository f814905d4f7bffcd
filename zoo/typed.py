"""What the user typed, read before any parser does."""

from __future__ import annotations

import os
from pathlib import Path

from zoo import runs


def options(argv: list[str], name: str) -> list[str]:
    """The values given for an option, as ``--name value`` or ``--name=value``."""
    spaced = [argv[i + 1] for i, arg in enumerate(argv[:-1]) if arg == name]
    return spaced + [arg.partition("=")[2] for arg in argv if arg.startswith(name + "=")]


def option(argv: list[str], *names: str) -> str | None:
    """The first value given for an option under any of its names."""
    return next((value for name in names for value in options(argv, name)), None)


def expand_resume(argv: list[str]) -> list[str]:
    """Turn ``fit --resume [RUN]`` into the run's own config, its last checkpoint and its folder."""
    os.environ.pop("ZOO_RESUME", None)
    at = next((i for i, a in enumerate(argv) if a == "--resume" or a.startswith("--resume=")), None)
    if at is None or "fit" not in argv:
        return argv
    which, rest = None, argv[at + 1 :]
    if "=" in argv[at]:
        which = argv[at].partition("=")[2]
    elif rest and not rest[0].startswith("-"):
        which, rest = rest[0], rest[1:]
    before = [a for a in argv[:at] if a != "fit"]
    named = option([*before, *rest], "-c", "--config")
    run = runs.find(which, Path(named).stem if named else None)
    others = without_option(without_option([*before, *rest], "-c"), "--config")
    os.environ["ZOO_RESUME"] = str(run)
    return ["fit", "-c", str(run / "config.yaml"), *others, "--ckpt_path", str(runs.newest_checkpoint(run))]


def without_option(argv: list[str], name: str) -> list[str]:
    kept, skip = [], False
    for arg in argv:
        if not skip and arg != name and not arg.startswith(name + "="):
            kept.append(arg)
        skip = arg == name
    return kept
