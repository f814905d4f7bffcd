"""Plot samples of an image generation model during training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from zoo.callbacks.output_folder import output_folder
from zoo.callbacks.plots.figures import DPI, save_and_log_figure

MIN_SIDE = 48  # pixels of the shorter side of an image in a grid; smaller images are enlarged


class ImageSamples(L.Callback):
    """Sample images from a generative model after validation, from the same noise each time.

    ``samples.png`` in the run folder is replaced each time and logged as ``samples`` to loggers that accept images.
    Works with any module that has ``sample(n, seed=..., ...)``, as ``Diffusion`` has; with EMA, the EMA weights are
    sampled from. Sampling does not change the training run. One image is sampled in Lightning's sanity check, so that
    options which the model does not support fail before training; likewise under ``fast_dev_run``, where no file is
    written. Logs no metrics.

    Args:
        n: number of images.
        every_n_validations: number of validations between two plots.
        steps: number of sampling steps.
        sampler: name of the sampler.
        guidance_scale: scale of classifier-free guidance; 1 is no guidance.
        texts: prompts, used in turn, for a text-conditional model.
        seed: seed of the noise.
        dirpath: output folder; null for the run folder.
    """

    def __init__(
        self,
        n: int = 40,
        every_n_validations: int = 1,
        steps: int = 20,
        sampler: str = "dpm++",
        guidance_scale: float = 1.0,
        texts: list[str] | None = None,
        seed: int = 0,
        dirpath: str | None = None,
    ) -> None:
        if n < 1 or every_n_validations < 1:
            raise ValueError(
                f"n and every_n_validations must be at least 1: got n={n}, every_n_validations={every_n_validations}"
            )
        self.n = n
        self.every_n_validations = every_n_validations
        self.dirpath = dirpath
        self.options: dict[str, Any] = {
            "steps": steps,
            "sampler": sampler,
            "guidance_scale": guidance_scale,
            "seed": seed,
        }
        self.texts = texts
        self._folder = Path()
        self._validations = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # log_dir is a collective call, so it is read here and not where only rank 0 writes.
        self._folder = output_folder(trainer, self.dirpath)
        if not hasattr(pl_module, "sample"):
            raise ValueError(
                "ImageSamples needs a model that generates images, with a `sample` method;"
                f" {type(pl_module).__name__} has none"
            )

    # on_validation_end would be too late: EMA has put the trained weights back by then.
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._generate(pl_module, 1)
            return
        if not trainer.is_global_zero:
            return
        self._validations += 1
        if self._validations % self.every_n_validations:
            return
        images = self._generate(pl_module, self.n)
        # One class per column where the model is class-conditional.
        num_classes = len(getattr(pl_module, "class_names", []))
        figure = plot_image_samples(images, num_classes or None)
        save_and_log_figure(trainer, figure, self._folder / "samples.png")

    def _generate(self, pl_module: Any, n: int) -> Float[Tensor, "n c h w"]:
        options = dict(self.options)
        if self.texts:
            options["texts"] = [self.texts[i % len(self.texts)] for i in range(n)]
        return pl_module.sample(n, **options)

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]


def plot_image_samples(images: Float[Tensor, "n c h w"], columns: int | None = None) -> Any:
    """Return a matplotlib figure of images in a grid.

    Args:
        images: pixels in [0, 1].
        columns: images per row; null for a square grid.
    """
    from matplotlib.figure import Figure

    grid = tile_images(images, columns)  # (3, h, w)
    pixels = grid.permute(1, 2, 0).numpy()
    height, width, _ = pixels.shape
    # A tenth of a pixel more, as matplotlib rounds the size in pixels down.
    figure = Figure(figsize=((width + 0.1) / DPI, (height + 0.1) / DPI))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.imshow(pixels, interpolation="nearest")
    return figure


def tile_images(images: Float[Tensor, "n c h w"], columns: int | None = None) -> Float[Tensor, "3 i j"]:
    """Return a grid of images as one image; small images are enlarged by an integer factor.

    Args:
        images: pixels in [0, 1]; of images with neither 1 nor 3 channels, the first channel is shown.
        columns: images per row; null for a square grid.
    """
    from torchvision.utils import make_grid

    factor = max(1, math.ceil(MIN_SIDE / min(images.shape[2:])))
    images = F.interpolate(images, scale_factor=factor, mode="nearest")
    if images.shape[1] not in (1, 3):
        images = images[:, :1]  # (n, 1, h, w)
    if not columns:
        columns = math.ceil(math.sqrt(len(images)))
    return make_grid(images, nrow=columns, padding=2, pad_value=1.0)
