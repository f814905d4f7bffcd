"""Fréchet distance; precision and recall of samples (Kynkäänniemi et al. 2019, https://arxiv.org/abs/1904.06991)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance

# Number of pairwise distances in memory at a time.
MAX_DISTANCES = 2**22
# Relative rounding error of squared distances, which are computed from a matrix product.
ROUNDING = 1e-12


class FrechetDistance(FrechetInceptionDistance):
    """Fréchet distance between normal distributions fitted to the features of real and of generated samples.

    Heusel et al. 2017 (https://arxiv.org/abs/1706.08500), computed by torchmetrics in float64. With features of
    Inception it is the FID. It is biased upwards with few samples of many features: compare values only for the same
    features and the same numbers of samples.

    Args:
        num_features: dimension of the features.
        reset_real_features: whether ``reset`` also discards the real samples.
    """

    def __init__(self, num_features: int, reset_real_features: bool = True, **kwargs: Any) -> None:
        super().__init__(feature=_PrecomputedFeatures(num_features), reset_real_features=reset_real_features, **kwargs)

    def update(self, features: Float[Tensor, "n d"], real: bool) -> None:
        super().update(features.double(), real)

    def compute(self) -> Tensor:
        num_real = int(self.real_features_num_samples)  # type: ignore[arg-type]
        num_generated = int(self.fake_features_num_samples)  # type: ignore[arg-type]
        if num_real < 2 or num_generated < 2:
            raise ValueError(
                f"a Fréchet distance needs at least 2 samples of each kind, got {num_real} real and {num_generated} "
                "generated"
            )
        return super().compute()


class _PrecomputedFeatures(nn.Identity):
    """Stand-in for torchmetrics' Inception network, as the inputs are features already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


class PrecisionRecall(Metric):
    """Precision: fraction of generated samples in the manifold of real ones. Recall: of real ones in that of generated.

    A sample lies in the manifold of others if it is no farther from one of them than that one from its own k-th nearest
    neighbor. Samples unlike all real ones lower precision, real ones that are never generated lower recall. Both depend
    on the number of samples.

    Args:
        neighbors: k.
        reset_real_features: whether ``reset`` also discards the real samples.
    """

    full_state_update = False
    higher_is_better = True

    def __init__(self, neighbors: int = 3, reset_real_features: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if neighbors < 1:
            raise ValueError(f"neighbors must be at least 1, got {neighbors}")
        self.neighbors = neighbors
        self.reset_real_features = reset_real_features
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("generated", [], dist_reduce_fx="cat")

    def update(self, features: Float[Tensor, "n d"], real: bool) -> None:
        samples: Any = self.real if real else self.generated
        samples.append(features.detach().double())

    def compute(self) -> dict[str, Tensor]:
        real = concatenate(self.real)
        generated = concatenate(self.generated)
        precision = in_manifold(generated, real, self.neighbors).double().mean()
        recall = in_manifold(real, generated, self.neighbors).double().mean()
        return {"precision": precision, "recall": recall}

    def reset(self) -> None:
        real = list(self.real)  # a copy, as reset empties the list in place
        super().reset()
        if not self.reset_real_features:
            self.real = real


def concatenate(samples: Any) -> Float[Tensor, "n d"]:
    """Return a state of samples as one tensor: a list of batches, or what was gathered from several processes."""
    if isinstance(samples, list):
        return torch.cat(samples)
    return samples


def in_manifold(
    points: Float[Tensor, "n d"],
    others: Float[Tensor, "m d"],
    neighbors: int = 3,
    max_distances: int = MAX_DISTANCES,
) -> Bool[Tensor, " n"]:
    """Return whether points lie in a ball around any of the others that reaches its k-th nearest neighbor among them.

    Args:
        points: points to classify.
        others: centers of the balls.
        neighbors: k.
        max_distances: number of pairwise distances in memory at a time.
    """
    if len(others) <= neighbors:
        raise ValueError(f"{neighbors} nearest neighbors need more than {neighbors} samples, got {len(others)}")
    # Centered, which makes squared distances from a matrix product more accurate.
    center = others.double().mean(0)
    points = points.double() - center
    others = others.double() - center
    square_norms = others.square().sum(1)  # (m,)
    largest = torch.maximum(square_norms.max(), points.square().sum(1).max())
    tolerance = ROUNDING * largest

    def square_distances(some: Float[Tensor, "k d"]) -> Float[Tensor, "k m"]:
        sums = some.square().sum(1, keepdim=True) + square_norms
        return (sums - 2 * some @ others.T).clamp(min=0)

    rows = max(1, max_distances // len(others))
    radii = []
    for some in others.split(rows):
        # The nearest of all is the point itself, so the k-th neighbor is number k + 1.
        radii.append(square_distances(some).kthvalue(neighbors + 1, dim=1).values)
    limits = torch.cat(radii) + tolerance  # (m,)
    inside = [(square_distances(some) <= limits).any(1) for some in points.split(rows)]
    return torch.cat(inside)
