"""LLaMA (Touvron et al. 2023, https://arxiv.org/abs/2302.13971), through 3.x (https://arxiv.org/abs/2407.21783)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.layers.attention import CausalAttention
from zoo.layers.cpu.single_token_decoder import DecoderSpec
from zoo.layers.decoder import SwiGLU, cache_start, run_blocks
from zoo.layers.kv_cache import KVCache
from zoo.layers.rotary import RotaryEmbedding
from zoo.models.decoder import Decoder
from zoo.tasks.decoder import DecoderLanguageModel, network
from zoo.weights.formats import llama as llama_format


def _size(dim: int, depth: int, heads: int, kv_heads: int, hidden_dim: int, **more: Any) -> dict[str, Any]:
    return {"dim": dim, "depth": depth, "heads": heads, "kv_heads": kv_heads, "hidden_dim": hidden_dim, **more}


_OLD = {"norm_eps": 1e-6}
_3 = {"theta": 500_000.0}
_31 = {**_3, "rope_scaling": llama_format.llama31_rope_scaling(8.0)}
_32 = {**_3, "rope_scaling": llama_format.llama31_rope_scaling(32.0), "tied": True}
Preset = Literal[
    "baby", "llama-7b", "llama-13b", "llama-33b", "llama-65b", "llama-2-7b", "llama-2-13b", "llama-2-70b", "llama-3-8b",
    "llama-3-70b", "llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "llama-3.2-1b", "llama-3.2-3b", "llama-3.3-70b",
]  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "baby": _size(384, 6, 6, 2, 1024),
    "llama-7b": _size(4096, 32, 32, 32, 11008, **_OLD),
    "llama-13b": _size(5120, 40, 40, 40, 13824, **_OLD),
    "llama-33b": _size(6656, 60, 52, 52, 17920, **_OLD),
    "llama-65b": _size(8192, 80, 64, 64, 22016, **_OLD),
    "llama-2-7b": _size(4096, 32, 32, 32, 11008),
    "llama-2-13b": _size(5120, 40, 40, 40, 13824),
    "llama-2-70b": _size(8192, 80, 64, 8, 28672),
    "llama-3-8b": _size(4096, 32, 32, 8, 14336, **_3),
    "llama-3-70b": _size(8192, 80, 64, 8, 28672, **_3),
    "llama-3.1-8b": _size(4096, 32, 32, 8, 14336, **_31),
    "llama-3.1-70b": _size(8192, 80, 64, 8, 28672, **_31),
    "llama-3.1-405b": _size(16384, 126, 128, 8, 53248, **_31),
    "llama-3.2-1b": _size(2048, 16, 32, 8, 8192, **_32),
    "llama-3.2-3b": _size(3072, 28, 24, 8, 8192, **_32),
    "llama-3.3-70b": _size(8192, 80, 64, 8, 28672, **_31),
}


class Block(nn.Module):
    """Attention and a gated perceptron, each normalised before it and beside a shortcut.

    Args:
        dim: width of the tokens.
        heads: number of heads of the queries.
        kv_heads: number of heads of keys and values.
        head_dim: width of a head.
        hidden_dim: width inside the perceptron.
        norm_eps: of the normalisations.
    """

    def __init__(self, dim: int, heads: int, kv_heads: int, head_dim: int, hidden_dim: int, norm_eps: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim, norm_eps)
        self.attention = CausalAttention(dim, heads, kv_heads, head_dim)
        self.mlp_norm = nn.RMSNorm(dim, norm_eps)
        self.mlp = SwiGLU(dim, hidden_dim)

    def forward(
        self, x: Float[Tensor, "b t d"], rotary: tuple[Tensor, Tensor], cache: KVCache | None, layer: int
    ) -> Float[Tensor, "b t d"]:
        x = x + self.attention(self.attention_norm(x), rotary, cache, layer)
        return x + self.mlp(self.mlp_norm(x))


class LLaMA(Decoder):
    """Tokens through blocks, whose attention sees distances, to the logits of the token after each.

    Args:
        vocab_size: number of tokens.
        block_size: how many tokens it sees at most.
        dim: width of the tokens.
        depth: number of blocks.
        heads: number of heads of the queries.
        kv_heads: number of heads of keys and values, which divides ``heads``; null is as many.
        hidden_dim: width inside the perceptrons; null is 8/3 of ``dim``, up to the next multiple of 256.
        head_dim: width of a head; null is ``dim / heads``.
        theta: base of the wavelengths of the rotary positions.
        rope_scaling: stretches them to a longer context, see :class:`zoo.layers.rotary.RotaryEmbedding`; null for none.
        norm_eps: of the normalisations.
        tied: the last layer has the weights of the embedding.
    """

    format = llama_format
    ignored_keys = r"rotary_emb\.inv_freq$"  # in old files

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
            raise ValueError(f"the width dim={dim} is not divisible by heads={heads}")
        kv_heads, head_dim = kv_heads or heads, head_dim or dim // heads
        hidden_dim = hidden_dim or -(-8 * dim // (3 * 256)) * 256
        rope_scaling = dict(rope_scaling) if rope_scaling else None
        if rope_scaling is not None:
            llama_format.check_scaling(rope_scaling)
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.config: dict[str, Any] = {}
        self.vocab_size, self.block_size = vocab_size, block_size
        self.embedding = nn.Embedding(vocab_size, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, kv_heads, head_dim, hidden_dim, norm_eps) for _ in range(depth))
        self.rotary = RotaryEmbedding(head_dim, theta, rope_scaling)
        self.norm = nn.RMSNorm(dim, norm_eps)
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)
        if tied:
            self.lm_head.weight = self.embedding.weight
        self.reset_parameters()

    def forward(
        self, ids: Int[Tensor, "b t"], cache: KVCache | None = None, logits_to_keep: int = 0
    ) -> Float[Tensor, "b t v"]:
        """Return logits of all tokens, or of so many at the end."""
        start = cache_start(ids.shape[1], cache, self.block_size)
        x = self.embedding(ids)
        rotary = self.rotary(start, x)
        x = run_blocks(self.blocks, x, rotary, cache, self.activation_checkpointing and self.training)
        return self.lm_head(self.norm(x[:, -logits_to_keep:]))

    def decoder_spec(self) -> DecoderSpec:
        blocks = [(b.attention_norm, b.attention, b.mlp_norm, b.mlp) for b in self.blocks]
        return DecoderSpec(
            self.embedding, None, None, self.rotary, blocks, "swiglu", self.norm, self.lm_head, None, {LLaMA, Block}
        )


class LLaMALanguageModel(DecoderLanguageModel):
    """A LLaMA that learns what comes next.

    Args:
        preset: all sizes and constants by name: ``baby``, ``llama-7b`` to ``llama-3.3-70b``.
        dim: width of the tokens; null takes the preset's, like all that follows.
        depth: number of blocks.
        heads: number of heads of the queries.
        kv_heads: number of heads of keys and values, which divides ``heads``.
        hidden_dim: width inside the perceptrons.
        head_dim: width of a head; null is ``dim / heads``.
        theta: base of the wavelengths of the rotary positions.
        rope_scaling: ``factor``, ``low_freq_factor``, ``high_freq_factor`` and ``original_max_position_embeddings``, as
            LLaMA 3.1 has them, or ``factor`` alone, which divides all positions.
        norm_eps: of the normalisations.
        tied: the last layer has the weights of the embedding.
        context: tokens that the network can see; null takes that of ``weights``, or ``block_size``.
        weights: to start from: a model directory of Hugging Face or Meta, or a file that zoo wrote, which also tells
            the sizes; null starts fresh.
        meta_device: build the network without memory, which the trainer gives it: of weights divided among devices for
            each one's part alone; null is so on the command line with ModelParallelStrategy.
        vocab_size: number of tokens; null takes it from the data.
        block_size: tokens in a block of the data; null takes it from there.
    """

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
            LLaMA, self, vocab_size, block_size, PRESETS[preset], weights, meta_device, context=context, dim=dim,
            depth=depth, heads=heads, kv_heads=kv_heads, hidden_dim=hidden_dim, head_dim=head_dim, theta=theta,
            rope_scaling=rope_scaling, norm_eps=norm_eps, tied=tied,
        )  # fmt: skip
        super().__init__(net=net, weights=weights, vocab_size=vocab_size, block_size=block_size, **kwargs)
