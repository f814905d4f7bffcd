"""The folder of a run: ``runs/<config name>/<n>/``, what is written there, and how to find it again."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zoo import __version__

ROOT = Path("runs")
LAST = ("last.ckpt", "previous.ckpt")  # checkpoints to go on from, in this order


def new_folder(name: str, run_dir: str | None = None) -> Path:
    """Make the folder of a new run, the next number under ``runs/<name>``, or ``run_dir`` if given and empty."""
    try:
        if run_dir is not None:
            folder = Path(run_dir)
            if folder.exists() and any(folder.iterdir()):
                raise ValueError(
                    f"--run_dir {run_dir} is not empty; choose another, or continue with --resume {run_dir}"
                )
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        parent = ROOT / name
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            folder = parent / str(1 + max((int(p.name) for p in parent.iterdir() if p.name.isdigit()), default=0))
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue  # another run took the number in this moment
    except OSError as error:
        where = run_dir or ROOT / name
        raise ValueError(f"cannot make the run folder {where}: {error.strerror or error}") from None


def discard(folder: Path) -> None:
    """Remove the folder of a run that failed before its first checkpoint, and its parents if they are left empty."""
    if any((folder / "checkpoints").glob("*.ckpt")):
        return
    shutil.rmtree(folder, ignore_errors=True)
    for parent in (folder.parent, folder.parent.parent):
        if parent.name and parent != Path() and (parent == ROOT or ROOT in parent.parents):
            try:
                parent.rmdir()
            except OSError:
                return


def find(which: str | None, name: str | None = None) -> Path:
    """Find the run to continue: a folder, ``<name>/<n>``, ``<name>`` (its newest), or the newest of all.

    The newest is the one that saved a checkpoint last.

    Args:
        which: what the user gave, or None.
        name: config name to look under when ``which`` is None.
    """
    if which is None:
        pattern = f"{name}/*" if name else "*/*"
        times = {p.parent: saved(p.parent) for p in ROOT.glob(pattern + "/config.yaml")}
        if not any(times.values()):
            raise ValueError(f"no run to resume under {ROOT / (name or '')}: none has a checkpoint")
        return max(times, key=lambda run: times[run])
    for folder in (Path(which), ROOT / which):
        if (folder / "config.yaml").is_file():
            return folder
    if (ROOT / which).is_dir():
        return find(None, which)
    known = sorted(str(p.parent) for p in ROOT.glob("*/*/config.yaml"))
    raise ValueError(f"no run {which!r} to resume; there are {', '.join(known[-5:]) or 'none'}")


def saved(folder: Path) -> int:
    """When a run saved its last checkpoint, in nanoseconds of the clock; 0 if it has none."""
    times = [0]
    for name in LAST:
        with suppress(FileNotFoundError):  # a run that is training may be replacing it
            times.append((folder / "checkpoints" / name).stat().st_mtime_ns)
    return max(times)


def newest_checkpoint(folder: Path) -> Path:
    """The last checkpoint of a run that can be read whole; a damaged one is named and the one before it taken."""
    import torch

    for name in LAST:
        path = folder / "checkpoints" / name
        if path.is_dir():
            return path
        if not path.exists():
            continue
        try:
            torch.load(path, weights_only=True, map_location="meta", mmap=True)
        except Exception as error:  # whatever a torn file makes the reader raise
            print(f"zoo: warning: {path} is damaged ({type(error).__name__}); trying the one before", file=sys.stderr)
            continue
        return path
    raise ValueError(f"no readable checkpoint in {folder / 'checkpoints'}")


def environment(command: str, seed: int | None, devices: str) -> dict[str, Any]:
    """What it takes to run this again: versions, commit, seed, devices, command."""
    import torch

    packages = ("lightning", "torchvision", "torchmetrics", "jsonargparse")
    changes = _git("status", "--porcelain")
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command,
        "seed": seed,
        "devices": devices,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {"zoo": __version__, "torch": torch.__version__} | {name: version(name) for name in packages},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if changes is None else bool(changes),
    }


def write_environment(folder: Path, entry: dict[str, Any]) -> None:
    """Write ``environment.json``, or add an entry to its ``resumed`` list."""
    path = folder / "environment.json"
    if path.exists():
        first = json.loads(path.read_text())
        entry = first | {"resumed": [*first.get("resumed", []), entry]}
    write_text(path, json.dumps(entry, indent=2) + "\n")


def changes(old: Any, new: Any, key: str = "") -> dict[str, list[Any]]:
    """Where two configs differ: each such key as it is typed, with the old value and the new one."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {key.replace(".init_args", "").lstrip("."): [old, new]}
    found = {}
    for name in old | new:
        found |= changes(old.get(name), new.get(name), f"{key}.{name}")
    return found


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
