"""Sums over batches and processes in the widest floating-point type of their device, and what of them is defined."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def defined(metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the metrics without those that are NaN, which nothing in the data defines."""
    return {name: value for name, value in metrics.items() if not value.isnan()}


def widest_float(tensor: Tensor) -> torch.dtype:
    """Return the type in which to sum up values of a tensor: float64, except on MPS, which has only float32."""
    if tensor.device.type == "mps":
        return torch.float32
    return torch.float64


def merge_moments(count: Tensor, mean: Tensor, deviations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the moments of parts of some samples (Chan et al. 1983, https://doi.org/10.1080/00031305.1983.10483115).

    Sums of squares would lose all digits of a variance that is small beside the squared mean.

    Args:
        count: number of samples of each part ``(p, k)``.
        mean: their mean ``(p, k)``.
        deviations: their sum of squared deviations from that mean ``(p, k)``.

    Returns:
        The same of all parts together, each ``(k,)``.
    """
    total = count.sum(0)
    # Relative to the first part's mean: a mean of means would round them.
    shift = mean - mean[:1]  # (p, k)
    weight = count / total.clamp(min=1)
    center = (weight * shift).sum(0)
    between = (count * (shift - center).square()).sum(0)
    return total, mean[0] + center, deviations.sum(0) + between
