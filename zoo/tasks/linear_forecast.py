"""The linear forecast that others have to beat (NLinear of Zeng et al. 2023, https://arxiv.org/abs/2205.13504)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from zoo.tasks.base import inputs_of

PENALTIES = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
WIDEST = 4096  # numbers a window: the sums of their products take 8 times the square in bytes


class LinearForecast:
    """Least squares from all inputs of a window to its targets, both taken from the last value on.

    The penalty on the weights is the one that is best for the validation windows. Of windows with more than 4096
    numbers only the target's past is seen.

    Args:
        weights: ``(columns, horizon)``, those of the constant at the end.
    """

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    def __call__(self, batch: Any) -> Tensor:
        """The forecasts ``(b, horizon)``, in the units of the inputs."""
        x, last = linear_inputs(batch)
        return (x @ self.weights + last).to(inputs_of(batch)[0])

    @classmethod
    def fit(cls, data: L.LightningDataModule | None, trainer: L.Trainer, horizon: int) -> LinearForecast | None:
        """Fit it to the training windows of some data; None where there are none."""
        sums = []
        for split in ("train", "val"):
            if data is None or not is_overridden(f"{split}_dataloader", data):
                continue
            data.setup("fit")
            found = sum_of_products(getattr(data, f"{split}_dataloader")())
            if found is not None and trainer.world_size > 1:
                found = trainer.strategy.reduce(found.to(trainer.strategy.root_device), reduce_op="sum").cpu()  # type: ignore
            sums += [] if found is None else [found]
        return cls(solve_ridge(sums[0], sums[-1], horizon)) if sums else None


def sum_of_products(batches: Iterable[Any]) -> Tensor | None:
    """The sums over windows of all products of inputs and targets, beside each other; windows with gaps are left out.

    Args:
        batches: of windows.

    Returns:
        ``(columns + horizon, columns + horizon)``; None for no batches.
    """
    total: Tensor | None = None
    for batch in batches:
        x, last = linear_inputs(batch)
        both = torch.cat([x, batch[1].double().cpu() - last], 1)
        if len(batch) > 2 and "observed" in batch[2]:
            both = both[batch[2]["observed"].all(1).cpu()]
        total = both.T @ both if total is None else total.addmm_(both.T, both)
    return total


def solve_ridge(train: Tensor, val: Tensor, horizon: int, penalties: Iterable[float] = PENALTIES) -> Tensor:
    """The weights by least squares, with the penalty that is best for other windows.

    Args:
        train: products of the windows to fit.
        val: products of the windows that decide.
        horizon: how many of the columns are targets.
        penalties: on the squares of the weights, not of the constant.

    Returns:
        ``(columns, horizon)``.
    """
    n = len(train) - horizon
    least, best = torch.inf, torch.zeros(n, horizon, dtype=train.dtype)
    for penalty in penalties:
        diagonal = train.new_full((n,), penalty)
        diagonal[-1] = 1e-9
        weights = torch.linalg.solve(train[:n, :n] + diagonal.diag(), train[:n, n:])
        # what depends on the weights in the squared error, from the products alone
        error = float((weights * (val[:n, :n] @ weights - 2 * val[:n, n:])).sum())
        if error < least:
            least, best = error, weights
    return best


def linear_inputs(batch: Any) -> tuple[Tensor, Tensor]:
    """The inputs of each window as a row with a constant at its end, and the last value of the target ``(b, 1)``."""
    past, *future = (x.detach().double().cpu() for x in inputs_of(batch))
    last = past[:, -1, :1]
    target = past[:, :, 0] - last
    rows = torch.cat([target, past[:, :, 1:].flatten(1), *(x.flatten(1) for x in future)], 1)
    rows = target[:, -WIDEST:] if rows.shape[1] > WIDEST else rows
    return torch.cat([rows, torch.ones_like(last)], 1), last
