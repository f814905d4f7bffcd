"""Regression: one number or several per sample."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, R2Score

from zoo.losses.adapt import adapt_loss
from zoo.tasks.base import Task, inputs_of


class Regressor(Task):
    """Regressor: trains any network that maps inputs to numbers.

    A batch is ``(inputs, targets)`` with targets ``(b,)`` or ``(b, k)``. The network returns standardized predictions
    ``(b, k)`` or ``(b,)``, in units of ``target_std`` around ``target_mean``, and the loss is computed on that scale.
    Predictions and the metrics ``mae``, ``rmse`` and ``r2`` are in the units of the targets.

    Args:
        target_mean: mean of the training targets; null takes it from the data, or 0.
        target_std: standard deviation of the training targets; null takes it from the data, or 1.
    """

    def __init__(
        self,
        net: nn.Module,
        target_mean: float | None = None,
        target_std: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(net=net, **kwargs)
        self.target_mean = 0.0 if target_mean is None else target_mean
        self.target_std = 1.0 if target_std is None else target_std
        if self.target_std <= 0:
            raise ValueError(f"target_std must be above 0, got {target_std}")
        if self.loss is None:
            self.loss = nn.MSELoss()
        self.loss = adapt_loss(self.loss, "regression")
        self.metrics = nn.ModuleDict({stage: build_metrics() for stage in ("val", "test")})

    def forward(self, *inputs: Tensor) -> Float[Tensor, "b k"]:
        """Return predictions in the units of the targets."""
        return self._unstandardize(self._standardized(*inputs))

    def _standardized(self, *inputs: Tensor) -> Float[Tensor, "b k"]:
        prediction = self.net(*inputs)
        if prediction.ndim == 1:
            prediction = prediction.unsqueeze(1)  # (b, 1)
        return prediction

    def _unstandardize(self, prediction: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        return prediction * self.target_std + self.target_mean

    def step(self, batch: Any, stage: str) -> Tensor:
        _, y = batch
        prediction = self._standardized(*inputs_of(batch))
        target = y.view(prediction.shape[0], -1).to(prediction.dtype)  # (b, k)
        if target.shape != prediction.shape:
            raise ValueError(
                f"the network predicts {prediction.shape[1]} numbers per sample, "
                f"but the data has {target.shape[1]} targets"
            )
        if stage != "train":
            # torchmetrics takes (b,) for a single target.
            in_units = self._unstandardize(prediction.float()).squeeze(1)
            self.metrics[stage].update(in_units, target.float().squeeze(1))  # type: ignore[operator]
        assert self.loss is not None
        return self.loss(prediction, (target - self.target_mean) / self.target_std)

    def reset_metrics(self, stage: str) -> None:
        super().reset_metrics(stage)
        self.metrics[stage].reset()  # type: ignore[operator]

    def compute_metrics(self, stage: str) -> dict[str, Any]:
        values = {}
        for name, metric in self.metrics[stage].items():  # type: ignore[operator]
            if name == "r2" and metric.total < 2:
                continue  # undefined for a single sample
            # One value per target becomes their mean.
            values[name] = metric.compute().mean()
        return values

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return the column ``prediction`` in the units of the targets: a number, or a list for several targets."""
        prediction = self(*inputs_of(batch)).float()
        if prediction.shape[1] == 1:
            prediction = prediction[:, 0]
        return {"prediction": prediction.tolist()}


def build_metrics() -> MetricCollection:
    """Return mean absolute error, root mean squared error and R^2."""
    metrics = {
        "mae": MeanAbsoluteError(),
        "rmse": MeanSquaredError(squared=False),
        "r2": R2Score(),
    }
    return MetricCollection(metrics, compute_groups=False)
