"""Networks that latent diffusion uses and does not train: where they come from, and whether two are the same."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints import Checkpoint
from zoo.models.autoencoder_kl import AutoencoderKL
from zoo.models.clip_text import CLIPTextEncoder
from zoo.weights.folders import open_file
from zoo.weights.formats.diffusers import Part
from zoo.weights.formats.ldm import PREFIXES


def open_autoencoder(source: str | dict[str, Any]) -> AutoencoderKL:
    """An autoencoder that is not trained any more.

    Args:
        source: a checkpoint, a folder of diffusers or a single-file checkpoint of Stable Diffusion, or sizes alone.
    """
    if isinstance(source, dict):
        found = AutoencoderKL(**source)
    elif not Path(source).expanduser().exists():
        raise ValueError(f"no autoencoder {source}: a checkpoint or a folder of diffusers is needed")
    elif Path(source).suffix == ".ckpt":
        found = _from_checkpoint(Path(source).expanduser())
    else:
        found = AutoencoderKL.from_pretrained(source, dtype=torch.float32)
    return found.eval().requires_grad_(False)


def _from_checkpoint(path: Path) -> AutoencoderKL:
    try:
        checkpoint = Checkpoint(path, model="AutoencoderKLModule")
        given = checkpoint.model_arguments
        state = checkpoint.state_dict()
        state = {key.removeprefix("net."): value for key, value in state.items() if key.startswith("net.")}
        names = ("in_channels", "channels", "blocks", "latent_channels", "groups")
        found = AutoencoderKL(**{name: given[name] for name in names})
        found.load_state_dict(state)
    except Exception:
        raise ValueError(f"{path} is no whole checkpoint of an AutoencoderKLModule") from None
    images = checkpoint.metadata.get("datamodule_hyper_parameters") or {}
    if any(value != 0.5 for name in ("mean", "std") for value in images.get(name) or ()):
        scaled = f"mean {images['mean']} and std {images['std']}"
        raise ValueError(f"the autoencoder {path} was trained on images with {scaled}; diffusion takes [0.5] for both")
    return found


def open_text_encoder(source: str | dict[str, Any]) -> CLIPTextEncoder:
    """A text encoder that is not trained any more.

    Args:
        source: a folder of diffusers or a single-file checkpoint of Stable Diffusion, or sizes alone.
    """
    if isinstance(source, dict):
        found = CLIPTextEncoder(**source)
    elif not Path(source).expanduser().exists():
        raise ValueError(f"no text encoder {source}: a folder of diffusers is needed")
    else:
        found = CLIPTextEncoder.from_pretrained(source, dtype=torch.float32)
    return found.eval().requires_grad_(False)


def pipeline_containing(part: Part, weights: str | None) -> str | None:
    """Where weights are, if it is a pipeline's folder or single file that holds another part, too; else None."""
    if weights is None:
        return None
    path = Path(weights).expanduser()
    if not path.exists():
        raise ValueError(f"weights: there is no file or folder {weights}")
    if path.suffix != ".safetensors":
        return weights if (path / part / "config.json").is_file() else None
    return weights if any(name.startswith(PREFIXES[part]) for name in open_file(path).keys()) else None  # noqa: SIM118


def states_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two states hold the same numbers."""
    return a.keys() == b.keys() and all(torch.equal(a[name].cpu(), b[name].cpu()) for name in a)


def digest(state: dict[str, Tensor]) -> str:
    """A hash of numbers and of their names."""
    found = hashlib.sha256()
    for name, value in state.items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.cpu().contiguous().numpy().data)
    return found.hexdigest()
