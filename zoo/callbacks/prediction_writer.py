"""Predictions, written as they are made."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TextIO

import lightning as L
from torch import Tensor

from zoo.callbacks.prediction_files import check_path, write_rows
from zoo.files import one_line_for_disk_errors, remove_abandoned, temporary_path

# Columns of ``predict_step`` that hold the prediction itself, in words where there are such.
_PREDICTIONS = ("prediction", "name", "forecast", "translation")
_TRUTH = "truth"
NUM_SHOWN = 10


class PredictionWriter(L.Callback):
    """Write what ``predict_step`` returns to a CSV, JSON-lines or Parquet file, in the order of the data.

    Nothing is kept in memory; the file appears under its name only when it is whole. The first columns say which sample
    it is (``predict_columns()`` of the data: the row of its file, an identifier, the name of a file, a text). Where the
    data has a name for its target, the prediction stands under it, and beside it the true value, as ``price_true``
    beside ``price``, if it is known. Samples that cannot be read have no row: ``failed`` says why.

    Args:
        path: ends in ``.csv``, ``.jsonl`` or ``.parquet``; null writes no file, and ``shown`` has the first rows.
    """

    def __init__(self, path: str | None) -> None:
        self.path = None if path is None else Path(path)
        if self.path is not None:
            check_path(self.path)
        self._file: TextIO | None = None
        self._labels = SampleLabels({}, None, None)
        self.rows = 0
        self.shown: list[dict[str, Any]] = []
        self.failed: list[tuple[str, str]] = []
        # The beginning of the names of the processes' files.
        self._temporary = Path()

    def _part(self, rank: int) -> Path:
        return self._temporary.with_name(f"{self._temporary.name}.{rank}")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        temporary = ""
        if trainer.is_global_zero and self.path is None:
            temporary = f"{tempfile.mkdtemp(prefix='zoo-')}/predictions"
        elif trainer.is_global_zero and self.path is not None:
            temporary = str(temporary_path(self.path))
        self._temporary = Path(trainer.strategy.broadcast(temporary))
        with one_line_for_disk_errors(self._temporary if self.path is None else self.path):
            if self.path is not None:
                remove_abandoned(self.path)
            # A file that nobody has made before, nor a link.
            self._file = open(self._part(trainer.global_rank), "x", encoding="utf-8")  # noqa: SIM115
        self.rows = 0
        self.shown = []
        self.failed = []
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
        per_sample = 1
        if samples and len(found) % samples == 0:
            per_sample = max(1, len(found) // samples)  # a forecast has a row for each step
        with one_line_for_disk_errors(self.path or self._temporary):
            for start in range(0, len(found), per_sample):
                self._labels.next()
                # A line for each sample, so that the files of several processes can be merged.
                if (why := self._labels.failed()) is not None:
                    record: Any = {"failed": why}
                else:
                    record = [self._labels.add(row) for row in found[start : start + per_sample]]
                self._file.write(json.dumps(record) + "\n")

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._file is not None
        with one_line_for_disk_errors(self.path or self._temporary):
            self._file.close()
        trainer.strategy.barrier("predictions")
        if not trainer.is_global_zero:
            return
        try:
            merged = self._merged_rows(trainer.world_size)
            if self.path is not None:
                self.rows = write_rows(self.path, merged)
            else:
                for row in merged:
                    self.rows += 1
                    if len(self.shown) < NUM_SHOWN:
                        self.shown.append(row)
        finally:
            self._remove_parts(trainer.world_size)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk, again
                self._file.close()
            self._part(trainer.global_rank).unlink(missing_ok=True)

    def _merged_rows(self, world: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of all processes in order: sample ``i`` was predicted by process ``i % world``."""
        with ExitStack() as stack:
            files = [stack.enter_context(self._part(rank).open(encoding="utf-8")) for rank in range(world)]
            while lines := [line for file in files if (line := file.readline())]:
                for record in map(json.loads, lines):
                    if isinstance(record, dict):
                        self.failed.append(tuple(record["failed"]))
                    else:
                        yield from record

    def _remove_parts(self, world: int) -> None:
        for rank in range(world):
            self._part(rank).unlink(missing_ok=True)
        if self.path is None:
            shutil.rmtree(self._temporary.parent, ignore_errors=True)


class SampleLabels:
    """What is written beside predictions: which sample it is, and its true target.

    Args:
        columns: values by the name of their column, a value for each sample.
        targets: the true target of each sample; null where they are not known.
        target_name: name of the target; null keeps the names of ``predict_step``.
        samples: the :class:`zoo.data.new_samples.NewSamples` that are predicted; null for a split.
        rank: of the process, which has every ``world``-th sample.
        world: number of processes.
    """

    def __init__(
        self,
        columns: Mapping[str, Sequence[Any]],
        targets: Sequence[Any] | None,
        target_name: str | None,
        samples: Any = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.columns = dict(columns)
        self.targets = targets
        self.target_name = target_name
        self.samples = samples
        self.rank = rank
        self.world = world
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
        samples = getattr(data, "new_samples", None)
        return cls(columns, targets, getattr(data, "target_name", None), samples, rank, world)

    def next(self) -> None:
        """Go on to the next sample of the process."""
        self._position += 1

    @property
    def index(self) -> int:
        """Index of the sample among those of all processes."""
        return self._position * self.world + self.rank

    def failed(self) -> tuple[str, str] | None:
        """Return name of the sample and why it cannot be read; None if it can."""
        if self.samples is None or self.index not in self.samples.failed:
            return None
        return self.samples.name(self.index), self.samples.failed[self.index]

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row with its labels.

        Args:
            row: of ``predict_step``.
        """
        if self.samples is not None and self.samples.finish is not None:
            row = self.samples.finish(row, self.index)
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


def _at(values: Sequence[Any], position: int) -> Any:
    return values[position] if position < len(values) else None
