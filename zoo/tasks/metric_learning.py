"""Metric learning: embeddings in which samples of the same class are close to each other."""

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
from zoo.metrics.accumulation import defined
from zoo.tasks.base import Task

# Distances held in memory at a time: 16 MB in float32.
MAX_DISTANCES = 2**22


class MetricLearner(Task):
    """Metric learning: trains any network that maps inputs to embeddings.

    A batch is ``(inputs, labels)`` with class labels ``(b,)``. The network returns embeddings ``(b, d)``, from which
    the loss is computed with the labels: ContrastiveLoss (the default), BatchTripletLoss, RankingLoss, or, over all
    triplets, torch's TripletMarginLoss and MarginRankingLoss. Pairs and triplets are formed within the batch of each
    process. Logs ``loss``; in validation and test also ``recall@k``: the fraction of samples with a sample of the same
    class among their k nearest neighbors in the whole split (Jégou et al. 2011,
    https://doi.org/10.1109/TPAMI.2010.57). Samples that are the only one of their class are left out; a split of such
    samples alone has no recall.

    Args:
        normalize: scale embeddings to unit length, which bounds distances by 2.
        ks: values of k for ``recall@k``; must include 1, by which the best checkpoint is selected.
    """

    monitor = "val/recall@1"
    monitor_mode = "max"

    def __init__(
        self,
        net: nn.Module,
        normalize: bool = True,
        ks: Sequence[int] = (1, 5),
        **kwargs: Any,
    ) -> None:
        super().__init__(net=net, **kwargs)
        if 1 not in ks or min(ks) < 1:
            raise ValueError(
                f"ks of recall@k must include 1, which selects the best checkpoint, and none below, got {list(ks)}"
            )
        self.normalize = normalize
        if self.loss is None:
            self.loss = ContrastiveLoss()
        self.loss = adapt_loss(self.loss, "embeddings")
        self.metrics = nn.ModuleDict({stage: RecallAtK(ks) for stage in ("val", "test")})

    def forward(self, x: Tensor) -> Float[Tensor, "b d"]:
        embeddings = self.net(x)
        if self.normalize:
            embeddings = F.normalize(embeddings, dim=1)
        return embeddings

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
        return defined(self.metrics[stage].compute())  # type: ignore[operator]

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return the embedding as columns ``e0``, ``e1``, ..."""
        has_labels = isinstance(batch, (tuple, list))
        x = batch[0] if has_labels else batch
        embeddings = self(x).float()
        columns = {}
        for i, column in enumerate(embeddings.T):
            columns[f"e{i}"] = column.tolist()
        return columns


class RecallAtK(Metric):
    """recall@k over a whole split and all processes; stores all embeddings until the end of the epoch.

    Args:
        ks: values of k.
    """

    def __init__(self, ks: Sequence[int]) -> None:
        super().__init__()
        self.ks = tuple(ks)
        self.add_state("embeddings", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, embeddings: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> None:
        self.embeddings.append(embeddings.detach().float())  # type: ignore[operator, union-attr]
        self.labels.append(labels)  # type: ignore[operator, union-attr]

    def compute(self) -> dict[str, Tensor]:
        embeddings = self._concatenated(self.embeddings)
        labels = self._concatenated(self.labels)
        ranks = nearest_match_ranks(embeddings, labels)
        return {f"recall@{k}": recall_at_k(ranks, k) for k in self.ks}

    @staticmethod
    def _concatenated(state: Any) -> Tensor:
        if isinstance(state, Tensor):
            return state  # gathered from several processes
        return torch.cat(state)


def recall_at_k(ranks: Int[Tensor, " n"], k: int) -> Float[Tensor, ""]:
    """Return the fraction of samples with a sample of the same class among their k nearest neighbors.

    Samples that are the only one of their class are left out; NaN if all are.

    Args:
        ranks: from :func:`nearest_match_ranks`.
        k: number of neighbors.
    """
    ranked = ranks[ranks > 0]
    return (ranked <= k).float().mean()


def nearest_match_ranks(
    embeddings: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    max_distances: int = MAX_DISTANCES,
) -> Int[Tensor, " n"]:
    """Return for each sample the rank, from 1, of its nearest neighbor of the same class; 0 if there is none.

    Ties count against the sample: of two neighbors at the same distance, the one of another class ranks first. So
    collapsed embeddings have a recall of 0, whatever the order of the samples.

    Args:
        embeddings: one row per sample.
        labels: class labels.
        max_distances: number of distances held in memory at a time.
    """
    # Centering reduces the rounding error of squared distances from a matrix product, which is 15 times faster than
    # cdist; what error remains counts as a tie. It grows with the norms of the two samples, so that an outlier has no
    # part in the ties of others, which it would have in a mean.
    x = embeddings.float() - embeddings.float().median(0).values
    squared_norms = x.square().sum(1)
    tolerances = 1e-6 * squared_norms
    indices = torch.arange(len(x), device=x.device)
    chunk_size = max(1, max_distances // len(x))
    ranks = []
    for queries in indices.split(chunk_size):
        # Squared distances (q, n), less the squared norm of the query, which changes no order.
        distances = squared_norms - 2 * (x[queries] @ x.T)
        same_class = labels[queries, None] == labels
        is_self = queries[:, None] == indices
        matches = same_class & ~is_self
        # At most this far is the nearest match, and at least that far is another sample.
        nearest = (distances + tolerances).masked_fill(~matches, torch.inf).amin(1, keepdim=True)
        # "Not farther" instead of "nearer", so that NaN is never a hit.
        farther = distances - tolerances > nearest + 2 * tolerances[queries, None]
        num_nearer = (~farther & ~same_class).sum(1)
        ranks.append(torch.where(matches.any(1), num_nearer + 1, 0))
    return torch.cat(ranks)
