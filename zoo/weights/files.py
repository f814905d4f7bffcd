"""Weights in files and folders: read as plain tensors only, written whole or not at all."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.checkpoint import ADAPTER_KEY
from zoo.checkpoints.ema_weights import with_ema
from zoo.checkpoints.hyperparameters import check_values
from zoo.checkpoints.integrity import SEALED_KEY, placeholder, seal, verify
from zoo.checkpoints.renames import upgrade, upgrade_header
from zoo.errors import UserError
from zoo.files import atomic_file
from zoo.terminal import printable
from zoo.trust.reading import MAX_JSON_SIZE, parse_json_object, read_text
from zoo.weights.preprocessing import huggingface_preprocessing, timm_preprocessing
from zoo.weights.tensors import LazyTensors

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
WRITABLE = SUFFIXES[:3]
# Names of the weights in a folder, without suffix: of transformers and timm (safetensors, torch), and of diffusers.
STEMS = ("model", "pytorch_model")
DIFFUSERS_STEMS = ("diffusion_pytorch_model", "diffusion_pytorch_model")
WRAPPERS = ("state_dict", "model", "net")  # keys of training scripts' checkpoints
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


@dataclass
class Weights:
    """The content of a file or folder of weights.

    Args:
        source: path or name for messages.
        state: parameters and buffers by the names of the file; those of safetensors are read when they are asked for.
        arguments: of the network's constructor, or of its module's, if zoo wrote the file.
        config: content of ``config.json`` beside the weights; empty if there is none.
        preprocessing: of the images that they were trained on, see :mod:`zoo.weights.preprocessing`.
    """

    source: str
    state: Mapping[str, Tensor]
    arguments: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        """Type of the first floating-point tensor; None if there is none."""
        for tensor in self.state.values():
            if tensor.is_floating_point():
                return tensor.dtype
        return None


def is_file_name(name: str) -> bool:
    """Return whether ``weights`` names a file or folder, rather than published weights."""
    return name.endswith(SUFFIXES) or os.sep in name or Path(name).exists()


# Reading --------------------------------------------------------------------------------------------------------------


def read(path: str | Path, stems: tuple[str, str] = STEMS) -> Weights:
    """Open a file of weights, or a folder with weights and ``config.json``.

    Args:
        path: ``.safetensors``; ``.pth``, ``.pt`` or ``.bin`` of tensors; a checkpoint of zoo, whose EMA weights are
            taken if it has them; or a folder of transformers, timm or diffusers, with one file or several shards.
        stems: names of the files in a folder, for safetensors and for torch.

    Raises:
        UserError: there is no such file, it is broken, or it holds more than tensors and plain values.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return read_folder(path, stems)
    if not path.is_file():
        raise UserError(f"weights: there is no file {path}")
    weights = read_file(path)
    if path.suffix != ".ckpt":
        weights.config = read_json(path.parent / "config.json", {})
    return weights


def read_file(path: Path) -> Weights:
    """Open one file."""
    content = open_file(path)
    if path.suffix == ".safetensors":
        header = parse_json_object((content.metadata() or {}).get("zoo", "{}"), path)
        for name in ("arguments", "preprocessing"):
            if not isinstance(header.get(name) or {}, dict):
                kind = type(header[name]).__name__
                raise UserError(f"{path}: {name} in its metadata are a {kind}, not values by name")
        arguments = upgrade_header(header.get("arguments") or {})
        state = LazyTensors(dict.fromkeys(content.keys(), path), {path: content})
        return Weights(str(path), state, arguments, preprocessing=header.get("preprocessing"))
    hyperparameters: dict[str, Any] = {}
    if isinstance(content, dict) and "state_dict" in content:
        check_values(content, path)
        if ADAPTER_KEY in content:
            raise UserError(f"weights: {path} holds a LoRA adapter alone, not the weights of a network")
        upgrade(content)
        content = with_ema(content)
        hyperparameters = dict(content.get("hyper_parameters") or {})
    state = unwrap(path, content)
    return Weights(str(path), state, hyperparameters, preprocessing=hyperparameters.get("preprocessing"))


def read_folder(folder: Path, stems: tuple[str, str] = STEMS) -> Weights:
    """Open the weights of a folder, with its ``config.json`` and ``preprocessor_config.json`` if there are any."""
    file = find_weights(folder, stems)
    weights = read_shards(file) if file.suffix == ".json" else read_file(file)
    weights.source = str(folder)
    weights.config = read_json(folder / "config.json", {})
    if weights.preprocessing is None:
        weights.preprocessing = timm_preprocessing(weights.config)
    if weights.preprocessing is None:
        weights.preprocessing = huggingface_preprocessing(read_json(folder / "preprocessor_config.json", {}))
    return weights


def find_weights(folder: Path, stems: tuple[str, str]) -> Path:
    """Return the file with the weights of a folder, or the index of several.

    Raises:
        UserError: there is none.
    """
    stem, torch_stem = stems
    whole = (f"{stem}.safetensors", f"{torch_stem}.bin")
    indexes = (f"{stem}.safetensors.index.json", f"{torch_stem}.bin.index.json")
    variants = (f"{stem}.*.safetensors", f"{torch_stem}.*.bin")  # such as model.fp16.safetensors
    for pattern in (*whole, *indexes, *variants):
        found = sorted(folder.glob(pattern))
        if found:
            return found[0]
    raise UserError(f"{folder} holds neither {' nor '.join(whole)}, nor the index of several ({indexes[0]})")


def read_shards(index: Path) -> Weights:
    """Open the files that an index names.

    Raises:
        UserError: a file is missing, or lacks a tensor that the index says it has.
    """
    files = read_json(index).get("weight_map") or {}
    if not isinstance(files, dict) or not files:
        raise UserError(f"{index} names no files")
    for name in files.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index} names a file outside of its folder: {printable(name)}")
    missing = sorted({name for name in files.values() if not (index.parent / name).is_file()})
    if missing:
        ending = ", ..." if len(missing) > 3 else ""
        raise UserError(f"{index} names {printable(', '.join(missing[:3]), 300)}{ending}, not there")
    opened = {}
    for name in sorted(set(files.values())):
        opened[index.parent / name] = open_file(index.parent / name)
    names = {tensor: index.parent / name for tensor, name in files.items()}
    for tensor, path in names.items():
        if tensor not in opened[path].keys():  # noqa: SIM118
            raise UserError(f"{index} says that {path.name} holds {printable(tensor, 200)}, but it does not")
    return Weights(str(index), LazyTensors(names, opened))


def open_file(path: Path) -> Any:
    """Open one file without reading its tensors: that of safetensors, or what ``torch.save`` wrote.

    Raises:
        UserError: it is broken, or holds more than tensors and plain values.
    """
    verify(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(path, "pt", device="cpu").__enter__()
        except SafetensorError:
            raise UserError(f"{path} is no whole file of weights") from None
    mapped = zipfile.is_zipfile(path)  # so that what is copied from it is in memory once
    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=mapped)
    except Exception as error:
        if "weights_only" in str(error) or "Weights only" in str(error):
            raise UserError(f"{path} holds Python objects, which could run code; only plain tensors are read") from None
        raise UserError(f"{path} is no whole file of weights") from None


def unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    """Return the state dict of the network in a file of torch, without the wrappings of training scripts."""
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not the state of a network")
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    # In a LightningModule the network is net; its losses and metrics have parameters and buffers, too.
    is_module = any(key.startswith("net.") for key in content)
    state = {}
    for key, value in content.items():
        if is_module and not key.startswith("net."):
            continue
        key = key.removeprefix("net.") if is_module else key
        for prefix in PREFIXES:
            key = key.removeprefix(prefix)
        state[key] = value
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state of a network")
    return state


def read_json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the object in a JSON file; ``default`` if there is no such file.

    Raises:
        UserError: there is no such file and no default, or it holds something else.
    """
    if not path.exists():
        if default is not None:
            return default
        raise UserError(f"{path.parent} holds no {path.name}")
    try:
        content = json.loads(read_text(path, MAX_JSON_SIZE))
    except UserError:
        raise
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not JSON") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


# Writing --------------------------------------------------------------------------------------------------------------


def write(path: str | Path, state: Mapping[str, Tensor], **metadata: Any) -> None:
    """Write weights to ``.safetensors``, ``.pth`` or ``.pt``; ``metadata`` goes into a safetensors header."""
    path = Path(path)
    if path.suffix not in WRITABLE:
        raise UserError(f"weights are written to a {', '.join(WRITABLE)} file, not to {path.name!r}")
    copies = copy_tensors(state, state)
    with atomic_file(path) as new:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            own = json.dumps({SEALED_KEY: 1, **metadata})
            save_file(copies, new, {"format": "pt", "zoo": own, **placeholder()})
        else:
            torch.save(copies, new)
        seal(new)


def copy_tensors(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Return contiguous copies on the CPU, as safetensors allows no tensor to be a part of another."""
    copies = {}
    for name in names:
        copies[name] = state[name].detach().cpu().clone(memory_format=torch.contiguous_format)
    return copies
