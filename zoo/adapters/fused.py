"""Fused projections: which rows of one matrix are the queries, keys and values, or the gates of an MLP."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.adapters.layers import is_transposed
from zoo.layers.decoder import SwiGLU

# Names of one projection in zoo and in transformers; a pattern that matches one of them matches the projection.
ALIASES = (
    ("q", "q_proj", "query"),
    ("k", "k_proj", "key"),
    ("v", "v_proj", "value"),
    ("gate", "gate_proj"),
    ("up", "up_proj"),
)
# Layers of this name hold queries, then keys, then values. In ``query_key_value`` they alternate by head.
QKV = ("qkv", "c_attn", "qkv_proj", "Wqkv")
GATES = ("gate_up_proj",)


def aliases(leaf: str) -> tuple[str, ...]:
    """Return the names by which a projection is known, with its own."""
    for names in ALIASES:
        if leaf in names:
            return names
    return (leaf,)


def fused_parts(parent: nn.Module, leaf: str, layer: Any) -> dict[str, tuple[int, int]]:
    """Return the parts of a layer as first row and end by name; empty if it is not fused, or nobody says how.

    Args:
        parent: module that holds the layer.
        leaf: name of the layer in it.
        layer: the layer.
    """
    if isinstance(layer, nn.Linear):
        rows = layer.out_features
        columns = layer.in_features
    elif is_transposed(layer):
        rows = layer.nf
        columns = layer.nx
    else:
        return {}
    if leaf in GATES or (isinstance(parent, SwiGLU) and leaf == "fc"):
        return _consecutive({"gate": rows // 2, "up": rows // 2}, rows)
    if leaf not in QKV:
        return {}
    config = getattr(parent, "config", None)
    heads = _first(parent, config, "heads", "num_heads", "num_attention_heads", "n_head")
    kv_heads = _first(parent, config, "kv_heads", "num_kv_heads", "num_key_value_heads") or heads
    head_dim = _first(parent, config, "head_dim")
    if heads and kv_heads and head_dim:
        sizes = {"q": heads * head_dim, "k": kv_heads * head_dim, "v": kv_heads * head_dim}
        if sum(sizes.values()) == rows:
            return _consecutive(sizes, rows)
    if rows == 3 * columns:
        return _consecutive(dict.fromkeys("qkv", columns), rows)
    return {}


def _first(parent: Any, config: Any, *names: str) -> int | None:
    for owner in (parent, config):
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def _consecutive(sizes: dict[str, int], rows: int) -> dict[str, tuple[int, int]]:
    parts = {}
    start = 0
    for name, size in sizes.items():
        parts[name] = (start, start + size)
        start += size
    assert start == rows
    return parts
