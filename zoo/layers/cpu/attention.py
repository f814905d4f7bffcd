"""Attention in bfloat16 on a CPU, where torch's fused kernel is slow."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo._torch import has_bfloat16_products

BFLOAT16_PRODUCTS = has_bfloat16_products()
MAX_SCORES = 256 * 256  # queries times keys, up to which the matrix of scores is worth its memory


def is_slow(q: Tensor) -> bool:
    """Return whether torch's fused attention may be slow for queries ``(b, h, t, c)``.

    For a single query, as in generation, converting all keys would cost more than it gains.
    """
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] > 1


def attention_bfloat16(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
    """Compute ``F.scaled_dot_product_attention``, with the same arguments, in the fastest way that was measured.

    Forward and backward, in milliseconds (16 x 12 heads x 128 tokens x 32, one core of an AMD EPYC without bfloat16
    instructions, torch 2.14): fused 477, written out 1166, fused in float32 130. With such instructions (Intel AMX,
    torch 2.15) the fused kernel takes 4 times as long as the written out one, for 65 tokens.
    """
    if options["is_causal"] or not BFLOAT16_PRODUCTS:
        return attention_in_float32(q, k, v, mask, **options)
    few = q.shape[2] * k.shape[2] <= MAX_SCORES
    if q.requires_grad and few and not options["enable_gqa"]:
        return attention_written_out(q, k, v, mask, options["dropout_p"])
    return F.scaled_dot_product_attention(q, k, v, mask, **options)


def attention_in_float32(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
    """Compute ``F.scaled_dot_product_attention`` in float32, and return the dtype of ``q``."""
    with torch.autocast("cpu", enabled=False):
        out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, **options)
    return out.to(q.dtype)


def attention_written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Compute attention from matrix products, which keeps all scores in memory."""
    scores = q * q.shape[-1] ** -0.5 @ k.mT  # (b, h, t, s)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = F.dropout(scores.softmax(-1), dropout, training=dropout > 0)
    return weights @ v
