"""Attention in bfloat16 on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def is_slow(q: Tensor) -> bool:
    """Return whether torch's fused attention is slow for these queries ``(b, h, t, c)``.

    In bfloat16 on a CPU its forward and backward pass take 2 to 5 times as long as in float32, conversions included
    (65 to 1024 tokens, torch 2.14, AMD EPYC). A single query, as in generation, is not worth the conversion of all keys.
    """
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] > 1


def attention_in_float32(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
    """Compute ``F.scaled_dot_product_attention`` in float32, and return the dtype of ``q``."""
    with torch.autocast("cpu", enabled=False):
        out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, **options)
    return out.to(q.dtype)
