"""New samples for prediction: a dataset of their inputs, and what is written beside the predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.loading import BatchTensorDataset
from zoo.errors import UserError

Row = dict[str, Any]


@dataclass
class NewSamples:
    """Samples that are not of a split, read for prediction.

    Args:
        dataset: inputs as those of the training; ``batch(indices)`` returns a whole batch.
        columns: what identifies each sample, by the name of the column: a file, a row, an identifier, a text.
        targets: the true target of each sample; null where they are not known.
        prepare: completes a batch on its device, as normalization does; null where nothing is left to do. A Trainer
            calls the hook of the datamodule instead.
        finish: changes a row of predictions of a sample, which it gets with the index of the sample.
        failed: why samples cannot be read, by their index; filled while the dataset is read.
        index: index of the rows, where they come from a DataFrame.
    """

    dataset: Dataset
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    targets: Sequence[Any] | None = None
    prepare: Callable[[Any], Any] | None = None
    finish: Callable[[Row, int], Row] | None = None
    failed: dict[int, str] = field(default_factory=dict)
    index: Any = None

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def name(self, index: int) -> str:
        """Return what a sample is called in messages: its file, or its number."""
        for values in self.columns.values():
            return str(values[index])
        return f"sample {index + 1}"


def is_dataframe(source: Any) -> bool:
    """Return whether this is a DataFrame of pandas, without importing pandas."""
    return type(source).__name__ == "DataFrame" and type(source).__module__.partition(".")[0] == "pandas"


def is_paths(source: Any) -> bool:
    """Return whether this is a path, or a sequence of them."""
    from pathlib import Path

    if isinstance(source, (str, Path)):
        return True
    return isinstance(source, (list, tuple)) and bool(source) and all(isinstance(item, (str, Path)) for item in source)


def as_tensor(source: Any, what: str) -> Tensor:
    """Return numbers as a tensor, float64 as float32.

    Args:
        source: a tensor, an array, or lists of numbers.
        what: what is needed, for the error.

    Raises:
        UserError: they are no numbers, or not of one shape.
    """
    try:
        tensor = source if isinstance(source, Tensor) else torch.as_tensor(np.asarray(source))
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} needed, got {type(source).__name__}: {' '.join(str(error).split())[:120]}") from None
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def tensor_samples(source: Any, what: str = "a tensor of inputs") -> NewSamples:
    """Return inputs of a network, in a tensor or an array, as they are."""
    if is_paths(source) or is_dataframe(source):
        raise UserError(f"{what} needed, got {_shown(source)}")
    return NewSamples(BatchTensorDataset(as_tensor(source, what)))


def _shown(source: Any) -> str:
    if is_dataframe(source):
        return "a DataFrame"
    first = source if not isinstance(source, (list, tuple)) else source[0]
    return repr(str(first))
