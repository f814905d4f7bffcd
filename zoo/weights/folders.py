"""Model directories of transformers, written shard by shard: ``config.json`` beside safetensors files."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.errors import UserError
from zoo.files import one_line_for_disk_errors, remove_abandoned, temporary_path
from zoo.weights.files import copy_tensors

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = "model-{:05d}-of-{:05d}.safetensors"
# Files of weights that a directory may hold already.
WEIGHT_FILES = r"(model|pytorch_model)[-.].*(safetensors|bin|json)"
MAX_SHARD_SIZE = 5 * 10**9  # bytes


def write_folder(
    folder: str | Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, Tensor],
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """Write a model directory as transformers does, whole or not at all.

    All files are written beside the folder first. A folder that exists keeps its other files, such as a tokenizer.

    Args:
        folder: where to.
        config: content of ``config.json``.
        tensors: by the names of the file; read and copied shard by shard.
        shapes: the same on the meta device.
        max_shard_size: bytes; larger weights are split into several files with an index.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, but a model directory is to be written")
    with one_line_for_disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder)
        new = temporary_path(folder)
        new.mkdir()
        try:
            shards = split_into_shards(shapes, max_shard_size)
            for file, names in shards.items():
                save_file(copy_tensors(tensors, names), new / file, {"format": "pt"})
            if len(shards) > 1:
                _write_json(new / INDEX, index_of(shards, shapes))
            _write_json(new / "config.json", config)
            _replace(folder, new)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def split_into_shards(shapes: Mapping[str, Tensor], limit: int) -> dict[str, list[str]]:
    """Return the tensors of each file; files are filled one after the other, as transformers does."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in shapes.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    if len(shards) == 1:
        return {WHOLE: shards[0]}
    return {SHARD.format(i, len(shards)): shard for i, shard in enumerate(shards, 1)}


def index_of(shards: Mapping[str, list[str]], shapes: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the content of the index of several files."""
    files = {}
    for file, names in shards.items():
        files |= dict.fromkeys(names, file)
    totals = {
        "total_parameters": sum(tensor.numel() for tensor in shapes.values()),
        "total_size": sum(tensor.nbytes for tensor in shapes.values()),
    }
    return {"metadata": totals, "weight_map": files}


def _replace(folder: Path, new: Path) -> None:
    """Rename a new folder to its place, or its files into the folder there, instead of all weights that it held."""
    if not folder.exists():
        os.replace(new, folder)
        return
    old = {path.name for path in folder.iterdir() if re.fullmatch(WEIGHT_FILES, path.name)}
    written = sorted(path.name for path in new.iterdir())
    for name in written:
        os.replace(new / name, folder / name)
    for name in old.difference(written):
        (folder / name).unlink()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
