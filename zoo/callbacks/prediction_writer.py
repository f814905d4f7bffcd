"""Predictions, written as they are made."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import lightning as L
from torch import Tensor

from zoo.files import one_line_for_disk_errors, remove_abandoned, temporary_path

# Columns of ``predict_step`` that hold the prediction itself, in words where there are such.
_PREDICTIONS = ("prediction", "name", "forecast")
_TRUTH = "truth"


class PredictionWriter(L.Callback):
    """Write what ``predict_step`` returns to a CSV or JSON-lines file, batch by batch, in the order of the data.

    Nothing is kept in memory; the file appears under its name only when it is whole. The first columns say which sample
    it is (``predict_columns()`` of the data: the row of its file, an identifier, the name of a file). Where the data
    has a name for its target, the prediction stands under it, and beside it the true value, as ``price_true`` beside
    ``price``, if it is known.

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
        self._labels = SampleLabels({}, None, None)
        self._rows_per_sample = 1
        self.rows = 0
        # The beginning of the names of the processes' files.
        self._temporary = self.path

    def _part(self, rank: int) -> Path:
        return self._temporary.with_name(f"{self._temporary.name}.{rank}")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._temporary = Path(trainer.strategy.broadcast(str(temporary_path(self.path))))
        with one_line_for_disk_errors(self.path):
            remove_abandoned(self.path)
            # A file that nobody has made before, nor a link.
            self._file = open(  # noqa: SIM115
                self._part(trainer.global_rank),
                "x",
                newline="",
                encoding="utf-8",
                errors="backslashreplace",  # the name of a file may hold bytes that are no text
            )
        self._header = False
        self._rows_per_sample = 1
        self.rows = 0
        self._labels = SampleLabels.of(
            getattr(trainer, "datamodule", None),
            trainer.global_rank,
            trainer.world_size,
        )

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        assert self._file is not None
        found = list(rows(outputs))
        samples = num_samples(batch)
        if samples and len(found) % samples == 0:
            # A forecast has a row for each step.
            self._rows_per_sample = max(1, len(found) // samples)
        with one_line_for_disk_errors(self.path):
            for i, row in enumerate(found):
                self._write(self._labels.add(row, is_next=i % self._rows_per_sample == 0))

    def _write(self, row: dict[str, Any]) -> None:
        assert self._file is not None
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
        with one_line_for_disk_errors(self.path):
            self._file.close()
            trainer.strategy.barrier("predictions")
            if trainer.is_global_zero:
                if trainer.world_size > 1:
                    self._merge(trainer.world_size)
                os.replace(self._part(0), self.path)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk, again
                self._file.close()
            self._part(trainer.global_rank).unlink(missing_ok=True)

    def _merge(self, world: int) -> None:
        """Put the processes' files together: sample ``i`` was predicted by process ``i % world``."""
        merged = self._part(world)
        self.rows = 0
        with ExitStack() as stack, open(merged, "x", encoding="utf-8", newline="") as out:
            files = [stack.enter_context(self._part(rank).open(encoding="utf-8", newline="")) for rank in range(world)]
            records = [_records(file, self.path.suffix) for file in files]
            if self.path.suffix == ".csv":
                headers = [next(part, "") for part in records]
                out.write(headers[0])
            while True:
                written = 0
                for part in records:
                    for record in islice(part, self._rows_per_sample):
                        out.write(record)
                        written += 1
                if not written:
                    break
                self.rows += written
        for rank in range(world):
            self._part(rank).unlink()
        os.replace(merged, self._part(0))


class SampleLabels:
    """What is written beside predictions: which sample it is, and its true target.

    Args:
        columns: values by the name of their column, a value for each sample.
        targets: the true target of each sample; null where they are not known.
        target_name: name of the target; null keeps the names of ``predict_step``.
    """

    def __init__(
        self,
        columns: Mapping[str, Sequence[Any]],
        targets: Sequence[Any] | None,
        target_name: str | None,
    ) -> None:
        self.columns = dict(columns)
        self.targets = targets
        self.target_name = target_name
        self._position = -1

    @classmethod
    def of(cls, data: Any, rank: int, world: int) -> SampleLabels:
        """Return the labels of the samples that a process predicts.

        Args:
            data: the datamodule; one that is not zoo's may have ``predict_names``.
            rank: of the process.
            world: number of processes.
        """
        columns = {}
        if hasattr(data, "predict_columns"):
            columns = data.predict_columns()
        elif getattr(data, "predict_names", None) is not None:
            columns = {"file": data.predict_names}
        targets = data.predict_targets() if hasattr(data, "predict_targets") else None
        if targets is not None:
            targets = targets[rank::world]
        columns = {name: values[rank::world] for name, values in columns.items()}
        return cls(columns, targets, getattr(data, "target_name", None))

    def add(self, row: dict[str, Any], is_next: bool) -> dict[str, Any]:
        """Return a row with its labels.

        Args:
            row: of ``predict_step``.
            is_next: whether it is the first row of the next sample.
        """
        self._position += int(is_next)
        labelled = {name: _at(values, self._position) for name, values in self.columns.items()}
        prediction = next((name for name in _PREDICTIONS if name in row), None)
        for name, value in row.items():
            if name == prediction:
                labelled[self.target_name or name] = value
                if self.targets is not None:
                    labelled[self._truth_name(name)] = _at(self.targets, self._position)
            elif name == _TRUTH and prediction is not None:
                labelled[self._truth_name(prediction)] = value
            else:
                is_taken = name in labelled or name == self.target_name
                labelled[f"predicted_{name}" if is_taken else name] = value
        return labelled

    def _truth_name(self, prediction: str) -> str:
        return f"{self.target_name or prediction}_true"


def rows(outputs: Any) -> Iterator[dict[str, Any]]:
    """Turn a batch of predictions, columns or one tensor, into rows of plain values."""
    columns = outputs if isinstance(outputs, Mapping) else {"prediction": outputs}
    lists = {k: v.detach().cpu().tolist() if isinstance(v, Tensor) else list(v) for k, v in columns.items()}
    for values in zip(*lists.values(), strict=True):
        yield dict(zip(lists, values, strict=True))


def num_samples(batch: Any) -> int | None:
    """Return the number of samples of a batch, by its first tensor; None without a tensor."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else None
    parts: Any = ()
    if isinstance(batch, Mapping):
        parts = batch.values()
    elif isinstance(batch, (tuple, list)):
        parts = batch
    for part in parts:
        found = num_samples(part)
        if found is not None:
            return found
    return None


def _records(file: TextIO, suffix: str) -> Iterator[str]:
    """Yield the lines of a file; of a CSV file its rows, in which a cell may have several lines."""
    record = ""
    for line in file:
        record += line
        # Within a cell in quotes the number of quotation marks so far is odd.
        if suffix == ".csv" and record.count('"') % 2:
            continue
        yield record
        record = ""


def _at(values: Sequence[Any], position: int) -> Any:
    return values[position] if position < len(values) else None


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
