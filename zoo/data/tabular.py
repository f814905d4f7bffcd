"""Tables: four that scikit-learn ships, or any CSV file with a named target."""

from __future__ import annotations

import csv
import math
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.data.base import BatchTensorDataset, DataModule, say, split_indices

BUNDLED = ("breast_cancer", "diabetes", "iris", "wine")
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})


class Tabular(DataModule):
    """Rows of a table: scikit-learn's ``breast_cancer``, ``wine``, ``iris``, ``diabetes``, or a CSV file.

    Columns of numbers are standardised by the training rows; a missing number becomes the training mean, with a
    column of its own that says so. Other columns become one column a category seen in training; a category seen
    only later is none of them. Inputs ``(b, input_dim)``; targets class numbers ``(b,)`` or numbers ``(b,)``.

    Args:
        name: one of the four tables; null with ``file``.
        file: a CSV file with a header.
        target: name of the target column of the file.
        kind: ``classification`` or ``regression``; null: classes unless the target is numbers of more than 20 values.
        ignore: columns of the file to leave out, such as an identifier.
        predict_file: a CSV file of new rows for ``predict``, encoded as the training rows say; null predicts the test
            rows.
        val_split: share of the rows kept for validation.
        test_split: share of the rows kept for the test.
    """

    def __init__(
        self,
        name: Literal["breast_cancer", "wine", "iris", "diabetes"] | None = None,
        file: str | None = None,
        target: str | None = None,
        kind: Literal["classification", "regression"] | None = None,
        ignore: list[str] = [],
        predict_file: str | None = None,
        val_split: float = 0.15,
        test_split: float = 0.15,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (name is None) == (file is None):
            raise ValueError(f"Tabular takes either a name ({', '.join(BUNDLED)}) or a file, got {name=} and {file=}")
        if file is not None and target is None:
            raise ValueError(f"which column of {file} is the target? give --data.target")
        self.name, self.file, self.target, self.kind, self.ignore = name, file, target, kind, list(ignore)
        self.predict_file = predict_file
        self.val_split, self.test_split = val_split, test_split

    # Data spec ------------------------------------------------------------------------------------------------------------

    @property
    def num_classes(self) -> int | None:
        return len(self.class_names) if self.class_names is not None else None

    @property
    def class_names(self) -> list[str] | None:
        return self._table["classes"]

    @property
    def task(self) -> str | None:
        return None if self.class_names is None else "binary" if self.num_classes == 2 else "multiclass"

    @property
    def input_dim(self) -> int:
        return self.datasets["train"].tensors[0].shape[1]  # type: ignore[attr-defined]

    @property
    def output_dim(self) -> int | None:
        return None if self.class_names is not None else 1

    @property
    def target_mean(self) -> float | None:
        return None if self.class_names is not None else float(self._train_targets.mean())

    @property
    def target_std(self) -> float | None:
        return None if self.class_names is not None else float(self._train_targets.std())

    @property
    def _train_targets(self) -> Tensor:
        return self.datasets["train"].tensors[1].double()  # type: ignore[attr-defined]

    # Reading ----------------------------------------------------------------------------------------------------------

    @cached_property
    def _table(self) -> dict[str, Any]:
        """Columns as lists, the target as a tensor, class names or None."""
        return self._bundled() if self.name else self._read()

    def _bundled(self) -> dict[str, Any]:
        import sklearn.datasets

        data = getattr(sklearn.datasets, f"load_{self.name}")()
        columns = {str(k): data.data[:, i].tolist() for i, k in enumerate(data.feature_names)}
        if self.name == "diabetes":
            return {"columns": columns, "y": torch.from_numpy(data.target).float(), "classes": None}
        classes = [str(c) for c in data.target_names]
        return {"columns": columns, "y": torch.from_numpy(data.target).long(), "classes": classes}

    def _read(self) -> dict[str, Any]:
        columns = read_csv(Path(str(self.file)))
        for column in [self.target, *self.ignore]:
            if column not in columns:
                raise ValueError(f"{self.file} has no column {column!r}; it has {', '.join(columns)}")
        columns = {name: values for name, values in columns.items() if name not in self.ignore}
        return {"columns": columns, **self._targets(columns.pop(str(self.target)), Path(str(self.file)))}

    def _targets(self, values: list[str], path: Path) -> dict[str, Any]:
        missing = sum(v.lower() in MISSING for v in values)
        if missing:
            raise ValueError(f"{path}: the target {self.target!r} is missing in {missing} rows; remove or fill them")
        numbers = [number(v) for v in values]
        numeric = not any(math.isnan(v) for v in numbers)
        if (self.kind or ("regression" if numeric and len(set(numbers)) > 20 else "classification")) == "regression":
            if not numeric:
                bad = values[[math.isnan(v) for v in numbers].index(True)]
                raise ValueError(f"{path}: the target {self.target!r} holds {bad!r}, which is not a number")
            return {"y": torch.tensor(numbers), "classes": None}
        classes = sorted(set(values), key=lambda v: (number(v), v) if numeric else (0.0, v))
        if len(classes) < 2:
            raise ValueError(f"{path}: the target {self.target!r} has one value only, {classes[0]!r}")
        index = {c: i for i, c in enumerate(classes)}
        return {"y": torch.tensor([index[v] for v in values]), "classes": classes}

    # Encoding ---------------------------------------------------------------------------------------------------------

    def splits(self) -> dict[str, BatchTensorDataset]:
        table, y = self._table, self._table["y"]
        shares = [1 - self.val_split - self.test_split, self.val_split, self.test_split]
        parts = split_indices(len(y), shares, self.seed, labels=None if table["classes"] is None else y)
        empty = [s for s, i in zip(("train", "val", "test"), parts, strict=True) if not len(i)]
        if empty:
            given = f"val_split={self.val_split} and test_split={self.test_split} of {len(y)} rows"
            raise ValueError(f"{given} leave nothing for {' and '.join(empty)}: each of the three needs a row")
        new = read_csv(Path(self.predict_file)) if self.predict_file else {}
        absent = [name for name in table["columns"] if new and name not in new]
        if absent:
            raise ValueError(f"{self.predict_file} has no column {absent[0]!r}; it needs {', '.join(table['columns'])}")
        encoded = []
        for name, values in table["columns"].items():
            block, notes = encode(name, [*values, *new.get(name, [])], parts[0])
            encoded.append(block)
            for note in notes:
                say(note)
        if not encoded:
            raise ValueError(f"{self.file} has no columns besides the target {self.target!r}")
        x = torch.cat(encoded, 1)
        sets = {name: BatchTensorDataset(x[i], y[i]) for name, i in zip(("train", "val", "test"), parts, strict=True)}
        return sets | ({"predict": BatchTensorDataset(x[len(y) :])} if new else {})


def read_csv(path: Path) -> dict[str, list[str]]:
    """Read a CSV file with a header into columns of text, or say what is wrong with it."""
    if not path.is_file():
        raise ValueError(f"no file {path}" + (" (it is a folder)" if path.is_dir() else ""))
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [h.strip() for h in next(reader, [])]
            rows = [[v.strip() for v in row] for row in reader if row]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8") from None
    if not rows:
        raise ValueError(f"{path} has no rows" + (" below its header" if header else ""))
    for i, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise ValueError(f"{path}, row {i}: {len(row)} values for {len(header)} columns")
    return {h: [row[i] for row in rows] for i, h in enumerate(header)}


def number(text: str | float) -> float:
    """A cell as a number; NaN where it is missing or not one."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def encode(name: str, values: list[Any], train: Tensor) -> tuple[Tensor, list[str]]:
    """Turn a column into numbers ``(n, k)`` by what its training rows hold; say what was missing or new."""
    missing = torch.tensor([str(v).lower() in MISSING for v in values])
    numbers = torch.tensor([number(v) for v in values], dtype=torch.float64)
    if not (numbers.isnan() & ~missing).any():
        return _encode_numbers(name, numbers, train)
    known = sorted({str(values[i]) for i in train.tolist() if not missing[i]})
    index = {v: i for i, v in enumerate(known)}
    block = torch.zeros(len(values), len(known))
    new = [i for i, v in enumerate(values) if not missing[i] and str(v) not in index]
    for i, v in enumerate(values):
        if str(v) in index:
            block[i, index[str(v)]] = 1.0
    notes = [f"column {name!r}: {int(missing.sum())} missing values are no category"] if missing.any() else []
    if new:
        unseen = sorted({str(values[i]) for i in new})
        notes.append(f"column {name!r}: {', '.join(unseen[:5])} not seen in training; {len(new)} rows have no category")
    return block, notes


def _encode_numbers(name: str, numbers: Tensor, train: Tensor) -> tuple[Tensor, list[str]]:
    missing, seen = numbers.isnan(), numbers[train][~numbers[train].isnan()]
    mean = seen.mean() if len(seen) else torch.tensor(0.0, dtype=torch.float64)
    std = seen.std(correction=0) if len(seen) > 1 else torch.tensor(0.0, dtype=torch.float64)
    scaled = (numbers.where(~missing, mean) - mean) / (std if std > 0 else 1.0)
    if not missing.any():
        return scaled.float().unsqueeze(1), []
    note = f"column {name!r}: {int(missing.sum())} missing numbers filled with the training mean {float(mean):.4g}"
    return torch.stack([scaled, missing.double()], 1).float(), [note]
