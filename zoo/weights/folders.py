"""Model directories of Hugging Face: ``config.json`` beside safetensors files, whole or in shards."""

from __future__ import annotations

import abc
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.integrity import verify
from zoo.checkpoints.renames import upgrade_header
from zoo.weights.files import Weights, read

WHOLE = ("model.safetensors", "pytorch_model.bin")
INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


class NamedTensors(Mapping[str, Tensor]):
    """Tensors by name, each read or made when asked for.

    Args:
        names: the names, and for each what is needed to find its tensor.
    """

    def __init__(self, names: Mapping[str, Any]) -> None:
        self.names = names

    @abc.abstractmethod
    def __getitem__(self, name: str) -> Tensor:
        """Read or make a tensor."""

    def __contains__(self, name: object) -> bool:
        return name in self.names  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class LazyTensors(NamedTensors):
    """Tensors in one or several memory-mapped files.

    Args:
        names: file of each.
        opened: the files.
    """

    def __init__(self, names: Mapping[str, Path], opened: Mapping[Path, Any]) -> None:
        super().__init__(names)
        self.opened = opened

    def __getitem__(self, name: str) -> Tensor:
        file = self.opened[self.names[name]]
        return file[name] if isinstance(file, Mapping) else file.get_tensor(name)


class RenamedTensors(NamedTensors):
    """Tensors by other names than their file gives them.

    Args:
        state: the tensors.
        names: from the new name to the file's.
    """

    def __init__(self, state: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        super().__init__(names)
        self.state = state

    def __getitem__(self, name: str) -> Tensor:
        return self.state[self.names[name]]


# Reading --------------------------------------------------------------------------------------------------------------


def open_weights(path: str | Path) -> Weights:
    """Open a model directory, or a file of weights; of a directory no tensor is read before it is asked for.

    Args:
        path: a folder with ``config.json`` and ``model.safetensors`` (or ``pytorch_model.bin``), or the index of
            several; or a file, see :func:`zoo.weights.read`.

    Raises:
        ValueError: there is no such file or folder, a shard is missing, or a file is broken.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        weights = _open_zoo(path) if path.suffix == ".safetensors" and path.is_file() else read(path)
        weights.config = read_json(path.parent / "config.json", {}) if path.suffix != ".ckpt" else {}
        return weights
    config = read_json(path / "config.json")
    if found := next((path / name for name in WHOLE if (path / name).exists()), None):
        opened = {found: open_file(found)}
        return Weights(str(path), LazyTensors(dict.fromkeys(opened[found].keys(), found), opened), config=config)  # type: ignore[arg-type]
    index = next((path / name for name in INDEX if (path / name).exists()), None)
    if index is None:
        raise ValueError(f"{path} holds neither {', '.join(WHOLE)} nor the index of several ({INDEX[0]})")
    shards = read_json(index).get("weight_map", {})
    missing = sorted({name for name in shards.values() if not (path / name).is_file()})
    if missing or not shards:
        which = f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}, not there" if missing else "no files"
        raise ValueError(f"{index} names {which}")
    opened = {path / name: open_file(path / name) for name in sorted(set(shards.values()))}
    absent = [k for k, name in shards.items() if k not in opened[path / name].keys()]  # noqa: SIM118
    if absent:
        raise ValueError(f"{index} says that {shards[absent[0]]} holds {absent[0]}, but it does not")
    return Weights(str(path), LazyTensors({k: path / name for k, name in shards.items()}, opened), config=config)  # type: ignore[arg-type]


def _open_zoo(path: Path) -> Weights:
    file = open_file(path)
    metadata = json.loads((file.metadata() or {}).get("zoo", "{}"))
    state: Any = LazyTensors(dict.fromkeys(file.keys(), path), {path: file})
    arguments = upgrade_header(metadata.get("arguments", {}))
    return Weights(str(path), state, arguments, {}, metadata.get("preprocessing"))


def open_file(path: Path) -> Any:
    """Map one file into memory, without reading its tensors."""
    verify(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(path, "pt", device="cpu").__enter__()
        except SafetensorError:
            raise ValueError(f"{path} is no whole file of weights") from None
    try:
        content = torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except Exception as error:
        if "weights_only" in str(error) or "Weights only" in str(error):
            raise ValueError(f"{path} holds Python objects, which could run code; only tensors are read") from None
        raise ValueError(f"{path} is no whole file of weights") from None
    return {k: v for k, v in content.items() if isinstance(v, Tensor)}


def read_json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    if not path.exists() and default is not None:
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} holds no {path.name}") from None
    except ValueError:
        raise ValueError(f"{path} is not JSON") from None


# Writing --------------------------------------------------------------------------------------------------------------


def write_folder(
    folder: str | Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, Tensor],
    max_shard_size: int = 5 * 10**9,
) -> None:
    """Write a model directory as transformers does, whole or not at all.

    All files are written beside the folder first. A folder that exists keeps what else is in it, such as a tokenizer.

    Args:
        folder: where to.
        config: content of ``config.json``.
        tensors: by the names of the file, asked for and copied shard by shard.
        shapes: the same on the meta device.
        max_shard_size: bytes from which on there are several files and an index.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, but a model directory is to be written")
    new = folder.with_name(f"{folder.name}.new-{os.getpid()}")
    new.mkdir(parents=True)
    try:
        shards = _shards(shapes, max_shard_size)
        for file, names in shards.items():
            # copies, as the format knows no tensor that is a part of another
            copies = {k: tensors[k].detach().cpu().clone(memory_format=torch.contiguous_format) for k in names}
            save_file(copies, new / file, {"format": "pt"})
        if len(shards) > 1:
            size, count = sum(v.nbytes for v in shapes.values()), sum(v.numel() for v in shapes.values())
            found = {k: file for file, names in shards.items() for k in names}
            index = {"metadata": {"total_parameters": count, "total_size": size}, "weight_map": found}
            _write_json(new / INDEX[0], index)
        _write_json(new / "config.json", config)
        _move(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _move(new: Path, folder: Path) -> None:
    """Rename a folder, or its files into the one that is there, in place of all weights that it held."""
    if not folder.exists():
        os.replace(new, folder)
        return
    old = {
        p.name for p in folder.iterdir() if re.fullmatch(r"(model|pytorch_model)[-.].*(safetensors|bin|json)", p.name)
    }
    written = sorted(p.name for p in new.iterdir())
    for name in written:
        os.replace(new / name, folder / name)
    for name in old.difference(written):
        (folder / name).unlink()


def _shards(shapes: Mapping[str, Tensor], limit: int) -> dict[str, list[str]]:
    """Fill file after file, in order, as transformers does."""
    parts, size = [[]], 0
    for name, tensor in shapes.items():
        if parts[-1] and size + tensor.nbytes > limit:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += tensor.nbytes
    n = len(parts)
    return {WHOLE[0] if n == 1 else f"model-{i:05d}-of-{n:05d}.safetensors": part for i, part in enumerate(parts, 1)}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
