"""Whitening convolution as first layer (Coates and Ng 2012, https://doi.org/10.1007/978-3-642-35289-8_30)."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor, nn

IMAGES_AT_ONCE = 16  # patches overlap: those of all images would take much memory
MAX_LISTED = 5  # layers in an error


def patch_moments(x: Float[Tensor, "b c h w"], kernel: tuple[int, int]) -> Float[Tensor, "d d"]:
    """Return the second moments of all patches of images, in float64; ``d`` is the number of values in a patch.

    Args:
        x: images.
        kernel: height and width of the patches.
    """
    height, width = kernel
    size = x.shape[1] * height * width
    total = torch.zeros(size, size, dtype=torch.float64)
    count = 0
    for images in x.cpu().double().split(IMAGES_AT_ONCE):
        patches = images.unfold(2, height, 1).unfold(3, width, 1)  # (b, c, h, w, kh, kw)
        patches = patches.movedim(1, 3).reshape(-1, size)  # (n, d)
        total = total + patches.mT @ patches
        count += len(patches)
    return total / count


def whitening_filters(moments: Float[Tensor, "d d"], eps: float) -> Float[Tensor, "d d"]:
    """Return the eigenvectors of patches, each divided by its standard deviation, in order of decreasing variance.

    Args:
        moments: second moments of the patches.
        eps: added to the variances, so that noise is not amplified.
    """
    variances, directions = torch.linalg.eigh(moments)
    filters = directions / (variances + eps).sqrt()
    return filters.mT.flip(0)


class WhitenFirstLayer(L.Callback):
    """Initialise a convolution to whiten the patches of the first training batch, and freeze its filters.

    The first half of the filters are eigenvectors of the patches divided by their standard deviations, the second half
    their negatives; filters beyond twice the size of a patch keep their initialisation. All processes get the same
    filters. A resumed run, or a module that was trained before, keeps its filters. Logs nothing.

    Args:
        layer: name of the convolution in the module, such as ``net.whiten``; null for the first one.
        eps: added to the variances of the patches.
        freeze: whether to freeze the filters; their biases are trained.
    """

    def __init__(self, layer: str | None = None, eps: float = 5e-4, freeze: bool = True) -> None:
        if eps < 0:
            raise ValueError(f"WhitenFirstLayer: eps is {eps}, but must be at least 0")
        self.layer = layer
        self.eps = eps
        self.freeze = freeze
        self.done = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # At each start, also of a resumed run, and before DDP registers the trainable parameters.
        if stage == "fit" and self.freeze:
            self._find(pl_module).weight.requires_grad_(False)

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self.done or trainer.global_step > 0:
            return
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(x, Tensor) or x.ndim != 4:
            raise ValueError(f"WhitenFirstLayer needs batches that begin with images (b, c, h, w), got {_describe(x)}")
        self._whiten(trainer, self._find(pl_module), x)
        self.done = True

    @torch.no_grad()
    def _whiten(self, trainer: L.Trainer, conv: nn.Conv2d, x: Tensor) -> None:
        """Set the filters of a convolution from the images of a batch."""
        moments = patch_moments(x, conv.kernel_size)  # type: ignore[arg-type]
        if trainer.world_size > 1:
            mean: Any = trainer.strategy.reduce(moments.to(x.device), reduce_op="mean")
            moments = mean.cpu()
        filters = whitening_filters(moments, self.eps).to(conv.weight)
        half = filters[: (conv.out_channels + 1) // 2]
        half = half.view(-1, *conv.weight.shape[1:])  # (n, c, kh, kw)
        filters = torch.cat([half, -half])[: conv.out_channels]
        conv.weight[: len(filters)].copy_(filters)

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.done = state_dict["done"]

    def _find(self, module: nn.Module) -> nn.Conv2d:
        """Return the convolution to whiten.

        Raises:
            ValueError: if there is none of this name.
        """
        layers: dict[str, nn.Conv2d] = {}
        for name, part in module.named_modules():
            if isinstance(part, nn.Conv2d) and part.groups == 1:
                layers[name] = part
        if self.layer is None and layers:
            return next(iter(layers.values()))
        if self.layer in layers:
            return layers[self.layer]
        known = f"{type(module).__name__} has none"
        if layers:
            known = f"those are {', '.join(list(layers)[:MAX_LISTED])}"
        raise ValueError(f"WhitenFirstLayer: layer {self.layer} is not a 2-dimensional convolution; {known}")


def _describe(x: Any) -> str:
    if isinstance(x, Tensor):
        return str(tuple(x.shape))
    return type(x).__name__
