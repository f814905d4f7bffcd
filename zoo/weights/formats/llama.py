"""LLaMA's published weights: names and ``config.json`` of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.weights.files import Weights
from zoo.weights.formats.huggingface import Entry, HuggingFaceFormat
from zoo.weights.formats.meta_llama import open_meta
from zoo.weights.pretrained import PretrainedNet, refuse_config

LAYER = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.proj": ("self_attn.o_proj",),
    "mlp.fc": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.proj": ("mlp.down_proj",),
    "attention_norm": ("input_layernorm",),
    "mlp_norm": ("post_attention_layernorm",),
}
EMBEDDING = "model.embed_tokens.weight"
# What a config.json may ask for, and how zoo's LLaMA computes.
FIXED = {"hidden_act": ("silu", "swish"), "attention_bias": False, "mlp_bias": False, "partial_rotary_factor": 1.0}
REQUIRED = ("num_attention_heads", "hidden_size", "num_hidden_layers", "intermediate_size")
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# Entries of rope_scaling, by transformers' rope_type.
YARN = ("factor", "original_max_position_embeddings")
YARN_OPTIONS = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")
ROPE_TYPES = {"default": (), "linear": SCALING[:1], "llama3": SCALING, "yarn": YARN}


def check_scaling(scaling: Mapping[str, Any]) -> None:
    """Raise UserError for a ``rope_scaling`` that is neither LLaMA 3.1's, nor YaRN's, nor a factor alone."""
    if scaling.get("rope_type") == "yarn":
        check_yarn(scaling)
        return
    names_fit = set(scaling) in ({"factor"}, set(SCALING))
    values_fit = all(isinstance(value, int | float) and value > 0 for value in scaling.values())
    if not names_fit or not values_fit or scaling.get("low_freq_factor", 0) >= scaling.get("high_freq_factor", 1):
        expected = f"{', '.join(SCALING)}, or factor alone, all above 0 and low below high"
        raise UserError(f"rope_scaling is {expected}: got {dict(scaling)}")


def check_yarn(scaling: Mapping[str, Any]) -> None:
    """Raise UserError for a ``rope_scaling`` of ``rope_type: yarn`` that lacks a number or has an unknown entry."""
    numbers = {name: value for name, value in scaling.items() if name not in ("rope_type", "truncate")}
    names_fit = set(YARN) <= set(numbers) <= {*YARN, *YARN_OPTIONS}
    values_fit = all(isinstance(value, int | float) and value > 0 for value in numbers.values())
    truncate_fits = isinstance(scaling.get("truncate", True), bool)
    if not names_fit or not values_fit or not truncate_fits:
        expected = f"{' and '.join(YARN)}, with any of {', '.join(YARN_OPTIONS)}, all numbers above 0"
        raise UserError(f"rope_scaling is {expected}, for rope_type 'yarn': got {dict(scaling)}")


class LLaMAFormat(HuggingFaceFormat):
    """Adapter for LLaMA."""

    ignored_keys = r"rotary_emb\.inv_freq$"  # in old files

    def open(self, path: str | Path, net: PretrainedNet | None = None) -> Weights:
        folder = Path(path).expanduser()
        if (folder / "params.json").exists():
            return open_meta(folder)
        return super().open(path, net)

    def infer_config(self, weights: Weights) -> dict[str, Any]:
        config = weights.config
        source = weights.source
        if not config:
            raise UserError(f"{source} has no config.json beside it, without which the heads of a LLaMA are unknown")
        if config.get("model_type") != "llama":
            raise UserError(f"{source} is no LLaMA, but {config.get('model_type', 'something else')}")
        refuse_config(source, config, FIXED, "LLaMA")
        missing = [name for name in REQUIRED if name not in config]
        if missing:
            raise UserError(f"{source}: its config.json does not state {', '.join(missing)}")
        if EMBEDDING not in weights.state:
            raise UserError(f"{source} is no LLaMA with its last layer: it lacks {EMBEDDING}")
        heads = config["num_attention_heads"]
        theta, scaling = read_rope(source, config)
        return {
            "vocab_size": len(weights.state[EMBEDDING]),
            "block_size": config.get("max_position_embeddings", 2048),
            "dim": config["hidden_size"],
            "depth": config["num_hidden_layers"],
            "heads": heads,
            "kv_heads": config.get("num_key_value_heads") or heads,
            "hidden_dim": config["intermediate_size"],
            "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
            "theta": theta,
            "rope_scaling": scaling,
            "norm_eps": config.get("rms_norm_eps", 1e-6),
            "tied": config.get("tie_word_embeddings", False),
        }

    def entries(self, net: PretrainedNet) -> list[Entry]:
        # in the order of transformers, by which its shards are filled
        arguments = net.arguments
        queries = arguments["heads"] * arguments["head_dim"]
        keys = arguments["kv_heads"] * arguments["head_dim"]
        hidden = arguments["hidden_dim"]
        rows = {"attention.qkv": (queries, keys, keys), "mlp.fc": (hidden, hidden)}
        entries = [Entry("embedding.weight", (EMBEDDING,))]
        for i in range(arguments["depth"]):
            for own, names in LAYER.items():
                files = tuple(f"model.layers.{i}.{name}.weight" for name in names)
                entries.append(Entry(f"blocks.{i}.{own}.weight", files, rows.get(own, ())))
        entries.append(Entry("norm.weight", ("model.norm.weight",)))
        if not arguments["tied"]:
            entries.append(Entry("lm_head.weight", ("lm_head.weight",)))
        return entries

    def config_json(self, net: PretrainedNet) -> dict[str, Any]:
        arguments = net.arguments
        content: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            **net.config,
        }
        if not net.config:
            content |= {"bos_token_id": None, "eos_token_id": None}
        return {
            **content,
            **rope_config(arguments, net.config),
            "vocab_size": arguments["vocab_size"],
            "max_position_embeddings": arguments["block_size"],
            "hidden_size": arguments["dim"],
            "num_hidden_layers": arguments["depth"],
            "num_attention_heads": arguments["heads"],
            "num_key_value_heads": arguments["kv_heads"],
            "intermediate_size": arguments["hidden_dim"],
            "head_dim": arguments["head_dim"],
            "rms_norm_eps": arguments["norm_eps"],
            "tie_word_embeddings": arguments["tied"],
        }


def read_rope(source: str, config: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Return base and scaling of the rotary embedding, from a ``config.json`` of today or before transformers 5."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise UserError(f"{source} has rope_type {kind!r}; known are {', '.join(ROPE_TYPES)}")
    refuse_config(source, rope, {"partial_rotary_factor": 1.0}, "LLaMA")
    names = ROPE_TYPES[kind]
    missing = [name for name in names if name not in rope]
    if missing:
        raise UserError(f"{source} has rope_type {kind!r} without {', '.join(missing)}")
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    scaling = {name: rope[name] for name in names}
    if kind == "yarn":
        # null stands for the default, as in transformers
        options = {name: rope[name] for name in YARN_OPTIONS if rope.get(name) is not None}
        scaling = {"rope_type": kind, **scaling, **options}
    return float(theta), scaling or None


def rope_config(arguments: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of ``config.json`` for the rotary embedding, in the form that a known one has.

    Args:
        arguments: of the network.
        known: the ``config.json`` that the weights came with; empty for today's form.
    """
    theta = arguments["theta"]
    scaling = arguments["rope_scaling"] or {}
    kind = "default"
    if "rope_type" in scaling:
        kind = scaling["rope_type"]
    elif scaling:
        kind = "llama3" if "low_freq_factor" in scaling else "linear"
    rope = {"rope_type": kind, **scaling}
    content: dict[str, Any] = {}
    if "rope_parameters" in known or not known:
        content["rope_parameters"] = {**rope, "rope_theta": theta}
    if "rope_parameters" not in known:  # before transformers 5
        content["rope_theta"] = theta
        content["rope_scaling"] = rope if scaling else None
    return content
