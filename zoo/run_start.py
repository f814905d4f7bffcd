"""The start of a run: its name, its folder, and the loggers that write there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from zoo import runs
from zoo.loggers import MetricsCSV, tensorboard_logger, wandb_logger

LoggerName = Literal["csv", "wandb", "tensorboard"]


def name(config: str | None, model: str, data: Any) -> str:
    """A run is named after its config, and one of a saved config like the run that saved it.

    Args:
        config: path of the first config, if there is one.
        model: class of the model.
        data: the data, if there are any.
    """
    if config:
        path = Path(config).resolve()
        saved = path.name == "config.yaml" and (path.parent / "environment.json").exists()
        return path.parent.parent.name if saved else path.stem
    return f"{model}_{type(data).__name__ if data else 'data'}".lower()


def folder(name: str, run_dir: str | None, resumed: str | None) -> Path:
    """Make the folder of a run, or find it: that of the run resumed, or what the first process made."""
    found = os.environ.get("ZOO_RUN_DIR")  # set by the first process for those that Lightning launches
    if found is None:
        found = resumed or str(runs.new_folder(name, run_dir))
        os.environ["ZOO_RUN_DIR"] = str(Path(found))
    return Path(found)


def loggers(
    folder: Path,
    chosen: list[LoggerName] | LoggerName,
    more: Any,
    config: Callable[[], dict[str, Any]],
    upto: int | None,
) -> list[Any]:
    """The log of every run, and those that the user asked for.

    Args:
        folder: of the run.
        chosen: names of loggers.
        more: loggers from the trainer's own option.
        config: gives what the run is made of.
        upto: where a resumed run's log goes on.
    """
    chosen = chosen if isinstance(chosen, list) else [chosen]
    found: list[Any] = [MetricsCSV(folder, upto)]
    if "wandb" in chosen:
        found.append(wandb_logger(folder, "-".join(folder.parts[-2:]), wandb_id(folder), config()))
    if "tensorboard" in chosen:
        found.append(tensorboard_logger(folder))
    if more and more is not True:
        found += more if isinstance(more, list) else [more]
    return found


def wandb_id(folder: Path) -> str:
    """By which a resumed run goes on there too."""
    file = folder / "wandb_id"
    if not file.exists():
        runs.write_text(file, uuid.uuid4().hex[:8])
    return file.read_text().strip()
