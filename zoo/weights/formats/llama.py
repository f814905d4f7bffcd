"""LLaMA in files of Hugging Face and of Meta: names, the order of rotary pairs, ``config.json``, ``params.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.weights.files import Weights
from zoo.weights.folders import NamedTensors, open_file, open_weights, read_json
from zoo.weights.formats.huggingface import Entry

LAYER = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.proj": ("self_attn.o_proj",),
    "mlp.fc": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.proj": ("mlp.down_proj",),
    "attention_norm": ("input_layernorm",),
    "mlp_norm": ("post_attention_layernorm",),
}
# Meta's names of the same; queries and keys first, whose pairs stand in another order.
META_LAYER = {
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
META_ENDS = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}
FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
NEEDED = ("num_attention_heads", "hidden_size", "num_hidden_layers", "intermediate_size")
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def llama31_rope_scaling(factor: float) -> dict[str, Any]:
    return dict(zip(SCALING, (factor, 1.0, 4.0, 8192), strict=True))


def open_pretrained(path: str | Path) -> Weights:
    """Open a folder of Hugging Face or of Meta, or a file."""
    folder = Path(path).expanduser()
    return _open_meta(folder) if (folder / "params.json").exists() else open_weights(path)


def check_scaling(scaling: Mapping[str, Any]) -> None:
    """Refuse what is neither the scaling of 3.1 nor a factor alone."""
    fine = set(scaling) in ({"factor"}, set(SCALING)) and all(
        isinstance(v, int | float) and v > 0 for v in scaling.values()
    )
    if not fine or scaling.get("low_freq_factor", 0) >= scaling.get("high_freq_factor", 1):
        wanted = f"{', '.join(SCALING)}, or factor alone, all above 0 and low below high"
        raise ValueError(f"rope_scaling is {wanted}: got {dict(scaling)}")


# Hugging Face ---------------------------------------------------------------------------------------------------------


def infer_config(weights: Weights) -> dict[str, Any]:
    """The arguments of LLaMA, by ``config.json``: shapes alone tell neither heads nor wavelengths."""
    c = weights.config
    if not c:
        raise ValueError(f"{weights.source} has no config.json beside it, without which a LLaMA is not known")
    if c.get("model_type") != "llama":
        raise ValueError(f"{weights.source} is no LLaMA, but {c.get('model_type', 'something else')}")
    if unlike := [f"{k}={c[k]}" for k, v in FIXED.items() if c.get(k, v) != v]:
        raise ValueError(f"{weights.source} is of a kind that zoo's LLaMA is not: {', '.join(unlike)}")
    if missing := [k for k in NEEDED if k not in c]:
        raise ValueError(f"{weights.source}: its config.json does not tell {', '.join(missing)}")
    if "model.embed_tokens.weight" not in weights.state:
        raise ValueError(f"{weights.source} is no LLaMA with its last layer: it lacks model.embed_tokens.weight")
    heads = c["num_attention_heads"]
    theta, scaling = _rope(weights.source, c)
    return {
        "vocab_size": len(weights.state["model.embed_tokens.weight"]),
        "block_size": c.get("max_position_embeddings", 2048),
        "dim": c["hidden_size"],
        "depth": c["num_hidden_layers"],
        "heads": heads,
        "kv_heads": c.get("num_key_value_heads") or heads,
        "hidden_dim": c["intermediate_size"],
        "head_dim": c.get("head_dim") or c["hidden_size"] // heads,
        "theta": theta,
        "rope_scaling": scaling,
        "norm_eps": c.get("rms_norm_eps", 1e-6),
        "tied": c.get("tie_word_embeddings", False),
    }


def _rope(source: str, config: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling, where files of today and of before transformers 5 have them."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10_000.0)))
    if kind not in ("default", "linear", "llama3"):
        raise ValueError(f"{source} has rope_type {kind!r}; known are default, linear and llama3")
    names = {"default": (), "linear": SCALING[:1], "llama3": SCALING}[kind]
    if missing := [k for k in names if k not in rope]:
        raise ValueError(f"{source} has rope_type {kind!r} without {', '.join(missing)}")
    return theta, {k: rope[k] for k in names} or None


def entries(arguments: Mapping[str, Any]) -> list[Entry]:
    """In the order of transformers, by which its shards are filled."""
    a = arguments
    queries, keys = a["heads"] * a["head_dim"], a["kv_heads"] * a["head_dim"]
    rows = {"attention.qkv": (queries, keys, keys), "mlp.fc": (a["hidden_dim"], a["hidden_dim"])}
    found = [Entry("embedding.weight", ("model.embed_tokens.weight",))]
    for i in range(a["depth"]):
        for own, names in LAYER.items():
            files = tuple(f"model.layers.{i}.{name}.weight" for name in names)
            found.append(Entry(f"blocks.{i}.{own}.weight", files, rows.get(own, ())))
    found.append(Entry("norm.weight", ("model.norm.weight",)))
    return found + ([] if a["tied"] else [Entry("lm_head.weight", ("lm_head.weight",))])


def config_json(arguments: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What ``config.json`` has to say beside what is ``known`` of the file that the weights came from."""
    a = arguments
    content: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **FIXED, **known}
    kind = "default" if not a["rope_scaling"] else "llama3" if "low_freq_factor" in a["rope_scaling"] else "linear"
    rope = {"rope_type": kind, **(a["rope_scaling"] or {})}
    if not known:
        content |= {"bos_token_id": None, "eos_token_id": None}
    if "rope_parameters" in known or not known:
        content["rope_parameters"] = {**rope, "rope_theta": a["theta"]}
    if "rope_parameters" not in known:  # before transformers 5
        content |= {"rope_theta": a["theta"], "rope_scaling": rope if a["rope_scaling"] else None}
    return {
        **content,
        "vocab_size": a["vocab_size"],
        "max_position_embeddings": a["block_size"],
        "hidden_size": a["dim"],
        "num_hidden_layers": a["depth"],
        "num_attention_heads": a["heads"],
        "num_key_value_heads": a["kv_heads"],
        "intermediate_size": a["hidden_dim"],
        "head_dim": a["head_dim"],
        "rms_norm_eps": a["norm_eps"],
        "tie_word_embeddings": a["tied"],
    }


# Meta -----------------------------------------------------------------------------------------------------------------


class MetaTensors(NamedTensors):
    """Tensors of ``consolidated.*.pth`` by Hugging Face's names, put together from the slices in each of the files.

    Args:
        slices: content of each file.
        heads: number of heads of the queries.
        kv_heads: number of heads of keys and values.
    """

    def __init__(self, slices: list[Mapping[str, Tensor]], heads: int, kv_heads: int) -> None:
        depth = len({k.split(".")[1] for k in slices[0] if k.startswith("layers.")})
        layers = range(depth)
        names = {f"{k}.weight": f"{v}.weight" for k, v in META_ENDS.items() if f"{v}.weight" in slices[0]}
        super().__init__(
            {f"model.layers.{i}.{k}.weight": f"layers.{i}.{v}.weight" for i in layers for k, v in META_LAYER.items()}
            | names
        )
        self.slices, self.heads, self.kv_heads = slices, heads, kv_heads

    def __getitem__(self, name: str) -> Tensor:
        meta = self.names[name]
        parts = [part[meta] for part in self.slices]
        if parts[0].ndim == 1 or len(parts) == 1:  # every file has the whole vector
            whole = parts[0]
        else:
            dim = self.slices[0]["norm.weight"].shape[0]
            # Embeddings are divided by width up to LLaMA 2, and by tokens from 3 on.
            narrow = ".wo." in meta or ".w2." in meta or ("tok_" in meta and parts[0].shape[1] < dim)
            whole = torch.cat(parts, 1 if narrow else 0)
        if ".wq." in meta or ".wk." in meta:
            return _interleaved_to_half_split(whole, self.heads if ".wq." in meta else self.kv_heads)
        return whole


def _interleaved_to_half_split(weight: Tensor, heads: int) -> Tensor:
    """From pairs of neighbours, as Meta turns them, to pairs of the first and second half of a head."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _open_meta(folder: Path) -> Weights:
    params, files = read_json(folder / "params.json"), sorted(folder.glob("consolidated.*.pth"))
    missing = [i for i in range(len(files)) if not (folder / f"consolidated.{i:02d}.pth").exists()]
    if not files or missing:
        raise ValueError(f"{folder} lacks consolidated.{missing[0] if missing else 0:02d}.pth")
    heads = params["n_heads"]
    kv_heads = params.get("n_kv_heads") or heads
    slices = [open_file(file) for file in files]
    if (rows := slices[0]["layers.0.attention.wq.weight"].shape[0] * len(files)) != params["dim"]:
        raise ValueError(f"{folder} lacks files: {len(files)} hold {rows} of {params['dim']} rows of queries")
    state = MetaTensors(slices, heads, kv_heads)
    theta, scaled = params.get("rope_theta", 10_000.0), params.get("use_scaled_rope", False)
    # 3.2, which is smaller than any other, stretches more; its file does not say so.
    factor = params.get("rope_scaling_factor") or (32.0 if params["dim"] < 4096 else 8.0)
    # How far a model can see is not in its file either.
    context = 131_072 if scaled else 8192 if theta > 10_000 else 4096 if params["norm_eps"] > 1e-6 else 2048
    rope = {"rope_type": "llama3", **llama31_rope_scaling(factor)} if scaled else {"rope_type": "default"}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": params["dim"],
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": len(state["model.layers.0.mlp.gate_proj.weight"]),
        "rms_norm_eps": params["norm_eps"],
        "max_position_embeddings": context,
        "rope_parameters": {**rope, "rope_theta": theta},
        "tie_word_embeddings": "lm_head.weight" not in state,
    }
    return Weights(str(folder), state, config=config)  # type: ignore[arg-type]
