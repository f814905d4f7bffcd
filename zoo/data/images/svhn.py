"""Street View House Numbers (Netzer et al. 2011, http://ufldl.stanford.edu/housenumbers/nips2011_housenumbers.pdf)."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from zoo.data.downloads import fetch
from zoo.data.images.downloadable import DownloadableImages
from zoo.terminal import printable


class SVHN(DownloadableImages):
    """SVHN: 99,289 photographs of digits of house numbers, 32x32 pixels, in 10 classes (Netzer et al. 2011,
    http://ufldl.stanford.edu/housenumbers/nips2011_housenumbers.pdf).

    Reads torchvision's files, ``train_32x32.mat`` and ``test_32x32.mat``, in ``<root>``.
    """

    num_classes = 10
    class_names: ClassVar[list[str]] = [str(i) for i in range(10)]
    native_channels = 3
    native_size = 32
    default_mean = [0.4377, 0.4438, 0.4728]
    default_std = [0.1980, 0.2010, 0.1970]
    download_size = "246 MB"

    def missing_files(self) -> list[str]:
        files = [self.source.split_list[part][1] for part in ("train", "test")]
        return [file for file in files if not (self.folder / file).is_file()]

    def download_files(self, missing: list[str]) -> None:
        for url, file, md5 in self.source.split_list.values():
            if file in missing:
                fetch(type(self).__name__, [url], self.folder, file, md5)

    def read(self, part: str) -> tuple[UInt8[Tensor, "n 3 32 32"], Int[Tensor, " n"]]:
        return read_mat(self.folder / self.source.split_list[part][1])


def read_mat(path: Path) -> tuple[UInt8[Tensor, "n 3 32 32"], Int[Tensor, " n"]]:
    """Return images and labels of a file in MATLAB's format.

    Raises:
        ValueError: the file is damaged, or holds anything else.
    """
    try:
        content = read_arrays(path.read_bytes())
    except (OSError, ValueError, struct.error, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({printable(error)}): delete it and use --data.download true") from None
    pixels = content.get("X")
    labels = content.get("y")
    if pixels is None or labels is None or pixels.shape != (32, 32, 3, len(labels)) or pixels.dtype != np.uint8:
        raise ValueError(f"{path} holds no images of SVHN: delete it and use --data.download true")
    images = torch.from_numpy(pixels).permute(3, 2, 0, 1).contiguous()  # (n, 3, 32, 32)
    classes = torch.from_numpy(labels.astype(np.int64)).flatten()  # (n,)
    # The digit 0 has label 10, as MATLAB counts from 1.
    return images, classes % 10


# MATLAB's format, version 5: a header of 128 bytes, then elements of a type, a size and as many bytes. Not read by
# scipy, which ends the process at some damaged files.

HEADER_SIZE = 128
LITTLE_ENDIAN = b"IM"
MATRIX = 14
COMPRESSED = 15
DTYPES = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
MAX_UNPACKED = 2**31  # bytes; the largest published file has 1.7 GB


def read_arrays(data: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of numbers in a file of MATLAB's format by their names.

    Args:
        data: the whole file.

    Raises:
        ValueError: it is damaged; struct.error and zlib.error, too.
    """
    if data[HEADER_SIZE - 2 : HEADER_SIZE] != LITTLE_ENDIAN:
        raise ValueError("it has no header of MATLAB")
    arrays = {}
    content = memoryview(data)
    position = HEADER_SIZE
    while position < len(content):
        kind, size = struct.unpack_from("<II", content, position)
        element = content[position + 8 : position + 8 + size]
        position += 8 + size
        if kind == COMPRESSED:
            element = memoryview(zlib.decompressobj().decompress(element, MAX_UNPACKED))
            kind, size = struct.unpack_from("<II", element)
            element = element[8 : 8 + size]
        if kind == MATRIX:
            name, array = _read_matrix(element)
            arrays[name] = array
    return arrays


def _read_matrix(content: memoryview) -> tuple[str, np.ndarray]:
    """Return name and values of an array: its flags, its shape, its name and its numbers follow each other."""
    parts = []
    position = 0
    for _ in range(4):
        kind, size = struct.unpack_from("<II", content, position)
        start = position + 8
        position = start + (size + 7) // 8 * 8
        if kind >> 16:  # of up to 4 bytes, the size is in the upper half of the type
            size = kind >> 16
            kind &= 0xFFFF
            position = start
            start -= 4
        if kind not in DTYPES or start + size > len(content):
            raise ValueError("an array ends too early, or is of no numbers")
        parts.append(np.frombuffer(content[start : start + size], DTYPES[kind]))
    _, shape, name, values = parts
    if min(shape, default=-1) < 0:
        raise ValueError("an array has no shape")
    return bytes(name).decode("latin-1"), values.reshape(tuple(map(int, shape)), order="F")
