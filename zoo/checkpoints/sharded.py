"""Sharded checkpoints: folders that torch.distributed.checkpoint reads with pickle, checked before it does.

It unpickles the index of the folder, ``.metadata``, and every value that is not a tensor. Here the index may name the
few classes that it consists of, and the other values must be plain ones.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from zoo.errors import UserError

INDEX = ".metadata"
OTHER_VALUES = "meta.pt"  # where Lightning puts all but the weights and optimizer states
MAX_INDEX_SIZE = 512 * 2**20  # bytes

_METADATA = "torch.distributed.checkpoint.metadata"
_NAMES = {
    _METADATA: {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "WindowsPath"},
    "collections": {"OrderedDict"},
}


def check_sharded(folder: Path) -> None:
    """Raise an error for a folder that is no sharded checkpoint, or whose reading could run code.

    Raises:
        UserError: in one line, with the file.
    """
    index = folder / INDEX
    if not index.is_file():
        if (folder / OTHER_VALUES).is_file():  # nothing to unpickle: this one is read as plain tensors
            return
        raise UserError(f"{folder} is a folder without {INDEX}, so it is no sharded checkpoint")
    if index.stat().st_size > MAX_INDEX_SIZE:
        raise UserError(f"{index} has more than {MAX_INDEX_SIZE // 2**20} MiB, so it is no index of a checkpoint")
    try:
        metadata = _Unpickler(io.BytesIO(index.read_bytes())).load()
        entries = metadata.state_dict_metadata
        places = metadata.storage_data
        for where, place in places.items():
            name = place.relative_path
            if not isinstance(name, str) or Path(name).name != name:
                raise UserError(f"{index} names a file outside of its folder")
            if getattr(place, "transform_descriptors", None):
                raise UserError(f"{index} names a transformation of {name}, which zoo does not read")
            if type(entries[where.fqn]).__name__ == "BytesStorageMetadata":
                _check_value(folder / name, place.offset, place.length)
    except UserError:
        raise
    except Exception:  # pickle raises whatever a damaged file brings it to
        raise UserError(f"{index} is not the index of a sharded checkpoint") from None


def _check_value(path: Path, offset: int, length: int) -> None:
    with path.open("rb") as file:
        file.seek(offset)
        content = io.BytesIO(file.read(length))
    try:
        torch.load(content, weights_only=True)
    except Exception:
        raise UserError(f"{path} holds Python objects, which could run code; only plain tensors are read") from None


class _Unpickler(pickle.Unpickler):
    """Reads an index, and finds no names but those of its classes and of torch's dtypes."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _NAMES.get(module, ()):
            return super().find_class(module, name)
        raise UserError(f"the index of the checkpoint holds Python objects, which could run code: {module}.{name}")
