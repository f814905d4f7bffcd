"""Single-file checkpoints of Stable Diffusion 1.x and 2.x: the original code's names, and diffusers' for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.distributed import say
from zoo.weights.files import Weights
from zoo.weights.tensors import NamedTensors

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
PREFIXES = {"unet": (UNET,), "vae": (VAE,), "text_encoder": (CLIP, OPEN_CLIP)}
# What other versions have and these do not.
OTHERS = {
    "conditioner.embedders.": "Stable Diffusion XL",
    f"{UNET}joint_blocks.": "Stable Diffusion 3",
    f"{UNET}double_blocks.": "Flux",
    "control_model.": "a ControlNet",
}
_RES = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_CLIP_LAYER = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
_QKV = ("q_proj", "k_proj", "v_proj")
# What files hold beside the parameters that are used: of OpenCLIP's layers, Stable Diffusion 2 leaves out the last.
_IGNORED_KEYS = r"position_ids$|text_projection$|logit_scale$|attn_mask$"


@dataclass(frozen=True)
class Location:
    """Where a file has a tensor: under which name, and which third of it where three stand one below the other."""

    name: str
    third: int | None = None


class TranslatedTensors(NamedTensors):
    """A file's tensors by diffusers' names.

    Args:
        names: place of each.
        state: the file's tensors.
    """

    def __init__(self, names: Mapping[str, Location], state: Mapping[str, Tensor]) -> None:
        super().__init__(names)
        self.state = state

    def __getitem__(self, name: str) -> Tensor:
        place = self.names[name]
        tensor = self.state[place.name]
        return tensor if place.third is None else tensor.chunk(3)[place.third]


def is_single_file(names: Iterable[str]) -> bool:
    """Whether these are the names of a whole pipeline in one file."""
    starts = (*(p for prefixes in PREFIXES.values() for p in prefixes), *OTHERS)
    return any(name.startswith(starts) for name in names)


def infer_config(weights: Weights, part: str) -> dict[str, Any]:
    """The constructor's arguments of one network in a single file, as far as shapes tell."""
    for start, kind in OTHERS.items():
        if any(name.startswith(start) for name in weights.state):
            raise ValueError(f"{weights.source} is a checkpoint of {kind}; zoo reads Stable Diffusion 1.x and 2.x")
    prefix = next((p for p in PREFIXES[part] if any(k.startswith(p) for k in weights.state)), None)
    if prefix is None:
        has = ", ".join(p for p, starts in PREFIXES.items() if any(k.startswith(starts) for k in weights.state))
        raise ValueError(f"{weights.source} holds no {part}, only {has}")
    own = {k.removeprefix(prefix): k for k in weights.state if k.startswith(prefix)}
    try:
        return {"unet": _infer_unet, "vae": _infer_vae, "text_encoder": _infer_text_encoder}[part](own, weights.state)
    except KeyError as error:
        raise ValueError(f"{weights.source} is no whole {part} of Stable Diffusion: it lacks {error}") from None


def from_ldm(part: str, names: Iterable[str], arguments: Mapping[str, Any], weights: Weights) -> Mapping[str, Tensor]:
    """A single file's tensors of one network by diffusers' names; what has no such name keeps its own.

    Args:
        part: which network.
        names: of its parameters.
        arguments: of its constructor.
        weights: the file.
    """
    found = {k: p for k, p in locations(part, names, arguments).items() if p.name in weights.state}
    known = {place.name for place in found.values()}
    ignored_keys = _IGNORED_KEYS + (rf"|resblocks\.{arguments['depth']}\." if part == "text_encoder" else "")
    spare = [k for k in weights.state if k.startswith(PREFIXES[part]) and k not in known]
    found |= {k: Location(k) for k in spare if not re.search(ignored_keys, k)}
    return TranslatedTensors(found, weights.state)


def to_ldm(part: str, state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """A network's state by the original code's names."""
    if part == "unet" and arguments.get("text_dim") is None:
        raise ValueError("a single file holds a UNet that reads texts; this one reads none (text_dim=null)")
    new: dict[str, Tensor] = {}
    thirds: dict[str, list[Tensor]] = {}
    for name, place in locations(part, state, arguments).items():
        tensor = state[name]
        if place.third is not None:
            thirds.setdefault(place.name, []).append(tensor)
        else:  # the original autoencoder has its linear layers as convolutions
            new[place.name] = tensor[:, :, None, None] if part == "vae" and tensor.ndim == 2 else tensor
    return new | {name: torch.cat(parts) for name, parts in thirds.items()}


def predicts_velocity(weights: Weights) -> bool:
    """Whether a file's UNet predicts velocities: told by a marker, or else by the text that it reads."""
    if "v_pred" in weights.state:
        return True
    if weights.config.get("text_dim") != 1024:
        return False
    if "global_step" in weights.state and int(weights.state["global_step"]) == 875000:
        return False  # the base model, of 512 pixels
    say(f"{weights.source} is of Stable Diffusion 2: taken to predict v, as all do but the base model of 512 pixels")
    return True


# Names ----------------------------------------------------------------------------------------------------------------


def locations(part: str, names: Iterable[str], arguments: Mapping[str, Any]) -> dict[str, Location]:
    """Where a single file has each parameter; ``names`` in their order, so that thirds come one after the other."""
    if part == "text_encoder":
        return {name: _text_location(name, arguments["activation"] == "gelu") for name in sorted(names, key=_qkv_order)}
    table, prefix = (_unet_table, UNET) if part == "unet" else (_vae_table, VAE)
    starts = table(arguments)
    found = {}
    for name in names:
        owner = name.rpartition(".")[0]
        while owner and owner not in starts:
            owner = owner.rpartition(".")[0]
        if owner:
            found[name] = Location(prefix + starts[owner] + name.removeprefix(owner))
    return found


def _unet_table(a: Mapping[str, Any]) -> dict[str, str]:
    table = {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
        **_under("mid_block.resnets.0", "middle_block.0", _RES), "mid_block.attentions.0": "middle_block.1",
        **_under("mid_block.resnets.1", "middle_block.2", _RES),
    }  # fmt: skip
    n, down, up = len(a["channels"]), 1, 0
    for i in range(n):
        for j in range(a["blocks"]):
            table |= _under(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{down}.0", _RES)
            table[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{down}.1"
            down += 1
        table[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{down}.0.op"
        down += 1
    for i in range(n):
        for j in range(a["blocks"] + 1):
            table |= _under(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{up}.0", _RES)
            table[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{up}.1"
            up += 1
        behind = 2 if a["attention"][n - 1 - i] else 1
        table[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{up - 1}.{behind}.conv"
    return table


def _vae_table(a: Mapping[str, Any]) -> dict[str, str]:
    table = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    n = len(a["channels"])
    for coder, way in (("encoder", "down"), ("decoder", "up")):
        table |= {f"{coder}.{end}": f"{coder}.{end}" for end in ("conv_in", "conv_out")}
        table[f"{coder}.conv_norm_out"] = f"{coder}.norm_out"
        table |= _under(f"{coder}.mid_block.attentions.0", f"{coder}.mid.attn_1", _VAE_ATTENTION)
        table |= {f"{coder}.mid_block.resnets.{j}": f"{coder}.mid.block_{j + 1}" for j in (0, 1)}
        for i in range(n):
            level = i if way == "down" else n - 1 - i  # the original counts from the largest image
            ours, theirs = f"{coder}.{way}_blocks.{i}", f"{coder}.{way}.{level}"
            for j in range(a["blocks"] + (way == "up")):
                table[f"{ours}.resnets.{j}"] = f"{theirs}.block.{j}"
                table[f"{ours}.resnets.{j}.conv_shortcut"] = f"{theirs}.block.{j}.nin_shortcut"
            table[f"{ours}.{way}samplers.0"] = f"{theirs}.{way}sample"
    return table


def _under(ours: str, theirs: str, table: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in table.items()}


def _text_location(name: str, open_clip: bool) -> Location:
    if not open_clip:
        return Location(CLIP + name)
    layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if layer is None:
        ends = {"embeddings.position_embedding.weight": "positional_embedding"}
        plain = name.replace("embeddings.", "", 1).replace("final_layer_norm", "ln_final")
        return Location(OPEN_CLIP + ends.get(name, plain))
    number, inner, kind = layer.groups()
    block = f"{OPEN_CLIP}transformer.resblocks.{number}"
    attention, _, projection = inner.partition(".")
    if projection in _QKV:
        return Location(f"{block}.attn.in_proj_{kind}", _QKV.index(projection))
    return Location(f"{block}.{'attn.out_proj' if attention == 'self_attn' else _CLIP_LAYER[inner]}.{kind}")


def _qkv_order(name: str) -> str:
    return next((name.replace(part, str(i)) for i, part in enumerate(_QKV) if part in name), name)


# Sizes ----------------------------------------------------------------------------------------------------------------


def _infer_unet(own: Mapping[str, str], state: Mapping[str, Tensor]) -> dict[str, Any]:
    channels, attention, blocks, k = [], [], 0, 1
    first, last = state[own["input_blocks.0.0.weight"]], state[own["out.2.bias"]]
    while f"input_blocks.{k}.0.in_layers.2.bias" in own:
        channels.append(len(state[own[f"input_blocks.{k}.0.in_layers.2.bias"]]))
        attention.append(f"input_blocks.{k}.1.norm.weight" in own)
        blocks = 0
        while f"input_blocks.{k}.0.in_layers.2.bias" in own:
            blocks, k = blocks + 1, k + 1
        k += 1  # the convolution that halves the image
    text = state[own["middle_block.1.transformer_blocks.0.attn2.to_k.weight"]].shape[1]
    linear = state[own["middle_block.1.proj_in.weight"]].ndim == 2
    # Shapes do not tell about heads: version 1 has 8 of them everywhere, version 2 heads of width 64.
    heads: dict[str, Any] = {"head_dim": 64} if linear else {"heads": 8}
    return {
        "in_channels": first.shape[1], "out_channels": len(last), "channels": channels, "blocks": blocks,
        "attention": attention, "text_dim": text, "linear_projection": linear, **heads,
    }  # fmt: skip


def _infer_vae(own: Mapping[str, str], state: Mapping[str, Tensor]) -> dict[str, Any]:
    channels = []
    while (key := f"encoder.down.{len(channels)}.block.0.conv1.bias") in own:
        channels.append(len(state[own[key]]))
    blocks = len({k for k in own if re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.bias", k)})
    in_channels = len(state[own["decoder.conv_out.bias"]])
    latent = len(state[own["post_quant_conv.bias"]])
    return {
        "in_channels": in_channels, "channels": channels, "blocks": blocks, "latent_channels": latent, "scale": 0.18215,
    }  # fmt: skip


def _infer_text_encoder(own: Mapping[str, str], state: Mapping[str, Tensor]) -> dict[str, Any]:
    open_clip = "positional_embedding" in own
    tokens, places = (
        ("token_embedding.weight", "positional_embedding")
        if open_clip
        else ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight")
    )
    layer, fc = ("transformer.resblocks", "mlp.c_fc") if open_clip else ("encoder.layers", "mlp.fc1")
    vocab_size, dim = state[own[tokens]].shape
    depth = 1 + max(int(found[1]) for k in own if (found := re.match(rf"{layer}\.(\d+)\.", k)))
    return {
        "vocab_size": vocab_size, "max_length": len(state[own[places]]), "dim": dim, "depth": depth - open_clip,
        "heads": max(1, dim // 64), "hidden": len(state[own[f"{layer}.0.{fc}.bias"]]),
        "activation": "gelu" if open_clip else "quick_gelu",
    }  # fmt: skip
