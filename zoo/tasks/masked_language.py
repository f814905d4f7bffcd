"""Masked language modeling (Devlin et al. 2018, https://arxiv.org/abs/1810.04805)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.losses.adapt import adapt_loss
from zoo.losses.embeddings import at_least_float32
from zoo.metrics.accumulation import defined
from zoo.tasks.base import Task, inputs_of
from zoo.tasks.tokenized import IGNORE_INDEX, num_targets


class MaskedLanguageModel(Task):
    """Masked language model: any network that predicts the masked tokens of a text.

    A batch is ``((x, lengths), y)``: token ids ``(b, t)``, some of them masked, and labels ``y``, the original ids of
    masked tokens and -100 (the loss's ``ignore_index``) elsewhere. The network returns logits ``(n, v)`` at
    ``positions``, as ``BERTForMaskedLM`` does. The loss is the mean over all masked tokens. Logs ``loss`` and
    ``accuracy``, and in validation and test ``perplexity``, all of masked tokens.
    """

    def __init__(self, net: nn.Module, **kwargs: Any) -> None:
        super().__init__(net=net, **kwargs)
        self.loss = adapt_loss(self.loss or nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX), "multiclass")

    def step(self, batch: Any, stage: str) -> Tensor:
        logits, y = self._masked_logits(batch)
        # Without a masked token these are means of nothing, with weight 0; but all processes log the same names.
        hits = logits.detach().argmax(1) == y
        self.log_mean(stage, len(y), accuracy=hits.mean(dtype=torch.float32))
        # Perplexity is that of cross-entropy, whatever loss is trained.
        if stage != "train":
            self.log_mean(stage, len(y), cross_entropy=F.cross_entropy(logits, y))
        if not len(y):
            return logits.sum() * 0
        assert self.loss is not None
        return self.loss(logits, y)

    def num_items(self, batch: Any) -> Tensor:
        """Return the number of masked tokens."""
        return num_targets(self.loss, batch[1])

    def compute_metrics(self, stage: str) -> dict[str, Any]:
        mean = self._running_means[stage]
        nats = mean.compute(self.trainer)["cross_entropy"]
        # It serves perplexity only and is not logged itself.
        del mean.sums["cross_entropy"]
        del mean.counts["cross_entropy"]
        return defined({"perplexity": nats.exp()})

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return columns with a list per text: ``hidden`` (true) tokens, the ``guess``, and its ``probability``."""
        logits, y = self._masked_logits(batch)
        probability, guess = logits.softmax(1).max(1)
        counts = (batch[1] != IGNORE_INDEX).sum(1).tolist()
        tokenizer = getattr(self, "tokenizer", None)

        def by_text(values: Tensor) -> list[list]:
            return [part.tolist() for part in values.split(counts)]

        def tokens(ids: Tensor) -> list[list]:
            if tokenizer is None:
                return by_text(ids)
            return [tokenizer.names(part) for part in by_text(ids)]

        return {"hidden": tokens(y), "guess": tokens(guess), "probability": by_text(probability)}

    def _masked_logits(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return logits ``(n, v)`` and labels ``(n,)`` of the masked tokens."""
        inputs = inputs_of(batch)
        y = batch[1]
        if inputs[0].shape != y.shape:
            raise ValueError(
                "masked language modeling takes tokens and targets (b, t): got inputs"
                f" {tuple(inputs[0].shape)}, targets {tuple(y.shape)}"
            )
        masked = y != IGNORE_INDEX
        logits = at_least_float32(self(*inputs, positions=masked))  # (n, v)
        return logits, y[masked]
