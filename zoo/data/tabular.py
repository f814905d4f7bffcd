"""Tables: four that scikit-learn ships, or any CSV file with a named target column."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.base import BatchTensorDataset, split_train_val_test
from zoo.data.csv_numbers import Decimal, DecimalSigns
from zoo.data.csv_tables import MISSING as MISSING
from zoo.data.csv_tables import CSVTable, check_format, read_table
from zoo.data.csv_tables import number as number
from zoo.data.csv_tables import read_csv as read_csv
from zoo.data.fitted import FittedDataModule
from zoo.data.new_rows import check_columns, read_rows
from zoo.data.new_samples import NewSamples, is_dataframe
from zoo.data.spec import DataSpec
from zoo.data.table_columns import Column, Encoding, fit_as_before, fit_column, warn_of_identifier
from zoo.data.table_fit import FittedTable, Table, fit_table, parse_targets
from zoo.distributed import say
from zoo.errors import UserError

BUNDLED = ("breast_cancer", "diabetes", "iris", "wine")


class Tabular(FittedDataModule):
    """Rows of a table: scikit-learn's ``breast_cancer``, ``wine``, ``iris``, ``diabetes``, or a CSV file.

    Numeric columns are standardized by the training rows; a missing number becomes the training mean, and a column of
    its own marks it where training rows lack some. Dates become years, and their place in the year, the week and the
    day. Other columns are one-hot encoded by the categories of the training rows; a category that is not among them
    becomes zeros. Inputs ``(b, input_dim)``; targets class indices ``(b,)`` or numbers ``(b,)``.

    A checkpoint keeps the encoding, so that new rows are encoded as the training rows were, and without them. With
    another ``file`` than that of training, all its rows are evaluated; rows that were added to the file of training are
    split by themselves.

    Args:
        name: one of the four tables; null with ``file``.
        file: a CSV file with a header.
        target: name of the target column of the file.
        kind: ``classification`` or ``regression``; null: classification unless the target is numbers of more than 20
            different values.
        ignore: columns of the file to leave out.
        predict_file: a CSV file of new rows for ``predict``, with or without the target; null predicts the test rows.
        val_split: share of the rows kept for validation.
        test_split: share of the rows kept for the test.
        categorical: columns of numbers that are names of categories, such as codes.
        id: a column that identifies the rows: no input, but the first column of predictions.
        separator: between columns, as ``;`` or ``tab``; null finds it.
        decimal: the decimal sign, ``.`` or ``,``; null finds it for each column.
        encoding: of a file without byte order mark, such as ``latin-1``; null is UTF-8.
        fitted: the encoding, as a checkpoint keeps it; null fits it to the training rows.
    """

    fitted_type = FittedTable
    without_fitted = "encoding of its table, which is fitted anew to"

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
        categorical: list[str] = [],
        id: str | None = None,
        separator: str | None = None,
        decimal: Decimal | None = None,
        encoding: str | None = None,
        fitted: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (name is None) == (file is None):
            raise ValueError(f"Tabular takes either a name ({', '.join(BUNDLED)}) or a file, got {name=} and {file=}")
        if file is not None and target is None:
            raise ValueError(f"which column of {file} is the target? give --data.target")
        if decimal is not None and decimal not in get_args(Decimal):
            raise ValueError(f"decimal must be '.' or ',', got {decimal!r}")
        self.name = name
        self.file = file
        self.target = target
        self.kind = kind
        self.ignore = list(ignore)
        self.predict_file = predict_file
        self.val_split = val_split
        self.test_split = test_split
        self.categorical = list(categorical)
        self.id = id
        self.separator = check_format(separator, encoding)
        self.decimal: Decimal | None = decimal
        self.encoding = encoding
        self._keep(fitted)
        self._encodes_as_before = False
        self._predict_table: Table | None = None

    # Data spec --------------------------------------------------------------------------------------------------------

    @property
    def class_names(self) -> list[str] | None:
        return self.fitted.classes

    @property
    def input_dim(self) -> int:
        return self.fitted.input_dim

    @property
    def target_name(self) -> str | None:
        """Name of the target column, under which predictions are written."""
        return self.target

    def spec(self) -> DataSpec:
        fitted = self.fitted
        if fitted.classes is None:
            return DataSpec(
                input_dim=fitted.input_dim,
                output_dim=1,
                target_mean=fitted.target_mean,
                target_std=fitted.target_std,
            )
        task = "binary" if len(fitted.classes) == 2 else "multiclass"
        return DataSpec(
            num_classes=len(fitted.classes),
            class_names=fitted.classes,
            task=task,
            input_dim=fitted.input_dim,
        )

    def override_spec(self, name: str, value: Any) -> bool:
        """Take the number of inputs of a checkpoint without an encoding, which laid some columns out otherwise."""
        if name in ("target_mean", "target_std"):
            return True  # the model standardizes targets, not the data
        if name != "input_dim" or self._kept is not None or self._encodes_as_before:
            return False
        self._encodes_as_before = True
        self._forget_fit()
        if self.fitted.input_dim == value:
            return True
        self._encodes_as_before = False
        self._forget_fit()
        return False

    # Fitted state -----------------------------------------------------------------------------------------------------

    @cached_property
    def _own_fit(self) -> FittedTable:
        targets, classes = self._own_targets
        train = self._split_rows(targets, classes)["train"]
        fit = fit_as_before if self._encodes_as_before else self._fit_column
        return fit_table(self._table, targets, classes, train, fit)

    def _fit_column(self, column: Column, train: Tensor) -> Encoding:
        if column.name not in self.categorical and self.file is not None:
            warn_of_identifier(column)
        return fit_column(column, train, column.name in self.categorical)

    # Reading ----------------------------------------------------------------------------------------------------------

    def _read(self, path: str) -> CSVTable:
        return read_table(path, self.separator, self.encoding)

    def _signs(self, table: CSVTable) -> DecimalSigns:
        default = None if self._kept is None else self._kept.decimal
        # Numbers of JSON, Parquet or a DataFrame have no sign to find.
        texts = {name: [cell for cell in cells if isinstance(cell, str)] for name, cells in table.columns.items()}
        return DecimalSigns(texts, self.decimal, default)

    @cached_property
    def _table(self) -> Table:
        if self.file is None:
            return load_bundled(str(self.name))
        read = self._read(self.file)
        target = str(self.target)
        if target in self.ignore:
            raise ValueError(f"the target {target!r} of {self.file} cannot be ignored")
        if self._kept is not None:
            return self._new_table(read)
        read.require(target, *self.ignore, *self.categorical, *([self.id] if self.id else []))
        out = {target, self.id, *self.ignore}
        names = [name for name in read.columns if name not in out]
        if not names:
            raise ValueError(f"{self.file} has no columns besides the target {target!r}")
        return self._select(read, names, target)

    def _new_table(self, read: CSVTable) -> Table:
        """Return the columns that training had, and the target where there is one."""
        read.require(*self.fitted.names)
        target = self.target if self.target in read.columns else None
        return self._select(read, self.fitted.names, target)

    def _select(self, read: CSVTable, names: Sequence[str], target: str | None) -> Table:
        signs = self._signs(read)

        def column(name: str) -> Column:
            try:
                decimal = signs.of(name)
            except ValueError as error:
                raise ValueError(f"{read.path}: {error}") from None
            return Column(name, read.columns[name], partial(read.cell, column=name), decimal)

        ids = read.columns.get(self.id) if self.id else None
        columns = {name: column(name) for name in names}
        return Table(read.path, columns, column(target) if target else None, read.rows, ids, signs.of_table)

    # Splits -----------------------------------------------------------------------------------------------------------

    @cached_property
    def _own_targets(self) -> tuple[Tensor, list[str] | None]:
        if self.file is None:
            return bundled_targets(str(self.name))
        assert self._table.target is not None
        return parse_targets(self._table.target, self.kind)

    def _split_rows(self, targets: Tensor, classes: list[str] | None) -> dict[str, Tensor]:
        """Return the indices of the rows of each split, each class in the same shares."""
        labels = None if classes is None else targets
        rows = split_train_val_test(len(targets), self.val_split, self.test_split, self.seed, labels)
        empty = [split for split, part in rows.items() if not len(part)]
        if empty:
            given = f"val_split={self.val_split} and test_split={self.test_split} of {len(targets)} rows"
            raise ValueError(f"{given} leave nothing for {' and '.join(empty)}: each of the three needs a row")
        return rows

    def _targets_and_rows(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the targets and the rows of each split."""
        if self._kept is None:
            targets, classes = self._own_targets
            return targets, self._split_rows(targets, classes)
        kept = self._kept
        table = self._table
        if table.target is None:
            raise ValueError(f"{table.source} has no column {self.target!r}, the target")
        relation = kept.is_table(table)
        targets = kept.encode_targets(table.target)
        if relation == "same":
            return targets, self._split_rows(targets, kept.classes)
        if relation == "grown":
            return targets, self._split_grown(targets, kept)
        if self._trains:
            say(f"{table.source} is not the table of the checkpoint: it is encoded as that one, and split anew")
            return targets, self._split_rows(targets, kept.classes)
        say(f"{table.source} is not the table of training: all its {len(table)} rows are used")
        everything = torch.arange(len(table))
        return targets, dict.fromkeys(("train", "val", "test"), everything)

    def _split_grown(self, targets: Tensor, kept: FittedTable) -> dict[str, Tensor]:
        """Return the splits of a table with rows below those of training, which keep their splits."""
        n = kept.num_rows
        old = self._split_rows(targets[:n], kept.classes)
        labels = None if kept.classes is None else targets[n:]
        new = split_train_val_test(len(targets) - n, self.val_split, self.test_split, self.seed, labels)
        more = f"{len(targets) - n} rows more than the checkpoint saw"
        say(f"{self._source} has {more}: these are split by themselves, the others as they were")
        return {split: torch.cat([part, n + new[split]]) for split, part in old.items()}

    def splits(self) -> dict[str, Dataset]:
        targets, rows = self._targets_and_rows()
        x = self.fitted.encode(self._table.columns)
        self._rows = rows
        return {split: BatchTensorDataset(x[part], targets[part]) for split, part in rows.items()}

    def reset_datasets(self) -> None:
        super().reset_datasets()
        self._predict_table = None

    def _forget_fit(self) -> None:
        self.reset_datasets()
        for name in ("_own_fit", "_own_targets", "_table"):
            vars(self).pop(name, None)

    # Prediction -------------------------------------------------------------------------------------------------------

    def read_samples(self, source: Any) -> NewSamples:
        """Read new rows, with or without the target.

        Args:
            source: paths of ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` files; a DataFrame, dicts, or an array with
                the columns of the training rows.
        """
        fitted = self.fitted
        known = [name for name in (self.target, self.id, *self.ignore) if name]
        inputs = []
        files: list[Any] = []
        rows: list[Any] = []
        ids: list[Any] | None = []
        targets: list[Any] | None = []
        tables = read_rows(source, self.separator, self.encoding, fitted.names)
        for read in tables:
            check_columns(read, fitted.names, known)
            table = self._new_table(read)
            inputs.append(fitted.encode(table.columns))
            files += [read.path] * len(table)
            rows += table.rows
            ids = None if ids is None or table.ids is None else ids + table.ids
            if table.target is None:
                targets = None
            elif targets is not None:
                targets += table.target.cells
        columns: dict[str, list[Any]] = {} if len(tables) == 1 else {"file": files}
        if ids is None:
            columns["row"] = rows
        else:
            columns[str(self.id)] = ids
        x = torch.cat(inputs)
        if not len(x):
            raise UserError(f"{tables[0].path} has no rows")
        index = source.index if is_dataframe(source) else None
        return NewSamples(BatchTensorDataset(x), columns, targets, index=index)

    def predict_dataset(self) -> Dataset | None:
        if self.predict_file is not None:
            self._predict_table = self._new_table(self._read(self.predict_file))
        elif self._kept is not None and self._table.target is None:
            self._predict_table = self._table  # rows of which the targets are to be predicted
        if self._predict_table is None:
            return None
        return BatchTensorDataset(self.fitted.encode(self._predict_table.columns))

    def predict_columns(self) -> dict[str, Sequence[Any]]:
        if self._new_samples is not None:
            return super().predict_columns()
        table, rows = self._predicted_rows()
        if table.ids is not None:
            return {str(self.id): [table.ids[i] for i in rows]}
        return {"row": [table.rows[i] for i in rows]}

    def predict_targets(self) -> Sequence[Any] | None:
        if self._new_samples is not None:
            return super().predict_targets()
        table, rows = self._predicted_rows()
        if table.target is None:
            return None
        return [table.target.cells[i] for i in rows]

    def _predicted_rows(self) -> tuple[Table, list[int]]:
        """Return the table that ``predict`` reads, and the indices of its rows."""
        if self.predict_split == "predict":
            assert self._predict_table is not None
            return self._predict_table, list(range(len(self._predict_table)))
        _ = self.datasets
        return self._table, self._rows["test"].tolist()


def _bundled(name: str) -> Any:
    import sklearn.datasets

    return getattr(sklearn.datasets, f"load_{name}")()


def load_bundled(name: str) -> Table:
    """Return one of the tables that scikit-learn ships."""
    data = _bundled(name)
    columns = {str(column): Column.of(column, data.data[:, i].tolist()) for i, column in enumerate(data.feature_names)}
    targets, classes = bundled_targets(name)
    cells = targets.tolist() if classes is None else [classes[i] for i in targets.tolist()]
    return Table(name, columns, Column.of("target", cells), list(range(1, len(targets) + 1)))


def bundled_targets(name: str) -> tuple[Tensor, list[str] | None]:
    """Return the targets of such a table and the names of its classes, null for a regression."""
    data = _bundled(name)
    targets = torch.from_numpy(data.target)
    if name == "diabetes":
        return targets.float(), None
    return targets.long(), [str(label) for label in data.target_names]
