"""Single-file checkpoints of Stable Diffusion 1.x and 2.x: the original code's parameter names, and diffusers'."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.distributed import say
from zoo.errors import UserError
from zoo.weights.files import Weights
from zoo.weights.tensors import NamedTensors

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer.text_model."
OPEN_CLIP = "cond_stage_model.model."
PREFIXES = {"unet": (UNET,), "vae": (VAE,), "text_encoder": (CLIP, OPEN_CLIP)}
# Beginnings of names in checkpoints of other models.
OTHERS = {
    "conditioner.embedders.": "Stable Diffusion XL",
    f"{UNET}joint_blocks.": "Stable Diffusion 3",
    f"{UNET}double_blocks.": "Flux",
    "control_model.": "a ControlNet",
}
_RES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_CLIP_LAYER = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
_QKV = ("q_proj", "k_proj", "v_proj")
# Tensors in files that no network uses. Of OpenCLIP's layers, Stable Diffusion 2 leaves out the last.
_IGNORED_KEYS = r"position_ids$|text_projection$|logit_scale$|attn_mask$"


@dataclass(frozen=True)
class Location:
    """Name of a tensor in a file, and which third of it is meant where three stand one below the other."""

    name: str
    third: int | None = None


class TranslatedTensors(NamedTensors):
    """A file's tensors by diffusers' names.

    Args:
        names: location of each.
        state: the file's tensors.
    """

    def __init__(self, names: Mapping[str, Location], state: Mapping[str, Tensor]) -> None:
        super().__init__(names)
        self.state = state

    def __getitem__(self, name: str) -> Tensor:
        location = self.names[name]
        tensor = self.state[location.name]
        if location.third is None:
            return tensor
        return tensor.chunk(3)[location.third]


def is_single_file(names: Iterable[str]) -> bool:
    """Return whether these are the names of a whole pipeline in one file."""
    starts = tuple(OTHERS)
    for prefixes in PREFIXES.values():
        starts += prefixes
    return any(name.startswith(starts) for name in names)


def infer_config(weights: Weights, part: str) -> dict[str, Any]:
    """Return the constructor's arguments of one network in a single file, as far as shapes show them.

    Raises:
        UserError: the file is of another version, or lacks the network.
    """
    for start, kind in OTHERS.items():
        if any(name.startswith(start) for name in weights.state):
            raise UserError(f"{weights.source} is a checkpoint of {kind}; zoo reads Stable Diffusion 1.x and 2.x")
    for prefix in PREFIXES[part]:
        own = {name.removeprefix(prefix): name for name in weights.state if name.startswith(prefix)}
        if own:
            break
    else:
        present = [
            other for other, starts in PREFIXES.items() if any(name.startswith(starts) for name in weights.state)
        ]
        raise UserError(f"{weights.source} holds no {part}, only {', '.join(present)}")
    infer = {"unet": _infer_unet, "vae": _infer_vae, "text_encoder": _infer_text_encoder}[part]
    try:
        return infer(own, weights.state)
    except KeyError as error:
        raise UserError(f"{weights.source} is no whole {part} of Stable Diffusion: it lacks {error}") from None


def from_ldm(part: str, names: Iterable[str], arguments: Mapping[str, Any], weights: Weights) -> Mapping[str, Tensor]:
    """Return a single file's tensors of one network by diffusers' names; unknown ones keep their own.

    Args:
        part: which network.
        names: of its parameters.
        arguments: of its constructor.
        weights: the file.
    """
    found = {}
    for name, location in locations(part, names, arguments).items():
        if location.name in weights.state:
            found[name] = location
    known = {location.name for location in found.values()}
    ignored = _IGNORED_KEYS
    if part == "text_encoder":
        ignored += rf"|resblocks\.{arguments['depth']}\."
    for name in weights.state:
        if name.startswith(PREFIXES[part]) and name not in known and not re.search(ignored, name):
            found[name] = Location(name)
    return TranslatedTensors(found, weights.state)


def to_ldm(part: str, state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a network's state dict by the original code's names."""
    if part == "unet" and arguments.get("text_dim") is None:
        raise UserError("a single file holds a UNet that reads texts; this one reads none (text_dim=null)")
    translated: dict[str, Tensor] = {}
    thirds: dict[str, list[Tensor]] = {}
    for name, location in locations(part, state, arguments).items():
        tensor = state[name]
        if location.third is not None:
            thirds.setdefault(location.name, []).append(tensor)
            continue
        if part == "vae" and tensor.ndim == 2:  # the original autoencoder has its linear layers as convolutions
            tensor = tensor[:, :, None, None]  # (out, in, 1, 1)
        translated[location.name] = tensor
    for name, parts in thirds.items():
        translated[name] = torch.cat(parts)
    return translated


def predicts_velocity(weights: Weights) -> bool:
    """Return whether a file's UNet predicts velocities, by a marker in it, or else by the size of its text states."""
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
    """Return where a single file has each parameter; thirds of one tensor come one after the other."""
    if part == "text_encoder":
        open_clip = arguments["activation"] == "gelu"
        return {name: _text_location(name, open_clip) for name in sorted(names, key=_qkv_order)}
    if part == "unet":
        prefix = UNET
        starts = _unet_table(arguments)
    else:
        prefix = VAE
        starts = _vae_table(arguments)
    found = {}
    for name in names:
        owner = name.rpartition(".")[0]
        while owner and owner not in starts:
            owner = owner.rpartition(".")[0]
        if owner:
            found[name] = Location(prefix + starts[owner] + name.removeprefix(owner))
    return found


def _unet_table(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return the table from diffusers' modules to the original's, which numbers the blocks of all stages in one row."""
    table = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        **_under("mid_block.resnets.0", "middle_block.0", _RES),
        "mid_block.attentions.0": "middle_block.1",
        **_under("mid_block.resnets.1", "middle_block.2", _RES),
    }
    num_stages = len(arguments["channels"])
    block = 1
    for i in range(num_stages):
        for j in range(arguments["blocks"]):
            table |= _under(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{block}.0", _RES)
            table[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{block}.1"
            block += 1
        table[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{block}.0.op"
        block += 1
    block = 0
    for i in range(num_stages):
        for j in range(arguments["blocks"] + 1):
            table |= _under(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{block}.0", _RES)
            table[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{block}.1"
            block += 1
        # Upsampling comes after the attention, in the same block of the original.
        has_attention = arguments["attention"][num_stages - 1 - i]
        place = 2 if has_attention else 1
        table[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{block - 1}.{place}.conv"
    return table


def _vae_table(arguments: Mapping[str, Any]) -> dict[str, str]:
    table = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    last = len(arguments["channels"]) - 1
    blocks = arguments["blocks"]
    table |= _coder_table("encoder")
    for i in range(last + 1):
        table |= _stage_table("encoder", "down", i, i, blocks)
    table |= _coder_table("decoder")
    for i in range(last + 1):
        # The original numbers stages from the largest images.
        table |= _stage_table("decoder", "up", i, last - i, blocks + 1)
    return table


def _coder_table(coder: str) -> dict[str, str]:
    """Return the names in encoder or decoder outside of the stages."""
    return {
        f"{coder}.conv_in": f"{coder}.conv_in",
        f"{coder}.conv_out": f"{coder}.conv_out",
        f"{coder}.conv_norm_out": f"{coder}.norm_out",
        **_under(f"{coder}.mid_block.attentions.0", f"{coder}.mid.attn_1", _VAE_ATTENTION),
        f"{coder}.mid_block.resnets.0": f"{coder}.mid.block_1",
        f"{coder}.mid_block.resnets.1": f"{coder}.mid.block_2",
    }


def _stage_table(coder: str, direction: str, ours: int, theirs: int, blocks: int) -> dict[str, str]:
    """Return the names in one stage, by its number in diffusers and in the original."""
    stage = f"{coder}.{direction}_blocks.{ours}"
    original = f"{coder}.{direction}.{theirs}"
    table = {f"{stage}.{direction}samplers.0": f"{original}.{direction}sample"}
    for j in range(blocks):
        table[f"{stage}.resnets.{j}"] = f"{original}.block.{j}"
        table[f"{stage}.resnets.{j}.conv_shortcut"] = f"{original}.block.{j}.nin_shortcut"
    return table


def _under(ours: str, theirs: str, table: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}.{inner}": f"{theirs}.{original}" for inner, original in table.items()}


def _text_location(name: str, open_clip: bool) -> Location:
    if not open_clip:
        return Location(CLIP + name)
    if name == "embeddings.position_embedding.weight":
        return Location(f"{OPEN_CLIP}positional_embedding")
    layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if layer is None:
        return Location(OPEN_CLIP + name.replace("embeddings.", "", 1).replace("final_layer_norm", "ln_final"))
    number, inner, kind = layer.groups()
    block = f"{OPEN_CLIP}transformer.resblocks.{number}"
    attention, _, projection = inner.partition(".")
    if projection in _QKV:
        return Location(f"{block}.attn.in_proj_{kind}", _QKV.index(projection))
    if attention == "self_attn":
        return Location(f"{block}.attn.out_proj.{kind}")
    return Location(f"{block}.{_CLIP_LAYER[inner]}.{kind}")


def _qkv_order(name: str) -> str:
    """Return a key by which queries, keys and values are sorted in this order."""
    for i, part in enumerate(_QKV):
        if part in name:
            return name.replace(part, str(i))
    return name


# Sizes ----------------------------------------------------------------------------------------------------------------


def _infer_unet(own: Mapping[str, str], state: Mapping[str, Tensor]) -> dict[str, Any]:
    channels = []
    attention = []
    blocks = 0
    block = 1
    while f"input_blocks.{block}.0.in_layers.2.bias" in own:
        channels.append(len(state[own[f"input_blocks.{block}.0.in_layers.2.bias"]]))
        attention.append(f"input_blocks.{block}.1.norm.weight" in own)
        blocks = 0
        while f"input_blocks.{block}.0.in_layers.2.bias" in own:
            blocks += 1
            block += 1
        block += 1  # the convolution that halves the resolution
    arguments = {
        "in_channels": state[own["input_blocks.0.0.weight"]].shape[1],
        "out_channels": len(state[own["out.2.bias"]]),
        "channels": channels,
        "blocks": blocks,
        "attention": attention,
        "text_dim": state[own["middle_block.1.transformer_blocks.0.attn2.to_k.weight"]].shape[1],
        "linear_projection": state[own["middle_block.1.proj_in.weight"]].ndim == 2,
    }
    # Shapes do not show the heads: version 1 has 8 of them in all stages, version 2 heads of dimension 64.
    if arguments["linear_projection"]:
        arguments["head_dim"] = 64
    else:
        arguments["heads"] = 8
    return arguments


def _infer_vae(own: Mapping[str, str], state: Mapping[str, Tensor]) -> dict[str, Any]:
    channels = []
    while f"encoder.down.{len(channels)}.block.0.conv1.bias" in own:
        channels.append(len(state[own[f"encoder.down.{len(channels)}.block.0.conv1.bias"]]))
    blocks = [name for name in own if re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.bias", name)]
    return {
        "in_channels": len(state[own["decoder.conv_out.bias"]]),
        "channels": channels,
        "blocks": len(blocks),
        "latent_channels": len(state[own["post_quant_conv.bias"]]),
        "scale": 0.18215,
    }


def _infer_text_encoder(own: Mapping[str, str], state: Mapping[str, Tensor]) -> dict[str, Any]:
    open_clip = "positional_embedding" in own
    if open_clip:
        tokens = "token_embedding.weight"
        positions = "positional_embedding"
        layers = "transformer.resblocks"
        fc = "mlp.c_fc"
    else:
        tokens = "embeddings.token_embedding.weight"
        positions = "embeddings.position_embedding.weight"
        layers = "encoder.layers"
        fc = "mlp.fc1"
    vocab_size, dim = state[own[tokens]].shape
    numbers = [int(name.removeprefix(f"{layers}.").partition(".")[0]) for name in own if name.startswith(f"{layers}.")]
    depth = max(numbers, default=0) + 1
    return {
        "vocab_size": vocab_size,
        "max_length": len(state[own[positions]]),
        "dim": dim,
        "depth": depth - 1 if open_clip else depth,  # the last of OpenCLIP is left out
        "heads": max(1, dim // 64),
        "hidden": len(state[own[f"{layers}.0.{fc}.bias"]]),
        "activation": "gelu" if open_clip else "quick_gelu",
    }
