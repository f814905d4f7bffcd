"""Published weights of the Vision Transformer (ViT): files of torchvision, timm and Hugging Face."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.errors import UserError
from zoo.files import write_json
from zoo.weights.files import Weights, write
from zoo.weights.formats.image import ImageFormat, State, fuse, infer_head
from zoo.weights.formats.timm import read_timm_config
from zoo.weights.preprocessing import huggingface_processor
from zoo.weights.pretrained import PretrainedNet, refuse_config
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
OLD_TORCHVISION = {
    f"{_BLOCK}.mlp.linear_1": f"{_BLOCK}.mlp.0",
    f"{_BLOCK}.mlp.linear_2": f"{_BLOCK}.mlp.3",
}
QKV = ("query", "key", "value")


POSITIONS = "encoder.pos_embedding"
# What transformers takes for granted where config.json does not state it.
HUGGINGFACE_DEFAULTS = {"num_attention_heads": 12, "layer_norm_eps": 1e-12}
HUGGINGFACE_FIXED = {"hidden_act": "gelu", "qkv_bias": True}


class ViTFormat(ImageFormat):
    """Adapter for the Vision Transformer.

    Args:
        sizes: embedding dimension, depth and heads, by the name in torchvision.
        resample: interpolates position embeddings ``(1, t, d)`` to rows and columns of another grid.
    """

    formats = ("torchvision", "timm", "huggingface")
    input_conv = "conv_proj.weight"
    timm_names = r"(vit|deit)_(tiny|small|base|large|huge)_patch\d+_\d+(_in21k)?"
    timm_example = "vit_* and deit_* of the original architecture, such as vit_base_patch16_224"
    timm_poolings = ("token", "avg", "")
    timm_arguments = ("num_heads",)
    model_types = ("vit",)
    enums = (
        "ViT_B_16_Weights",
        "ViT_B_32_Weights",
        "ViT_L_16_Weights",
        "ViT_L_32_Weights",
        "ViT_H_14_Weights",
    )

    def __init__(
        self,
        sizes: Mapping[str, tuple[int, int, int]],
        resample: Callable[[Tensor, int, int], Tensor],
    ) -> None:
        self.sizes = sizes
        self.resample = resample

    def enum(self, arguments: Mapping[str, Any]) -> str | None:
        own = (arguments["dim"], arguments["depth"], arguments["heads"])
        for name, size in self.sizes.items():
            enum = f"ViT_{name}_{arguments['patch_size']}_Weights"
            if size == own and enum in self.enums:
                return enum
        return None

    def convert(self, state: State) -> State:
        if "patch_embed.proj.weight" in state:
            return rename_keys(state, {**TIMM, "fc_norm": "encoder.ln"})
        if any(key.endswith("embeddings.patch_embeddings.projection.weight") for key in state):
            bare = {key.removeprefix("vit."): value for key, value in state.items() if "pooler." not in key}
            renamed = rename_keys(bare, {**HUGGINGFACE, "classifier": "heads.head"})
            return fuse(renamed, QKV, "in_proj_{}")
        # torchvision's published files are older than its code
        return rename_keys(state, OLD_TORCHVISION)

    # What the weights compute -----------------------------------------------------------------------------------------

    def infer_from_shapes(self, state: State) -> dict[str, Any]:
        dim, channels, patch_size, _ = state[self.input_conv].shape
        blocks = {key.split(".")[2] for key in state if key.startswith("encoder.layers.")}
        arguments = {
            "in_channels": channels,
            "patch_size": patch_size,
            "dim": dim,
            "depth": len(blocks),
            "heads": self.usual_heads(dim),
            "pool": "class" if "class_token" in state else "mean",
        }
        positions = state.get(POSITIONS)
        if positions is not None and positions.ndim == 3:
            # A class token does not make the square root larger.
            arguments["image_size"] = patch_size * math.isqrt(positions.shape[1])
        return arguments | infer_head(state, "heads.head")

    def usual_heads(self, dim: int) -> int:
        """Return the number of heads that the published models of a dimension have, which no tensor shows."""
        for size_dim, _, heads in self.sizes.values():
            if size_dim == dim:
                return heads
        return max(1, dim // 64)

    def arguments_of_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        timm = read_timm_config(config)
        if timm is not None:
            arguments: dict[str, Any] = {"norm_eps": 1e-6}
            if "num_heads" in timm.arguments:
                arguments["heads"] = timm.arguments["num_heads"]
            return arguments
        if "model_type" in config:
            known = {**HUGGINGFACE_DEFAULTS, **config}
            return {"heads": known["num_attention_heads"], "norm_eps": known["layer_norm_eps"]}
        return {}

    def hidden_from_module(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if arguments.get("size") not in self.sizes:
            return {}
        _, _, heads = self.sizes[arguments["size"]]
        return {"heads": heads}

    def hidden_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {name: arguments[name] for name in ("heads", "norm_eps") if arguments.get(name) is not None}

    def check_origin(self, weights: Weights, network: str) -> None:
        super().check_origin(weights, network)
        refuse_config(weights.source, weights.config, HUGGINGFACE_FIXED, network)

    def check_state(self, weights: Weights) -> None:
        # timm names the norm fc_norm where it comes after pooling, as zoo has it for mean pooling.
        has_class_token = "cls_token" in weights.state
        norm_after_pooling = "fc_norm.weight" in weights.state
        timm = read_timm_config(weights.config)
        pooling = timm.pooling if timm else None
        if has_class_token and (pooling == "avg" or (norm_after_pooling and pooling != "token")):
            raise UserError(
                f"{weights.source} has a class token and averages the patch tokens (global_pool=avg); zoo's ViT "
                "averages only without a class token"
            )
        if "patch_embed.proj.weight" in weights.state and not has_class_token and not norm_after_pooling:
            raise UserError(f"{weights.source} normalizes before it averages (norm, not fc_norm); zoo's ViT does after")

    def resize(self, net: PretrainedNet, state: State) -> State:
        positions = state.get(POSITIONS)
        if positions is None or positions.ndim != 3:
            return state
        num_tokens = positions.shape[1]
        num_extra = num_tokens - math.isqrt(num_tokens) ** 2
        if num_extra != int(net.arguments["pool"] == "class"):
            return state  # of another kind of pooling, which the comparison of shapes reports
        grid = net.arguments["image_size"] // net.arguments["patch_size"]
        return {**state, POSITIONS: self.resample(positions, grid, grid)}

    # Writing ----------------------------------------------------------------------------------------------------------

    def write(self, path: Path, state: State, format: str, metadata: dict[str, Any]) -> None:
        if format == "huggingface":
            write_huggingface(path, state, **metadata)
            return
        if format == "timm":
            table = invert(TIMM)
            if "class_token" not in state:
                table["encoder.ln"] = "fc_norm"
            state = rename_keys(state, table)
        write(path, state, **metadata)


def write_huggingface(
    folder: Path,
    state: State,
    arguments: dict[str, Any],
    preprocessing: dict[str, Any] | None,
) -> None:
    """Write a folder as ``ViTForImageClassification.save_pretrained`` does."""
    if "class_token" not in state or arguments["head"] != "linear":
        raise UserError("Hugging Face's ViT has a class token and a linear head; this one is written as torchvision")
    table = invert({f"vit.{key}": value for key, value in HUGGINGFACE.items()})
    table["heads.head"] = "classifier"
    tensors = rename_keys(_split_qkv(state), table)
    write(folder / "model.safetensors", tensors, arguments=arguments, preprocessing=preprocessing)
    if preprocessing is not None:
        write_json(folder / "preprocessor_config.json", huggingface_processor(preprocessing))
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


def _split_qkv(state: Mapping[str, Tensor]) -> State:
    split = {}
    for key, value in state.items():
        owner, found, kind = key.rpartition(".in_proj_")
        if not found:
            split[key] = value
            continue
        for part, tensor in zip(QKV, value.chunk(3), strict=True):
            split[f"{owner}.{part}.{kind}"] = tensor
    return split
