"""What the options of a command take from a checkpoint, and from the run that it belongs to."""

from __future__ import annotations

from typing import Any

from zoo.checkpoints import Checkpoint
from zoo.runs import run_folder


def defaults_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return class path and arguments of model and data, as defaults of the parser.

    The checkpoint itself does not describe a module or datamodule that does not call ``save_hyperparameters()``: then
    the config of its run counts.

    Args:
        checkpoint: the checkpoint.
    """
    sections = dict(checkpoint.hyperparameters)
    if {"model", "data"} <= sections.keys():
        return sections
    run = run_folder.of_checkpoint(checkpoint.path)
    if run is None:
        return sections
    config = run_folder.read_config(run)
    for key in ("model", "data"):
        section = config.get(key)
        if key not in sections and isinstance(section, dict) and "class_path" in section:
            sections[key] = section
    return sections
