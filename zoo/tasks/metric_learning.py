"""Metric learning: embeddings in which samples of one class lie close together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics import Metric

from zoo.losses import ContrastiveLoss
from zoo.losses.adapt import adapt_loss
from zoo.tasks.base import Task


class MetricLearner(Task):
    """Train any network that maps inputs to embeddings so that samples of one class are near each other.

    A batch is ``(inputs, classes)``, classes ``(b,)``; the network returns embeddings ``(b, d)``, and the loss takes
    these and the classes: ContrastiveLoss (the default), BatchTripletLoss, RankingLoss, or, on all triplets, torch's
    TripletMarginLoss and MarginRankingLoss. Each process takes its pairs or triplets from its own batch. Logs ``loss``;
    in validation and test also ``recall@k``: the share of samples that have one of their own class among their k
    nearest in the whole split (Jégou et al. 2011, https://doi.org/10.1109/TPAMI.2010.57).

    Args:
        normalize: put the embeddings on the unit sphere, so that no distance exceeds 2.
        ks: the values of k, in samples.
    """

    monitor, monitor_mode = "val/recall@1", "max"

    def __init__(self, net: nn.Module, normalize: bool = True, ks: Sequence[int] = (1, 5), **kwargs: Any) -> None:
        super().__init__(net=net, **kwargs)
        if 1 not in ks or min(ks) < 1:
            raise ValueError(f"ks of recall@k start at 1, which decides what the best checkpoint is, got {list(ks)}")
        self.normalize = normalize
        if self.loss is None:
            self.loss = ContrastiveLoss()
        self.loss = adapt_loss(self.loss, "embeddings")
        self.metrics = nn.ModuleDict({stage: _RecallAtK(ks) for stage in ("val", "test")})

    def forward(self, x: Tensor) -> Float[Tensor, "b d"]:
        embeddings = self.net(x)
        return F.normalize(embeddings, dim=1) if self.normalize else embeddings

    def step(self, batch: Any, stage: str) -> Tensor:
        x, labels = batch
        embeddings = self(x)
        if stage != "train":
            self.metrics[stage].update(embeddings, labels)  # type: ignore[operator]
        assert self.loss is not None
        return self.loss(embeddings, labels)

    def reset_metrics(self, stage: str) -> None:
        super().reset_metrics(stage)
        self.metrics[stage].reset()  # type: ignore[operator]

    def compute_metrics(self, stage: str) -> dict[str, Any]:
        return self.metrics[stage].compute()  # type: ignore[operator]

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return the embedding as columns ``e0``, ``e1``, ..."""
        embeddings = self(batch[0] if isinstance(batch, (tuple, list)) else batch)
        return {f"e{i}": column.tolist() for i, column in enumerate(embeddings.float().T)}


class _RecallAtK(Metric):
    """Keeps the embeddings of a whole split, and of all processes, until it is over."""

    def __init__(self, ks: Sequence[int]) -> None:
        super().__init__()
        self.ks = tuple(ks)
        self.add_state("embeddings", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        self.embeddings.append(embeddings.detach().float())  # type: ignore[operator, union-attr]
        self.labels.append(labels)  # type: ignore[operator, union-attr]

    def compute(self) -> dict[str, Tensor]:
        # Gathered from several processes they are tensors already.
        whole = [torch.cat(s) if isinstance(s, list) else s for s in (self.embeddings, self.labels)]
        ranks = nearest_match_ranks(*whole)  # type: ignore[arg-type]
        return {f"recall@{k}": recall_at_k(ranks, k) for k in self.ks}


def recall_at_k(ranks: Int[Tensor, " n"], k: int) -> Float[Tensor, ""]:
    """Return the share of samples that have one of their own class among their k nearest, of those that could.

    Args:
        ranks: from :func:`nearest_match_ranks`.
        k: number of neighbours, in samples.
    """
    return (ranks[ranks > 0] <= k).float().mean()


def nearest_match_ranks(
    embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"], numbers: int = 2**22
) -> Int[Tensor, " n"]:
    """Return for each sample the place, from 1, of the nearest of its class among all others; 0 if it has none.

    Where a sample of another class is just as near, it counts as nearer: embeddings that are all alike have no recall,
    in whatever order they come.

    Args:
        embeddings: one a row.
        labels: their classes.
        numbers: distances held in memory at a time.
    """
    x = embeddings.float() - embeddings.float().mean(0)
    lengths = x.square().sum(1)
    rounding = 1e-6 * lengths.max()  # of squared distances by a matrix product, which is 15 times faster than cdist
    everyone = torch.arange(len(x), device=x.device)
    ranks = []
    for queries in everyone.split(max(1, numbers // len(x))):
        distances = lengths - 2 * (x[queries] @ x.T)  # squared, but for the query's own length
        same = labels[queries, None] == labels
        mates = same & (queries[:, None] != everyone)
        nearest = distances.masked_fill(~mates, torch.inf).amin(1, keepdim=True)
        farther = distances > nearest + rounding
        nearer = (~farther & ~same).sum(1)  # so that what is not a number is no hit
        ranks.append(torch.where(mates.any(1), nearer + 1, 0))
    return torch.cat(ranks)
