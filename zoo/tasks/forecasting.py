"""Forecasting: the next steps of a series from its past."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import (
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    MetricCollection,
    SymmetricMeanAbsolutePercentageError,
)

from zoo.losses import PinballLoss
from zoo.losses.adapt import adapt_loss
from zoo.tasks.base import Task, inputs_of, require
from zoo.tasks.linear_forecast import LinearForecast

BASELINES = ("naive", "seasonal_naive", "linear")


class Forecaster(Task):
    """Train any network that maps the past of a series to its next steps to forecast them.

    A batch is ``(inputs, targets)`` or ``(inputs, targets, about)``. Inputs are ``past`` ``(b, context, d)``, whose
    first column is the target's past, or ``(past, future)``, with covariates ``(b, horizon, k)`` that are known in
    advance; targets ``(b, horizon)``. ``metadata`` is a dict of what is known of the windows: ``mean`` and ``std``
    ``(b,)``, by which targets become their own units; ``error`` ``(b,)``, the unit of MASE; ``seasonal_naive``
    ``(b, horizon)``; ``observed`` ``(b, horizon)``, which targets count; names for predictions, ``series`` and
    ``time``. The network returns ``(b, horizon)``, or ``(b, horizon, q)`` with quantiles.

    Logs ``loss``; in validation and test, in the targets' own units, ``mae``, ``rmse``, ``mase`` (Hyndman and Koehler
    2006, https://doi.org/10.1016/j.ijforecast.2006.03.001) and ``smape`` (0 to 2); with quantiles ``pinball`` and
    ``coverage``, the share of targets between the lowest and the highest. In the test others forecast the same:
    ``mae_naive`` by the last value, ``mae_seasonal_naive`` by that of a season ago, ``mae_linear`` by least squares
    fitted to the training windows, and ``skill`` is 1 - mae / mae_seasonal_naive.

    Args:
        horizon: steps to forecast; null takes it from the data.
        quantiles: which to forecast, 0.5 among them; null forecasts one number a step.
    """

    monitor = "val/mae"

    def __init__(
        self, net: nn.Module, horizon: int | None = None, quantiles: list[float] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(net=net, **kwargs)
        self.horizon: int = require(self, horizon=horizon)
        self.quantiles = check_quantiles(quantiles)
        if self.loss is None:
            self.loss = PinballLoss(self.quantiles) if self.quantiles else nn.MSELoss()
        self.loss = adapt_loss(self.loss, "regression")
        if isinstance(self.loss, PinballLoss) != bool(self.quantiles):
            raise ValueError(f"PinballLoss is the loss of quantiles: got quantiles={quantiles}, {self.loss}")
        names = {"val": ("model",), "test": ("model", *BASELINES)}
        self.metrics = nn.ModuleDict({s: nn.ModuleDict({n: _scores() for n in names[s]}) for s in names})
        self.linear: LinearForecast | None = None
        self.test_table: str | None = None

    def forward(self, *inputs: Tensor) -> Float[Tensor, "b h"] | Float[Tensor, "b h q"]:
        """Forecast in the units of the inputs; quantiles in order (Chernozhukov et al. 2010).

        https://doi.org/10.3982/ECTA7880: those that cross are sorted, which never makes them worse.
        """
        out = self.net(*inputs)
        return out.sort(-1).values if self.quantiles else out

    def step(self, batch: Any, stage: str) -> Tensor:
        y, metadata = batch[1], metadata_of(batch)
        out = self.net(*inputs_of(batch))
        expected = (*y.shape, len(self.quantiles)) if self.quantiles else tuple(y.shape)
        if out.shape != expected:
            raise ValueError(f"the network forecasts {tuple(out.shape)}, the targets {tuple(y.shape)} need {expected}")
        target, observed_mask = y.to(out.dtype), metadata.get("observed")
        assert self.loss is not None
        if stage != "train":
            self._update_metrics(out.detach().float(), batch, stage)
        return self.loss(out, target) if observed_mask is None else self.loss(out[observed_mask], target[observed_mask])

    def num_items(self, batch: Any) -> float | Tensor:
        """Windows, or as many as the targets that count would fill."""
        observed_mask = metadata_of(batch).get("observed")
        return (
            super().num_items(batch) if observed_mask is None else float(observed_mask.sum()) / observed_mask.shape[1]
        )

    def _update_metrics(self, out: Tensor, batch: Any, stage: str) -> None:
        y, metadata = batch[1].float(), metadata_of(batch)
        observed_mask = metadata.get("observed", torch.ones_like(y, dtype=torch.bool))
        ordered = out.sort(2).values if self.quantiles else out.unsqueeze(2)
        forecasts = {"model": ordered[:, :, self._median_index]}
        if stage == "test":
            forecasts |= self._baseline_forecasts(batch)
        mean, std, error = _scaling(metadata, y)
        target = (y * std + mean)[observed_mask]
        for name, forecast in forecasts.items():
            values = (forecast * std + mean)[observed_mask]
            self.metrics[stage][name].update(values, target, unit=error.expand_as(y)[observed_mask])  # type: ignore[index]
        if self.quantiles:
            inside = (ordered[..., 0] <= y) & (y <= ordered[..., -1])
            pinball = PinballLoss(self.quantiles)((ordered * std.unsqueeze(2))[observed_mask], (y * std)[observed_mask])
            self.log_mean(
                stage, int(observed_mask.sum()), coverage=inside[observed_mask].float().mean(), pinball=pinball
            )

    def _baseline_forecasts(self, batch: Any) -> dict[str, Tensor]:
        past, metadata = inputs_of(batch)[0].float(), metadata_of(batch)
        found = {"naive": past[:, -1:, 0].expand(-1, self.horizon)}
        if "seasonal_naive" in metadata:
            found["seasonal_naive"] = metadata["seasonal_naive"].float()
        if self.linear is not None:
            found["linear"] = self.linear(batch).float()
        return found

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return columns, a row for each step of each window: ``series`` and ``time`` if known, ``step``, ``forecast``.

        With quantiles also ``q0.1`` and so on; all in the targets' own units.
        """
        inputs, metadata = inputs_of(batch), metadata_of(batch)
        out = self(*inputs).float()
        out = out if self.quantiles else out.unsqueeze(2)
        mean, std, _ = _scaling(metadata, out[:, :, 0])
        out = (out * std.unsqueeze(2) + mean.unsqueeze(2)).flatten(0, 1)
        steps = range(self.horizon)
        found: dict[str, list] = {}
        if "series" in metadata:
            found["series"] = [name for name in metadata["series"] for _ in steps]
            found["time"] = [time for row in metadata["time"] for time in row]
        found["step"] = [step + 1 for _ in range(len(inputs[0])) for step in steps]
        found["forecast"] = out[:, self._median_index].tolist()
        return found | {f"q{q:g}": out[:, i].tolist() for i, q in enumerate(self.quantiles)}

    @property
    def _median_index(self) -> int:
        return self.quantiles.index(0.5) if self.quantiles else 0

    # Lightning's hooks ------------------------------------------------------------------------------------------------

    def reset_metrics(self, stage: str) -> None:
        super().reset_metrics(stage)
        for scores in self.metrics[stage].values():  # type: ignore[operator]
            scores.reset()

    def on_test_start(self) -> None:
        """Fit the linear baseline to the training windows, where there are any."""
        data = getattr(self.trainer, "datamodule", None)
        self.linear = LinearForecast.fit(data, self.trainer, self.horizon)

    def compute_metrics(self, stage: str) -> dict[str, Any]:
        kinds = self.metrics[stage].items()  # type: ignore[operator]
        found = {name: kind.compute() for name, kind in kinds if kind["mae"].update_called}
        values = dict(found["model"])
        if stage == "test":
            self.test_table = _table(found)
            values |= {f"mae_{name}": found[name]["mae"] for name in BASELINES if name in found}
        if "seasonal_naive" in found:
            values["skill"] = 1 - values["mae"] / found["seasonal_naive"]["mae"]
        return values


class MeanAbsoluteScaledError(MeanAbsoluteError):
    """Mean absolute error, each in a unit of its own."""

    def update(self, preds: Tensor, target: Tensor, unit: Tensor) -> None:
        super().update(preds / unit, target / unit)


def metadata_of(batch: Any) -> dict[str, Any]:
    """What a batch says of its windows."""
    return batch[2] if len(batch) > 2 else {}


def check_quantiles(quantiles: list[float] | None) -> list[float]:
    """The quantiles, none for null, or say what is wrong with them."""
    rising = sorted(set(quantiles or []))
    if quantiles is not None and (rising != list(quantiles) or 0.5 not in rising or not 0 < rising[0] < rising[-1] < 1):
        raise ValueError(f"quantiles must rise between 0 and 1, with 0.5 among them, got {quantiles}")
    return rising


def _scaling(metadata: dict[str, Any], y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, deviation and the error that MASE counts in, each ``(b, 1)``."""
    found = [
        metadata.get(name, y.new_full((len(y),), value)) for name, value in (("mean", 0), ("std", 1), ("error", 1))
    ]
    mean, std, error = (v.to(y.dtype).unsqueeze(1) for v in found)
    return mean, std, error


def _scores() -> MetricCollection:
    chosen: dict[str, Metric] = {
        "mae": MeanAbsoluteError(),
        "rmse": MeanSquaredError(squared=False),
        "mase": MeanAbsoluteScaledError(),
        "smape": SymmetricMeanAbsolutePercentageError(),
    }
    return MetricCollection(chosen, compute_groups=False)  # type: ignore[arg-type]


def _table(scores: dict[str, dict[str, Tensor]]) -> str:
    """One row a forecast, one column a metric."""
    side = max(map(len, scores))
    head = "".join(f"{metric:>10}" for metric in scores["model"])
    rows = [f"  {k:<{side}}" + "".join(f"{float(v):>10.4g}" for v in row.values()) for k, row in scores.items()]
    return "\n".join([" " * (side + 2) + head, *rows])
