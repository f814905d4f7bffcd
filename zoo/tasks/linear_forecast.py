"""Linear baseline of forecasting (NLinear of Zeng et al. 2023, https://arxiv.org/abs/2205.13504)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from zoo.data.base import DataModule
from zoo.tasks.base import inputs_of

PENALTIES = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
# Most numbers in a window: their Gram matrix takes 8 bytes times the square of this.
WIDEST = 4096


class LinearForecast:
    """Ridge regression from all inputs of a window to its targets, both relative to the last value.

    The penalty is chosen on the validation windows. Of windows with more than 4096 numbers only the target's past is
    used.

    Args:
        weights: ``(columns, horizon)``; the last row is the intercept.
    """

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    def __call__(self, batch: Any) -> Tensor:
        """Return the forecasts ``(b, horizon)``, in the units of the inputs."""
        x, last = linear_inputs(batch)
        return (x @ self.weights + last).to(inputs_of(batch)[0])

    @classmethod
    def fit(cls, data: L.LightningDataModule | None, trainer: L.Trainer, horizon: int) -> LinearForecast | None:
        """Fit to the training windows of a datamodule; return None if there are none."""
        sums = []
        for split in ("train", "val"):
            if data is None or not is_overridden(f"{split}_dataloader", data):
                continue
            if isinstance(data, DataModule):
                # Set up already; without windows of the training split, as in another file, there is no baseline.
                if split not in data.datasets:
                    break
            else:
                data.setup("fit")
            gram = sum_of_products(getattr(data, f"{split}_dataloader")())
            if gram is None:
                continue
            if trainer.world_size > 1:
                on_device = gram.to(trainer.strategy.root_device)
                gram = trainer.strategy.reduce(on_device, reduce_op="sum").cpu()  # type: ignore[union-attr]
            sums.append(gram)
        if not sums:
            return None
        return cls(solve_ridge(sums[0], sums[-1], horizon))


def sum_of_products(batches: Iterable[Any]) -> Tensor | None:
    """Return the Gram matrix of inputs and targets, concatenated, over all windows without missing targets.

    Args:
        batches: batches of windows.

    Returns:
        A tensor ``(columns + horizon, columns + horizon)``; None without batches.
    """
    total: Tensor | None = None
    for batch in batches:
        x, last = linear_inputs(batch)
        both = torch.cat([x, batch[1].double().cpu() - last], 1)  # (b, columns + horizon)
        if len(batch) > 2 and "observed" in batch[2]:
            complete = batch[2]["observed"].all(1).cpu()
            both = both[complete]
        if total is None:
            total = both.T @ both
        else:
            total.addmm_(both.T, both)
    return total


def solve_ridge(train: Tensor, val: Tensor, horizon: int, penalties: Iterable[float] = PENALTIES) -> Tensor:
    """Return the ridge regression weights, with the penalty that is best on the validation windows.

    Args:
        train: Gram matrix of the training windows, see :func:`sum_of_products`.
        val: Gram matrix of the validation windows.
        horizon: number of columns, at the end, that are targets.
        penalties: candidates for the penalty on squared weights; the intercept is not penalized.

    Returns:
        Weights ``(columns, horizon)``.
    """
    n = len(train) - horizon
    least = torch.inf
    best = torch.zeros(n, horizon, dtype=train.dtype)
    for penalty in penalties:
        diagonal = train.new_full((n,), penalty)
        diagonal[-1] = 1e-9
        weights = torch.linalg.solve(train[:n, :n] + diagonal.diag(), train[:n, n:])
        # The squared error up to a constant: ||x w - y||^2 = w'x'x w - 2 w'x'y + y'y.
        error = float((weights * (val[:n, :n] @ weights - 2 * val[:n, n:])).sum())
        if error < least:
            least = error
            best = weights
    return best


def linear_inputs(batch: Any) -> tuple[Tensor, Tensor]:
    """Return each window's inputs as a row with a constant at its end, and the last value of the target ``(b, 1)``."""
    past, *future = (x.detach().double().cpu() for x in inputs_of(batch))
    last = past[:, -1, :1]
    target = past[:, :, 0] - last
    rows = torch.cat([target, past[:, :, 1:].flatten(1), *(x.flatten(1) for x in future)], 1)  # (b, columns)
    if rows.shape[1] > WIDEST:
        rows = target[:, -WIDEST:]
    return torch.cat([rows, torch.ones_like(last)], 1), last
