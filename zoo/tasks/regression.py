"""Regression: one number or several per sample."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from zoo.losses.adapt import adapt_loss
from zoo.losses.embeddings import at_least_float32
from zoo.metrics.accumulation import widest_float
from zoo.metrics.regression import RegressionErrors
from zoo.tasks.base import Task, inputs_of


class Regressor(Task):
    """Regressor: trains any network that maps inputs to numbers.

    A batch is ``(inputs, targets)`` with targets ``(b,)`` or ``(b, k)``. The network returns standardized predictions
    ``(b, k)`` or ``(b,)``, in units of ``target_std`` around ``target_mean``, and the loss is computed on that scale.
    Predictions and the metrics ``mae`` and ``rmse`` are in the units of the targets. ``r2`` is the mean over the
    targets that vary within the split; where none does, as in a split of one sample, it is not logged.

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
        self.metrics = nn.ModuleDict({stage: RegressionErrors() for stage in ("val", "test")})

    def forward(self, *inputs: Tensor) -> Float[Tensor, "b k"]:
        """Return predictions in the units of the targets."""
        return self._unstandardize(self._standardized(*inputs))

    def _standardized(self, *inputs: Tensor) -> Float[Tensor, "b k"]:
        prediction = self.net(*inputs)
        if prediction.ndim == 1:
            prediction = prediction.unsqueeze(1)  # (b, 1)
        return prediction

    def _unstandardize(self, prediction: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        # Half precision has three digits, and float16 ends at 65504.
        return at_least_float32(prediction) * self.target_std + self.target_mean

    def step(self, batch: Any, stage: str) -> Tensor:
        _, y = batch
        prediction = self._standardized(*inputs_of(batch))
        target = at_least_float32(y.view(prediction.shape[0], -1))  # (b, k)
        if target.shape != prediction.shape:
            raise ValueError(
                f"the network predicts {prediction.shape[1]} numbers per sample, "
                f"but the data has {target.shape[1]} targets"
            )
        if stage != "train":
            in_units = self._unstandardize(prediction.detach().to(widest_float(prediction)))
            self.metrics[stage].update(in_units, target)  # type: ignore[operator]
        assert self.loss is not None
        # Standardized first: in half precision a target far from zero has no digits left to subtract from.
        standardized = (target - self.target_mean) / self.target_std
        return self.loss(prediction, standardized.to(prediction.dtype))

    def reset_metrics(self, stage: str) -> None:
        super().reset_metrics(stage)
        self.metrics[stage].reset()  # type: ignore[operator]

    def compute_metrics(self, stage: str) -> dict[str, Any]:
        return self.metrics[stage].compute()  # type: ignore[operator]

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return the column ``prediction`` in the units of the targets: a number, or a list for several targets."""
        prediction = self(*inputs_of(batch)).float()
        if prediction.shape[1] == 1:
            prediction = prediction[:, 0]
        return {"prediction": prediction.tolist()}
