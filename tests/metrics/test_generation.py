"""Fréchet distance, precision and recall: analytic values, brute force, collapsed and copied samples."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from zoo.metrics import FrechetDistance, PrecisionRecall, in_manifold


def normal(n: int, mean: torch.Tensor, cov: torch.Tensor, seed: int) -> torch.Tensor:
    """Samples that have exactly this mean and covariance."""
    x = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(0)
    x = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T).view_as(cov)), x.T, upper=False).T
    return x @ torch.linalg.cholesky(cov).T + mean


def random_cov(d: int, seed: int) -> torch.Tensor:
    a = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a @ a.T / d + 0.1 * torch.eye(d, dtype=torch.float64)


def distance(real: torch.Tensor, generated: torch.Tensor) -> float:
    metric = FrechetDistance(real.shape[1])
    for part in real.split(70):
        metric.update(part, real=True)
    for part in generated.split(33):
        metric.update(part, real=False)
    return float(metric.compute())


def by_scipy(real: torch.Tensor, generated: torch.Tensor) -> float:
    a, b = np.cov(real.double().numpy().T), np.cov(generated.double().numpy().T)
    apart = (real.double().mean(0) - generated.double().mean(0)).square().sum()
    return float(apart + np.trace(a + b - 2 * sqrtm(a @ b).real))


def test_frechet_distance_of_normal_distributions():
    d = 12
    mean, cov, other = torch.linspace(-1, 1, d, dtype=torch.float64), random_cov(d, 0), random_cov(d, 1)
    real = normal(200, torch.zeros(d, dtype=torch.float64), cov, 2)
    assert distance(real, normal(150, mean, cov, 3)) == pytest.approx(float(mean.square().sum()), rel=1e-9)
    root = torch.from_numpy(sqrtm(cov.numpy()).real)
    cross = torch.from_numpy(sqrtm((root @ other @ root).numpy()).real)
    expected = mean.square().sum() + torch.trace(cov + other - 2 * cross)
    assert distance(real, normal(150, mean, other, 4)) == pytest.approx(float(expected), rel=1e-8)


def test_frechet_distance_of_one_dimension():
    real = normal(50, torch.tensor([1.0]).double(), torch.tensor([[4.0]]).double(), 0)
    generated = normal(50, torch.tensor([3.0]).double(), torch.tensor([[9.0]]).double(), 1)
    assert distance(real, generated) == pytest.approx((3 - 1) ** 2 + (3 - 2) ** 2, rel=1e-9)


def test_frechet_distance_of_fewer_samples_than_features_and_in_float32():
    g = torch.Generator().manual_seed(0)
    real, generated = torch.randn(40, 64, generator=g).relu(), 1.2 * torch.randn(50, 64, generator=g).relu() + 0.1
    assert distance(real, generated) == pytest.approx(by_scipy(real, generated), rel=1e-5)
    assert distance(real, real) == pytest.approx(0, abs=1e-5)


def test_reset_keeps_real_samples_if_set():
    g = torch.Generator().manual_seed(0)
    real, generated = torch.rand(30, 4, generator=g), torch.rand(30, 4, generator=g)
    for metric in (FrechetDistance(4, reset_real_features=False), PrecisionRecall(reset_real_features=False)):
        metric.update(real, real=True)
        metric.update(generated + 5, real=False)
        metric.compute()
        metric.reset()
        metric.update(generated, real=False)
        fresh = FrechetDistance(4) if isinstance(metric, FrechetDistance) else PrecisionRecall()
        fresh.update(real, real=True)
        fresh.update(generated, real=False)
        assert metric.compute() == fresh.compute()


def scores(real: torch.Tensor, generated: torch.Tensor, neighbors: int = 3) -> tuple[float, float]:
    metric = PrecisionRecall(neighbors)
    for part in real.split(41):
        metric.update(part, real=True)
    metric.update(generated, real=False)
    found = metric.compute()
    return float(found["precision"]), float(found["recall"])


def by_hand(points: list, others: list, k: int) -> float:
    """Each distance alone, sorted: the nearest of all is the point itself."""
    radii = [sorted(math.dist(x, y) for y in others)[k] for x in others]
    inside = [any(math.dist(p, y) <= r for y, r in zip(others, radii, strict=True)) for p in points]
    return sum(inside) / len(inside)


@pytest.mark.parametrize("neighbors", [1, 3, 5])
def test_precision_and_recall_equal_brute_force(neighbors):
    g = torch.Generator().manual_seed(neighbors)
    real, generated = torch.randn(60, 3, generator=g), 1.4 * torch.randn(50, 3, generator=g) + 1.5
    a, b = real.double().tolist(), generated.double().tolist()
    found = scores(real, generated, neighbors)
    assert found == pytest.approx((by_hand(b, a, neighbors), by_hand(a, b, neighbors)), abs=1e-12)
    assert min(found) > 0
    assert max(found) < 1
    assert scores(real + 1000, generated + 1000, neighbors) == pytest.approx(found, abs=0.05)
    small = in_manifold(generated, real, neighbors, max_distances=130)
    assert torch.equal(small, in_manifold(generated, real, neighbors))


def test_precision_and_recall_of_copies_outliers_and_a_collapsed_model():
    g = torch.Generator().manual_seed(0)
    middles = 8 * torch.eye(5).repeat_interleave(40, 0)
    real, more = (middles + torch.randn(200, 5, generator=g) for _ in range(2))
    assert scores(real, real) == (1, 1)
    assert scores(real, real + 100) == (0, 0)
    precision, recall = scores(real, more)
    assert min(precision, recall) > 0.75
    precision, recall = scores(real, more[:40].repeat(5, 1) + 0.01 * torch.randn(200, 5, generator=g))
    assert precision > 0.75
    assert recall < 0.2
    assert scores(real.repeat(1, 2), real.repeat(1, 2)) == (1, 1)
    alike = torch.ones(10, 3)
    assert scores(alike, alike) == (1, 1)


def test_mistakes():
    with pytest.raises(ValueError, match="neighbors must be at least 1, got 0"):
        PrecisionRecall(0)
    with pytest.raises(ValueError, match="3 nearest neighbors need more than 3 samples, got 3"):
        scores(torch.rand(3, 2), torch.rand(9, 2))
    with pytest.raises(ValueError, match="at least 2 samples of each kind, got 1 real and 9 generated"):
        distance(torch.rand(1, 2), torch.rand(9, 2))
