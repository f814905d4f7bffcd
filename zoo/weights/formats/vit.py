"""The Vision Transformer in files of torchvision, timm and Hugging Face: names, and what stands beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.files import write_json
from zoo.weights.files import write
from zoo.weights.renaming import invert, rename_keys

_BLOCK = "encoder.layers.encoder_layer_{}"
TIMM = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj": "conv_proj",
    "blocks.{}.norm1": f"{_BLOCK}.ln_1",
    "blocks.{}.attn.qkv.weight": f"{_BLOCK}.self_attention.in_proj_weight",
    "blocks.{}.attn.qkv.bias": f"{_BLOCK}.self_attention.in_proj_bias",
    "blocks.{}.attn.proj": f"{_BLOCK}.self_attention.out_proj",
    "blocks.{}.norm2": f"{_BLOCK}.ln_2",
    "blocks.{}.mlp.fc1": f"{_BLOCK}.mlp.0",
    "blocks.{}.mlp.fc2": f"{_BLOCK}.mlp.3",
    "norm": "encoder.ln",
    "head": "heads.head",
}
HUGGINGFACE = {
    "embeddings.cls_token": "class_token",
    "embeddings.position_embeddings": "encoder.pos_embedding",
    "embeddings.patch_embeddings.projection": "conv_proj",
    "encoder.layer.{}.layernorm_before": f"{_BLOCK}.ln_1",
    "encoder.layer.{}.attention.output.dense": f"{_BLOCK}.self_attention.out_proj",
    "encoder.layer.{}.attention.attention": f"{_BLOCK}.self_attention",  # and query, key, value under it
    "encoder.layer.{}.layernorm_after": f"{_BLOCK}.ln_2",
    "encoder.layer.{}.intermediate.dense": f"{_BLOCK}.mlp.0",
    "encoder.layer.{}.output.dense": f"{_BLOCK}.mlp.3",
    "layernorm": "encoder.ln",
}
QKV = ("query", "key", "value")


def convert_state_dict(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate a state by any of these libraries to torchvision's names of today, which are zoo's."""
    if "patch_embed.proj.weight" in state:
        return rename_keys(state, {**TIMM, "fc_norm": "encoder.ln"})
    if any(k.endswith("embeddings.patch_embeddings.projection.weight") for k in state):
        state = {k.removeprefix("vit."): v for k, v in state.items() if "pooler." not in k}
        return _fuse(rename_keys(state, {**HUGGINGFACE, "classifier": "heads.head"}))
    # torchvision's published files are older than its code
    return rename_keys(
        state, {f"{_BLOCK}.mlp.linear_1": f"{_BLOCK}.mlp.0", f"{_BLOCK}.mlp.linear_2": f"{_BLOCK}.mlp.3"}
    )


def write_timm(path: Path, state: dict[str, Tensor], **metadata: Any) -> None:
    """Write a file as timm has it; ``metadata`` is what zoo adds to its header."""
    mean = {} if "class_token" in state else {"encoder.ln": "fc_norm"}
    write(path, rename_keys(state, {**invert(TIMM), **mean}), **metadata)


def write_huggingface(
    folder: Path, state: dict[str, Tensor], arguments: dict[str, Any], preprocessing: dict[str, Any] | None
) -> None:
    """Write a folder as ``ViTForImageClassification.save_pretrained`` does."""
    if "class_token" not in state or arguments["head"] != "linear":
        raise ValueError("Hugging Face's ViT has a class token and a linear head; this one is written as torchvision")
    body = rename_keys(_split(state), invert({f"vit.{k}": v for k, v in HUGGINGFACE.items()}))
    metadata = {"arguments": arguments, "preprocessing": preprocessing}
    write(folder / "model.safetensors", rename_keys(body, {"heads.head": "classifier"}), **metadata)
    if p := preprocessing:
        resample = {"nearest": 0, "bilinear": 2, "bicubic": 3}[p["interpolation"]]
        size = {"height": p["image_size"], "width": p["image_size"]}
        known = {"size": size, "image_mean": p["mean"], "image_std": p["std"], "resample": resample}
        write_json(folder / "preprocessor_config.json", {"image_processor_type": "ViTImageProcessor", **known})
    write_json(folder / "config.json", _config(arguments))


def _config(a: Mapping[str, Any]) -> dict[str, Any]:
    labels = [f"LABEL_{i}" for i in range(a["num_classes"])]
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": a["dim"],
        "num_hidden_layers": a["depth"],
        "num_attention_heads": a["heads"],
        "intermediate_size": 4 * a["dim"],
        "image_size": a["image_size"],
        "patch_size": a["patch_size"],
        "num_channels": a["in_channels"],
        "layer_norm_eps": a["norm_eps"],
        "hidden_act": "gelu",
        "hidden_dropout_prob": a["dropout"],
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def _fuse(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values, one after the other, as one matrix."""
    fused = {k: v for k, v in state.items() if not any(f".{part}." in k for part in QKV)}
    for key in state:
        owner, part, kind = key.rpartition(".query.")
        if part:
            fused[f"{owner}.in_proj_{kind}"] = torch.cat([state[f"{owner}.{part}.{kind}"] for part in QKV])
    return fused


def _split(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    split = {k: v for k, v in state.items() if ".in_proj_" not in k}
    for key, value in state.items():
        owner, found, kind = key.rpartition(".in_proj_")
        if found:
            split |= {f"{owner}.{part}.{kind}": v for part, v in zip(QKV, value.chunk(3), strict=True)}
    return split
