"""Deviations that are zero but for rounding."""

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from zoo.data.base import BatchTensorDataset
from zoo.data.images.statistics import channel_statistics
from zoo.data.statistics import is_constant, mean_and_std

VALUES = (0.1, 0.3, 1.1, 14.62, 37.7, 1e9 / 7, -1e-9 / 3, 0.0)


@pytest.mark.parametrize("n", [2, 3, 210, 300, 12345])
def test_equal_numbers_are_constant_as_for_scikit_learn(n):
    for value in VALUES:
        column = torch.full((n,), value, dtype=torch.float64)
        assert mean_and_std(column) == (value, 1.0)
        assert StandardScaler().fit(column.unsqueeze(1).numpy()).scale_[0] == 1.0


def test_numbers_that_vary_are_not_constant():
    generator = torch.Generator().manual_seed(0)
    for center, spread in ((0.0, 1e-12), (1.7e9, 1.0), (1e6, 1e-3), (-5.0, 1e-8)):
        column = center + spread * torch.randn(300, generator=generator, dtype=torch.float64)
        mean, std = mean_and_std(column)
        scaler = StandardScaler().fit(column.unsqueeze(1).numpy())
        assert std == pytest.approx(float(scaler.scale_[0]), rel=1e-6)
        assert mean == pytest.approx(float(scaler.mean_[0]), abs=1e-9 * spread + 1e-15 * abs(center))


def test_several_features_at_once():
    x = np.stack([np.full(300, 14.62), np.arange(300.0)], 1)
    assert is_constant(x.mean(0), x.std(0), 300).tolist() == [True, False]
    x = torch.from_numpy(x)
    assert is_constant(x.mean(0), x.std(0), 300).tolist() == [True, False]
    assert mean_and_std(torch.empty(0)) == (0.0, 1.0)
    assert mean_and_std(torch.tensor([3.5]), correction=1) == (3.5, 1.0)


def test_a_channel_that_is_constant_is_divided_by_one():
    images = torch.rand(600, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images[:, 1] = 0.3
    images[:, 2] = 1 + 1e-3 * images[:, 2]
    mean, std = channel_statistics(BatchTensorDataset(images))
    pixels = images.double().movedim(1, 0).flatten(1)
    assert mean == pytest.approx(pixels.mean(1).tolist(), rel=1e-12)
    assert std[1] == 1.0
    assert std[::2] == pytest.approx(pixels.std(1, correction=0)[::2].tolist(), rel=1e-9)
