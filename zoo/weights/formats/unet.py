"""The U-Net's published weights: ``config.json`` of diffusers' ``UNet2DConditionModel`` and ``UNet2DModel``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.errors import UserError
from zoo.weights.files import Weights
from zoo.weights.formats.diffusers import DiffusersFormat
from zoo.weights.pretrained import PretrainedNet, refuse_config

# What a config.json may ask for, and how zoo's UNet computes.
FIXED = {
    "_class_name": ("UNet2DConditionModel", "UNet2DModel"),
    "act_fn": ("silu", "swish"),
    "add_attention": True,
    "addition_embed_type": None,
    "attention_type": "default",
    "attn_norm_num_groups": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
    "upsample_type": "conv",
}
# Keys by which Stable Diffusion XL differs from 1.x and 2.x.
OF_XL = ("addition_embed_type", "transformer_layers_per_block")


class UNetFormat(DiffusersFormat):
    """Adapter for the U-Net.

    Args:
        presets: arguments by the name of a size, which checkpoints of a LatentDiffusion state.
    """

    part = "unet"

    def __init__(self, presets: Mapping[str, Mapping[str, Any]]) -> None:
        self.presets = presets

    def infer_arguments(self, weights: Weights, cls: type[PretrainedNet]) -> dict[str, Any]:
        arguments = super().infer_arguments(weights, cls)
        state = weights.state
        if "preset" not in weights.arguments or "conv_in.weight" not in state:
            return arguments
        # The weights are of a LatentDiffusion, whose arguments are None where its preset decides.
        explicit = {name: value for name, value in arguments.items() if value is not None}
        if explicit.get("heads") or explicit.get("head_dim"):
            # Either of them replaces both of the preset.
            explicit = {"heads": None, "head_dim": None, **explicit}
        preset = self.presets.get(weights.arguments["preset"], {})
        arguments = {**preset, **explicit}
        # Numbers that depend on the data are known from shapes.
        arguments["in_channels"] = state["conv_in.weight"].shape[1]
        arguments["num_classes"] = None
        if "class_embedding.weight" in state:
            arguments["num_classes"] = len(state["class_embedding.weight"]) - 1
        arguments["text_dim"] = None
        for name in state:
            if name.endswith("attn2.to_k.weight"):
                arguments["text_dim"] = state[name].shape[1]
        return arguments

    def infer_config(self, weights: Weights) -> dict[str, Any]:
        config = weights.config
        text_dim = config.get("cross_attention_dim")
        has_text = text_dim is not None
        check_config(weights.source, config, has_text)
        attention = [kind.startswith(("CrossAttn", "Attn")) for kind in config["down_block_types"]]
        check_stages(weights.source, config, attention, has_text)
        channels = list(config["block_out_channels"])
        # The last class of diffusers is zoo's "no class".
        classes = config.get("num_class_embeds")
        return {
            "in_channels": config["in_channels"],
            "out_channels": config["out_channels"],
            "channels": channels,
            "blocks": config["layers_per_block"],
            "attention": attention,
            "groups": config.get("norm_num_groups", 32),
            "text_dim": text_dim,
            "num_classes": classes - 1 if classes else None,
            "dropout": config.get("dropout", 0.0),
            "linear_projection": config.get("use_linear_projection", False),
            **infer_heads(weights.source, config, channels, has_text),
        }

    def config_json(self, net: PretrainedNet) -> dict[str, Any]:
        arguments = net.arguments
        has_text = arguments["text_dim"] is not None
        down, up = stages(arguments["attention"], has_text)
        classes = arguments["num_classes"]
        config = {
            "_class_name": "UNet2DConditionModel" if has_text else "UNet2DModel",
            "attention_head_dim": heads_in_config(arguments),
            "block_out_channels": list(arguments["channels"]),
            "down_block_types": down,
            "up_block_types": up,
            "dropout": arguments["dropout"],
            "in_channels": arguments["in_channels"],
            "out_channels": arguments["out_channels"],
            "layers_per_block": arguments["blocks"],
            "norm_num_groups": arguments["groups"],
            "num_class_embeds": None if classes is None else classes + 1,
        }
        if has_text:
            config["cross_attention_dim"] = arguments["text_dim"]
            config["use_linear_projection"] = arguments["linear_projection"]
        return config


def check_config(source: str, config: Mapping[str, Any], has_text: bool) -> None:
    """Raise UserError where a config asks for what zoo's UNet does not compute."""
    for key in OF_XL:
        if key in config and config[key] != FIXED[key]:
            raise UserError(
                f"{source} is of another kind (Stable Diffusion XL): it has {key}={config[key]}, but zoo's UNet "
                f"{key}={FIXED[key]}"
            )
    middle = "UNetMidBlock2DCrossAttn" if has_text else "UNetMidBlock2D"
    refuse_config(source, config, {**FIXED, "mid_block_type": middle}, "UNet")
    for key in ("cross_attention_dim", "layers_per_block", "norm_num_groups"):
        value = config.get(key, 1)
        if value is not None and not isinstance(value, int):
            raise UserError(f"{source} has {key}={value}, but zoo's UNet has one number for all stages")


def stages(attention: Sequence[bool], has_text: bool) -> tuple[list[str], list[str]]:
    """Return diffusers' names of the stages that halve and of those that double the resolution."""
    with_attention = "CrossAttn{}Block2D" if has_text else "Attn{}Block2D"
    kinds = [with_attention if attends else "{}Block2D" for attends in attention]
    down = [kind.format("Down") for kind in kinds]
    up = [kind.format("Up") for kind in reversed(kinds)]
    return down, up


def check_stages(source: str, config: Mapping[str, Any], attention: Sequence[bool], has_text: bool) -> None:
    """Raise UserError where a stage is of a kind that zoo's UNet does not have at its place."""
    down, up = stages(attention, has_text)
    theirs = [*config["down_block_types"], *config["up_block_types"]]
    ours = [*down, *up]
    if theirs == ours:
        return
    strange = "another number"
    for their_kind, our_kind in zip(theirs, ours, strict=False):
        if their_kind != our_kind:
            strange = their_kind
            break
    raise UserError(f"{source}: zoo's UNet has no stages of {strange} here")


def infer_heads(
    source: str,
    config: Mapping[str, Any],
    channels: Sequence[int],
    has_text: bool,
) -> dict[str, Any]:
    """Return ``heads`` or ``head_dim``; with text ``attention_head_dim`` is the number of heads, by a wrong name."""
    stated = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    if not has_text:
        return {"heads": None, "head_dim": stated}
    if isinstance(stated, int):
        return {"heads": stated, "head_dim": None}
    dims = {width / heads for width, heads in zip(channels, stated, strict=True)}
    if len(dims) > 1:
        raise UserError(f"{source}: zoo's UNet has one number or one size of heads in all stages, not {stated}")
    return {"heads": None, "head_dim": int(dims.pop())}


def heads_in_config(arguments: Mapping[str, Any]) -> Any:
    """Return ``attention_head_dim`` of a config."""
    if arguments["text_dim"] is None:
        if arguments["heads"]:
            raise UserError(
                f"diffusers' UNet2DModel has head_dim, not heads={arguments['heads']}: write it with format zoo"
            )
        return arguments["head_dim"]
    if arguments["head_dim"]:
        return [width // arguments["head_dim"] for width in arguments["channels"]]
    return arguments["heads"]
