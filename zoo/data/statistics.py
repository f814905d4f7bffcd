"""Standard deviations to divide by: one that is zero but for rounding counts as zero."""

from __future__ import annotations

from typing import overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

EPS = float(np.finfo(np.float64).eps)


@overload
def is_constant(mean: float, std: float, n: int, eps: float = ...) -> bool: ...
@overload
def is_constant(mean: Tensor, std: Tensor, n: int | Tensor, eps: float = ...) -> Tensor: ...
@overload
def is_constant(mean: NDArray, std: NDArray, n: int | NDArray, eps: float = ...) -> NDArray[np.bool_]: ...
def is_constant(mean, std, n, eps=EPS):
    """Return whether values vary by no more than the rounding of their mean and variance.

    The bound is scikit-learn's (``StandardScaler``): the mean of ``n`` numbers has a rounding error of up to
    ``n * eps * mean``, so that even equal numbers have a deviation above 0.

    Args:
        mean: of the values, one or several features.
        std: standard deviation of the values.
        n: number of values.
        eps: distance from 1 to the next number of the type in which mean and deviation were computed.
    """
    return std**2 <= n * eps * std**2 + (n * mean * eps) ** 2


def mean_and_std(values: Tensor, correction: int = 0) -> tuple[float, float]:
    """Return the mean of numbers and a deviation to divide by, both computed in float64.

    Args:
        values: ``(n,)``; without any number, mean and deviation are 0 and 1.
        correction: 1 for the unbiased variance.
    """
    if not len(values):
        return 0.0, 1.0
    values = values.double()
    mean = float(values.mean())
    std = float(values.std(correction=min(correction, len(values) - 1)))
    if is_constant(mean, std, len(values)):
        return float(values[0]), 1.0  # the mean of equal numbers may be off by a rounding
    return mean, std
