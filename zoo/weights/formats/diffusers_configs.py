"""What ``config.json`` says of Stable Diffusion's networks, and the arguments of zoo's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.weights.files import Weights

# What zoo's networks always are; a file that says otherwise is of another kind.
_UNET = {
    "act_fn": "silu", "center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0, "norm_eps": 1e-5,
    "downsample_padding": 1, "mid_block_scale_factor": 1, "class_embed_type": None, "time_embedding_type": "positional",
    "resnet_time_scale_shift": "default", "addition_embed_type": None, "encoder_hid_dim_type": None,
    "dual_cross_attention": False, "only_cross_attention": False, "transformer_layers_per_block": 1,
    "add_attention": True,
    "conv_in_kernel": 3, "conv_out_kernel": 3, "timestep_post_act": None, "time_embedding_dim": None,
    "attention_type": "default", "downsample_type": "conv", "upsample_type": "conv", "attn_norm_num_groups": None,
}  # fmt: skip
_VAE = {
    "act_fn": "silu", "mid_block_add_attention": True, "use_quant_conv": True, "use_post_quant_conv": True,
    "shift_factor": None, "latents_mean": None,
}  # fmt: skip


def parse_unet_config(weights: Weights) -> dict[str, Any]:
    """Arguments of ``zoo.models.UNet``, of ``UNet2DConditionModel`` or ``UNet2DModel``."""
    config, where = weights.config, weights.source
    reads = config.get("cross_attention_dim") is not None
    _require_equal(config, _UNET, where, "UNet")
    down, up = list(config["down_block_types"]), list(config["up_block_types"])
    attention = [kind.startswith(("CrossAttn", "Attn")) for kind in down]
    expected = _stages(attention, reads)
    if (down, up) != expected:
        pairs = zip(down + up, expected[0] + expected[1], strict=False)
        strange = next((a for a, b in pairs if a != b), "another number")
        raise ValueError(f"{where}: zoo's UNet has no stages of {strange} here")
    channels = list(config["block_out_channels"])
    classes = config.get("num_class_embeds")
    return {
        "in_channels": config["in_channels"], "out_channels": config["out_channels"], "channels": channels,
        "blocks": config["layers_per_block"], "attention": attention, "groups": config.get("norm_num_groups", 32),
        "text_dim": config.get("cross_attention_dim"), "num_classes": classes and classes - 1,
        "dropout": config.get("dropout", 0.0), "linear_projection": config.get("use_linear_projection", False),
        **_heads(config, channels, reads, where),
    }  # fmt: skip


def _heads(config: Mapping[str, Any], channels: Sequence[int], reads: bool, where: str) -> dict[str, Any]:
    """By a name that is wrong in diffusers, ``attention_head_dim`` is the number of heads where a text is read."""
    told = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    if not reads:
        return {"heads": None, "head_dim": told}
    if isinstance(told, int):
        return {"heads": told, "head_dim": None}
    dims = {w / h for w, h in zip(channels, told, strict=True)}
    if len(dims) > 1:
        raise ValueError(f"{where}: zoo's UNet has heads of one number or of one width in all stages, not {told}")
    return {"heads": None, "head_dim": int(dims.pop())}


def unet_config(a: Mapping[str, Any]) -> dict[str, Any]:
    """What diffusers' ``config.json`` says of a UNet of these arguments."""
    reads, channels = a["text_dim"] is not None, list(a["channels"])
    down, up = _stages(a["attention"], reads)
    heads: Any = a["heads"] if reads else a["head_dim"]
    if reads and a["head_dim"]:
        heads = [w // a["head_dim"] for w in channels]
    elif not reads and a["heads"]:
        raise ValueError(f"diffusers' UNet2DModel knows head_dim, not heads={a['heads']}: write it as zoo")
    classes = a["num_classes"]
    config = {
        "_class_name": "UNet2DConditionModel" if reads else "UNet2DModel", "attention_head_dim": heads,
        "block_out_channels": channels, "down_block_types": down, "up_block_types": up, "dropout": a["dropout"],
        "in_channels": a["in_channels"], "out_channels": a["out_channels"],
        "layers_per_block": a["blocks"], "norm_num_groups": a["groups"],
        "num_class_embeds": None if classes is None else classes + 1,
    }  # fmt: skip
    reading = {"cross_attention_dim": a["text_dim"], "use_linear_projection": a["linear_projection"]}
    return {**config, **reading} if reads else config


def _stages(attention: Sequence[bool], reads: bool) -> tuple[list[str], list[str]]:
    with_attention = "CrossAttn{}Block2D" if reads else "Attn{}Block2D"
    kinds = [with_attention if a else "{}Block2D" for a in attention]
    return [k.format("Down") for k in kinds], [k.format("Up") for k in reversed(kinds)]


def parse_vae_config(weights: Weights) -> dict[str, Any]:
    """Arguments of ``zoo.models.AutoencoderKL``."""
    config = weights.config
    _require_equal(config, _VAE, weights.source, "AutoencoderKL")
    return {
        "in_channels": config["in_channels"], "channels": list(config["block_out_channels"]),
        "blocks": config["layers_per_block"], "latent_channels": config["latent_channels"],
        "groups": config.get("norm_num_groups", 32), "scale": config.get("scaling_factor", 0.18215),
    }  # fmt: skip


def vae_config(a: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """What diffusers' ``config.json`` says of an autoencoder of these arguments."""
    n = len(a["channels"])
    return {
        "_class_name": "AutoencoderKL", "in_channels": a["in_channels"], "out_channels": a["in_channels"],
        "block_out_channels": list(a["channels"]), "down_block_types": ["DownEncoderBlock2D"] * n,
        "up_block_types": ["UpDecoderBlock2D"] * n, "layers_per_block": a["blocks"],
        "latent_channels": a["latent_channels"], "norm_num_groups": a["groups"], "scaling_factor": scale,
    }  # fmt: skip


_CLIP = {
    "vocab_size": "vocab_size", "max_length": "max_position_embeddings", "dim": "hidden_size",
    "depth": "num_hidden_layers", "heads": "num_attention_heads", "hidden": "intermediate_size",
    "activation": "hidden_act",
}  # fmt: skip
_CLIP_DEFAULTS = {  # of transformers, which leaves out of old files what is so
    "vocab_size": 49408, "max_length": 77, "dim": 512, "depth": 12, "heads": 8, "hidden": 2048,
    "activation": "quick_gelu",
}  # fmt: skip


def parse_text_config(weights: Weights) -> dict[str, Any]:
    """Arguments of ``zoo.models.CLIPTextEncoder``."""
    config = weights.config.get("text_config") or weights.config
    kind = weights.config.get("model_type", "clip_text_model")
    if not kind.startswith("clip"):
        raise ValueError(f"{weights.source} holds a text encoder of type {kind!r}; zoo's is CLIP's")
    return {ours: config.get(theirs, _CLIP_DEFAULTS[ours]) for ours, theirs in _CLIP.items()}


def text_config(a: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers' ``config.json`` says of a text tower of these arguments."""
    config = {theirs: a[ours] for ours, theirs in _CLIP.items()}
    # 2 makes transformers take the highest number for the end of a text, as OpenAI's does
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "layer_norm_eps": 1e-5}
    return {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **ends, **config}


def _require_equal(config: Mapping[str, Any], expected: Mapping[str, Any], where: str, what: str) -> None:
    for key, value in expected.items():
        given = config.get(key, value)
        if given != value and not (key == "act_fn" and given == "swish"):
            hint = " (Stable Diffusion XL)" if key in ("addition_embed_type", "transformer_layers_per_block") else ""
            raise ValueError(f"{where} is of another kind{hint}: zoo's {what} has {key}={value}, not {given}")
