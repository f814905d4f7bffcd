"""Attention entropy, which collapses before training diverges (Zhai et al. 2023, https://arxiv.org/abs/2303.06296)."""

from __future__ import annotations

import math
from collections import defaultdict
from contextlib import ExitStack
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from zoo._lightning import logged_step
from zoo.distributed import say
from zoo.layers.attention_weights import observe_attention


class AttentionEntropy(L.Callback):
    """Log the mean entropy of the attention weights of each layer during training.

    Logs ``attention_entropy/<layer>`` in nats, and ``attention_entropy_relative/<layer>``, the same divided by
    ``log(t)``, the entropy of uniform attention to all ``t`` keys. A layer whose entropy falls to 0 attends to one
    token each; that often precedes a divergence. Causal attention cannot reach 1: its first queries see few keys.

    Means are over batch, heads and queries (padding included), before dropout, of the first micro-batch of a measured
    step, and with several processes of the first process. A measured step computes the weights a second time, and
    trains exactly as it would otherwise; a compiled network runs uncompiled in it. Sees the attention of zoo's networks
    and ``nn.MultiheadAttention`` in any module, but not calls of ``F.scaled_dot_product_attention`` itself.

    Args:
        every_n_steps: optimizer steps between measurements; the first step is measured.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._measured_step = -1
        self._warned = False
        self.metrics: dict[str, Tensor] = {}  # of the last measurement
        self._observation: ExitStack | None = None
        self._entropies: dict[str, list[Tensor]] = defaultdict(list)
        self._keys: dict[str, int] = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every_n_steps or step == self._measured_step:
            return
        self._measured_step = step
        self._observation = ExitStack()
        self._observation.enter_context(observe_attention(pl_module, self._record))

    def _record(self, layer: str, weights: Tensor) -> None:
        name = layer.removeprefix("net.")
        self._entropies[name].append(attention_entropy(weights))
        self._keys[name] = weights.shape[-1]

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        # Blocks with gradient checkpointing run again in the backward pass and would be counted twice.
        self._stop()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._observation is None:
            return
        self._stop()
        self._observation = None
        self.metrics = self._compute_metrics()
        if not self.metrics and not self._warned:
            self._warned = True
            say(
                f"AttentionEntropy: no attention found in {type(pl_module).__name__}; it sees the attention of zoo's"
                " networks and nn.MultiheadAttention"
            )
        values = {name: float(value) for name, value in self.metrics.items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=logged_step(trainer))

    def _compute_metrics(self) -> dict[str, Tensor]:
        metrics = {}
        for name, entropies in self._entropies.items():
            entropy = torch.stack(entropies).mean()
            metrics[f"attention_entropy/{name}"] = entropy
            # With a single key the entropy is always 0, and so is its maximum.
            if self._keys[name] > 1:
                metrics[f"attention_entropy_relative/{name}"] = entropy / math.log(self._keys[name])
        self._entropies.clear()
        self._keys.clear()
        return metrics

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()
        self._observation = None
        self._entropies.clear()

    def _stop(self) -> None:
        if self._observation is not None:
            self._observation.close()


def attention_entropy(weights: Float[Tensor, "*b t s"]) -> Float[Tensor, ""]:
    """Return the mean entropy of attention weights over the keys, in nats."""
    entropy = torch.special.entr(weights).sum(-1)  # (*b, t); entr(0) is 0
    return entropy.mean()
