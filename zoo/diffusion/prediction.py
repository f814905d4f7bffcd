"""Prediction types: what the network predicts from a noisy sample ``alpha x0 + sigma eps``, and how it is weighted."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "flow_prediction"]


def prediction_target(
    prediction_type: PredictionType,
    x0: Float[Tensor, "b ..."],
    eps: Float[Tensor, "b ..."],
    alpha: Float[Tensor, " b"],
    sigma: Float[Tensor, " b"],
) -> Float[Tensor, "b ..."]:
    """Return the target of the network for noisy samples ``alpha x0 + sigma eps``.

    Args:
        prediction_type: ``epsilon``; ``v_prediction`` (Salimans and Ho 2022); ``flow_prediction``, noise minus data.
        x0: data.
        eps: noise.
        alpha: coefficient of the data.
        sigma: coefficient of the noise.
    """
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "flow_prediction":
        return eps - x0
    return broadcast_over(alpha, x0) * eps - broadcast_over(sigma, x0) * x0


def to_x0_eps(
    prediction_type: PredictionType,
    x: Float[Tensor, "b ..."],
    prediction: Float[Tensor, "b ..."],
    alpha: float,
    sigma: float,
) -> tuple[Float[Tensor, "b ..."], Float[Tensor, "b ..."]]:
    """Return the predicted data ``x0`` and noise ``eps`` of samples that are all at the same time.

    Args:
        prediction_type: prediction type of the network.
        x: noisy samples.
        prediction: output of the network.
        alpha: coefficient of the data.
        sigma: coefficient of the noise.
    """
    if prediction_type == "epsilon":
        return (x - sigma * prediction) / alpha, prediction
    if prediction_type == "flow_prediction":
        total = alpha + sigma
        return (x - sigma * prediction) / total, (x + alpha * prediction) / total
    total = alpha * alpha + sigma * sigma
    return (alpha * x - sigma * prediction) / total, (sigma * x + alpha * prediction) / total


def min_snr_weight(
    prediction_type: PredictionType,
    alpha: Float[Tensor, " b"],
    sigma: Float[Tensor, " b"],
    gamma: float = 5.0,
) -> Float[Tensor, " b"]:
    """Min-SNR-gamma loss weights (Hang et al. 2023, https://arxiv.org/abs/2303.09556).

    The squared error of x0 is weighted with ``min(SNR, gamma)``. The squared errors of other predictions are a known
    factor larger or smaller, which the weight contains.

    Args:
        prediction_type: prediction type of the network.
        alpha: coefficient of the data.
        sigma: coefficient of the noise.
        gamma: signal-to-noise ratio at which the weight is clipped.
    """
    snr = (alpha / sigma).square()
    if prediction_type == "epsilon":
        # min(SNR, gamma) / SNR in a form that is also defined for SNR = 0
        return (gamma / snr).clamp(max=1)
    if prediction_type == "flow_prediction":
        x0_error = sigma / (alpha + sigma)
    else:
        x0_error = sigma / (alpha.square() + sigma.square())
    return snr.clamp(max=gamma) * x0_error.square()


def broadcast_over(coefficient: Float[Tensor, " b"], x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """Reshape one coefficient per sample to broadcast over the samples."""
    return coefficient.to(x.dtype).view(-1, *[1] * (x.ndim - 1))  # (b, 1, 1, ...)
