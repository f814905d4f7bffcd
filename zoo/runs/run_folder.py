"""The folder of a run, ``runs/<config name>/<n>/``: made, found again, and what is written there."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zoo import __version__
from zoo.checkpoints import read_tensors
from zoo.checkpoints.integrity import verify_folder
from zoo.checkpoints.renames import upgrade_config
from zoo.errors import UserError
from zoo.files import write_json, write_text
from zoo.runs import git
from zoo.runs.lock import NAME as LOCK
from zoo.runs.lock import lock, unlock
from zoo.terminal import printable
from zoo.trust.reading import read_json, read_yaml

ROOT = Path("runs")
LAST = ("last.ckpt", "previous.ckpt")  # checkpoints to resume from, in this order
# What a run writes before its first checkpoint.
BEFORE_FIRST_CHECKPOINT = {
    LOCK,
    "config.yaml",
    "environment.json",
    "lr_find.csv",
    "lr_find.png",
    "metrics.csv",
    "tensorboard",
    "wandb",
    "wandb_id",
}

# New and abandoned runs -------------------------------------------------------------------------------------------


def new_folder(name: str, run_dir: str | None = None) -> Path:
    """Make the folder of a new run.

    Args:
        name: the run gets the next number under ``runs/<name>``.
        run_dir: the folder itself, new or empty, in place of a numbered one.

    Raises:
        ValueError: ``run_dir`` is not empty, or the folder cannot be made.
    """
    try:
        if run_dir is None:
            return _next_number(ROOT / name)
        folder = Path(run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            if not is_without_progress(folder):
                raise ValueError(
                    f"--run_dir {run_dir} is not empty; choose another, or continue with --resume {run_dir}"
                )
            lock(folder)
            clear(folder)
        return folder
    except OSError as error:
        where = run_dir or ROOT / name
        raise ValueError(f"cannot make the run folder {where}: {error.strerror or error}") from None


def _next_number(parent: Path) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        numbers = [int(path.name) for path in parent.iterdir() if path.name.isdigit()]
        folder = parent / str(1 + max(numbers, default=0))
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue  # another run has just taken this number


def is_without_progress(folder: Path) -> bool:
    """Return whether a folder holds nothing but what a run writes before its first checkpoint."""
    is_killed = (folder / LOCK).exists()
    is_stopped = (folder / "config.yaml").exists() and (folder / "environment.json").exists()
    if not is_killed and not is_stopped:
        return False
    for path in folder.iterdir():
        if path.name == "checkpoints":
            if any(not is_temporary(file.name) for file in path.iterdir()):
                return False
        elif path.name not in BEFORE_FIRST_CHECKPOINT and not is_temporary(path.name):
            return False
    return True


def is_temporary(name: str) -> bool:
    """Return whether a file was being written when its process ended."""
    return name.startswith(".") and ".new-" in name


def clear(folder: Path) -> None:
    """Remove what a run that was killed before its first checkpoint has left, except for its lock."""
    for path in folder.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_temporary(folder: Path) -> None:
    """Remove files that a run was writing when it was killed; the caller holds the lock of its folder."""
    for place in (folder, folder / "checkpoints"):
        for path in place.glob(".*.new-*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Remove the folder of a run that failed before its first checkpoint, and its parents if they are left empty."""
    if any((folder / "checkpoints").glob("*.ckpt")):
        return
    unlock(folder)
    shutil.rmtree(folder, ignore_errors=True)
    for parent in (folder.parent, folder.parent.parent):
        if parent != ROOT and ROOT not in parent.parents:
            continue
        try:
            parent.rmdir()
        except OSError:  # other runs are in it
            return


# Runs to resume -----------------------------------------------------------------------------------------------------


def find(which: str | None, name: str | None = None) -> Path:
    """Find the run to resume: a folder, ``<name>/<n>``, ``<name>`` (its newest run), or the newest of all.

    The newest run is the one that saved a checkpoint last.

    Args:
        which: the run as the user names it; None for the newest.
        name: config name to look under when ``which`` is None.

    Raises:
        ValueError: there is no such run.
    """
    if which is None:
        return _newest(name)
    for folder in (Path(which), ROOT / which):
        if (folder / "config.yaml").is_file():
            return folder
    if (ROOT / which).is_dir():
        return _newest(which)
    known = sorted(str(path.parent) for path in ROOT.glob("*/*/config.yaml"))
    raise ValueError(f"no run {which!r} to resume; the known runs are {', '.join(known[-5:]) or 'none'}")


def _newest(name: str | None) -> Path:
    times = {}
    for config in ROOT.glob(f"{name or '*'}/*/config.yaml"):
        # Of runs that were killed before their first checkpoint, the one that began last.
        times[config.parent] = (saved(config.parent), config.stat().st_mtime_ns)
    if not times:
        raise ValueError(f"no run to resume under {ROOT / (name or '')}")
    return max(times, key=lambda run: times[run])


def saved(folder: Path) -> int:
    """Return when a run saved its last checkpoint, in nanoseconds since the epoch; 0 if it has none."""
    times = [0]
    for name in LAST:
        with suppress(FileNotFoundError):  # a run that is training may be replacing it
            times.append((folder / "checkpoints" / name).stat().st_mtime_ns)
    return max(times)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the last checkpoint of a run that is whole; a damaged one is named, and the one before it taken.

    None is for a run that was killed before its first checkpoint.

    Raises:
        ValueError: it has checkpoints, but none of them is whole.
    """
    if not any((folder / "checkpoints").glob("*.ckpt")):
        return None
    for name in LAST:
        path = folder / "checkpoints" / name
        if not path.exists():
            continue
        try:
            if path.is_dir():  # sharded
                verify_folder(path)
            else:
                read_tensors(path, "meta")
        except UserError as error:
            print(f"zoo: warning: {error}; trying the one before, {LAST[-1]}", file=sys.stderr)
            continue
        return path
    raise ValueError(f"no readable checkpoint in {folder / 'checkpoints'}")


def of_job(command: str, run_dir: str | None) -> Path | None:
    """Return the run that this SLURM job began by a command, to go on when the job is requeued; None if there is none.

    Args:
        command: the command line.
        run_dir: folder of the run where the command names one.
    """
    job = slurm_job()
    folders = [path.parent for path in ROOT.glob("*/*/environment.json")] if run_dir is None else [Path(run_dir)]
    for folder in folders:
        entry = read_environment(folder)
        if job is not None and entry.get("slurm_job") == job and entry.get("command") == command:
            return folder
    return None


def slurm_job() -> str | None:
    """Return the id of the SLURM job that this process belongs to, as ``scontrol`` takes it; None outside of SLURM."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    job = os.environ.get("SLURM_JOB_ID")
    if array and task:
        job = f"{array}_{task}"
    if job and re.fullmatch(r"[0-9_-]+", job):
        return job
    return None


def read_environment(folder: Path) -> dict[str, Any]:
    """Return what ``environment.json`` of a run holds; nothing if there is none that can be read."""
    try:
        return read_json(folder / "environment.json")
    except (OSError, UserError):
        return {}


def of_checkpoint(checkpoint: Path) -> Path | None:
    """Return the folder of the run whose checkpoint this is; None if it lies elsewhere."""
    folder = checkpoint.absolute().parent
    if folder.name == "checkpoints" and (folder.parent / "config.yaml").is_file():
        return folder.parent
    return None


def read_config(folder: Path) -> dict[str, Any]:
    """Return ``config.yaml`` of a run with the present names of classes and options."""
    return _upgraded(folder / "config.yaml", read_yaml(folder / "config.yaml"))


def upgrade_saved_config(folder: Path) -> None:
    """Rewrite ``config.yaml`` of a run of an older zoo with the present names of classes and options."""
    import yaml

    path = folder / "config.yaml"
    saved_config = read_yaml(path)
    upgraded = _upgraded(path, saved_config)
    if upgraded != saved_config:
        write_text(path, yaml.safe_dump(upgraded, sort_keys=False))


def _upgraded(path: Path, saved_config: dict[str, Any]) -> dict[str, Any]:
    try:
        return upgrade_config(saved_config)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not the config of a run: {printable(error)}") from error


# The record of a run ------------------------------------------------------------------------------------------------


def environment(command: str, seed: int | None, devices: str) -> dict[str, Any]:
    """Return what it takes to repeat a run: versions, commit, seed, devices, command."""
    import torch

    packages = ("lightning", "torchvision", "torchmetrics", "jsonargparse")
    versions = {"zoo": __version__, "torch": torch.__version__}
    for package in packages:
        versions[package] = version(package)
    repository = git.find(Path.cwd())
    commit = None if repository is None else git.commit(repository)
    changed = None
    if repository is not None and commit is not None:
        changed = git.has_changes(repository, commit)
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command,
        "directory": os.getcwd(),
        "slurm_job": slurm_job(),
        "seed": seed,
        "devices": devices,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "git_commit": commit,
        "git_dirty": changed,
    }


def write_environment(folder: Path, entry: dict[str, Any]) -> None:
    """Write ``environment.json``, or add an entry to its list ``resumed``."""
    path = folder / "environment.json"
    if path.exists():
        first = read_json(path)
        resumed = first.get("resumed", [])
        if not isinstance(resumed, list):
            raise UserError(f"{path}: resumed is a {type(resumed).__name__}, not a list")
        entry = first | {"resumed": [*resumed, entry]}
    write_json(path, entry)


def changes(old: Any, new: Any, key: str = "") -> dict[str, list[Any]]:
    """Return where two configs differ: each key as an option names it, with the old and the new value."""
    if old == new:
        return {}
    if not isinstance(old, dict) or not isinstance(new, dict):
        option = key.replace(".init_args", "").lstrip(".")
        return {option: [old, new]}
    different = {}
    for name in old | new:
        different |= changes(old.get(name), new.get(name), f"{key}.{name}")
    return different
