"""Images of a diffusion model: the model, the PNG files with their metadata, and the progress of sampling."""

from __future__ import annotations

import difflib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.callbacks.plots.image_samples import tile_images
from zoo.checkpoints import Checkpoint, Weights
from zoo.errors import UserError
from zoo.files import atomic_folder
from zoo.models import LatentDiffusion
from zoo.tasks.diffusion import Diffusion
from zoo.weights.files import open_file
from zoo.weights.formats.ldm import is_single_file

# Errors list no more classes than this.
MAX_NAMES = 20
SECONDS_BETWEEN_LINES = 60

# The model ------------------------------------------------------------------------------------------------------------


def load_diffusion(path: Path, weights: Weights = "auto", tokenizer: str | None = None) -> Diffusion:
    """Load a diffusion model.

    Args:
        path: a checkpoint, a folder of diffusers, or a single file of Stable Diffusion.
        weights: ``auto`` takes EMA weights if the checkpoint has any.
        tokenizer: folder with the tokenizer, for a single file, which holds none.

    Raises:
        UserError: if it is no diffusion model, or the tokenizer is missing.
    """
    is_file = path.suffix == ".safetensors" and path.is_file()
    if is_file or (path / "model_index.json").is_file():
        if is_file:
            check_single_file(path, tokenizer)
        if weights == "ema":
            raise UserError(f"{path} holds no EMA weights")
        return LatentDiffusion.from_pretrained(path, tokenizer=tokenizer)
    if tokenizer is not None and path.exists():
        raise UserError(f"--tokenizer is for a file or folder of Stable Diffusion, which {path} is not")
    model = Checkpoint(path).build(weights)
    if not isinstance(model, Diffusion):
        raise UserError(f"{path} holds a {type(model).__name__}, which is not a diffusion model")
    return model


def check_single_file(path: Path, tokenizer: str | None) -> None:
    """Raise a UserError if a file is not a whole Stable Diffusion, or comes without a tokenizer."""
    if not is_single_file(open_file(path).keys()):
        raise UserError(
            f"{path} holds the weights of a network alone: give a checkpoint of `zoo fit` or a pipeline of diffusers"
        )
    if tokenizer is None:
        raise UserError(f"{path} holds no tokenizer: give the folder of Stable Diffusion's with --tokenizer DIR")


def class_index(model: Diffusion, name: str) -> int:
    """Return the index of a class, given by its name or its index.

    Raises:
        UserError: if the model has no such class.
    """
    names = model.class_names
    if name in names:
        return names.index(name)
    if name.isdigit() and int(name) < len(names):
        return int(name)
    if not names:
        raise UserError(f"--class {name}: this model has no classes (condition: {model.condition})")
    similar = difflib.get_close_matches(name, names, 2)
    if similar:
        raise UserError(f"--class {name}: no such class; did you mean {' or '.join(similar)}?")
    dots = ", ..." if len(names) > MAX_NAMES else ""
    raise UserError(f"--class {name}: no such class; there are {', '.join(names[:MAX_NAMES])}{dots}")


# Files ----------------------------------------------------------------------------------------------------------------


def write_images(
    images: Float[Tensor, "n c h w"],
    out: Path,
    metadata: Mapping[str, Any],
    class_names: Sequence[str] = (),
    label: int | None = None,
) -> None:
    """Write images and a grid of them to a folder, whole or not at all, each with its metadata as PNG text.

    Args:
        images: pixels from 0 to 1.
        out: the folder, new or empty.
        metadata: how the images were generated; None values are left out.
        class_names: the classes; empty for a model without.
        label: class index of all images; None if they are of each class in turn.
    """
    metadata = {key: value for key, value in metadata.items() if value is not None}
    digits = max(3, len(str(len(images) - 1)))
    columns = None
    if class_names and label is None and len(images) > len(class_names):
        columns = len(class_names)  # a column for each class
    with atomic_folder(out) as folder:
        for i, image in enumerate(images):
            texts = dict(metadata)
            if class_names:
                texts["class"] = class_names[i % len(class_names) if label is None else label]
            texts["number"] = i
            write_png(image, folder / f"{i:0{digits}}.png", texts)
        write_png(tile_images(images, columns), folder / "grid.png", {**metadata, "n": len(images)})


def write_png(image: Float[Tensor, "c h w"], path: Path, texts: Mapping[str, Any]) -> None:
    """Write an image of 1 or 3 channels as PNG with texts; of other numbers of channels the first one."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Software", "zoo sample")
    for key, value in texts.items():
        info.add_itxt(key, str(value))
    pixels = (image * 255).round().to(torch.uint8)
    array = pixels[0].numpy()  # (h, w)
    if len(pixels) == 3:
        array = pixels.permute(1, 2, 0).numpy()  # (h, w, 3)
    Image.fromarray(array).save(path, pnginfo=info)


# Progress -------------------------------------------------------------------------------------------------------------


class SamplingProgress:
    """Progress of sampling with the time left: a bar on a terminal, else one line a minute. A context manager.

    Args:
        num_images: number of images.
        batch_size: images per batch.
        steps: sampling steps of each batch.
    """

    def __init__(self, num_images: int, batch_size: int, steps: int) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.steps = steps
        self.total = num_images * steps
        self.bar: Any = None
        self.began = time.monotonic()
        self.printed = self.began

    def __enter__(self) -> SamplingProgress:
        if sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("sampling"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(),
                TextColumn("left"),
                transient=True,
            )
            self.bar.start()
            self.task = self.bar.add_task("", total=self.total)
        return self

    def update(self, start: int, step: int) -> None:
        """Show the progress.

        Args:
            start: index of the first image of the batch.
            step: steps done for the batch.
        """
        in_batch = min(self.batch_size, self.num_images - start)
        done = start * self.steps + step * in_batch
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.task, completed=done)
        elif now - self.printed > SECONDS_BETWEEN_LINES:
            self.printed = now
            left = (now - self.began) * (self.total - done) / done
            print(f"sampling: {done / self.total:.0%}, {left / 60:.0f} min left", flush=True)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
