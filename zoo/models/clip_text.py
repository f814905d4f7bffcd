"""CLIP's text tower, which Stable Diffusion reads with (Radford et al. 2021, https://arxiv.org/abs/2103.00020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.weights.files import Weights
from zoo.weights.folders import RenamedTensors
from zoo.weights.formats.diffusers import DiffusersNet
from zoo.weights.formats.diffusers_configs import parse_text_config, text_config

# By name: those of Stable Diffusion 1.x (OpenAI's ViT-L/14) and 2.x (OpenCLIP's ViT-H/14 without its last layer).
PRESETS: dict[str, dict[str, Any]] = {
    "sd-1.5": {"dim": 768, "depth": 12, "heads": 12, "hidden": 3072, "activation": "quick_gelu"},
    "sd-2.1": {"dim": 1024, "depth": 23, "heads": 16, "hidden": 4096, "activation": "gelu"},
}


class TokenEmbeddings(nn.Module):
    """A vector for each token, and one for each place.

    Args:
        vocab_size: number of tokens.
        max_length: number of places.
        dim: width of the vectors.
    """

    def __init__(self, vocab_size: int, max_length: int, dim: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Embedding(max_length, dim)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        places = torch.arange(ids.shape[1], device=ids.device)
        return self.token_embedding(ids) + self.position_embedding(places)


class CausalAttention(nn.Module):
    """Every token looks at itself and those before it.

    Args:
        dim: width of the tokens.
        heads: number of heads, dividing ``dim``.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj, self.q_proj = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        q, k, v = (
            proj(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (b, h, t, c)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers with GELU between them.

    Args:
        dim: width.
        hidden: width inside.
        activation: ``gelu``, or ``quick_gelu``, OpenAI's approximation by a sigmoid.
    """

    def __init__(self, dim: int, hidden: int, activation: Literal["gelu", "quick_gelu"]) -> None:
        super().__init__()
        self.quick = activation == "quick_gelu"
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h) if self.quick else F.gelu(h))


class EncoderLayer(nn.Module):
    """Attention and a perceptron, each normalised before it and beside a shortcut."""

    def __init__(self, dim: int, heads: int, hidden: int, activation: Literal["gelu", "quick_gelu"]) -> None:
        super().__init__()
        self.self_attn, self.layer_norm1 = CausalAttention(dim, heads), nn.LayerNorm(dim)
        self.mlp, self.layer_norm2 = MLP(dim, hidden, activation), nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPTextEncoder(DiffusersNet):
    """The states of a prompt's tokens, from which a picture is made.

    Parameters are named as in transformers' ``CLIPTextModel``.

    Args:
        vocab_size: number of tokens.
        max_length: most tokens of a text, those at its ends included.
        dim: width of the states.
        depth: number of layers.
        heads: attention heads, dividing ``dim``.
        hidden: width inside the perceptrons.
        activation: ``quick_gelu`` as OpenAI's weights need, or ``gelu`` as OpenCLIP's.
        clip_skip: number of last layers left out before the last normalisation: 1 gives the penultimate states.
    """

    part, presets = "text_encoder", PRESETS

    def __init__(
        self,
        vocab_size: int = 49408,
        max_length: int = 77,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        activation: Literal["gelu", "quick_gelu"] = "quick_gelu",
        clip_skip: int = 0,
    ) -> None:
        super().__init__()
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if dim % heads:
            raise ValueError(f"the width dim={dim} is not divisible by heads={heads}")
        if activation not in ("gelu", "quick_gelu"):
            raise ValueError(f"activation must be gelu or quick_gelu, got {activation!r}")
        if not 0 <= clip_skip < depth:
            raise ValueError(f"clip_skip leaves out 0 to {depth - 1} of {depth} layers, got {clip_skip}")
        self.clip_skip, self.max_length, self.dim = clip_skip, max_length, dim
        self.embeddings = TokenEmbeddings(vocab_size, max_length, dim)
        layers = nn.ModuleList([EncoderLayer(dim, heads, hidden, activation) for _ in range(depth)])
        self.encoder = nn.ModuleDict({"layers": layers})
        self.final_layer_norm = nn.LayerNorm(dim)

    @classmethod
    def infer_config(cls, weights: Weights) -> dict[str, Any]:
        return parse_text_config(weights)

    def config_json(self) -> dict[str, Any]:
        return text_config(self.arguments)

    def convert_state_dict(self, weights: Weights) -> Mapping[str, Tensor]:
        # of a whole CLIP, files hold the pictures' tower too; published ones have a prefix, and buffers of old
        prefix = "text_model." if any(k.startswith("text_model.") for k in weights.state) else ""
        text = [k for k in weights.state if k.startswith((prefix, "embeddings.", "encoder.", "final_layer_norm."))]
        names = {k.removeprefix(prefix): k for k in text if not k.endswith(("position_ids", "text_projection.weight"))}
        return RenamedTensors(weights.state, names)

    def export_state_dict(self) -> dict[str, Tensor]:
        return {f"text_model.{k}": v for k, v in self.parameter_state_dict().items()}

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        if ids.shape[1] > self.max_length:
            raise ValueError(f"the text encoder reads at most {self.max_length} tokens, got {ids.shape[1]}")
        x = self.embeddings(ids)
        layers = list(self.encoder["layers"])  # type: ignore[arg-type]
        for layer in layers[: len(layers) - self.clip_skip]:
            x = layer(x)
        return self.final_layer_norm(x)
