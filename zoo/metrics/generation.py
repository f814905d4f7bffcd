"""Fréchet distance; precision and recall of samples (Kynkäänniemi et al. 2019, https://arxiv.org/abs/1904.06991)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance

MAX_DISTANCES = 2**22  # distances held in memory at a time


class FrechetDistance(FrechetInceptionDistance):
    """The Fréchet distance of normal distributions fitted to the features of real and of made samples.

    That of Heusel et al. 2017 (https://arxiv.org/abs/1706.08500), computed by torchmetrics in float64. With features of
    Inception it is the FID. Few samples of many features make it larger: compare it only where the features and the
    numbers of samples are the same.

    Args:
        num_features: length of the vectors.
        reset_real_features: whether ``reset`` forgets the real ones, too.
    """

    def __init__(self, num_features: int, reset_real_features: bool = True, **kwargs: Any) -> None:
        super().__init__(feature=_PrecomputedFeatures(num_features), reset_real_features=reset_real_features, **kwargs)

    def update(self, features: Float[Tensor, "n d"], real: bool) -> None:
        super().update(features.double(), real)

    def compute(self) -> Tensor:
        real, made = int(self.real_features_num_samples), int(self.fake_features_num_samples)  # type: ignore[arg-type]
        if min(real, made) < 2:
            raise ValueError(f"a Fréchet distance takes 2 samples or more of either kind, got {real} real, {made} made")
        return super().compute()


class _PrecomputedFeatures(nn.Identity):
    """Features that are there already, for torchmetrics, which would look for Inception's."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


class PrecisionRecall(Metric):
    """The share of made samples that lie among real ones, and of real ones that lie among those made.

    A sample lies among others where one of them is no farther from it than from its own k-th nearest among these. What
    is unlike all real samples lowers precision, what the model never makes lowers recall. Both depend on the number of
    samples.

    Args:
        neighbors: k.
        reset_real_features: whether ``reset`` forgets the real ones, too.
    """

    full_state_update = False
    higher_is_better = True

    def __init__(self, neighbors: int = 3, reset_real_features: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if neighbors < 1:
            raise ValueError(f"neighbors starts at 1, got {neighbors}")
        self.neighbors, self.reset_real_features = neighbors, reset_real_features
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("made", [], dist_reduce_fx="cat")

    def update(self, features: Float[Tensor, "n d"], real: bool) -> None:
        (self.real if real else self.made).append(features.detach().double())  # type: ignore[operator, union-attr]

    def compute(self) -> dict[str, Tensor]:
        # Gathered from several processes they are tensors already.
        real, made = (torch.cat(s) if isinstance(s, list) else s for s in (self.real, self.made))
        return {
            "precision": in_manifold(made, real, self.neighbors).double().mean(),  # type: ignore[arg-type]
            "recall": in_manifold(real, made, self.neighbors).double().mean(),  # type: ignore[arg-type]
        }

    def reset(self) -> None:
        real = list(self.real)  # which would be emptied in place
        super().reset()
        if not self.reset_real_features:
            self.real = real


def in_manifold(
    points: Float[Tensor, "n d"], others: Float[Tensor, "m d"], neighbors: int = 3, max_distances: int = MAX_DISTANCES
) -> Bool[Tensor, " n"]:
    """Whether points lie in a ball around any of the others that just reaches its k-th nearest among these.

    Args:
        points: whatever is asked about.
        others: the middles of the balls.
        neighbors: k.
        max_distances: distances held in memory at a time.
    """
    if len(others) <= neighbors:
        raise ValueError(f"{neighbors} nearest neighbours of each of {len(others)} samples: more samples are needed")
    middle = others.double().mean(0)
    points, others = points.double() - middle, others.double() - middle
    lengths = others.square().sum(1)
    rounding = 1e-12 * torch.maximum(lengths.max(), points.square().sum(1).max())  # of squares by a matrix product

    def squares(some: Tensor) -> Float[Tensor, "n m"]:
        return (some.square().sum(1, keepdim=True) + lengths - 2 * some @ others.T).clamp(min=0)

    rows = max(1, max_distances // len(others))
    # The nearest of all is the point itself.
    radii = torch.cat([squares(some).kthvalue(neighbors + 1, dim=1).values for some in others.split(rows)])
    return torch.cat([(squares(some) <= radii + rounding).any(1) for some in points.split(rows)])
