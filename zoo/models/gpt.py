"""GPT-2 (Radford et al. 2019, https://openai.com/index/better-language-models), with options of today."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.layers.attention import CausalAttention
from zoo.layers.cpu.single_token_decoder import DecoderSpec
from zoo.layers.decoder import SwiGLU, apply_token_shift, cache_start, run_blocks
from zoo.layers.kv_cache import KVCache
from zoo.layers.rotary import RotaryEmbedding
from zoo.models.decoder import Decoder
from zoo.tasks.decoder import DecoderLanguageModel, network
from zoo.weights.formats import gpt as gpt_format

Positions = Literal["learned", "rotary"]
Norm = Literal["layernorm", "rmsnorm"]
Activation = Literal["gelu_tanh", "relu_squared", "swiglu"]
CHOICES = {"positions": Positions, "norm": Norm, "activation": Activation}
PRESETS: dict[str, dict[str, int]] = {
    "baby": {"dim": 384, "depth": 6, "heads": 6},  # nanoGPT's for characters
    "gpt2": {"dim": 768, "depth": 12, "heads": 12},  # 124M
    "gpt2-medium": {"dim": 1024, "depth": 24, "heads": 16},  # 355M
    "gpt2-large": {"dim": 1280, "depth": 36, "heads": 20},  # 774M
    "gpt2-xl": {"dim": 1600, "depth": 48, "heads": 25},  # 1.5B
}


class MLP(nn.Module):
    """Each token by itself: four times as wide, an activation, and back.

    Args:
        dim: width of the tokens.
        activation: ``gelu_tanh`` or ``relu_squared``.
        bias: whether both products have biases.
        dropout: share dropped behind it.
    """

    def __init__(self, dim: int, activation: Activation, bias: bool, dropout: float) -> None:
        super().__init__()
        self.squared = activation == "relu_squared"
        self.fc = nn.Linear(dim, 4 * dim, bias)
        self.proj = nn.Linear(4 * dim, dim, bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        x = self.fc(x)
        x = x.relu().square() if self.squared else F.gelu(x, approximate="tanh")
        return self.dropout(self.proj(x))


class Block(nn.Module):
    """Attention and a perceptron, each normalised before it and beside a shortcut.

    Args:
        dim: width of the tokens.
        heads: number of heads.
        dropout: share dropped from attention weights and behind both branches.
        norm: ``layernorm``, or ``rmsnorm`` without biases.
        activation: of the perceptron.
        qk_norm: normalise queries and keys.
    """

    def __init__(self, dim: int, heads: int, dropout: float, norm: Norm, activation: Activation, qk_norm: bool) -> None:
        super().__init__()
        bias = norm == "layernorm"
        self.ln_1 = _norm(norm, dim)
        self.attn = CausalAttention(dim, heads, bias=bias, dropout=dropout, qk_norm=qk_norm)
        self.dropout = nn.Dropout(dropout)
        self.ln_2 = _norm(norm, dim)
        if activation == "swiglu":
            self.mlp = SwiGLU(dim, 8 * round(dim / 3), bias, dropout)  # as many weights, in three matrices
        else:
            self.mlp = MLP(dim, activation, bias, dropout)

    def forward(
        self, x: Float[Tensor, "b t d"], rotary: tuple[Tensor, Tensor] | None, cache: KVCache | None, layer: int
    ) -> Float[Tensor, "b t d"]:
        x = x + self.dropout(self.attn(self.ln_1(x), rotary, cache, layer))
        return x + self.mlp(self.ln_2(x))


def _norm(norm: Norm, dim: int) -> nn.Module:
    return nn.LayerNorm(dim) if norm == "layernorm" else nn.RMSNorm(dim, eps=1e-5)


class GPT(Decoder):
    """Tokens and their positions, through blocks, to the logits of the token after each.

    Args:
        vocab_size: number of tokens.
        block_size: how many tokens it sees at most.
        dim: width of the tokens.
        depth: number of blocks.
        heads: number of attention heads, which divides ``dim``.
        dropout: share dropped from the embeddings, from attention weights and behind all branches.
        positions: ``learned``, or ``rotary`` (Su et al. 2021, https://arxiv.org/abs/2104.09864).
        norm: ``layernorm``, or ``rmsnorm`` (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467), with which no
            layer has a bias, as in LLaMA.
        activation: ``gelu_tanh``; ``relu_squared`` (So et al. 2021, https://arxiv.org/abs/2109.08668); ``swiglu``
            (Shazeer 2020, https://arxiv.org/abs/2002.05202).
        qk_norm: normalise queries and keys (Henry et al. 2020, https://arxiv.org/abs/2010.04245).
        logit_softcap: logits stay between minus and plus this number (Gemma 2, https://arxiv.org/abs/2408.00118).
        token_shift: a token gets learnt shares, channel by channel, of the embeddings of so many before it, which need
            not be looked for then (after RWKV, Peng et al. 2023, https://arxiv.org/abs/2305.13048).
        tied: the last layer has the weights of the embedding (Press and Wolf 2016, https://arxiv.org/abs/1608.05859).
    """

    format = gpt_format
    ignored_keys = r"\.attn\.(masked_)?bias$"  # the causal mask, in the oldest files

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
            if (given := self.arguments[name]) not in get_args(kind):
                raise ValueError(f"{name} must be {', '.join(get_args(kind))}, got {given!r}")
        if token_shift < 0:
            raise ValueError(f"token_shift={token_shift}: how many tokens before each, 0 or more")
        self.config: dict[str, Any] = {}
        self.vocab_size, self.block_size, self.logit_softcap = vocab_size, block_size, logit_softcap
        self.wte = nn.Embedding(vocab_size, dim)
        self.token_shift = nn.Parameter(torch.zeros(token_shift, dim)) if token_shift else None
        self.wpe = nn.Embedding(block_size, dim) if positions == "learned" else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, dropout, norm, activation, qk_norm) for _ in range(depth))
        self.rotary = RotaryEmbedding(dim // heads) if positions == "rotary" else None
        self.ln_f = _norm(norm, dim)
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight
        self.reset_parameters()

    def forward(
        self, ids: Int[Tensor, "b t"], cache: KVCache | None = None, logits_to_keep: int = 0
    ) -> Float[Tensor, "b t v"]:
        """Return logits of all tokens, or of so many at the end."""
        start = cache_start(ids.shape[1], cache, self.block_size)
        x = self.wte(ids)
        if self.token_shift is not None:
            x = apply_token_shift(x, ids, self.wte, self.token_shift, cache)
        if self.wpe is not None:
            x = x + self.wpe.weight[start : start + ids.shape[1]]
        rotary = self.rotary(start, x) if self.rotary is not None else None
        x = run_blocks(self.blocks, self.dropout(x), rotary, cache, self.activation_checkpointing and self.training)
        logits = self.lm_head(self.ln_f(x[:, -logits_to_keep:]))
        return logits if self.logit_softcap is None else self.logit_softcap * (logits / self.logit_softcap).tanh()

    def decoder_spec(self) -> DecoderSpec:
        blocks = [(b.ln_1, b.attn, b.ln_2, b.mlp) for b in self.blocks]
        activation, own = self.arguments["activation"], {GPT, Block, MLP}
        return DecoderSpec(
            self.wte, self.token_shift, self.wpe, self.rotary, blocks, activation, self.ln_f, self.lm_head,
            self.logit_softcap, own,
        )  # fmt: skip


class GPTLanguageModel(DecoderLanguageModel):
    """A GPT that learns what comes next.

    Args:
        preset: width, blocks and heads by name: ``baby``, ``gpt2`` (124M), ``gpt2-medium``, ``-large``, ``-xl`` (1.5B).
        dim: width of the tokens; null takes the preset's.
        depth: number of blocks; null takes the preset's.
        heads: number of attention heads, which divides ``dim``; null takes the preset's.
        dropout: share dropped from the embeddings, from attention weights and behind all branches.
        positions: ``learned``, or ``rotary`` (Su et al. 2021, https://arxiv.org/abs/2104.09864).
        norm: ``layernorm``, or ``rmsnorm`` (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467) without biases.
        activation: ``gelu_tanh``; ``relu_squared`` (So et al. 2021, https://arxiv.org/abs/2109.08668); ``swiglu``
            (Shazeer 2020, https://arxiv.org/abs/2002.05202).
        qk_norm: normalise queries and keys (Henry et al. 2020, https://arxiv.org/abs/2010.04245).
        logit_softcap: logits stay between minus and plus this number (Gemma 2, https://arxiv.org/abs/2408.00118).
        token_shift: a token gets learnt shares, channel by channel, of the embeddings of so many before it, which need
            not be looked for then (after RWKV, Peng et al. 2023, https://arxiv.org/abs/2305.13048).
        tied: the last layer has the weights of the embedding (Press and Wolf 2016, https://arxiv.org/abs/1608.05859).
        context: tokens that the network can see; null takes that of ``weights``, or ``block_size``.
        weights: to start from: a model directory of Hugging Face, or a file that zoo wrote, which also tells the
            sizes; null starts fresh.
        meta_device: build the network without memory, which the trainer gives it: of weights divided among devices for
            each one's part alone; null is so on the command line with ModelParallelStrategy.
        vocab_size: number of tokens; null takes it from the data.
        block_size: tokens in a block of the data; null takes it from there.
    """

    def __init__(
        self,
        preset: Literal["baby", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] = "baby",
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
            GPT, self, vocab_size, block_size, PRESETS[preset], weights, meta_device, context=context, dim=dim,
            depth=depth, heads=heads, dropout=dropout, positions=positions, norm=norm, activation=activation,
            qk_norm=qk_norm, logit_softcap=logit_softcap, token_shift=token_shift, tied=tied,
        )  # fmt: skip
        super().__init__(net=net, weights=weights, vocab_size=vocab_size, block_size=block_size, **kwargs)
