"""BERT (Devlin et al. 2018, https://arxiv.org/abs/1810.04805)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.layers.attention import attention
from zoo.layers.recurrent import length_mask
from zoo.weights.formats.bert import BERTFormat
from zoo.weights.pretrained import PretrainedNet


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


Activation = Literal["gelu", "gelu_tanh", "relu"]
ACTIVATIONS: dict[str, Any] = {"gelu": F.gelu, "gelu_tanh": gelu_tanh, "relu": F.relu}
PoolerActivation = Literal["tanh", "relu"]
Size = Literal["base", "large", "minilm-l6", "distilbert"]
# MiniLM: Wang et al. 2020, https://arxiv.org/abs/2002.10957. DistilBERT, without token types and with a ReLU in its
# classification head: Sanh et al. 2019, https://arxiv.org/abs/1910.01108.
SIZES: dict[str, dict[str, Any]] = {
    "base": {"dim": 768, "depth": 12, "heads": 12},
    "large": {"dim": 1024, "depth": 24, "heads": 16},
    "minilm-l6": {"dim": 384, "depth": 6, "heads": 12},
    "distilbert": {"dim": 768, "depth": 6, "heads": 12, "token_types": 0, "pooler": "relu"},
}


class Embeddings(nn.Module):
    """Sum of token, position and token type (segment) embeddings, with layer norm and dropout.

    Args:
        vocab_size: vocabulary size.
        dim: embedding dimension.
        max_length: number of positions.
        token_types: number of token types; 0 for none.
        pad_id: padding token, whose embedding stays 0; null for none.
        dropout: dropout probability.
        eps: epsilon of the norm.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        max_length: int,
        token_types: int,
        pad_id: int | None,
        dropout: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab_size, dim, pad_id)
        self.position = nn.Embedding(max_length, dim)
        self.token_type = nn.Embedding(token_types, dim) if token_types else None
        self.norm = nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Int[Tensor, "b t"], token_types: Int[Tensor, "b t"] | None = None) -> Float[Tensor, "b t d"]:
        out = self.token(x)
        if self.token_type is not None:
            if token_types is None:
                token_types = torch.zeros_like(x[:1])  # type 0 for all tokens: (1, t)
            out = out + self.token_type(token_types)
        return self.dropout(self.norm(out + self.position.weight[: x.shape[1]]))


class Attention(nn.Module):
    """Multi-head self-attention with a padding mask.

    Args:
        dim: embedding dimension.
        heads: number of heads, of dimension ``dim / heads`` each.
        dropout: dropout probability for the attention weights.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim)  # one matrix product for queries, keys and values
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b 1 1 t"] | None = None) -> Float[Tensor, "b t d"]:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (b, t, 3, h, c)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (b, h, t, c) each
        dropout = self.dropout if self.training else 0.0
        y = attention(q, k, v, mask, dropout=dropout)  # (b, h, t, c)
        return self.proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Post-norm Transformer block: self-attention and MLP, each with a residual connection and then layer norm.

    Args:
        dim: embedding dimension.
        heads: number of attention heads.
        hidden: hidden dimension of the MLP.
        activation: activation of the MLP.
        dropout: dropout probability for the output of the MLP.
        attention_dropout: dropout probability for the attention weights.
        branch_dropout: dropout probability for the output of attention.
        eps: epsilon of the norms.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        activation: Activation,
        dropout: float,
        attention_dropout: float,
        branch_dropout: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, attention_dropout)
        self.ln_1 = nn.LayerNorm(dim, eps)
        self.fc = nn.Linear(dim, hidden)
        self.proj = nn.Linear(hidden, dim)
        self.ln_2 = nn.LayerNorm(dim, eps)
        self.activation = ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout)
        self.branch_dropout = nn.Dropout(branch_dropout)

    def forward(self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b 1 1 t"] | None = None) -> Float[Tensor, "b t d"]:
        x = self.ln_1(x + self.branch_dropout(self.attention(x, mask)))
        y = self.proj(self.activation(self.fc(x)))
        return self.ln_2(x + self.dropout(y))


class Pooler(nn.Module):
    """Pooler: one vector per text, from the hidden state of its first token."""

    def __init__(self, dim: int, activation: PoolerActivation) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.activation = nn.Tanh() if activation == "tanh" else nn.ReLU()

    def forward(self, states: Float[Tensor, "b t d"]) -> Float[Tensor, "b d"]:
        return self.activation(self.dense(states[:, 0]))


class BERT(PretrainedNet):
    """BERT: bidirectional Transformer encoder; returns hidden states ``(b, t, d)``.

    Args:
        vocab_size: vocabulary size.
        dim: embedding dimension.
        depth: number of blocks.
        heads: number of attention heads.
        hidden: hidden dimension of the MLPs; null for ``4 * dim``.
        max_length: number of positions, which is the maximum number of tokens.
        token_types: number of token types (segments); 0 for none, as in DistilBERT.
        pad_id: padding token, whose embedding stays 0; null for none.
        dropout: dropout probability for embeddings and residual branches.
        attention_dropout: dropout probability for the attention weights; null for ``dropout``.
        activation: activation of the MLPs.
        pooler: activation of the pooler: ``tanh``, or ``relu`` as in DistilBERT's classifier; null for no pooler.
        norm_eps: epsilon of the norms.
        activation_checkpointing: recompute the blocks in the backward pass, which saves memory.
    """

    weights_format = BERTFormat()
    class_names: list[str] | None = None

    def __init__(
        self,
        vocab_size: int,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int | None = None,
        max_length: int = 512,
        token_types: int = 2,
        pad_id: int | None = 0,
        dropout: float = 0.1,
        attention_dropout: float | None = None,
        activation: Activation = "gelu",
        pooler: PoolerActivation | None = "tanh",
        norm_eps: float = 1e-12,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"dim={dim} is not divisible by heads={heads}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be {', '.join(ACTIVATIONS)}, got {activation!r}")
        hidden = hidden or 4 * dim
        if attention_dropout is None:
            attention_dropout = dropout
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.config = {}
        self.max_length = max_length
        self.activation_checkpointing = activation_checkpointing
        self.embeddings = Embeddings(vocab_size, dim, max_length, token_types, pad_id, dropout, norm_eps)
        branch_dropout = dropout if token_types else 0.0  # DistilBERT has none after attention
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            block = Block(dim, heads, hidden, activation, dropout, attention_dropout, branch_dropout, norm_eps)
            self.blocks.append(block)
        self.pooler = Pooler(dim, pooler) if pooler else None
        self.apply(init_weights)

    def forward(
        self,
        x: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"] | None = None,
        token_types: Int[Tensor, "b t"] | None = None,
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b ..."]:
        """Return hidden states ``(b, t, d)``, or the logits of a head.

        Args:
            x: token ids.
            lengths: number of tokens of each text, padding excluded; null if there is none.
            token_types: token types; null for type 0.
            mask: false in the padding, instead of ``lengths``.
        """
        if x.shape[1] > self.max_length:
            raise ValueError(f"{x.shape[1]} tokens exceed the {self.max_length} positions of BERT (max_length)")
        if mask is None and lengths is not None:
            mask = length_mask(lengths, x.shape[1])
        if mask is not None:
            mask = mask[:, None, None].bool()  # (b, 1, 1, t): for all heads and queries
        checkpointed = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        states = self.embeddings(x, token_types)  # (b, t, d)
        for block in self.blocks:
            if checkpointed:
                states = checkpoint(block, states, mask, use_reentrant=False)
            else:
                states = block(states, mask)
        return self.apply_head(states)

    def apply_head(self, states: Float[Tensor, "b t d"]) -> Float[Tensor, "b ..."]:
        """Return the output for hidden states: the states themselves, or with a head its logits."""
        return states

    @property
    def model_input_names(self) -> list[str]:
        """Names of the inputs that transformers' tokenizer returns for this network."""
        if self.arguments["token_types"]:
            return ["input_ids", "token_type_ids", "attention_mask"]
        return ["input_ids", "attention_mask"]

    def initialize_part(self, part: str) -> None:
        """Initialise the pooler or the head anew."""
        getattr(self, part).apply(init_weights)


def init_weights(module: nn.Module) -> None:
    """Initialise a layer as BERT does: normal with std 0.02, biases 0, norm scales 1, padding embedding 0."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
    if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight.data[module.padding_idx])
