"""GPT-2 (Radford et al. 2019, https://openai.com/index/better-language-models), with options from later models."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.layers.attention import CausalAttention
from zoo.layers.decoder import DecoderSpec, SwiGLU, apply_token_shift, cache_start, last_tokens, run_blocks
from zoo.layers.kv_cache import KVCache
from zoo.layers.rotary import RotaryEmbedding
from zoo.models.decoder import Decoder
from zoo.tasks.decoder import DecoderLanguageModel, network
from zoo.weights.formats.gpt import GPTFormat

Positions = Literal["learned", "rotary"]
Norm = Literal["layernorm", "rmsnorm"]
Activation = Literal["gelu_tanh", "relu_squared", "swiglu"]
CHOICES = {"positions": Positions, "norm": Norm, "activation": Activation}
Preset = Literal["baby", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
PRESETS: dict[str, dict[str, int]] = {
    "baby": {"dim": 384, "depth": 6, "heads": 6},  # nanoGPT's, for characters
    "gpt2": {"dim": 768, "depth": 12, "heads": 12},  # 124M parameters
    "gpt2-medium": {"dim": 1024, "depth": 24, "heads": 16},  # 355M
    "gpt2-large": {"dim": 1280, "depth": 36, "heads": 20},  # 774M
    "gpt2-xl": {"dim": 1600, "depth": 48, "heads": 25},  # 1.5B
}


class MLP(nn.Module):
    """Feed-forward block with a hidden dimension of ``4 * dim``.

    Args:
        dim: embedding dimension.
        activation: ``gelu_tanh`` or ``relu_squared``.
        bias: whether the linear layers have biases.
        dropout: dropout probability for the output.
    """

    def __init__(self, dim: int, activation: Activation, bias: bool, dropout: float) -> None:
        super().__init__()
        self.squared = activation == "relu_squared"
        self.fc = nn.Linear(dim, 4 * dim, bias)
        self.proj = nn.Linear(4 * dim, dim, bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        x = self.fc(x)  # (b, t, 4 * d)
        if self.squared:
            x = x.relu().square()
        else:
            x = F.gelu(x, approximate="tanh")
        return self.dropout(self.proj(x))


class Block(nn.Module):
    """Pre-norm Transformer block: causal self-attention and MLP, each with a residual connection.

    Args:
        dim: embedding dimension.
        heads: number of attention heads.
        dropout: dropout probability for attention weights and both residual branches.
        norm: ``layernorm``, or ``rmsnorm`` without biases in any layer.
        activation: activation of the MLP.
        qk_norm: normalise queries and keys.
    """

    def __init__(self, dim: int, heads: int, dropout: float, norm: Norm, activation: Activation, qk_norm: bool) -> None:
        super().__init__()
        bias = norm == "layernorm"
        self.ln_1 = make_norm(norm, dim)
        self.attn = CausalAttention(dim, heads, bias=bias, dropout=dropout, qk_norm=qk_norm)
        self.dropout = nn.Dropout(dropout)
        self.ln_2 = make_norm(norm, dim)
        if activation == "swiglu":
            # three matrices of 8/3 dim have as many weights as two of 4 dim
            self.mlp = SwiGLU(dim, 8 * round(dim / 3), bias, dropout)
        else:
            self.mlp = MLP(dim, activation, bias, dropout)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        rotary: tuple[Tensor, Tensor] | None,
        cache: KVCache | None,
        layer: int,
    ) -> Float[Tensor, "b t d"]:
        x = x + self.dropout(self.attn(self.ln_1(x), rotary, cache, layer))
        return x + self.mlp(self.ln_2(x))


def make_norm(norm: Norm, dim: int) -> nn.Module:
    if norm == "layernorm":
        return nn.LayerNorm(dim)
    return nn.RMSNorm(dim, eps=1e-5)


class GPT(Decoder):
    """GPT-2: decoder-only Transformer; returns the logits of the next token.

    Args:
        vocab_size: vocabulary size.
        block_size: context length in tokens.
        dim: embedding dimension.
        depth: number of blocks.
        heads: number of attention heads; divides ``dim``.
        dropout: dropout probability for embeddings, attention weights and residual branches.
        positions: ``learned`` or ``rotary`` position embedding (Su et al. 2021, https://arxiv.org/abs/2104.09864).
        norm: ``layernorm``, or ``rmsnorm`` (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467), with which no
            layer has a bias, as in LLaMA.
        activation: ``gelu_tanh``; ``relu_squared`` (So et al. 2021, https://arxiv.org/abs/2109.08668); ``swiglu``
            (Shazeer 2020, https://arxiv.org/abs/2002.05202).
        qk_norm: normalise queries and keys (Henry et al. 2020, https://arxiv.org/abs/2010.04245).
        logit_softcap: soft bound of the logits' absolute value (Gemma 2, https://arxiv.org/abs/2408.00118); null for
            none.
        token_shift: number of previous tokens whose embeddings are added to each token's, with learned weights per
            channel (after RWKV, Peng et al. 2023, https://arxiv.org/abs/2305.13048).
        tied: share the weights of the token embedding and the output layer (Press and Wolf 2016,
            https://arxiv.org/abs/1608.05859).
    """

    weights_format = GPTFormat()

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        dropout: float = 0.0,
        positions: Positions = "learned",
        norm: Norm = "layernorm",
        activation: Activation = "gelu_tanh",
        qk_norm: bool = False,
        logit_softcap: float | None = None,
        token_shift: int = 0,
        tied: bool = True,
    ) -> None:
        super().__init__()
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        for name, kind in CHOICES.items():
            value = self.arguments[name]
            if value not in get_args(kind):
                raise ValueError(f"{name} must be {', '.join(get_args(kind))}, got {value!r}")
        if token_shift < 0:
            raise ValueError(f"token_shift must be 0 or more, a number of previous tokens: got {token_shift}")
        self.config: dict[str, Any] = {}
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.logit_softcap = logit_softcap
        # The order of these lines is that of the random numbers: it decides what a seed gives.
        self.wte = nn.Embedding(vocab_size, dim)
        self.token_shift = nn.Parameter(torch.zeros(token_shift, dim)) if token_shift else None
        self.wpe = nn.Embedding(block_size, dim) if positions == "learned" else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            self.blocks.append(Block(dim, heads, dropout, norm, activation, qk_norm))
        self.rotary = RotaryEmbedding(dim // heads) if positions == "rotary" else None
        self.ln_f = make_norm(norm, dim)
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight
        self.reset_parameters()

    def forward(
        self, ids: Int[Tensor, "b t"], cache: KVCache | None = None, logits_to_keep: int = 0
    ) -> Float[Tensor, "b u v"]:
        """Return logits ``(b, t, v)``, or with ``logits_to_keep`` only those of so many tokens at the end."""
        start = cache_start(ids.shape[1], cache, self.block_size)
        x = self.wte(ids)  # (b, t, d)
        if self.token_shift is not None:
            x = apply_token_shift(x, ids, self.wte, self.token_shift, cache)
        if self.wpe is not None:
            x = x + self.wpe.weight[start : start + ids.shape[1]]
        rotary = None
        if self.rotary is not None:
            rotary = self.rotary(start, x)
        checkpointed = self.activation_checkpointing and self.training
        x = run_blocks(self.blocks, self.dropout(x), rotary, cache, checkpointed)
        logits = self.lm_head(self.ln_f(last_tokens(x, logits_to_keep)))  # (b, u, v)
        if self.logit_softcap is not None:
            logits = self.logit_softcap * (logits / self.logit_softcap).tanh()
        return logits

    def decoder_spec(self) -> DecoderSpec:
        """Return the modules by their role, for :class:`zoo.layers.cpu.single_token_decoder.SingleTokenDecoder`."""
        return DecoderSpec(
            embedding=self.wte,
            token_shift=self.token_shift,
            positions=self.wpe,
            rotary=self.rotary,
            blocks=[(block.ln_1, block.attn, block.ln_2, block.mlp) for block in self.blocks],
            activation=self.arguments["activation"],
            norm=self.ln_f,
            head=self.lm_head,
            softcap=self.logit_softcap,
            module_types={GPT, Block, MLP},
        )


class GPTLanguageModel(DecoderLanguageModel):
    """GPT-2 causal language model.

    Args:
        preset: model size: ``baby``, ``gpt2`` (124M), ``gpt2-medium``, ``-large``, ``-xl`` (1.5B).
        dim: embedding dimension; null takes the preset's.
        depth: number of blocks; null takes the preset's.
        heads: number of attention heads, which divides ``dim``; null takes the preset's.
        dropout: dropout probability for embeddings, attention weights and residual branches.
        positions: ``learned`` or ``rotary`` position embedding (Su et al. 2021, https://arxiv.org/abs/2104.09864).
        norm: ``layernorm``, or ``rmsnorm`` (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467) without biases.
        activation: ``gelu_tanh``; ``relu_squared`` (So et al. 2021, https://arxiv.org/abs/2109.08668); ``swiglu``
            (Shazeer 2020, https://arxiv.org/abs/2002.05202).
        qk_norm: normalise queries and keys (Henry et al. 2020, https://arxiv.org/abs/2010.04245).
        logit_softcap: soft bound of the logits' absolute value (Gemma 2, https://arxiv.org/abs/2408.00118); null for
            none.
        token_shift: number of previous tokens whose embeddings are added to each token's, with learned weights per
            channel (after RWKV, Peng et al. 2023, https://arxiv.org/abs/2305.13048).
        tied: share the weights of the token embedding and the output layer (Press and Wolf 2016,
            https://arxiv.org/abs/1608.05859).
        context: context length in tokens; null takes that of ``weights``, or ``block_size``.
        weights: pretrained weights: a Hugging Face model directory, or a file written by zoo, which also sets the
            sizes; null for random initialisation.
        meta_device: build the network on the meta device, without memory; with sharded weights each device then
            allocates only its shard. Null does so on the command line with ModelParallelStrategy.
        vocab_size: vocabulary size; null takes it from the data.
        block_size: tokens per block of the data; null takes it from the data.
    """

    tiny = {"dim": 32, "depth": 2, "heads": 2}

    def __init__(
        self,
        preset: Preset = "baby",
        dim: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        dropout: float = 0.0,
        positions: Positions = "learned",
        norm: Norm = "layernorm",
        activation: Activation = "gelu_tanh",
        qk_norm: bool = False,
        logit_softcap: float | None = None,
        token_shift: int = 0,
        tied: bool = True,
        context: int | None = None,
        weights: str | None = None,
        meta_device: bool | None = None,
        vocab_size: int | None = None,
        block_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        net = network(
            GPT,
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
            dropout=dropout,
            positions=positions,
            norm=norm,
            activation=activation,
            qk_norm=qk_norm,
            logit_softcap=logit_softcap,
            token_shift=token_shift,
            tied=tied,
        )
        super().__init__(net=net, weights=weights, vocab_size=vocab_size, block_size=block_size, **kwargs)
