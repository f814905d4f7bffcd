"""BERT (Devlin et al. 2018, https://arxiv.org/abs/1810.04805)."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.layers.recurrent import length_mask
from zoo.weights.fetch import say
from zoo.weights.files import Weights
from zoo.weights.formats import bert as bert_format
from zoo.weights.formats.huggingface import Entry, HuggingFaceNet, open_weights

Activation = Literal["gelu", "gelu_tanh", "relu"]
ACTIVATIONS: dict[str, Any] = {"gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}
Size = Literal["base", "large", "minilm-l6", "distilbert"]
# MiniLM: Wang et al. 2020, https://arxiv.org/abs/2002.10957. DistilBERT, which knows no token types and has ReLU behind
# its first classifying layer: Sanh et al. 2019, https://arxiv.org/abs/1910.01108.
SIZES: dict[str, dict[str, Any]] = {
    "base": {"dim": 768, "depth": 12, "heads": 12},
    "large": {"dim": 1024, "depth": 24, "heads": 16},
    "minilm-l6": {"dim": 384, "depth": 6, "heads": 12},
    "distilbert": {"dim": 768, "depth": 6, "heads": 12, "token_types": 0, "pooler": "relu"},
}

SHAPE_ARGUMENTS = (
    "vocab_size",
    "dim",
    "depth",
    "heads",
    "hidden",
    "max_length",
    "token_types",
    "activation",
    "norm_eps",
)


class Embeddings(nn.Module):
    """What a token is, where it stands, and which of two texts it belongs to, added up and normalised.

    Args:
        vocab_size: number of tokens.
        dim: width of the tokens.
        max_length: number of positions.
        token_types: kinds of text in a pair; 0 for none.
        pad_id: the padding token, which learns nothing; null for none.
        dropout: share dropped.
        eps: of the normalisation.
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
        self.norm, self.dropout = nn.LayerNorm(dim, eps), nn.Dropout(dropout)

    def forward(self, x: Int[Tensor, "b t"], token_types: Int[Tensor, "b t"] | None = None) -> Float[Tensor, "b t d"]:
        out = self.token(x)
        if self.token_type is not None:
            out = out + self.token_type(torch.zeros_like(x[:1]) if token_types is None else token_types)
        return self.dropout(self.norm(out + self.position.weight[: x.shape[1]]))


class Attention(nn.Module):
    """Every token looks at every one that is no padding, in several heads.

    Args:
        dim: width of the tokens.
        heads: number of heads; each is ``dim / heads`` wide.
        dropout: share of the attention weights dropped.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)  # queries, keys and values in one product
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b 1 1 t"] | None = None) -> Float[Tensor, "b t d"]:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (b, h, t, d / h) each
        dropout = self.dropout if self.training else 0.0
        return self.proj(F.scaled_dot_product_attention(q, k, v, mask, dropout).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a perceptron, each beside a shortcut and normalised behind it.

    Args:
        dim: width of the tokens.
        heads: number of heads.
        hidden: width of the perceptron's hidden layer.
        activation: in the perceptron.
        dropout: share dropped behind the perceptron.
        attention_dropout: share of the attention weights dropped.
        branch_dropout: share dropped behind the attention.
        eps: of the normalisations.
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
        self.attention, self.ln_1 = Attention(dim, heads, attention_dropout), nn.LayerNorm(dim, eps)
        self.fc, self.proj, self.ln_2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim), nn.LayerNorm(dim, eps)
        self.activation, self.dropout = ACTIVATIONS[activation], nn.Dropout(dropout)
        self.branch_dropout = nn.Dropout(branch_dropout)

    def forward(self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b 1 1 t"] | None = None) -> Float[Tensor, "b t d"]:
        x = self.ln_1(x + self.branch_dropout(self.attention(x, mask)))
        return self.ln_2(x + self.dropout(self.proj(self.activation(self.fc(x)))))


class Pooler(nn.Module):
    """One vector for a text: that of its first token, through a layer."""

    def __init__(self, dim: int, activation: Literal["tanh", "relu"]) -> None:
        super().__init__()
        self.dense, self.activation = nn.Linear(dim, dim), nn.Tanh() if activation == "tanh" else nn.ReLU()

    def forward(self, states: Float[Tensor, "b t d"]) -> Float[Tensor, "b d"]:
        return self.activation(self.dense(states[:, 0]))


class BERT(HuggingFaceNet):
    """An encoder whose tokens see the whole text: states ``(b, t, d)``; ``pooler`` makes one vector of them.

    Args:
        vocab_size: number of tokens.
        dim: width of the tokens.
        depth: number of blocks.
        heads: number of attention heads in each.
        hidden: width of the hidden layer of each; null is four times ``dim``.
        max_length: number of positions, so of tokens in a text at most.
        token_types: kinds of text in a pair; 0 for none, as DistilBERT has it.
        pad_id: the padding token, which learns nothing; null for none.
        dropout: share dropped from tokens and in the blocks.
        attention_dropout: share of the attention weights dropped; null is ``dropout``.
        activation: in the blocks.
        pooler: activation of the pooler, ``tanh``, or ``relu`` as DistilBERT has it in front of classes; null for none.
        norm_eps: of the normalisations.
        activation_checkpointing: compute the blocks again on the way back rather than keep what they computed.
    """

    architecture: ClassVar[str] = "Model"  # how transformers calls it, behind Bert
    ignored_keys = bert_format.HEAD_KEYS
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
        pooler: Literal["tanh", "relu"] | None = "tanh",
        norm_eps: float = 1e-12,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"the width dim={dim} is not divisible by heads={heads}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be {', '.join(ACTIVATIONS)}, got {activation!r}")
        hidden, attention_dropout = hidden or 4 * dim, dropout if attention_dropout is None else attention_dropout
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.config, self.max_length = {}, max_length
        self.activation_checkpointing = activation_checkpointing
        self.embeddings = Embeddings(vocab_size, dim, max_length, token_types, pad_id, dropout, norm_eps)
        branch = dropout if token_types else 0.0  # DistilBERT drops nothing behind its attention
        block = (dim, heads, hidden, activation, dropout, attention_dropout, branch, norm_eps)
        self.blocks = nn.ModuleList(Block(*block) for _ in range(depth))
        self.pooler = Pooler(dim, pooler) if pooler else None
        self.apply(init_weights)

    def forward(
        self,
        x: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"] | None = None,
        token_types: Int[Tensor, "b t"] | None = None,
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b ..."]:
        if x.shape[1] > self.max_length:
            raise ValueError(f"{x.shape[1]} tokens are more than the {self.max_length} positions (max_length) of BERT")
        if mask is None and lengths is not None:
            mask = length_mask(lengths, x.shape[1])
        keys = None if mask is None else mask[:, None, None].bool()
        again = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        states = self.embeddings(x, token_types)
        for block in self.blocks:
            states = checkpoint(block, states, keys, use_reentrant=False) if again else block(states, keys)
        return self.apply_head(states)

    def apply_head(self, states: Float[Tensor, "b t d"]) -> Float[Tensor, "b ..."]:
        """What is made of the states of the tokens: nothing here, logits where there is a head."""
        return states

    @property
    def model_input_names(self) -> list[str]:
        """What transformers' tokenizer is to give."""
        types = ["token_type_ids"] if self.arguments["token_types"] else []
        return ["input_ids", *types, "attention_mask"]

    # Published weights ------------------------------------------------------------------------------------------------

    @classmethod
    def open_pretrained(cls, path: str | Path) -> Weights:
        return bert_format.standardize_keys(open_weights(path), head=cls.architecture != "Model")

    @classmethod
    def infer_config(cls, weights: Weights) -> dict[str, Any]:
        found = bert_format.infer_config(weights)
        found.pop("head_dropout", None)
        return found

    @classmethod
    def _infer_config(cls, weights: Weights) -> dict[str, Any]:
        known = [name for c in cls.__mro__ if "__init__" in vars(c) for name in inspect.signature(c).parameters]
        told = weights.arguments.get("architecture") or weights.arguments  # of a module's checkpoint
        return {k: v for k, v in told.items() if k in known} or cls.infer_config(weights)

    def entries(self) -> list[Entry]:
        names = [name for name, _ in self.named_parameters()]
        return bert_format.tensor_entries(names, self.arguments, head=self.architecture != "Model")

    def config_json(self) -> dict[str, Any]:
        return {**self.config, **bert_format.to_config_json(self.arguments, self.architecture, self.class_names)}

    def _load_weights(self, weights: Weights) -> None:
        """As the base does; a pooler or head that the file lacks or has for other classes starts fresh."""
        own, state, fresh = dict(self.named_parameters()), dict(weights.state), set()
        entries = [Entry(k, (k,)) for k in own] if "embeddings.token.weight" in state else self.entries()
        for entry in entries:
            part, (name, *_) = entry.param.partition(".")[0], entry.names
            if part in ("pooler", "head") and (name not in state or state[name].shape != own[entry.param].shape):
                fresh.add(part)
        for part in sorted(fresh):
            getattr(self, part).apply(init_weights)
            ends = [(e.names[0], own[e.param]) for e in entries if e.param.startswith(f"{part}.")]
            was = next((len(state[name]) for name, _ in ends if name in state and state[name].ndim == 2), None)
            said = f"it has no {part}, so one starts fresh"
            if was is not None:
                said = f"its head of {was} classes is replaced by a fresh one of {len(ends[0][1])}"
            say(f"{weights.source}: {said}")
            state |= {name: parameter.detach() for name, parameter in ends}
        super()._load_weights(Weights(weights.source, state, weights.arguments, weights.config))

    def _compare(self, weights: Weights) -> None:
        theirs, ours = self._infer_config(weights), self.arguments
        if unlike := [
            f"{k}={theirs[k]} instead of {ours[k]}" for k in SHAPE_ARGUMENTS if theirs.get(k, ours[k]) != ours[k]
        ]:
            raise ValueError(f"{weights.source} does not fit this {type(self).__name__}: it has {', '.join(unlike)}")


def init_weights(module: nn.Module) -> None:
    """Weights of a layer as BERT's: normal with deviation 0.02, biases 0, scales 1."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
    if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight.data[module.padding_idx])
