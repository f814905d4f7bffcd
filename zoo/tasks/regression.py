"""Regression: one number, or several, from inputs."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, R2Score

from zoo.losses.adapt import adapt_loss
from zoo.tasks.base import Task, inputs_of


class Regressor(Task):
    """Train any network that maps inputs to numbers to predict them.

    A batch is ``(inputs, targets)``, targets ``(b,)`` or ``(b, k)``; the network returns ``(b, k)`` in units of the
    targets' standard deviation. The loss is taken there; predictions and ``mae``, ``rmse``, ``r2`` are in the
    targets' own units.

    Args:
        target_mean: mean of the training targets; null takes it from the data, or 0.
        target_std: standard deviation of the training targets; null takes it from the data, or 1.
    """

    def __init__(
        self, net: nn.Module, target_mean: float | None = None, target_std: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(net=net, **kwargs)
        self.target_mean, self.target_std = target_mean or 0.0, 1.0 if target_std is None else target_std
        if self.target_std <= 0:
            raise ValueError(f"target_std must be above 0, got {target_std}")
        if self.loss is None:
            self.loss = nn.MSELoss()
        self.loss = adapt_loss(self.loss, "regression")
        self.metrics = nn.ModuleDict({stage: _metrics() for stage in ("val", "test")})

    def forward(self, *inputs: Tensor) -> Float[Tensor, "b k"]:
        """Predict in the targets' own units."""
        return self._standardised(*inputs) * self.target_std + self.target_mean

    def _standardised(self, *inputs: Tensor) -> Float[Tensor, "b k"]:
        out = self.net(*inputs)
        return out if out.ndim > 1 else out.unsqueeze(1)

    def step(self, batch: Any, stage: str) -> Tensor:
        _, y = batch
        out = self._standardised(*inputs_of(batch))
        target = y.view(out.shape[0], -1).to(out.dtype)
        if target.shape != out.shape:
            raise ValueError(
                f"the network gives {out.shape[1]} numbers a sample, the data has {target.shape[1]} targets"
            )
        assert self.loss is not None
        if stage != "train":
            values = (out.float() * self.target_std + self.target_mean, target.float())
            self.metrics[stage].update(*(v.squeeze(1) for v in values))  # type: ignore[operator]
        return self.loss(out, (target - self.target_mean) / self.target_std)

    def reset_metrics(self, stage: str) -> None:
        super().reset_metrics(stage)
        self.metrics[stage].reset()  # type: ignore[operator]

    def compute_metrics(self, stage: str) -> dict[str, Any]:
        metrics = self.metrics[stage]
        enough = metrics["r2"].total >= 2  # type: ignore[index, operator]
        values = {k: m.compute() for k, m in metrics.items() if k != "r2" or enough}  # type: ignore[operator]
        return {k: v if v.ndim == 0 else v.mean() for k, v in values.items()}

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return the column ``prediction``, in the targets' own units."""
        out = self(*inputs_of(batch)).float()
        return {"prediction": (out[:, 0] if out.shape[1] == 1 else out).tolist()}


def _metrics() -> MetricCollection:
    chosen = {"mae": MeanAbsoluteError(), "rmse": MeanSquaredError(squared=False), "r2": R2Score()}
    return MetricCollection(chosen, compute_groups=False)
