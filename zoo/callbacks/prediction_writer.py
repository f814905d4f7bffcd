"""Predictions, written as they are made."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any, TextIO

import lightning as L
from torch import Tensor


class PredictionWriter(L.Callback):
    """Write what ``predict_step`` returns to a CSV or JSON-lines file, batch by batch, in the order of the data.

    Nothing is kept in memory; the file appears under its name only when it is whole. Where the data tells the name of
    each sample (``predict_names``, as ``ImageFolder`` has it), it stands in the first column, ``file``.

    Args:
        path: ends in ``.csv`` or ``.jsonl``.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        if self.path.suffix not in (".csv", ".jsonl"):
            raise ValueError(f"predictions are written as .csv or .jsonl, got {path!r}")
        if not self.path.parent.is_dir():
            raise ValueError(f"no folder {str(self.path.parent)!r} to write {self.path.name} into")
        self._file: TextIO | None = None
        self._names: Iterator[str] | None = None
        self.rows = 0

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f".{self.path.name}.part{rank}")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._file = open(self._part(trainer.global_rank), "w", newline="", encoding="utf-8")  # noqa: SIM115
        self._header = False
        self.rows = 0
        names = getattr(getattr(trainer, "datamodule", None), "predict_names", None)
        self._names = None if names is None else iter(names[trainer.global_rank :: trainer.world_size])

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        assert self._file is not None
        for row in rows(outputs):
            if self._names is not None:
                row = {"file": next(self._names, None), **row}
            if self.path.suffix == ".jsonl":
                self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            else:
                writer = csv.writer(self._file, lineterminator="\n")
                if not self._header:
                    writer.writerow(row)
                    self._header = True
                writer.writerow(_cell(v) for v in row.values())
            self.rows += 1

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._file is not None
        self._file.close()
        trainer.strategy.barrier("predictions")
        if trainer.is_global_zero:
            if trainer.world_size > 1:
                self._merge(trainer.world_size)
            os.replace(self._part(0), self.path)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._file is not None:
            self._file.close()
            self._part(trainer.global_rank).unlink(missing_ok=True)

    def _merge(self, world: int) -> None:
        """Put the processes' files together: sample ``i`` was predicted by process ``i % world``."""
        merged, self.rows = self._part(world), 0
        with ExitStack() as stack, open(merged, "w", encoding="utf-8", newline="") as out:
            files = [stack.enter_context(self._part(rank).open(encoding="utf-8", newline="")) for rank in range(world)]
            if self.path.suffix == ".csv":
                headers = [file.readline() for file in files]
                out.write(headers[0])
            for lines in zip_longest(*files):
                for line in lines:
                    if line is not None:
                        out.write(line)
                        self.rows += 1
        for rank in range(world):
            self._part(rank).unlink()
        os.replace(merged, self._part(0))


def rows(outputs: Any) -> Iterator[dict[str, Any]]:
    """Turn a batch of predictions, columns or one tensor, into rows of plain values."""
    columns = outputs if isinstance(outputs, Mapping) else {"prediction": outputs}
    lists = {k: v.detach().cpu().tolist() if isinstance(v, Tensor) else list(v) for k, v in columns.items()}
    for values in zip(*lists.values(), strict=True):
        yield dict(zip(lists, values, strict=True))


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
