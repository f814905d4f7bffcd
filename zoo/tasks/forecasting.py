"""Time series forecasting."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.losses import PinballLoss
from zoo.losses.adapt import adapt_loss
from zoo.metrics.accumulation import widest_float
from zoo.metrics.regression import ForecastErrors
from zoo.tasks.base import Task, inputs_of, require
from zoo.tasks.linear_forecast import LinearForecast

BASELINES = ("naive", "seasonal_naive", "linear")


class Forecaster(Task):
    """Time series forecaster: any network that maps the past of a series to its next steps.

    A batch is ``(inputs, targets)`` or ``(inputs, targets, metadata)``. Inputs are ``past`` ``(b, context, d)``, whose
    first column is the target's past, or ``(past, future)`` with covariates ``(b, horizon, k)`` that are known in
    advance. Targets are ``(b, horizon)``. ``metadata`` is a dict that describes the windows: ``mean`` and ``std``
    ``(b,)``, which scale targets back to their units; ``error`` ``(b,)``, the denominator of MASE; ``seasonal_naive``
    ``(b, horizon)``, that forecast; ``observed`` ``(b, horizon)``, a mask of targets that are not missing; ``series``
    and ``time``, names for predictions. The network returns ``(b, horizon)``, or ``(b, horizon, q)`` with quantiles.

    Logs ``loss``; in validation and test, in the targets' units, ``mae``, ``rmse``, ``mase`` (Hyndman and Koehler
    2006, https://doi.org/10.1016/j.ijforecast.2006.03.001) and ``smape`` (0 to 2); with quantiles ``pinball`` and
    ``coverage``, the fraction of targets between the lowest and the highest quantile. The test adds baselines:
    ``mae_naive`` of the last value, ``mae_seasonal_naive`` of the value one season before, ``mae_linear`` of ridge
    regression on the training windows, and ``skill``, which is 1 - mae / mae_seasonal_naive. A metric that nothing
    defines is not logged: ``mase`` where all errors have the denominator 0, ``skill`` where the seasonal forecast has
    no error.

    Args:
        horizon: number of steps to forecast; null takes it from the data.
        quantiles: quantiles to forecast, 0.5 among them; null forecasts one number per step.
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
        # stage -> forecast -> metrics
        self.metrics = nn.ModuleDict()
        for stage, forecasts in (("val", ["model"]), ("test", ["model", *BASELINES])):
            self.metrics[stage] = nn.ModuleDict({forecast: ForecastErrors() for forecast in forecasts})
        self.linear: LinearForecast | None = None
        self.test_table: str | None = None

    def forward(self, *inputs: Tensor) -> Float[Tensor, "b h"] | Float[Tensor, "b h q"]:
        """Forecast in the units of the inputs.

        Quantiles that cross are sorted, which never makes them worse (Chernozhukov et al. 2010,
        https://doi.org/10.3982/ECTA7880).
        """
        out = self.net(*inputs)
        if self.quantiles:
            return out.sort(-1).values
        return out

    def step(self, batch: Any, stage: str) -> Tensor:
        y = batch[1]
        out = self.net(*inputs_of(batch))
        expected = tuple(y.shape)
        if self.quantiles:
            expected = (*y.shape, len(self.quantiles))
        if out.shape != expected:
            raise ValueError(f"the network forecasts {tuple(out.shape)}, the targets {tuple(y.shape)} need {expected}")
        if stage != "train":
            self._update_metrics(out.detach().float(), batch, stage)
        assert self.loss is not None
        target = y.to(out.dtype)
        observed = metadata_of(batch).get("observed")
        if observed is not None:
            return self.loss(out[observed], target[observed])
        return self.loss(out, target)

    def num_items(self, batch: Any) -> float | Tensor:
        """Return the number of windows; with missing targets, the number of windows that the others would fill."""
        observed = metadata_of(batch).get("observed")
        if observed is None:
            return super().num_items(batch)
        return float(observed.sum()) / observed.shape[1]

    def _update_metrics(self, out: Tensor, batch: Any, stage: str) -> None:
        y = batch[1].float()
        metadata = metadata_of(batch)
        observed = metadata.get("observed", torch.ones_like(y, dtype=torch.bool))
        ordered = out.sort(2).values if self.quantiles else out.unsqueeze(2)  # (b, horizon, q)
        forecasts = {"model": ordered[:, :, self._median_index]}
        if stage == "test":
            forecasts |= self._baseline_forecasts(batch)
        dtype = widest_float(y)
        mean, std, error = (values.to(dtype) for values in _scaling(metadata, y))
        target = (y * std + mean)[observed]
        unit = error.expand_as(y)[observed]
        for name, forecast in forecasts.items():
            values = (forecast * std + mean)[observed]
            self.metrics[stage][name].update(values, target, unit)  # type: ignore[index]
        if self.quantiles:
            covered = (ordered[..., 0] <= y) & (y <= ordered[..., -1])
            coverage = covered[observed].float().mean()
            scaled = ordered * std.unsqueeze(2)  # the mean cancels in the difference
            pinball = PinballLoss(self.quantiles)(scaled[observed], (y * std)[observed])
            self.log_mean(stage, int(observed.sum()), coverage=coverage, pinball=pinball)

    def _baseline_forecasts(self, batch: Any) -> dict[str, Tensor]:
        past = inputs_of(batch)[0].float()
        metadata = metadata_of(batch)
        forecasts = {"naive": past[:, -1:, 0].expand(-1, self.horizon)}
        if "seasonal_naive" in metadata:
            forecasts["seasonal_naive"] = metadata["seasonal_naive"].float()
        if self.linear is not None:
            forecasts["linear"] = self.linear(batch).float()
        return forecasts

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return columns with a row per step of each window: ``series`` and ``time`` if known, ``step``, ``forecast``.

        With quantiles also ``q0.1`` and so on; ``truth`` where targets are known. All values are in the targets' units.
        """
        inputs = inputs_of(batch)
        metadata = metadata_of(batch)
        out = self(*inputs).float()
        if not self.quantiles:
            out = out.unsqueeze(2)  # (b, horizon, 1)
        mean, std, _ = _scaling(metadata, out[:, :, 0])
        out = (out * std.unsqueeze(2) + mean.unsqueeze(2)).flatten(0, 1)  # (b * horizon, q)
        columns: dict[str, list] = {}
        if "series" in metadata:
            columns["series"] = [name for name in metadata["series"] for _ in range(self.horizon)]
            columns["time"] = [time for row in metadata["time"] for time in row]
        columns["step"] = list(range(1, self.horizon + 1)) * len(inputs[0])
        columns["forecast"] = out[:, self._median_index].tolist()
        if "observed" in metadata:
            columns["truth"] = _true_values(batch[1], metadata["observed"], mean, std)
        for i, quantile in enumerate(self.quantiles):
            columns[f"q{quantile:g}"] = out[:, i].tolist()
        return columns

    @property
    def _median_index(self) -> int:
        if not self.quantiles:
            return 0
        return self.quantiles.index(0.5)

    # Lightning's hooks ------------------------------------------------------------------------------------------------

    def reset_metrics(self, stage: str) -> None:
        super().reset_metrics(stage)
        for scores in self.metrics[stage].values():  # type: ignore[operator]
            scores.reset()

    def on_test_start(self) -> None:
        """Fit the linear baseline to the training windows, if there are any."""
        data = getattr(self.trainer, "datamodule", None)
        self.linear = LinearForecast.fit(data, self.trainer, self.horizon)

    def compute_metrics(self, stage: str) -> dict[str, Any]:
        scores = {}
        for forecast, errors in self.metrics[stage].items():  # type: ignore[operator]
            if errors.update_called and (results := errors.compute()):
                scores[forecast] = results
        if "model" not in scores:  # no target is observed
            return {}
        values = dict(scores["model"])
        if stage == "test":
            self.test_table = _table(scores)
            for baseline in BASELINES:
                if baseline in scores:
                    values[f"mae_{baseline}"] = scores[baseline]["mae"]
        if "seasonal_naive" in scores and scores["seasonal_naive"]["mae"] > 0:
            values["skill"] = 1 - values["mae"] / scores["seasonal_naive"]["mae"]
        return values


def _true_values(y: Tensor, observed: Tensor, mean: Tensor, std: Tensor) -> list[float | None]:
    """Return targets ``(b, horizon)`` in their units as a flat list, None where one is missing."""
    values = (y.to(mean.dtype) * std + mean).flatten().tolist()
    return [value if known else None for value, known in zip(values, observed.flatten().tolist(), strict=True)]


def metadata_of(batch: Any) -> dict[str, Any]:
    """Return the metadata of a batch of windows, empty if there is none."""
    if len(batch) > 2:
        return batch[2]
    return {}


def check_quantiles(quantiles: list[float] | None) -> list[float]:
    """Return the quantiles, an empty list for None.

    Raises:
        ValueError: they do not rise between 0 and 1, or 0.5 is missing.
    """
    if quantiles is None:
        return []
    rising = list(quantiles) == sorted(set(quantiles))
    between = all(0 < quantile < 1 for quantile in quantiles)
    if not rising or not between or 0.5 not in quantiles or len(quantiles) < 2:
        raise ValueError(f"quantiles must rise between 0 and 1, with 0.5 among them, got {quantiles}")
    return list(quantiles)


def _scaling(metadata: dict[str, Any], y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, standard deviation and the denominator of MASE, 0 if there is none, each ``(b, 1)``."""

    def column(name: str, default: float) -> Tensor:
        values = metadata.get(name, y.new_full((len(y),), default))
        return values.to(y.dtype).unsqueeze(1)

    return column("mean", 0), column("std", 1), column("error", 0)


def _table(scores: dict[str, dict[str, Tensor]]) -> str:
    """Return a text table with one row per forecast and one column per metric."""
    width = max(map(len, scores))
    lines = [" " * (width + 2) + "".join(f"{metric:>10}" for metric in scores["model"])]
    for forecast, values in scores.items():
        cells = "".join(f"{float(value):>10.4g}" for value in values.values())
        lines.append(f"  {forecast:<{width}}{cells}")
    return "\n".join(lines)
