"""The start of a run: its name, its folder, the loggers that write there, and the record of what it is made of."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning as L
import yaml

from zoo.runs import run_folder
from zoo.runs.loggers import MetricsCSV, tensorboard_logger, wandb_logger

LoggerName = Literal["csv", "wandb", "tensorboard"]
# What a checkpoint restores with the optimizer, whatever the config says.
RESTORED = ("model.lr", "model.optimizer", "model.param_groups", "model.layer_decay")


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
        found = resumed or str(run_folder.new_folder(name, run_dir))
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


class RunRecord(L.Callback):
    """Write ``config.yaml`` and ``environment.json`` when training begins, so that they tell of the last training.

    Args:
        folder: of the run; where it has a config, the run is resumed.
        config: what the run is made of, with every default.
        command: as it was typed.
    """

    def __init__(self, folder: Path, config: dict[str, Any], command: str) -> None:
        self.folder, self.config, self.command = folder, config, command
        saved = folder / "config.yaml"
        self.resumed, self.began = saved.exists(), False
        self.changes = (
            run_folder.changes(yaml.safe_load(saved.read_text(encoding="utf-8")), config) if self.resumed else {}
        )
        for key, (old, _) in self.changes.items():
            if ".".join(key.split(".")[:2]) in RESTORED:
                raise ValueError(
                    f"--{key} would change nothing: a resumed run keeps the optimizer of its checkpoint, where it was "
                    f"{json.dumps(old)}; a new run takes it: zoo fit -c {saved} --{key} ..."
                )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began = True
        if not trainer.is_global_zero:
            return
        devices = f"{trainer.world_size} x {type(trainer.accelerator).__name__}"
        entry = run_folder.environment(self.command, self.config.get("seed_everything"), devices)
        # Before the config: should the process die in between, the next resume finds the same changes again.
        run_folder.write_environment(self.folder, entry | ({"changes": self.changes} if self.resumed else {}))
        run_folder.write_text(self.folder / "config.yaml", yaml.safe_dump(self.config, sort_keys=False))


def wandb_id(folder: Path) -> str:
    """By which a resumed run goes on there too."""
    file = folder / "wandb_id"
    if not file.exists():
        run_folder.write_text(file, uuid.uuid4().hex[:8])
    return file.read_text().strip()
