"""LLaMA (Touvron et al. 2023, https://arxiv.org/abs/2302.13971), up to 3.3 (https://arxiv.org/abs/2407.21783)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.layers.attention import CausalAttention
from zoo.layers.decoder import DecoderSpec, SwiGLU, cache_start, last_tokens, run_blocks
from zoo.layers.kv_cache import KVCache
from zoo.layers.rotary import RotaryEmbedding
from zoo.models.decoder import Decoder
from zoo.tasks.decoder import DecoderLanguageModel, network
from zoo.weights.formats.llama import LLaMAFormat, check_scaling
from zoo.weights.formats.meta_llama import llama31_rope_scaling


def sizes(dim: int, depth: int, heads: int, kv_heads: int, hidden_dim: int, **constants: Any) -> dict[str, Any]:
    return {"dim": dim, "depth": depth, "heads": heads, "kv_heads": kv_heads, "hidden_dim": hidden_dim, **constants}


# Constants that changed between releases.
LLAMA_1 = {"norm_eps": 1e-6}
LLAMA_3 = {"theta": 500_000.0}
LLAMA_31 = {**LLAMA_3, "rope_scaling": llama31_rope_scaling(8.0)}
LLAMA_32 = {**LLAMA_3, "rope_scaling": llama31_rope_scaling(32.0), "tied": True}
Preset = Literal[
    "baby",
    "llama-7b",
    "llama-13b",
    "llama-33b",
    "llama-65b",
    "llama-2-7b",
    "llama-2-13b",
    "llama-2-70b",
    "llama-3-8b",
    "llama-3-70b",
    "llama-3.1-8b",
    "llama-3.1-70b",
    "llama-3.1-405b",
    "llama-3.2-1b",
    "llama-3.2-3b",
    "llama-3.3-70b",
]
PRESETS: dict[str, dict[str, Any]] = {
    "baby": sizes(384, 6, 6, 2, 1024),
    "llama-7b": sizes(4096, 32, 32, 32, 11008, **LLAMA_1),
    "llama-13b": sizes(5120, 40, 40, 40, 13824, **LLAMA_1),
    "llama-33b": sizes(6656, 60, 52, 52, 17920, **LLAMA_1),
    "llama-65b": sizes(8192, 80, 64, 64, 22016, **LLAMA_1),
    "llama-2-7b": sizes(4096, 32, 32, 32, 11008),
    "llama-2-13b": sizes(5120, 40, 40, 40, 13824),
    "llama-2-70b": sizes(8192, 80, 64, 8, 28672),
    "llama-3-8b": sizes(4096, 32, 32, 8, 14336, **LLAMA_3),
    "llama-3-70b": sizes(8192, 80, 64, 8, 28672, **LLAMA_3),
    "llama-3.1-8b": sizes(4096, 32, 32, 8, 14336, **LLAMA_31),
    "llama-3.1-70b": sizes(8192, 80, 64, 8, 28672, **LLAMA_31),
    "llama-3.1-405b": sizes(16384, 126, 128, 8, 53248, **LLAMA_31),
    "llama-3.2-1b": sizes(2048, 16, 32, 8, 8192, **LLAMA_32),
    "llama-3.2-3b": sizes(3072, 28, 24, 8, 8192, **LLAMA_32),
    "llama-3.3-70b": sizes(8192, 80, 64, 8, 28672, **LLAMA_31),
}


class Block(nn.Module):
    """Pre-norm Transformer block: causal self-attention and SwiGLU MLP, each with a residual connection.

    Args:
        dim: embedding dimension.
        heads: number of query heads.
        kv_heads: number of key and value heads.
        head_dim: dimension of a head.
        hidden_dim: hidden dimension of the MLP.
        norm_eps: epsilon of the norms.
    """

    def __init__(self, dim: int, heads: int, kv_heads: int, head_dim: int, hidden_dim: int, norm_eps: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim, norm_eps)
        self.attention = CausalAttention(dim, heads, kv_heads, head_dim)
        self.mlp_norm = nn.RMSNorm(dim, norm_eps)
        self.mlp = SwiGLU(dim, hidden_dim)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        rotary: tuple[Tensor, Tensor],
        cache: KVCache | None,
        layer: int,
    ) -> Float[Tensor, "b t d"]:
        x = x + self.attention(self.attention_norm(x), rotary, cache, layer)
        return x + self.mlp(self.mlp_norm(x))


class LLaMA(Decoder):
    """LLaMA: decoder-only Transformer with RoPE, RMSNorm, SwiGLU and grouped-query attention; returns logits.

    Args:
        vocab_size: vocabulary size.
        block_size: context length in tokens.
        dim: embedding dimension.
        depth: number of blocks.
        heads: number of query heads.
        kv_heads: number of key and value heads, which divides ``heads``; null for ``heads``.
        hidden_dim: hidden dimension of the MLPs; null for ``8 / 3 * dim``, rounded up to a multiple of 256.
        head_dim: dimension of a head; null for ``dim / heads``.
        theta: base of the rotary wavelengths.
        rope_scaling: extension to a longer context, see :class:`zoo.layers.rotary.RotaryEmbedding`; null for none.
        norm_eps: epsilon of the norms.
        tied: share the weights of the token embedding and the output layer.
    """

    weights_format = LLaMAFormat()

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        dim: int = 4096,
        depth: int = 32,
        heads: int = 32,
        kv_heads: int | None = None,
        hidden_dim: int | None = None,
        head_dim: int | None = None,
        theta: float = 10_000.0,
        rope_scaling: Mapping[str, Any] | None = None,
        norm_eps: float = 1e-5,
        tied: bool = False,
    ) -> None:
        super().__init__()
        if heads < 1 or (head_dim is None and dim % heads):
            raise ValueError(f"dim={dim} is not divisible by heads={heads}")
        kv_heads = kv_heads or heads
        head_dim = head_dim or dim // heads
        hidden_dim = hidden_dim or -(-8 * dim // (3 * 256)) * 256
        rope_scaling = dict(rope_scaling) if rope_scaling else None
        if rope_scaling is not None:
            check_scaling(rope_scaling)
        # all of them resolved: what a checkpoint holds needs no defaults
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.config: dict[str, Any] = {}
        self.vocab_size = vocab_size
        self.block_size = block_size
        # The order of these lines is that of the random numbers: it decides what a seed gives.
        self.embedding = nn.Embedding(vocab_size, dim)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            self.blocks.append(Block(dim, heads, kv_heads, head_dim, hidden_dim, norm_eps))
        self.rotary = RotaryEmbedding(head_dim, theta, rope_scaling)
        self.norm = nn.RMSNorm(dim, norm_eps)
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)
        if tied:
            self.lm_head.weight = self.embedding.weight
        self.reset_parameters()

    def forward(
        self, ids: Int[Tensor, "b t"], cache: KVCache | None = None, logits_to_keep: int = 0
    ) -> Float[Tensor, "b u v"]:
        """Return logits ``(b, t, v)``, or with ``logits_to_keep`` only those of so many tokens at the end."""
        start = cache_start(ids.shape[1], cache, self.block_size)
        x = self.embedding(ids)  # (b, t, d)
        rotary = self.rotary(start, x)
        checkpointed = self.activation_checkpointing and self.training
        x = run_blocks(self.blocks, x, rotary, cache, checkpointed)
        return self.lm_head(self.norm(last_tokens(x, logits_to_keep)))  # (b, u, v)

    def decoder_spec(self) -> DecoderSpec:
        """Return the modules by their role, for :class:`zoo.layers.cpu.single_token_decoder.SingleTokenDecoder`."""
        return DecoderSpec(
            embedding=self.embedding,
            token_shift=None,
            positions=None,
            rotary=self.rotary,
            blocks=[(block.attention_norm, block.attention, block.mlp_norm, block.mlp) for block in self.blocks],
            activation="swiglu",
            norm=self.norm,
            head=self.lm_head,
            softcap=None,
            module_types={LLaMA, Block},
        )


class LLaMALanguageModel(DecoderLanguageModel):
    """LLaMA causal language model.

    Args:
        preset: model size and constants: ``baby``, ``llama-7b`` to ``llama-3.3-70b``.
        dim: embedding dimension; null takes the preset's, as for all further sizes.
        depth: number of blocks.
        heads: number of query heads.
        kv_heads: number of key and value heads, which divides ``heads``.
        hidden_dim: hidden dimension of the MLPs.
        head_dim: dimension of a head; null for ``dim / heads``.
        theta: base of the rotary wavelengths.
        rope_scaling: ``factor``, ``low_freq_factor``, ``high_freq_factor`` and ``original_max_position_embeddings``
            for LLaMA 3.1's scaling; ``rope_type: yarn``, ``factor`` and ``original_max_position_embeddings`` for YaRN;
            or ``factor`` alone for position interpolation.
        norm_eps: epsilon of the norms.
        tied: share the weights of the token embedding and the output layer.
        context: context length in tokens; null takes that of ``weights``, or ``block_size``.
        weights: pretrained weights: a model directory of Hugging Face or Meta, or a file written by zoo, which also
            sets the sizes; null for random initialisation.
        meta_device: build the network on the meta device, without memory; with sharded weights each device then
            allocates only its shard. Null does so on the command line with ModelParallelStrategy.
        vocab_size: vocabulary size; null takes it from the data.
        block_size: tokens per block of the data; null takes it from the data.
    """

    tiny = {"dim": 32, "depth": 2, "heads": 4, "kv_heads": 2, "hidden_dim": 64}

    def __init__(
        self,
        preset: Preset = "baby",
        dim: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        kv_heads: int | None = None,
        hidden_dim: int | None = None,
        head_dim: int | None = None,
        theta: float | None = None,
        rope_scaling: dict[str, Any] | None = None,
        norm_eps: float | None = None,
        tied: bool | None = None,
        context: int | None = None,
        weights: str | None = None,
        meta_device: bool | None = None,
        vocab_size: int | None = None,
        block_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        net = network(
            LLaMA,
            self,
            vocab_size,
            block_size,
            PRESETS[preset],
            weights,
            meta_device,
            context=context,
            dim=dim,
            depth=depth,
            heads=heads,
            kv_heads=kv_heads,
            hidden_dim=hidden_dim,
            head_dim=head_dim,
            theta=theta,
            rope_scaling=rope_scaling,
            norm_eps=norm_eps,
            tied=tied,
        )
        super().__init__(net=net, weights=weights, vocab_size=vocab_size, block_size=block_size, **kwargs)
