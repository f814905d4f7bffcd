"""The data of a run: the same files when it is resumed or tested, from whichever folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from zoo.checkpoints import Checkpoint
from zoo.distributed import say
from zoo.errors import UserError
from zoo.runs import fingerprint, run_folder


def check_data(checkpoint: Checkpoint, now: Mapping[str, Any], resumes: bool, accepted: bool) -> None:
    """Compare the data that are there with those that a checkpoint was trained on.

    Args:
        checkpoint: from which training goes on.
        now: fingerprint of the data.
        resumes: whether it is the same run that goes on, rather than a new one.
        accepted: whether the user wants other data.

    Raises:
        UserError: a run is resumed on other data.
    """
    changed = fingerprint.differences(checkpoint.metadata.get("data_fingerprint") or {}, now)
    if not changed:
        return
    text = f"the data are not those of the training: {'; '.join(changed)}"
    if resumes and not accepted:
        raise UserError(f"{text}; to go on with them: --data_changed ok")
    say(text)


def describe_data(checkpoint: Checkpoint | None, now: Mapping[str, Any]) -> list[str]:
    """Return a line for each file and folder of the data that says whether it is as in training."""
    then = {} if checkpoint is None else checkpoint.metadata.get("data_fingerprint") or {}
    lines = []
    for name, entry in now.items():
        text = fingerprint.summary(entry)
        if name in then and then[name].get("digest") == entry["digest"]:
            text += ", as in training"
        elif name in then:
            text += f", not as in training: it {fingerprint.change(then[name], entry)}"
        lines.append(text)
    return lines


def find_files(config: Namespace, run: Path, typed: Sequence[str]) -> None:
    """Let relative paths of a run mean the files of its working directory, where this one has no such files.

    Args:
        config: of the command, changed in place.
        run: folder of the run that the model comes from.
        typed: names of the options that were typed: their paths begin in this folder.
    """
    directory = run_folder.read_environment(run).get("directory")
    if not isinstance(directory, str) or Path(directory) == Path.cwd():
        return
    for section in ("data", "model"):
        options = config.get(section)
        arguments = options.get("init_args") if options else None
        if arguments is None:
            continue
        for name, text in fingerprint.named_paths(arguments.as_dict() if isinstance(arguments, Namespace) else {}):
            option = f"{section}.{name}"
            elsewhere = Path(directory, text)
            if Path(text).is_absolute() or not elsewhere.exists() or f"--{option}" in typed:
                continue
            if not Path(text).exists():
                if arguments.get(name) == text:
                    arguments[name] = str(elsewhere)
                    say(f"{option}: {elsewhere}, from the folder in which the run was trained")
            elif not elsewhere.samefile(text):
                say(f"{option}: {text} of this folder; the run was trained in {directory}, which has another one")
