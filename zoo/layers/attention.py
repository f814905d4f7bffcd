"""Causal self-attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762), as GPT and LLaMA share it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from zoo.layers.kv_cache import KVCache
from zoo.layers.rotary import apply_rotary


class CausalAttention(nn.Module):
    """Every token looks at itself and those before it, in several heads.

    Args:
        dim: width of the tokens.
        heads: number of heads of the queries.
        kv_heads: number of heads of keys and values, each shared by ``heads / kv_heads`` of the queries (Ainslie et al.
            2023, https://arxiv.org/abs/2305.13245); null is as many as queries have.
        head_dim: width of a head; null is ``dim / heads``.
        bias: whether both products have biases.
        dropout: share of the attention weights dropped.
        qk_norm: bring queries and keys to one length, head by head, so that scores cannot grow (Henry et al. 2020,
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
            raise ValueError(f"the width dim={dim} is not divisible by heads={heads}")
        if heads % kv_heads:
            raise ValueError(f"heads={heads} cannot share kv_heads={kv_heads}: it is not a multiple")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim or dim // heads
        self.dropout, self.qk_norm = dropout, qk_norm
        self.qkv = nn.Linear(dim, (heads + 2 * kv_heads) * self.head_dim, bias)  # one product for all three
        self.proj = nn.Linear(heads * self.head_dim, dim, bias)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        rotary: tuple[Tensor, Tensor] | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "b t d"]:
        qkv = self.qkv(x).unflatten(2, (-1, self.head_dim))  # (b, t, h + 2 * kv_heads, c)
        if rotary is None and not self.qk_norm:
            q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], 2)
        else:  # queries and keys are treated alike, so at once
            qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], 2)
            qk = F.rms_norm(qk, (self.head_dim,)) if self.qk_norm else qk
            qk = apply_rotary(qk, *rotary) if rotary is not None else qk
            q, k = qk.split([self.heads, self.kv_heads], 2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (b, h, t, c)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        return self.proj(self._attend(q, k, v).transpose(1, 2).flatten(2))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "b h t c"]:
        t, s = q.shape[2], k.shape[2]
        mask = None
        if 1 < t < s:  # several tokens after others that are cached: a causal mask that ends in the lower right corner
            mask = torch.ones(t, s, dtype=torch.bool, device=q.device).tril(s - t)
        options = {
            "dropout_p": self.dropout if self.training else 0.0, "is_causal": t == s and t > 1,
            "enable_gqa": self.heads != self.kv_heads,
        }  # fmt: skip
        if q.device.type == "cpu" and q.dtype == torch.bfloat16 and t > 1:
            # torch's fused attention takes five times as long in bf16 there, most of it for the gradient
            with torch.autocast("cpu", enabled=False):
                return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, **options).to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, mask, **options)
