"""What the user typed, read before any parser does."""

from __future__ import annotations

import os
from pathlib import Path

from zoo.runs import run_folder


def options(argv: list[str], *names: str) -> list[str]:
    """The values given for an option under any of its names, as ``--name value`` or ``--name=value``, in order."""
    found = []
    for i, arg in enumerate(argv):
        name, joined, value = arg.partition("=")
        if name in names:
            found += [value] if joined else argv[i + 1 : i + 2]
    return found


def option(argv: list[str], *names: str) -> str | None:
    """The first value given for an option under any of its names."""
    return next(iter(options(argv, *names)), None)


def expand_resume(argv: list[str]) -> list[str]:
    """Turn ``fit --resume [RUN]`` into the run's own config, its last checkpoint and its folder.

    Without RUN the first config names it: ``fit -c configs/x.yaml --resume`` is the newest run of x, with the config
    that it has. Every other config given changes the run's own.
    """
    os.environ.pop("ZOO_RESUME", None)
    at = next((i for i, a in enumerate(argv) if a == "--resume" or a.startswith("--resume=")), None)
    if at is None or "fit" not in argv:
        return argv
    which, rest = None, argv[at + 1 :]
    if "=" in argv[at]:
        which = argv[at].partition("=")[2]
    elif rest and not rest[0].startswith("-"):
        which, rest = rest[0], rest[1:]
    others = [a for a in argv[:at] if a != "fit"] + rest
    changes = options(others, "-c", "--config")
    named = Path(changes.pop(0)).stem if which is None and changes else None
    # Processes that Lightning launches take the run of the first one: by now another may have the newest checkpoint.
    run = run_folder.find(os.environ.get("ZOO_RUN_DIR") or which, named)
    os.environ["ZOO_RESUME"] = str(run)
    configs = [arg for path in (str(run / "config.yaml"), *changes) for arg in ("-c", path)]
    others = without_option(others, "-c", "--config")
    return ["fit", *configs, *others, "--ckpt_path", str(run_folder.newest_checkpoint(run))]


def without_option(argv: list[str], *names: str) -> list[str]:
    kept, skip = [], False
    for arg in argv:
        if not skip and arg.partition("=")[0] not in names:
            kept.append(arg)
        skip = not skip and arg in names
    return kept
