"""Where the numbers of a run go: always a CSV file, and Weights & Biases or TensorBoard when asked."""

from __future__ import annotations

import csv
import os
import socket
import sys
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo._lightning import drop_anonymous
from zoo.distributed import is_main_process


class MetricsCSV(Logger):
    """Write ``metrics.csv``: one row a step, a column a metric, appended to when a run is resumed.

    Lightning's CSVLogger deletes the file of the run that it continues.

    Args:
        folder: the run folder.
        upto: when resuming, the step of the checkpoint; later rows will come again and are dropped.
    """

    def __init__(self, folder: str | Path, upto: int | None = None) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self.columns: list[str] = ["epoch", "step"]
        self.rows: list[dict[str, Any]] = []
        self._ends: list[int] = []
        self._written = 0  # rows in the file, and where each of them ends in it
        if upto is not None and self.path.exists() and is_main_process():
            with open(self.path, newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self.columns = list(reader.fieldnames or self.columns)
                self.rows = [r for r in reader if r["step"] and int(r["step"]) < upto]
            self._rewrite()

    name = property(lambda self: "csv")
    version = property(lambda self: "")
    save_dir = property(lambda self: str(self.path.parent))
    log_dir = save_dir

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: they stand in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {k: float(v) for k, v in metrics.items()} | {"step": step}
        if "epoch" in row:
            row["epoch"] = int(row["epoch"])
        if self.rows and str(self.rows[-1]["step"]) == str(step):
            self.rows[-1] |= row
            self._written = min(self._written, len(self.rows) - 1)
        else:
            self.rows.append(row)
        if new := sorted(row.keys() - set(self.columns)):
            self.columns += new
            self._written = 0

    @rank_zero_only
    def save(self) -> None:
        """Bring the file up to date: add the new rows, and write the last one again if its step brought more."""
        if self._written == 0 and self.rows:
            self._rewrite()
        elif self._written < len(self.rows):
            with open(self.path, "r+", newline="", encoding="utf-8") as file:
                file.seek(self._ends[self._written - 1])
                file.truncate()
                self._write(file)

    def _rewrite(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".csv.new")
        with open(new, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(self.columns)
            self._written = 0
            self._write(file)
        os.replace(new, self.path)

    def _write(self, file: TextIO) -> None:
        writer = csv.DictWriter(file, self.columns, lineterminator="\n")
        del self._ends[self._written :]
        for row in self.rows[self._written :]:
            writer.writerow(row)
            self._ends.append(file.tell())
        self._written = len(self.rows)

    def finalize(self, status: str) -> None:
        self.save()


def wandb_logger(folder: Path, name: str, run_id: str, config: dict[str, Any]) -> Logger:
    """Weights & Biases for a run; offline, and saying so, where there is no key or no network."""
    from lightning.pytorch.loggers import WandbLogger

    reason = None
    if not os.environ.get("WANDB_MODE"):
        reason = "no API key" if not _wandb_key() else None if _reachable("api.wandb.ai") else "no network"
    offline = reason is not None or os.environ.get("WANDB_MODE") == "offline"
    if reason and is_main_process():
        print(f"wandb: {reason}, so the run is kept offline; `wandb sync` sends it later", file=sys.stderr)
    os.environ.setdefault("WANDB_SILENT", "true")
    logger = WandbLogger(project="zoo", name=name, id=run_id, save_dir=str(folder), offline=offline, resume="allow")
    drop_anonymous(logger)
    logger.log_hyperparams(config)
    return logger


def tensorboard_logger(folder: Path) -> Logger:
    """TensorBoard's event files in the run folder."""
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(save_dir=str(folder), name="", version="tensorboard")
    except ModuleNotFoundError:
        raise ValueError("--logger tensorboard needs the package: pip install tensorboard") from None


def _wandb_key() -> str | None:
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    import netrc

    try:
        entry = netrc.netrc().authenticators("api.wandb.ai")
    except (FileNotFoundError, netrc.NetrcParseError):
        return None
    return entry[2] if entry else None


def _reachable(host: str) -> bool:
    try:
        socket.create_connection((host, 443), timeout=2).close()
    except OSError:
        return False
    return True
