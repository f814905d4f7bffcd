"""AutoencoderKL's published weights: ``config.json`` and parameter names of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.errors import UserError
from zoo.weights.files import Weights
from zoo.weights.formats.diffusers import DiffusersFormat
from zoo.weights.pretrained import refuse_config
from zoo.weights.tensors import RenamedTensors

# What a config.json may ask for, and how zoo's AutoencoderKL computes.
FIXED = {
    "_class_name": "AutoencoderKL",
    "act_fn": ("silu", "swish"),
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
DOWN_BLOCK = "DownEncoderBlock2D"
UP_BLOCK = "UpDecoderBlock2D"
# The attention's names in files that diffusers wrote before 2023.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
DEFAULT_SCALE = 0.18215


class AutoencoderKLFormat(DiffusersFormat):
    """Adapter for AutoencoderKL."""

    part = "vae"

    def infer_config(self, weights: Weights) -> dict[str, Any]:
        config = weights.config
        arguments = {
            "in_channels": config["in_channels"],
            "channels": list(config["block_out_channels"]),
            "blocks": config["layers_per_block"],
            "latent_channels": config["latent_channels"],
            "groups": config.get("norm_num_groups", 32),
            "scale": config.get("scaling_factor", DEFAULT_SCALE),
        }
        refuse_config(weights.source, config, FIXED, "AutoencoderKL")
        refuse_config(weights.source, config, {"out_channels": config["in_channels"]}, "AutoencoderKL")
        for key, block in (("down_block_types", DOWN_BLOCK), ("up_block_types", UP_BLOCK)):
            for kind in config.get(key, ()):
                if kind != block:
                    raise UserError(f"{weights.source} has a stage of {kind}, but zoo's AutoencoderKL has {block}")
        return arguments

    def config_json(self, net: Any) -> dict[str, Any]:
        arguments = net.arguments
        num_stages = len(arguments["channels"])
        return {
            "_class_name": "AutoencoderKL",
            "in_channels": arguments["in_channels"],
            "out_channels": arguments["in_channels"],
            "block_out_channels": list(arguments["channels"]),
            "down_block_types": [DOWN_BLOCK] * num_stages,
            "up_block_types": [UP_BLOCK] * num_stages,
            "layers_per_block": arguments["blocks"],
            "latent_channels": arguments["latent_channels"],
            "norm_num_groups": arguments["groups"],
            "scaling_factor": float(net.scale),
        }

    def convert(self, weights: Weights) -> Mapping[str, Tensor]:
        if not any(".query." in name for name in weights.state):
            return weights.state
        names = {}
        for name in weights.state:
            present = name
            for old, new in OLD_ATTENTION.items():
                present = present.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
            names[present] = name
        return RenamedTensors(weights.state, names)
