"""Loggers of a run: always a CSV file, and Weights & Biases or TensorBoard if the user asks for them."""

from __future__ import annotations

import csv
import os
import socket
from pathlib import Path
from typing import IO, Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo._lightning import drop_anonymous
from zoo.distributed import is_main_process, say
from zoo.errors import UserError
from zoo.files import atomic_file, one_line_for_disk_errors, open_without_links
from zoo.terminal import printable

MAX_DIGITS = 18  # of a step
WANDB_HOST = "api.wandb.ai"


class MetricsCSV(Logger):
    """Write ``metrics.csv``: a row for each step, a column for each metric; a resumed run appends to its file.

    Lightning's CSVLogger deletes the file of the run that it continues.

    Args:
        folder: the run folder.
        upto: step of the checkpoint that a run is resumed from; later rows are dropped, as they will come again.
    """

    def __init__(self, folder: str | Path, upto: int | None = None) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self.columns: list[str] = ["epoch", "step"]
        self.rows: list[dict[str, Any]] = []
        # Rows that are in the file, and the position in it at which each of them ends.
        self._written = 0
        self._ends: list[int] = []
        if upto is not None and self.path.exists() and is_main_process():
            self._read(upto)
            self._rewrite()

    name = property(lambda self: "csv")
    version = property(lambda self: "")
    save_dir = property(lambda self: str(self.path.parent))
    log_dir = save_dir

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: hyperparameters are in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {name: float(value) for name, value in metrics.items()}
        row["step"] = step
        if "epoch" in row:
            row["epoch"] = int(row["epoch"])
        if self.rows and str(self.rows[-1]["step"]) == str(step):
            self.rows[-1] |= row
            self._written = min(self._written, len(self.rows) - 1)
        else:
            self.rows.append(row)
        new_columns = sorted(row.keys() - set(self.columns))
        if new_columns:
            self.columns += new_columns
            self._written = 0  # the header changes, so the whole file does

    @rank_zero_only
    def save(self) -> None:
        """Bring the file up to date: append new rows, and write the last one again if its step logged more."""
        if self._written == len(self.rows):
            return
        if self._written == 0:
            self._rewrite()
            return
        with (
            one_line_for_disk_errors(self.path),
            open_without_links(self.path, "r+", newline="", encoding="utf-8") as file,
        ):
            file.seek(self._ends[self._written - 1])
            file.truncate()
            self._write(file)

    def finalize(self, status: str) -> None:
        self.save()

    def _read(self, upto: int) -> None:
        with open(self.path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            try:
                if reader.fieldnames is not None:  # not an empty file
                    self.columns = list(reader.fieldnames)
                rows = list(reader)
            except (csv.Error, UnicodeDecodeError) as error:
                raise UserError(f"{self.path} is no CSV file: {error}") from None
        if "step" not in self.columns or len(set(self.columns)) < len(self.columns):
            raise UserError(f"{self.path} is no log of a run: its columns are {printable(', '.join(self.columns))}")
        self.rows = []
        for row in rows:
            step = row["step"]
            if not step:
                continue
            if not step.isdecimal() or len(step) > MAX_DIGITS or None in row:
                raise UserError(f"{self.path} is no log of a run: it has a row of step {printable(step)}")
            if int(step) < upto:
                self.rows.append(row)

    def _rewrite(self) -> None:
        with atomic_file(self.path) as new, open(new, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(self.columns)
            self._written = 0
            self._write(file)

    def _write(self, file: IO[str]) -> None:
        writer = csv.DictWriter(file, self.columns, lineterminator="\n")
        del self._ends[self._written :]
        for row in self.rows[self._written :]:
            writer.writerow(row)
            self._ends.append(file.tell())
        self._written = len(self.rows)


def wandb_logger(folder: Path, name: str, run_id: str, config: dict[str, Any]) -> Logger:
    """Return a Weights & Biases logger; offline, with a line that says so, if there is no API key or no network.

    What wandb's environment variables set (``WANDB_PROJECT``, ``WANDB_NAME``, ``WANDB_RUN_ID``, ``WANDB_ENTITY``,
    ``WANDB_RUN_GROUP``, ``WANDB_TAGS``, ...) counts; the values here are for what they leave open.

    Args:
        folder: of the run.
        name: of the run.
        run_id: under which a resumed run continues.
        config: logged as hyperparameters.
    """
    from lightning.pytorch.loggers import WandbLogger

    mode = os.environ.get("WANDB_MODE")
    reason = None if mode else _why_offline()
    if reason is not None:
        say(f"wandb: {reason}, so the run is logged offline; `wandb sync` uploads it later")
    os.environ.setdefault("WANDB_SILENT", "true")
    logger = WandbLogger(
        project=os.environ.get("WANDB_PROJECT") or "zoo",
        name=os.environ.get("WANDB_NAME") or name,
        id=os.environ.get("WANDB_RUN_ID") or run_id,
        save_dir=str(folder),
        offline=reason is not None or mode == "offline",
        resume="allow",
    )
    drop_anonymous(logger)
    logger.log_hyperparams(config)
    return logger


def tensorboard_logger(folder: Path) -> Logger:
    """Return a TensorBoard logger that writes into the run folder."""
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(save_dir=str(folder), name="", version="tensorboard")
    except ModuleNotFoundError:
        raise ValueError("--logger tensorboard needs the package: pip install tensorboard") from None


def _why_offline() -> str | None:
    """Return what wandb lacks to log online; None if it can."""
    if not _wandb_key():
        return "no API key"
    if not _is_reachable(WANDB_HOST):
        return "no network"
    return None


def _wandb_key() -> str | None:
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    import netrc

    try:
        entry = netrc.netrc().authenticators(WANDB_HOST)
    except (FileNotFoundError, netrc.NetrcParseError):
        return None
    if entry is None:
        return None
    _, _, password = entry
    return password


def _is_reachable(host: str) -> bool:
    try:
        socket.create_connection((host, 443), timeout=2).close()
    except OSError:
        return False
    return True
