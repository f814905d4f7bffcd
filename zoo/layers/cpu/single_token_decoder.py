"""One new token of each row through a decoder, in as few operations as torch allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo._torch import has_forward_hooks
from zoo.layers.attention import CausalAttention
from zoo.layers.decoder import SwiGLU, apply_token_shift
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
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu_squared": lambda x: x.relu_().square_(),
    "swiglu": lambda x: F.silu(x[:, : x.shape[1] // 2]).mul_(x[:, x.shape[1] // 2 :]),
}


class DecoderSpec(NamedTuple):
    """What a decoder is made of.

    Args:
        embedding: of the tokens.
        token_shift: shares of the embeddings of the tokens before that are added; null for none.
        positions: that are added to them; null for none.
        rotary: positions of queries and keys; null for none.
        blocks: of each block the norm before its attention, the attention, the norm before its perceptron, and that.
        activation: between ``fc`` and ``proj`` of the perceptrons, by its name in ``ACTIVATIONS``.
        norm: behind the blocks.
        head: to the logits.
        softcap: that they stay below; null for none.
        module_types: classes of the decoder's own modules.
    """

    embedding: nn.Embedding
    token_shift: Tensor | None
    positions: nn.Embedding | None
    rotary: RotaryEmbedding | None
    blocks: Sequence[tuple[Any, Any, Any, Any]]
    activation: str
    norm: nn.Module
    head: nn.Linear
    softcap: float | None
    module_types: set[type[nn.Module]]


class SingleTokenDecoder:
    """The logits of the token behind the next one of each row, whose keys and values it adds to a cache.

    The same sums as the decoder's own ``forward``. With one token the call of a module costs as much as its arithmetic,
    so nothing here is called that need not be, and what can be is written where it is needed.

    Args:
        spec: of the decoder.
        cache: with the tokens before; of its rows and place in memory views are taken here.
    """

    @classmethod
    def for_network(cls, net: nn.Module, cache: KVCache) -> Self | None:
        """Of a decoder that is as its class made it, on a CPU; of one that was changed or is watched, nothing."""
        spec: DecoderSpec | None = net.decoder_spec() if hasattr(net, "decoder_spec") else None  # type: ignore[operator]
        if spec is None or cache.data.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return None
        strange = {type(module) for module in net.modules()} - SUPPORTED_MODULES - spec.module_types
        watched = any(map(has_forward_hooks, net.modules()))
        return None if strange or watched or net.training else cls(spec, cache)

    def __init__(self, spec: DecoderSpec, cache: KVCache) -> None:
        self.spec, self.cache = spec, cache
        attention = spec.blocks[0][1]
        heads, kv_heads, c = attention.heads, attention.kv_heads, attention.head_dim
        b, empty = cache.batch, cache.data.new_empty
        self.qk_norm = attention.qk_norm
        self.exact = cache.data.dtype in (torch.float32, torch.float64)
        # Memory that every block uses anew, and views of it.
        qkv = empty(b, heads + 2 * kv_heads, c)
        self.qkv, self.logits = qkv.flatten(1), empty(b, spec.head.out_features)
        self.qk = qkv[:, : heads + kv_heads].unsqueeze(1)  # (b, 1, h + kv_heads, c)
        self.q = qkv[:, :heads].unflatten(1, (kv_heads, heads // kv_heads))  # (b, kv_heads, queries of each, c)
        self.kv = qkv[:, heads:].unflatten(1, (2, kv_heads)).transpose(0, 1)  # (2, b, kv_heads, c)
        self.seen = empty(b * kv_heads, heads // kv_heads, c)  # what attention has found
        self.seen_in_rows = self.seen.view(b, -1)
        self.nothing, self.scale = empty(1), c**-0.5
        self.past = cache.data.view(len(spec.blocks), 2, b * kv_heads, cache.length, c)
        activate = ACTIVATIONS[spec.activation]
        self.blocks = [
            (norm_fn(norm_1), linear_fn(attn.qkv, self.qkv), linear_add_fn(attn.proj),
             norm_fn(norm_2), linear_fn(mlp.fc), activate, linear_add_fn(mlp.proj))
            for norm_1, attn, norm_2, mlp in spec.blocks
        ]  # fmt: skip
        self.last = norm_fn(spec.norm), linear_fn(spec.head, self.logits)

    def __call__(self, ids: Int[Tensor, " b"]) -> Float[Tensor, "b v"]:
        """Return logits, in memory that the next call writes anew."""
        position = self.cache.position
        x = F.embedding(ids, self.spec.embedding.weight)
        if self.spec.token_shift is not None:
            x = apply_token_shift(
                x.unsqueeze(1), ids.unsqueeze(1), self.spec.embedding, self.spec.token_shift, self.cache
            ).squeeze(1)
        if self.spec.positions is not None:
            x.add_(self.spec.positions.weight[position])
        rotary = self.spec.rotary(position, x.unsqueeze(1)) if self.spec.rotary is not None else None
        new = self.cache.data[:, :, :, :, position].unbind(0)  # of each block, for all at once
        keys, values = self.past[:, :, :, : position + 1].unbind(1)
        for block, kv, k, v in zip(self.blocks, new, keys.mT.unbind(0), values.unbind(0), strict=True):
            norm_1, to_qkv, add_seen, norm_2, widen, activate, add_narrowed = block
            to_qkv(norm_1(x))
            self._attend(rotary, kv, k, v)
            add_seen(x, self.seen_in_rows)
            add_narrowed(x, activate(widen(norm_2(x))))
        self.cache.advance(1)
        norm, to_logits = self.last
        logits, cap = to_logits(norm(x)), self.spec.softcap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    def _attend(self, rotary: tuple[Tensor, Tensor] | None, kv: Tensor, k: Tensor, v: Tensor) -> None:
        """Read queries, keys and values of the token, keep the latter two, and write what is seen."""
        if self.qk_norm or rotary is not None:
            qk = F.rms_norm(self.qk, self.qk.shape[-1:]) if self.qk_norm else self.qk
            self.qk.copy_(apply_rotary(qk, *rotary) if rotary is not None else qk)
        kv.copy_(self.kv)
        if self.exact:  # queries that share keys are the rows of one product
            scores = torch.baddbmm(self.nothing, self.q.flatten(0, 1), k, beta=0, alpha=self.scale)
            torch.bmm(scores.softmax(-1), v, out=self.seen)
        else:  # the scores of halves are kept in float32 in there
            b = self.q.shape[:2]
            seen = F.scaled_dot_product_attention(self.q, k.mT.unflatten(0, b), v.unflatten(0, b))
            self.seen.copy_(seen.flatten(0, 1))


def norm_fn(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a norm does, without the call of a module."""
    if isinstance(module, nn.LayerNorm):
        shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
        return lambda x: torch.layer_norm(x, shape, weight, bias, eps)
    return module


def linear_fn(linear: nn.Linear, out: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """What a layer does, written to ``out``."""
    weight, bias = linear.weight.t(), linear.bias
    if bias is None:
        return lambda x: torch.mm(x, weight, out=out)
    return lambda x: torch.addmm(bias, x, weight, out=out)


def linear_add_fn(linear: nn.Linear) -> Callable[[Tensor, Tensor], Tensor]:
    """Add to a tensor what a layer makes of another."""
    weight, bias = linear.weight.t(), linear.bias
    if bias is None:
        return lambda x, y: x.addmm_(y, weight)
    return lambda x, y: x.addmm_(y, weight).add_(bias)
