"""New images for prediction, of any format, size and colour, as the images that a model was trained on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.images.image_files import decode, pixels_of, reason
from zoo.data.images.pixels import GREY_MODES, open_image
from zoo.data.images.resizing import ResizeView
from zoo.data.new_samples import is_paths
from zoo.data.sources import STDIN, find_images_of, read_stdin
from zoo.distributed import say
from zoo.errors import UserError

MAX_INSPECTED = 50  # headers that are read for what is said about them
MIN_FOR_THREADS = 4
READS = "images: files, folders, patterns"


def collect_images(source: Any) -> tuple[list[Any], list[str]]:
    """Return the images that a source names, and the name of each.

    Args:
        source: paths; or images of Pillow, tensors ``(c, h, w)`` or ``(b, c, h, w)``, arrays ``(h, w)``, ``(h, w, c)``
            or ``(b, h, w, c)``; one or a list.

    Returns:
        Paths, images of Pillow, bytes of a file, or tensors ``(c, h, w)``; and names, empty but for files.
    """
    if is_paths(source):
        items: list[Any] = []
        names = []
        for name in source if isinstance(source, (list, tuple)) else [source]:
            if str(name) == STDIN:
                items.append(read_stdin())
                names.append(STDIN)
                continue
            files = find_images_of(name, READS, items)
            items += files
            names += map(str, files)
        return items, names
    return list(_pictures(source)), []


def _pictures(source: Any) -> Any:
    from PIL import Image

    if isinstance(source, Image.Image):
        yield source
    elif isinstance(source, Tensor):
        yield from _tensors(source)
    elif isinstance(source, np.ndarray):
        yield from _tensors(_channels_first(source))
    elif isinstance(source, (list, tuple)):
        for item in source:
            yield from _pictures(Path(item) if isinstance(item, str) else item)
    elif isinstance(source, Path):
        yield source
    else:
        raise UserError(f"images are needed: paths, images of Pillow, arrays or tensors; got {type(source).__name__}")


def _channels_first(array: np.ndarray) -> Tensor:
    if array.ndim in (3, 4) and array.shape[-1] in (1, 3, 4) and (array.ndim == 4 or array.shape[0] not in (1, 3)):
        array = np.moveaxis(array, -1, -3)  # (b, c, h, w)
    return torch.from_numpy(np.ascontiguousarray(array))


def _tensors(tensor: Tensor) -> Sequence[Tensor]:
    """Return images ``(c, h, w)``, bytes or floats in [0, 1]."""
    if tensor.dtype == torch.bool or tensor.ndim not in (2, 3, 4):
        raise UserError(f"images (c, h, w) or (b, c, h, w) are needed, got {tuple(tensor.shape)} of {tensor.dtype}")
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.ndim == 3:
        # Of three dimensions the first is the channels, or else the images.
        tensor = tensor[None] if tensor.shape[0] in (1, 3, 4) else tensor[:, None]
    if tensor.shape[1] not in (1, 3, 4):
        raise UserError(f"images have 1, 3 or 4 channels: got {tuple(tensor.shape)}, not (b, c, h, w)")
    if tensor.is_floating_point():
        tensor = tensor.float()
        low, high = (float(value) for value in tensor.aminmax()) if tensor.numel() else (0.0, 0.0)
        if not 0 <= low <= high <= 1:
            raise UserError(
                f"images are bytes, or floats from 0 to 1: got {low:.4g} to {high:.4g}; "
                "call the module itself for inputs that are normalized already"
            )
    elif tensor.dtype != torch.uint8:
        if tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) <= 255:
            raise UserError(f"images are bytes from 0 to 255: got {int(tensor.min())} to {int(tensor.max())}")
        tensor = tensor.to(torch.uint8)
    return list(tensor)


class NewImages(Dataset):
    """Images that are decoded when they are read; one that cannot be read is black, and noted in ``failed``.

    Args:
        items: paths, bytes of files, images of Pillow, or tensors ``(c, h, w)``.
        channels: 1 for grey, 3 for colour.
        size: height and width; null keeps that of each image, which must be the same.
        view: how to resize and crop.
        complete: what is done to the images of a batch, such as normalization; null leaves it to the datamodule.
    """

    def __init__(
        self,
        items: Sequence[Any],
        channels: int,
        size: tuple[int, int] | None,
        view: ResizeView,
        complete: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.items = items
        self.channels = channels
        self.size = size
        self.view = view
        self.complete = complete
        self.failed: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        return self.batch(torch.tensor([index]))[0]

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return ThreadPoolExecutor(count)

    def batch(self, indices: Tensor) -> Tensor:
        numbers = indices.tolist()
        read = self._pool.map if len(numbers) >= MIN_FOR_THREADS else map
        images = list(read(self._read, numbers))
        shapes = {tuple(image.shape) for image in images if image is not None}
        if len(shapes) > 1:
            sizes = ", ".join(f"{width}x{height}" for _, height, width in sorted(shapes)[:2])
            raise UserError(f"the images differ in size ({sizes}): give --data.image_size")
        shape = shapes.pop() if shapes else (self.channels, *(self.size or (32, 32)))
        images = [torch.zeros(shape, dtype=torch.uint8) if image is None else image for image in images]
        if any(image.is_floating_point() for image in images):
            images = [image if image.is_floating_point() else image / 255 for image in images]
        x = torch.stack(images)  # (b, c, h, w)
        return x if self.complete is None else self.complete(x)

    def _read(self, index: int) -> Tensor | None:
        item = self.items[index]
        try:
            if isinstance(item, Tensor):
                return self._of_tensor(item)
            if isinstance(item, (Path, bytes)):
                pixels = decode(item, self.channels, self.size, self.view)
            else:
                pixels = pixels_of(item, self.channels, self.size, self.view)
        except Exception as error:  # a damaged file makes decoders raise anything
            self.failed[index] = reason(error, item if isinstance(item, Path) else Path())
            return None
        return torch.from_numpy(pixels.copy())

    def _of_tensor(self, image: Tensor) -> Tensor:
        """Return a tensor as it is where it fits, else by way of an image of Pillow, in bytes."""
        if image.shape[0] == self.channels and self.size in (None, tuple(image.shape[1:])):
            return image
        from torchvision.transforms.v2.functional import to_pil_image

        if image.is_floating_point():
            image = (image * 255).round().to(torch.uint8)
        return torch.from_numpy(pixels_of(to_pil_image(image), self.channels, self.size, self.view).copy())

    def say_changes(self) -> None:
        """Print how images are changed to fit the model, by some of them."""
        step = -(-len(self.items) // MAX_INSPECTED)
        changes = []
        for item in self.items[::step]:
            try:
                grey, size = _header(item)
            except Exception:  # what is wrong with it is reported when it is read
                continue
            if self.size is not None and size != self.size:
                height, width = self.size
                changes.append(f"resized to {width}x{height} pixels (one has {size[1]}x{size[0]})")
            if self.channels == 1 and not grey:
                changes.append("converted to grey")
            if self.channels == 3 and grey:
                changes.append("taken as colour")
        kinds = {change.partition("(")[0]: change for change in reversed(changes)}
        if kinds:
            say(f"images that differ from those of training are {', '.join(sorted(kinds.values(), reverse=True))}")


def _header(item: Any) -> tuple[bool, tuple[int, int]]:
    """Return whether an image is grey, and its height and width."""
    if isinstance(item, Tensor):
        return item.shape[0] == 1, (item.shape[1], item.shape[2])
    if isinstance(item, (Path, bytes)):
        with open_image(item) as image:
            return image.mode.split(";")[0] in GREY_MODES, (image.height, image.width)
    return item.mode.split(";")[0] in GREY_MODES, (item.height, item.width)
