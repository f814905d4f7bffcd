"""Errors of regression and forecasts: right far from zero, in half precision, in parts, and without a spread."""

import math

import pytest
import torch
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from torch import nn

from zoo.metrics.accumulation import merge_moments
from zoo.metrics.regression import ForecastErrors, RegressionErrors
from zoo.tasks import Regressor


def computed(prediction, target, size=7) -> dict[str, float]:
    metric = RegressionErrors()
    for rows in torch.arange(len(target)).split(size):
        metric.update(prediction[rows], target[rows])
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 7, 500])
@pytest.mark.parametrize(("center", "spread"), [(0.0, 1.0), (1e6, 2e4), (-1e6, 30.0)])
def test_errors_of_prices_equal_those_of_scikit_learn(center, spread, size, dtype):
    generator = torch.Generator().manual_seed(0)
    target = (center + spread * torch.randn(500, 1, generator=generator)).to(dtype)
    prediction = target + spread * torch.randn(500, 1, generator=generator).to(dtype) / 2
    values = computed(prediction, target, size)
    y, p = target.double(), prediction.double()
    assert values["r2"] == pytest.approx(r2_score(y, p), rel=1e-6)
    assert values["mae"] == pytest.approx(mean_absolute_error(y, p), rel=1e-6)
    assert values["rmse"] == pytest.approx(root_mean_squared_error(y, p), rel=1e-6)


def test_r2_is_the_mean_over_the_targets_that_vary():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    prediction = target + torch.randn(50, 3, generator=generator)
    assert computed(prediction, target)["r2"] == pytest.approx(r2_score(target, prediction), rel=1e-6)
    target[:, 1] = 0.1  # whose mean in float64 is not exactly 0.1
    expected = r2_score(target[:, [0, 2]], prediction[:, [0, 2]])
    assert computed(prediction, target)["r2"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("target", [[5.0], [0.1, 0.1, 0.1], [1e9, 1e9]])
def test_no_r2_without_a_spread(target):
    target = torch.tensor(target, dtype=torch.float64).unsqueeze(1)
    assert computed(target + 1, target).keys() == {"mae", "rmse"}


def test_parts_of_several_processes_are_merged():
    x = 1e6 + torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parts = [x[:1], x[1:20], x[20:20], x[20:]]
    counts = torch.tensor([[len(part)] * 2 for part in parts], dtype=torch.float64)
    means = torch.stack([part.mean(0) if len(part) else torch.full((2,), 1e6).double() for part in parts])
    deviations = torch.stack([(part - mean).square().sum(0) for part, mean in zip(parts, means, strict=True)])
    count, mean, deviation = merge_moments(counts, means, deviations)
    assert count.tolist() == [30, 30]
    assert torch.allclose(mean, x.mean(0), rtol=1e-15)
    assert torch.allclose(deviation, (x - x.mean(0)).square().sum(0), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_regressor_in_half_precision_keeps_the_digits_of_its_targets(dtype):
    """1,000,000 and 1,000,100 are one number in bfloat16, and infinite in float16."""
    module = Regressor(nn.Linear(1, 1), target_mean=1e6, target_std=100.0).to(dtype)
    nn.init.ones_(module.net.weight)
    nn.init.zeros_(module.net.bias)
    x = torch.tensor([[-1.0], [0.0], [1.0]], dtype=dtype)
    y = torch.tensor([999_900.0, 1_000_000.0, 1_000_200.0])
    assert float(module.step((x, y), "val").detach()) == pytest.approx(1 / 3, rel=0.01)
    values = module.compute_metrics("val")
    assert float(values["mae"]) == pytest.approx(100 / 3)
    assert float(values["r2"]) == pytest.approx(r2_score(y, [999_900, 1_000_000, 1_000_100]))
    assert module.predict_step((x,), 0)["prediction"] == [999_900, 1_000_000, 1_000_100]


def forecast_errors(forecast, target, unit) -> dict[str, float]:
    metric = ForecastErrors()
    metric.update(*(torch.tensor(values) for values in (forecast, target, unit)))
    return {name: float(value) for name, value in metric.compute().items()}


def test_forecast_errors_by_hand():
    values = forecast_errors([1.0, 2.0, 0.0], [2.0, 6.0, 0.0], [2.0, 0.0, 1.0])
    assert values["mae"] == pytest.approx(5 / 3)
    assert values["rmse"] == pytest.approx(math.sqrt(17 / 3))
    assert values["mase"] == pytest.approx((1 / 2 + 0) / 2), "without the error that has no unit"
    assert values["smape"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_forecast_errors_that_nothing_defines():
    assert "mase" not in forecast_errors([1.0], [2.0], [0.0])
    metric = ForecastErrors()
    metric.update(torch.empty(0), torch.empty(0), torch.empty(0))
    assert metric.compute() == {}


def test_smape_does_not_depend_on_the_unit_of_the_series():
    """torchmetrics' is divided by 1e-6 at least."""
    expected = forecast_errors([1.0, 3.0], [2.0, 2.0], [1.0, 1.0])["smape"]
    assert forecast_errors([1e-9, 3e-9], [2e-9, 2e-9], [1.0, 1.0])["smape"] == pytest.approx(expected, rel=1e-5)
