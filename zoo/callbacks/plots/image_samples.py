"""What a model that makes images makes by now."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from zoo.callbacks.gradients.heat_map import log_figure
from zoo.callbacks.output_folder import output_folder
from zoo.callbacks.plots.image_grid import DPI, save_figure

MIN_SIDE = 48  # pixels that an image in a grid has at least


class ImageSamples(L.Callback):
    """Let a model that makes images make some after a validation, always of the same noise.

    ``samples.png`` in the run folder is drawn anew each time, and handed to loggers that take pictures as ``samples``.
    Works with any module that has ``sample(n, seed=..., ...)``, as ``Diffusion`` has; where there are averages of the
    weights, these make them. Training goes on as if there were no pictures. One image is made in Lightning's check
    before training, so that a wish that cannot be met is told then; under fast_dev_run, too, where none is kept. Logs
    no numbers.

    Args:
        n: images.
        every_n_validations: validations from one picture to the next.
        steps: of the sampler.
        sampler: its name.
        guidance_scale: 1 is the condition alone, above 1 exaggerates it.
        texts: what to make images of, one after the other, where the model reads texts.
        seed: of the noise.
        dirpath: folder of the picture; null is the run folder.
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
                f"n and every_n_validations start at 1: got n={n}, every_n_validations={every_n_validations}"
            )
        self.n, self.every_n_validations, self.dirpath = n, every_n_validations, dirpath
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
        # All processes have to ask for log_dir together, so not later, when only the first one draws.
        self._folder = output_folder(trainer, self.dirpath)
        if not hasattr(pl_module, "sample"):
            raise ValueError(f"ImageSamples draws models that make images, and {type(pl_module).__name__} makes none")

    # Before the end of the validation, where averages make way for the trained weights again.
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
        figure, path = (
            plot_image_samples(images, len(getattr(pl_module, "class_names", [])) or None),
            self._folder / "samples.png",
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        save_figure(figure, path)
        for logger in trainer.loggers:
            log_figure(logger, figure, path, trainer.global_step)

    def _generate(self, pl_module: Any, n: int) -> Float[Tensor, "n c h w"]:
        prompts = {"texts": [self.texts[i % len(self.texts)] for i in range(n)]} if self.texts else {}
        return pl_module.sample(n, **self.options, **prompts)

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]


def plot_image_samples(images: Float[Tensor, "n c h w"], columns: int | None = None) -> Any:
    """A matplotlib figure of images side by side.

    Args:
        images: with pixels from 0 to 1.
        columns: images in a row; null makes a square.
    """
    from matplotlib.figure import Figure

    pixels = tile_images(images, columns).permute(1, 2, 0).numpy()
    figure = Figure(figsize=tuple((side + 0.1) / DPI for side in (pixels.shape[1], pixels.shape[0])))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.imshow(pixels, interpolation="nearest")
    return figure


def tile_images(images: Float[Tensor, "n c h w"], columns: int | None = None) -> Float[Tensor, "3 i j"]:
    """Images side by side in one, small ones enlarged.

    Args:
        images: with pixels from 0 to 1.
        columns: images in a row; null makes a square.
    """
    from torchvision.utils import make_grid

    times = max(1, math.ceil(MIN_SIDE / min(images.shape[2:])))
    larger = F.interpolate(images, scale_factor=times, mode="nearest")
    shown = larger if images.shape[1] in (1, 3) else larger[:, :1]
    return make_grid(shown, nrow=columns or math.ceil(math.sqrt(len(images))), padding=2, pad_value=1.0)
