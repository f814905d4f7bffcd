"""Frozen networks of latent diffusion: reading them from checkpoints and pipelines, and comparing their weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints import Checkpoint
from zoo.models.autoencoder_kl import AutoencoderKL
from zoo.models.clip_text import CLIPTextEncoder
from zoo.weights.files import open_file
from zoo.weights.formats.diffusers import Part
from zoo.weights.formats.ldm import PREFIXES

# Arguments of an AutoencoderKLModule that are those of its network.
AUTOENCODER_ARGUMENTS = ("in_channels", "channels", "blocks", "latent_channels", "groups")


def open_autoencoder(source: str | dict[str, Any]) -> AutoencoderKL:
    """Return a frozen autoencoder, in eval mode.

    Args:
        source: a zoo checkpoint, a diffusers folder or a single-file checkpoint of Stable Diffusion; or, where weights
            are still to be loaded, the arguments of the autoencoder.

    Raises:
        ValueError: there is no such file, or it holds no autoencoder for images in [-1, 1].
    """
    if isinstance(source, dict):
        return freeze(AutoencoderKL(**source))
    path = Path(source).expanduser()
    if not path.exists():
        raise ValueError(f"no autoencoder {source}: a checkpoint or a diffusers folder is needed")
    if path.suffix == ".ckpt":
        return freeze(_from_checkpoint(path))
    return freeze(AutoencoderKL.from_pretrained(source, dtype=torch.float32))


def open_text_encoder(source: str | dict[str, Any]) -> CLIPTextEncoder:
    """Return a frozen text encoder, in eval mode.

    Args:
        source: a diffusers folder or a single-file checkpoint of Stable Diffusion; or, where weights are still to be
            loaded, the arguments of the text encoder.

    Raises:
        ValueError: there is no such file, or it holds no text encoder.
    """
    if isinstance(source, dict):
        return freeze(CLIPTextEncoder(**source))
    if not Path(source).expanduser().exists():
        raise ValueError(f"no text encoder {source}: a diffusers folder is needed")
    return freeze(CLIPTextEncoder.from_pretrained(source, dtype=torch.float32))


def freeze(net: Any) -> Any:
    """Return a network in eval mode, without gradients."""
    return net.eval().requires_grad_(False)


def _from_checkpoint(path: Path) -> AutoencoderKL:
    """Return the autoencoder in a checkpoint of an ``AutoencoderKLModule``, with its EMA weights if there are any."""
    try:
        checkpoint = Checkpoint(path, model="AutoencoderKLModule")
        arguments = checkpoint.model_arguments
        autoencoder = AutoencoderKL(**{name: arguments[name] for name in AUTOENCODER_ARGUMENTS})
        state = {}
        for name, value in checkpoint.state_dict().items():
            if name.startswith("net."):
                state[name.removeprefix("net.")] = value
        autoencoder.load_state_dict(state)
    except Exception:
        # Whatever a file that is none brings the steps above to.
        raise ValueError(f"{path} is not a whole checkpoint of an AutoencoderKLModule") from None
    data = checkpoint.metadata.get("datamodule_hyper_parameters") or {}
    statistics = [*(data.get("mean") or ()), *(data.get("std") or ())]
    if any(value != 0.5 for value in statistics):
        raise ValueError(
            f"the autoencoder {path} was trained on images with mean {data.get('mean')} and std {data.get('std')}; "
            "diffusion needs images in [-1, 1]: mean and std of 0.5"
        )
    return autoencoder


def pipeline_containing(part: Part, weights: str | None) -> str | None:
    """Return the path of weights if it is a pipeline, a folder or a single file, that also contains a part; else None.

    Args:
        part: ``vae``, ``text_encoder`` or ``unet``.
        weights: path of the weights of the U-Net, or None.

    Raises:
        ValueError: there is no such file or folder.
    """
    if weights is None:
        return None
    path = Path(weights).expanduser()
    if not path.exists():
        raise ValueError(f"weights: there is no file or folder {weights}")
    if path.suffix == ".safetensors":
        # A single file holds all parts, with a prefix for each.
        names = open_file(path).keys()
        contains_part = any(name.startswith(PREFIXES[part]) for name in names)
    else:
        contains_part = (path / part / "config.json").is_file()
    if not contains_part:
        return None
    return weights


def states_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Return whether two state dicts have the same names and values."""
    if a.keys() != b.keys():
        return False
    return all(torch.equal(a[name].cpu(), b[name].cpu()) for name in a)


def digest(state: dict[str, Tensor]) -> str:
    """Return a SHA-256 hash of the names, dtypes, shapes and values of tensors."""
    sha = hashlib.sha256()
    for name, value in state.items():
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.cpu().contiguous().numpy().data)
    return sha.hexdigest()
