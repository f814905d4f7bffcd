"""Single-token decoding on a CPU: one step of generation in as few torch operations as possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo._torch import has_forward_hooks
from zoo.layers.attention import CausalAttention
from zoo.layers.decoder import DecoderSpec, SwiGLU, apply_token_shift
from zoo.layers.kv_cache import KVCache
from zoo.layers.rotary import RotaryEmbedding, apply_rotary

SUPPORTED_MODULES = {
    nn.Linear,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.Dropout,
    nn.ModuleList,
    CausalAttention,
    SwiGLU,
    RotaryEmbedding,
}


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _relu_squared(x: Tensor) -> Tensor:
    return x.relu_().square_()


def _swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, 1)
    return F.silu(gate).mul_(value)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": _gelu_tanh,
    "relu_squared": _relu_squared,
    "swiglu": _swiglu,
}


class SingleTokenDecoder:
    """Compute the logits after one new token per row, and append its keys and values to a cache.

    The arithmetic is that of the decoder's own ``forward``. For a single token, calling a module costs as much as its
    arithmetic, so modules are not called but written out, and buffers are reused.

    Args:
        spec: the decoder.
        cache: cache with the previous tokens; this object holds views of its memory.
    """

    @classmethod
    def for_network(cls, net: nn.Module, cache: KVCache) -> Self | None:
        """Return a decoder for a network in eval mode on a CPU; None if it has unknown modules or forward hooks."""
        if not hasattr(net, "decoder_spec") or net.training:
            return None
        if cache.data.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return None
        spec: DecoderSpec = net.decoder_spec()  # type: ignore[operator]
        known = SUPPORTED_MODULES | spec.module_types
        for module in net.modules():
            if type(module) not in known or has_forward_hooks(module):
                return None
        return cls(spec, cache)

    def __init__(self, spec: DecoderSpec, cache: KVCache) -> None:
        self.spec = spec
        self.cache = cache
        attention = spec.blocks[0][1]
        heads = attention.heads
        kv_heads = attention.kv_heads
        group = heads // kv_heads  # query heads per key and value head
        c = attention.head_dim
        b = cache.batch
        self.qk_norm = attention.qk_norm
        self.exact = cache.data.dtype in (torch.float32, torch.float64)

        # Buffers that all blocks share, and views of them.
        empty = cache.data.new_empty
        qkv = empty(b, heads + 2 * kv_heads, c)
        self.qkv = qkv.flatten(1)
        self.qk = qkv[:, : heads + kv_heads].unsqueeze(1)  # (b, 1, heads + kv_heads, c)
        self.q = qkv[:, :heads].unflatten(1, (kv_heads, group))  # (b, kv_heads, group, c)
        self.kv = qkv[:, heads:].unflatten(1, (2, kv_heads)).transpose(0, 1)  # (2, b, kv_heads, c)
        self.out = empty(b * kv_heads, group, c)  # output of attention
        self.out_rows = self.out.view(b, -1)  # (b, heads * c)
        self.logits = empty(b, spec.head.out_features)
        self.unused = empty(1)  # the addend of baddbmm, with factor 0
        self.scale = c**-0.5
        self.past = cache.data.view(len(spec.blocks), 2, b * kv_heads, cache.length, c)

        self.blocks = [self._block_functions(*block) for block in spec.blocks]
        self.final_norm = norm_fn(spec.norm)
        self.head = linear_fn(spec.head, self.logits)

    def _block_functions(
        self, norm_1: nn.Module, attention: CausalAttention, norm_2: nn.Module, mlp: nn.Module
    ) -> tuple[Callable[..., Tensor], ...]:
        return (
            norm_fn(norm_1),
            linear_fn(attention.qkv, self.qkv),
            linear_add_fn(attention.proj),
            norm_fn(norm_2),
            linear_fn(mlp.fc),  # type: ignore[arg-type]
            ACTIVATIONS[self.spec.activation],
            linear_add_fn(mlp.proj),  # type: ignore[arg-type]
        )

    def __call__(self, ids: Int[Tensor, " b"]) -> Float[Tensor, "b v"]:
        """Return logits, in memory that the next call overwrites."""
        position = self.cache.position
        x = self._embed(ids, position)  # (b, d)
        rotary = None
        if self.spec.rotary is not None:
            rotary = self.spec.rotary(position, x.unsqueeze(1))
        # Slices for all blocks at once: indexing costs as much as a small product.
        new_kv = self.cache.data[:, :, :, :, position].unbind(0)  # (2, b, kv_heads, c) each
        keys, values = self.past[:, :, :, : position + 1].unbind(1)
        keys = keys.mT.unbind(0)  # (b * kv_heads, c, s) each
        values = values.unbind(0)  # (b * kv_heads, s, c) each
        for block, kv, k, v in zip(self.blocks, new_kv, keys, values, strict=True):
            norm_1, write_qkv, add_projection, norm_2, fc, activation, add_mlp_projection = block
            write_qkv(norm_1(x))
            self._attend(rotary, kv, k, v)
            add_projection(x, self.out_rows)
            add_mlp_projection(x, activation(fc(norm_2(x))))
        self.cache.advance(1)
        logits = self.head(self.final_norm(x))
        cap = self.spec.softcap
        if cap is not None:
            logits.div_(cap).tanh_().mul_(cap)
        return logits

    def _embed(self, ids: Int[Tensor, " b"], position: int) -> Float[Tensor, "b d"]:
        spec = self.spec
        x = F.embedding(ids, spec.embedding.weight)
        if spec.token_shift is not None:
            x = x.unsqueeze(1)  # (b, 1, d)
            x = apply_token_shift(x, ids.unsqueeze(1), spec.embedding, spec.token_shift, self.cache)
            x = x.squeeze(1)
        if spec.positions is not None:
            x.add_(spec.positions.weight[position])
        return x

    def _attend(self, rotary: tuple[Tensor, Tensor] | None, kv: Tensor, k: Tensor, v: Tensor) -> None:
        """Attend from the queries in ``self.qkv``, after its keys and values went to the cache; write ``self.out``."""
        qk = self.qk
        if self.qk_norm:
            qk = F.rms_norm(qk, qk.shape[-1:])
        if rotary is not None:
            cos, sin = rotary
            qk = apply_rotary(qk, cos, sin)
        if qk is not self.qk:
            self.qk.copy_(qk)
        kv.copy_(self.kv)
        if self.exact:  # the query heads of a group are the rows of one product
            queries = self.q.flatten(0, 1)  # (b * kv_heads, group, c)
            scores = torch.baddbmm(self.unused, queries, k, beta=0, alpha=self.scale)
            torch.bmm(scores.softmax(-1), v, out=self.out)
        else:  # scaled_dot_product_attention keeps the scores of half precision in float32
            rows = self.q.shape[:2]
            out = F.scaled_dot_product_attention(self.q, k.mT.unflatten(0, rows), v.unflatten(0, rows))
            self.out.copy_(out.flatten(0, 1))


def norm_fn(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function that computes a norm, of a LayerNorm without the module's call."""
    if not isinstance(module, nn.LayerNorm):
        return module
    shape = module.normalized_shape
    weight = module.weight
    bias = module.bias
    eps = module.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def linear_fn(linear: nn.Linear, out: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Return a function that applies a linear layer, and writes to ``out``."""
    weight = linear.weight.t()
    bias = linear.bias
    if bias is None:
        return lambda x: torch.mm(x, weight, out=out)
    return lambda x: torch.addmm(bias, x, weight, out=out)


def linear_add_fn(linear: nn.Linear) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function of ``(x, y)`` that adds ``linear(y)`` to ``x`` in place."""
    weight = linear.weight.t()
    bias = linear.bias
    if bias is None:
        return lambda x, y: x.addmm_(y, weight)
    return lambda x, y: x.addmm_(y, weight).add_(bias)
