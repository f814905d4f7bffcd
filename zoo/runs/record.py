"""The start of a run: its name, its folder, its loggers, and the record of what it is made of."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning as L
import yaml

from zoo.distributed import is_main_process
from zoo.files import write_text
from zoo.runs import run_folder
from zoo.runs.lock import lock
from zoo.runs.loggers import MetricsCSV, tensorboard_logger, wandb_logger
from zoo.trust.reading import read_yaml

LoggerName = Literal["csv", "wandb", "tensorboard"]
# What a checkpoint restores with the optimizer, whatever the config says.
RESTORED = ("model.lr", "model.optimizer", "model.param_groups", "model.layer_decay")


def name(config: str | None, model: str, data: Any) -> str:
    """Return the name of a run: that of its config, or of the run that saved its config.

    Args:
        config: path of the first config; None if there is none.
        model: class name of the model.
        data: the datamodule; None if the model has loaders of its own.
    """
    if config is None:
        data_name = "data" if data is None else type(data).__name__
        return f"{model}_{data_name}".lower()
    path = Path(config).resolve()
    is_saved = path.name == "config.yaml" and (path.parent / "environment.json").exists()
    if is_saved:  # runs/<name>/<n>/config.yaml
        return path.parent.parent.name
    return path.stem


def folder(name: str, run_dir: str | None, resumed: str | None) -> Path:
    """Make the folder of a new run, or return that of the run that is resumed.

    The first process leaves the folder in an environment variable for those that Lightning launches.

    Args:
        name: of the run.
        run_dir: folder that the user asks for; None numbers one.
        resumed: folder of the run that is resumed; None for a new run.

    Raises:
        UserError: another process is training there.
    """
    if "ZOO_RUN_DIR" not in os.environ:
        if run_dir is not None and resumed is None and not is_main_process():
            chosen = Path(run_dir)  # of processes that a launcher started, the main one makes it
        else:
            chosen = Path(resumed or run_folder.new_folder(name, run_dir))
        os.environ["ZOO_RUN_DIR"] = str(chosen)
    folder = Path(os.environ["ZOO_RUN_DIR"])
    if is_main_process():
        lock(folder)
        run_folder.remove_temporary(folder)
    return folder


def loggers(
    folder: Path,
    chosen: list[LoggerName] | LoggerName,
    more: Any,
    config: Callable[[], dict[str, Any]],
    upto: int | None,
) -> list[Any]:
    """Return ``metrics.csv``, which every run has, and the loggers that the user asks for.

    Args:
        folder: of the run.
        chosen: names of loggers.
        more: loggers in the trainer's own option.
        config: returns the config of the run.
        upto: step at which the log of a resumed run continues; None for a new run.
    """
    if not isinstance(chosen, list):
        chosen = [chosen]
    made: list[Any] = [MetricsCSV(folder, upto)]
    if "wandb" in chosen:
        run_name = "-".join(folder.parts[-2:])
        made.append(wandb_logger(folder, run_name, wandb_id(folder), config()))
    if "tensorboard" in chosen:
        made.append(tensorboard_logger(folder))
    if isinstance(more, list):
        made += more
    elif more and more is not True:
        made.append(more)
    return made


class RunRecord(L.Callback):
    """Write ``config.yaml`` and ``environment.json`` when training begins, so that they describe the last training.

    Args:
        folder: of the run; if it has a config, the run is resumed.
        config: of the run, with every default.
        command: the command line, as typed.
        data: fingerprint of the data, which goes into ``environment.json`` and all checkpoints.

    Raises:
        ValueError: the config of a resumed run changes what its checkpoint restores.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        command: str,
        data: dict[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        self.command = command
        self.data = data or {}
        self.began = False
        self._first_step = 0
        self._trainer: Any = None
        self.changes: dict[str, list[Any]] = {}
        saved = folder / "config.yaml"
        self.resumed = saved.exists()
        if self.resumed:
            self.changes = run_folder.changes(read_yaml(saved), config)
        for key, (old, _) in self.changes.items():
            option = ".".join(key.split(".")[:2])
            if option in RESTORED:
                raise ValueError(
                    f"--{key} would change nothing: a resumed run keeps the optimizer of its checkpoint, where it was "
                    f"{json.dumps(old)}; a new run takes it: zoo fit -c {saved} --{key} ..."
                )

    @property
    def trained(self) -> bool:
        """Whether at least one step was taken, after the fit."""
        return self.began and self._trainer.global_step > self._first_step

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began = True
        self._first_step = trainer.global_step
        self._trainer = trainer
        if not trainer.is_global_zero:
            return
        devices = f"{trainer.world_size} x {type(trainer.accelerator).__name__}"
        entry = run_folder.environment(self.command, self.config.get("seed_everything"), devices)
        entry["data"] = self.data
        entry["samples"] = samples(trainer)
        if self.resumed:
            entry["changes"] = self.changes
        # Before the config: if the process dies in between, the next resume finds the same changes again.
        run_folder.write_environment(self.folder, entry)
        write_text(self.folder / "config.yaml", yaml.safe_dump(self.config, sort_keys=False))

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.data:
            checkpoint["data_fingerprint"] = self.data


def samples(trainer: Any) -> dict[str, int]:
    """Return the number of samples for training and validation; nothing for data of others, which may have none."""
    datasets = getattr(trainer.datamodule, "datasets", None)
    if not isinstance(datasets, dict):
        return {}
    counts = {}
    for split in ("train", "val"):  # to ask for the length of the test split may build it
        dataset = datasets.get(split)
        if dataset is not None and hasattr(dataset, "__len__"):
            counts[split] = len(dataset)
    return counts


def wandb_id(folder: Path) -> str:
    """Return the id under which Weights & Biases continues a run that is resumed."""
    file = folder / "wandb_id"
    if not file.exists():
        write_text(file, uuid.uuid4().hex[:8])
    return file.read_text().strip()
