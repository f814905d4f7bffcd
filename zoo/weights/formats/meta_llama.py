"""LLaMA in Meta's files: ``params.json`` beside ``consolidated.*.pth``, each with a slice of every matrix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.weights.files import Weights, open_file, read_json
from zoo.weights.tensors import NamedTensors

# From transformers' names to Meta's; queries and keys first, whose pairs are in another order.
LAYER = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
ENDS = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}
REQUIRED = ("dim", "n_layers", "n_heads", "norm_eps")
FIRST_QUERIES = "layers.0.attention.wq.weight"


def llama31_rope_scaling(factor: float) -> dict[str, Any]:
    """Return the ``rope_scaling`` of LLaMA 3.1 and later."""
    return {
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def open_meta(folder: Path) -> Weights:
    """Open a folder of Meta, as if it were one of transformers.

    Raises:
        UserError: a file is missing.
    """
    params = read_json(folder / "params.json")
    missing = [name for name in REQUIRED if name not in params]
    if missing:
        raise UserError(f"{folder / 'params.json'} does not state {', '.join(missing)}")
    slices = open_slices(folder, params)
    heads = params["n_heads"]
    kv_heads = params.get("n_kv_heads") or heads
    state = MetaTensors(slices, heads, kv_heads)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": params["dim"],
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": len(state["model.layers.0.mlp.gate_proj.weight"]),
        "rms_norm_eps": params["norm_eps"],
        "max_position_embeddings": context_length(params),
        "rope_parameters": rope_parameters(params),
        "tie_word_embeddings": "lm_head.weight" not in state,
    }
    return Weights(str(folder), state, config=config)


def open_slices(folder: Path, params: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    """Open all ``consolidated.*.pth`` of a folder."""
    files = sorted(folder.glob("consolidated.*.pth"))
    expected = [folder / f"consolidated.{i:02d}.pth" for i in range(max(1, len(files)))]
    for file in expected:
        if not file.exists():
            raise UserError(f"{folder} lacks {file.name}")
    slices = []
    for file in files:
        content = open_file(file)
        slices.append({name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)})
    if FIRST_QUERIES not in slices[0]:
        raise UserError(f"{files[0]} is no LLaMA: it lacks {FIRST_QUERIES}")
    rows = slices[0][FIRST_QUERIES].shape[0] * len(files)
    if rows != params["dim"]:
        raise UserError(f"{folder} lacks files: {len(files)} hold {rows} of {params['dim']} rows of queries")
    return slices


def context_length(params: Mapping[str, Any]) -> int:
    """Return the context length of the release, which is not in its file."""
    if params.get("use_scaled_rope", False):  # 3.1 and later
        return 131_072
    if params.get("rope_theta", 10_000.0) > 10_000:  # 3
        return 8192
    if params["norm_eps"] > 1e-6:  # 2
        return 4096
    return 2048


def rope_parameters(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return transformers' ``rope_parameters``."""
    theta = params.get("rope_theta", 10_000.0)
    if not params.get("use_scaled_rope", False):
        return {"rope_type": "default", "rope_theta": theta}
    factor = params.get("rope_scaling_factor")
    if not factor:
        # 3.2, which is smaller than all others, stretches more; its file does not state it.
        factor = 32.0 if params["dim"] < 4096 else 8.0
    return {"rope_type": "llama3", **llama31_rope_scaling(factor), "rope_theta": theta}


class MetaTensors(NamedTensors):
    """Tensors by transformers' names, put together from the slices in each file.

    Args:
        slices: content of each file.
        heads: number of query heads.
        kv_heads: number of key and value heads.
    """

    def __init__(self, slices: list[dict[str, Tensor]], heads: int, kv_heads: int) -> None:
        depth = len({name.split(".")[1] for name in slices[0] if name.startswith("layers.")})
        names = {}
        for i in range(depth):
            for ours, theirs in LAYER.items():
                names[f"model.layers.{i}.{ours}.weight"] = f"layers.{i}.{theirs}.weight"
        for ours, theirs in ENDS.items():
            if f"{theirs}.weight" in slices[0]:
                names[f"{ours}.weight"] = f"{theirs}.weight"
        super().__init__(names)
        self.slices = slices
        self.heads = heads
        self.kv_heads = kv_heads

    def __getitem__(self, name: str) -> Tensor:
        meta = self.names[name]
        whole = self._join(meta)
        if ".wq." in meta:
            return half_split(whole, self.heads)
        if ".wk." in meta:
            return half_split(whole, self.kv_heads)
        return whole

    def _join(self, meta: str) -> Tensor:
        parts = [part[meta] for part in self.slices]
        if parts[0].ndim == 1 or len(parts) == 1:  # every file has the whole vector
            return parts[0]
        dim = self.slices[0]["norm.weight"].shape[0]
        # Embeddings are sliced by columns up to LLaMA 2, and by tokens from 3 on.
        has_sliced_columns = "tok_" in meta and parts[0].shape[1] < dim
        if ".wo." in meta or ".w2." in meta or has_sliced_columns:
            return torch.cat(parts, 1)
        return torch.cat(parts, 0)


def half_split(weight: Tensor, heads: int) -> Tensor:
    """Reorder rotary pairs from neighbours, as in Meta's files, to the first and second half of each head."""
    pairs = weight.unflatten(0, (heads, -1, 2))  # (h, c / 2, 2, d)
    return pairs.transpose(1, 2).flatten(0, 2)  # (h * c, d)
