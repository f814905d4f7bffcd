"""Weights in files: read as plain tensors only, written whole or not at all."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.ema_weights import with_ema
from zoo.checkpoints.integrity import SEALED_KEY, placeholder, seal, verify
from zoo.checkpoints.renames import upgrade, upgrade_header
from zoo.files import atomic_file
from zoo.weights.preprocessing import huggingface_preprocessing, timm_preprocessing

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


@dataclass
class Weights:
    """What a file of weights holds.

    Args:
        source: how to call it in a message: its path or name.
        state: parameters and buffers, by the names that the file gives them.
        arguments: of the network's constructor, where zoo wrote the file.
        config: what ``config.json`` beside it says, where another library wrote it.
        preprocessing: what the images have to look like, see :class:`zoo.weights.PretrainedNet`.
    """

    source: str
    state: dict[str, Tensor]
    arguments: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        """Type of the first tensor of floating-point numbers; None if there is none."""
        for tensor in self.state.values():
            if tensor.is_floating_point():
                return tensor.dtype
        return None


def is_file_name(name: str) -> bool:
    """Whether ``weights`` means a file or folder, rather than a published name."""
    return name.endswith(SUFFIXES) or os.sep in name or Path(name).exists()


def read(path: str | Path, device: str = "cpu") -> Weights:
    """Read a file of weights, or a folder with ``model.safetensors`` and ``config.json``.

    Args:
        path: ``.safetensors``; ``.pth`` or ``.pt`` of tensors; a checkpoint of zoo, of which the averages are taken
            where it has them; or a folder as Hugging Face and timm save it.
        device: ``meta`` reads no weights, only names, shapes and what else the file tells.

    Raises:
        ValueError: there is no such file, it is broken, or it holds more than tensors and plain values.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _read_folder(path, device)
    if not path.is_file():
        raise ValueError(f"weights: there is no file {path}")
    verify(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path, device)
    try:
        mapped = zipfile.is_zipfile(path)  # so that what is copied from it is in memory once
        content = torch.load(path, weights_only=True, map_location=device, mmap=mapped)
    except Exception as error:
        if "weights_only" in str(error) or "Weights only" in str(error):
            raise ValueError(
                f"{path} holds Python objects, which could run code; only plain tensors are read"
            ) from None
        raise ValueError(f"{path} is no whole file of weights") from None
    known = {}
    if isinstance(content, dict) and "state_dict" in content:
        upgrade(content)
        content = with_ema(content)
        known = content.get("hyper_parameters") or {}
    return Weights(str(path), _tensors(path, content), dict(known), {}, known.get("preprocessing"))


def _read_safetensors(path: Path, device: str) -> Weights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt", device="cpu") as file:
            metadata = json.loads((file.metadata() or {}).get("zoo", "{}"))
            if device == "meta":
                shapes = {k: file.get_slice(k).get_shape() for k in file.keys()}  # noqa: SIM118
                state = {k: torch.empty(shape, device="meta") for k, shape in shapes.items()}
            else:
                state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except SafetensorError:
        raise ValueError(f"{path} is no whole file of weights") from None
    arguments = upgrade_header(metadata.get("arguments", {}))
    return Weights(str(path), state, arguments, {}, metadata.get("preprocessing"))


def _read_folder(folder: Path, device: str) -> Weights:
    found = [folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).exists()]
    if not found:
        raise ValueError(f"{folder} holds neither model.safetensors nor pytorch_model.bin")
    weights = read(found[0], device)
    weights.source, weights.config = str(folder), _json(folder / "config.json")
    if weights.preprocessing is None:
        processor = _json(folder / "preprocessor_config.json")
        weights.preprocessing = timm_preprocessing(weights.config) or huggingface_preprocessing(processor)
    return weights


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        raise ValueError(f"{path} is not JSON") from None


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """The parameters and buffers in what ``torch.load`` returned, without the wrappings of training scripts."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not the state of a network")
    inner = next((content[k] for k in ("state_dict", "model", "net") if isinstance(content.get(k), Mapping)), content)
    state = dict(inner)
    if any(k.startswith("net.") for k in state):  # a LightningModule's, of which only the network counts
        state = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
    state = {k.removeprefix("module.").removeprefix("_orig_mod."): v for k, v in state.items()}
    if not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} holds no state of a network")
    return state


def write(path: str | Path, state: Mapping[str, Tensor], **metadata: Any) -> None:
    """Write weights to ``.safetensors``, ``.pth`` or ``.pt``; ``metadata`` goes into a safetensors header."""
    path = Path(path)
    if path.suffix not in SUFFIXES[:3]:
        raise ValueError(f"weights are written to a {', '.join(SUFFIXES[:3])} file, not to {path.name!r}")
    state = {k: v.detach().to("cpu", memory_format=torch.contiguous_format).clone() for k, v in state.items()}

    def save(new: Path) -> None:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            own = json.dumps({SEALED_KEY: 1, **metadata})
            save_file(state, new, {"format": "pt", "zoo": own, **placeholder()})
        else:
            torch.save(state, new)
        seal(new)

    with atomic_file(path) as new:
        save(new)
