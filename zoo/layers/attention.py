"""Scaled dot-product attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.layers.attention_weights import attention_weights, is_observed, report_weights
from zoo.layers.cpu.attention import attention_bfloat16, is_slow
from zoo.layers.kv_cache import KVCache
from zoo.layers.rotary import apply_rotary


def attention(
    q: Float[Tensor, "b h t c"],
    k: Float[Tensor, "b g s c"],
    v: Float[Tensor, "b g s c"],
    mask: Bool[Tensor, "*mask"] | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "b h t c"]:
    """Scaled dot-product attention: ``softmax(q k^T / sqrt(c)) v``, head by head.

    All attention modules of zoo call it, so :func:`zoo.layers.attention_weights.observe_attention` gets their weights
    here.

    Args:
        q: queries.
        k: keys; with fewer heads than the queries (``g < h``), each head of keys and values serves ``h / g`` of them.
        v: values.
        mask: true where a query may attend to a key; broadcast to ``(b, h, t, s)``.
        causal: queries attend to no later position; they are the last ``t`` of ``s``. Not together with a mask.
        dropout: dropout probability for the attention weights.
    """
    assert not (causal and mask is not None)
    queries = q.shape[2]
    keys = k.shape[2]
    causal = causal and queries > 1  # the last position attends to all
    if causal and queries < keys:
        # A KV cache holds earlier tokens: the triangle ends in the lower right corner, not in torch's upper left one.
        mask = causal_mask(queries, keys, q.device)
        causal = False
    if is_observed():
        visible = causal_mask(queries, keys, q.device) if causal else mask
        report_weights(attention_weights(q, k, visible))
    sdpa = attention_bfloat16 if is_slow(q) else F.scaled_dot_product_attention
    grouped = q.shape[1] != k.shape[1]
    return sdpa(q, k, v, mask, dropout_p=dropout, is_causal=causal, enable_gqa=grouped)


def causal_mask(queries: int, keys: int, device: torch.device) -> Bool[Tensor, "t s"]:
    """Return which keys each query may attend to, where the queries are the last of all positions."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


class CausalAttention(nn.Module):
    """Causal multi-head self-attention with a KV cache, as GPT and LLaMA use it.

    Args:
        dim: embedding dimension.
        heads: number of query heads.
        kv_heads: number of key and value heads, each shared by ``heads / kv_heads`` query heads (grouped-query
            attention, Ainslie et al. 2023, https://arxiv.org/abs/2305.13245); null for ``heads``.
        head_dim: dimension of a head; null for ``dim / heads``.
        bias: whether the linear layers have biases.
        dropout: dropout probability for the attention weights.
        qk_norm: RMS-normalise queries and keys per head, which bounds the scores (Henry et al. 2020,
            https://arxiv.org/abs/2010.04245).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
        dropout: float = 0.0,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        if heads < 1 or (head_dim is None and dim % heads):
            raise ValueError(f"dim={dim} is not divisible by heads={heads}")
        if heads % kv_heads:
            raise ValueError(f"heads={heads} is not a multiple of kv_heads={kv_heads}")
        self.heads = heads
        self.kv_heads = kv_heads
        self.head_dim = head_dim or dim // heads
        self.dropout = dropout
        self.qk_norm = qk_norm
        # one matrix product for queries, keys and values
        self.qkv = nn.Linear(dim, (heads + 2 * kv_heads) * self.head_dim, bias)
        self.proj = nn.Linear(heads * self.head_dim, dim, bias)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        rotary: tuple[Tensor, Tensor] | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "b t d"]:
        qkv = self.qkv(x).unflatten(2, (-1, self.head_dim))  # (b, t, heads + 2 * kv_heads, c)
        if rotary is not None or self.qk_norm:
            # queries and keys get the same treatment, so both at once
            qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], 2)
            qk = self._normalize_and_rotate(qk, rotary)
            q, k = qk.split([self.heads, self.kv_heads], 2)
        else:
            q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], 2)
        q = q.transpose(1, 2)  # (b, heads, t, c)
        k = k.transpose(1, 2)  # (b, kv_heads, t, c)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(layer, k, v)  # (b, kv_heads, s, c)
        dropout = self.dropout if self.training else 0.0
        y = attention(q, k, v, causal=True, dropout=dropout)  # (b, heads, t, c)
        return self.proj(y.transpose(1, 2).flatten(2))

    def _normalize_and_rotate(
        self, qk: Float[Tensor, "b t h c"], rotary: tuple[Tensor, Tensor] | None
    ) -> Float[Tensor, "b t h c"]:
        if self.qk_norm:
            qk = F.rms_norm(qk, (self.head_dim,))
        if rotary is not None:
            cos, sin = rotary
            qk = apply_rotary(qk, cos, sin)
        return qk
