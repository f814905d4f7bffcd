"""A first layer that whitens patches (Coates and Ng 2012, https://doi.org/10.1007/978-3-642-35289-8_30)."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor, nn


def patch_moments(x: Float[Tensor, "b c h w"], kernel: tuple[int, int]) -> Float[Tensor, "d d"]:
    """The mean of the outer products of all patches with themselves, ``d`` numbers each in a kernel's order.

    Args:
        x: images.
        kernel: height and width of the patches.
    """
    size = x.shape[1] * kernel[0] * kernel[1]
    total, count = torch.zeros(size, size, dtype=torch.float64), 0
    for some in x.cpu().double().split(16):  # patches overlap: of all images they would take much memory
        patches = some.unfold(2, kernel[0], 1).unfold(3, kernel[1], 1).movedim(1, 3).reshape(-1, size)
        total, count = total + patches.mT @ patches, count + len(patches)
    return total / count


def whitening_filters(moments: Float[Tensor, "d d"], eps: float) -> Float[Tensor, "d d"]:
    """The directions of patches, those that vary most first, each over its deviation.

    Args:
        moments: of the patches.
        eps: added to the variances, so that hardly any noise is made large.
    """
    variances, directions = torch.linalg.eigh(moments)
    return (directions / (variances + eps).sqrt()).mT.flip(0)


class WhitenFirstLayer(L.Callback):
    """Sets the filters of a convolution to whiten the patches of the first training batch, once, and keeps them so.

    Half of the filters are the directions of the patches over their deviations, the other half the opposites; filters
    beyond twice the size of a patch stay what they are. Every process sets the same. A resumed run, or a module that
    has trained before, keeps its filters. Logs nothing.

    Args:
        layer: name of the convolution in the module, such as ``net.whiten``; null is the first.
        eps: added to the variances of the patches.
        freeze: do not train the filters; their biases are.
    """

    def __init__(self, layer: str | None = None, eps: float = 5e-4, freeze: bool = True) -> None:
        if eps < 0:
            raise ValueError(f"WhitenFirstLayer: eps is {eps}, but must be at least 0")
        self.layer, self.eps, self.freeze = layer, eps, freeze
        self.done = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and self.freeze:  # at each start, and before processes agree on what they train
            self._find(pl_module).weight.requires_grad_(False)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.done or trainer.global_step > 0:
            return
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(x, Tensor) or x.ndim != 4:
            raise ValueError(f"WhitenFirstLayer needs batches that begin with images (b, c, h, w), got {_kind(x)}")
        conv = self._find(pl_module)
        with torch.no_grad():
            moments = patch_moments(x, conv.kernel_size)  # type: ignore[arg-type]
            if trainer.world_size > 1:
                moments = trainer.strategy.reduce(moments.to(x.device), reduce_op="mean").cpu()  # type: ignore
            filters = whitening_filters(moments, self.eps).to(conv.weight)
            half = filters[: (conv.out_channels + 1) // 2].view(-1, *conv.weight.shape[1:])
            filters = torch.cat([half, -half])[: conv.out_channels]
            conv.weight[: len(filters)].copy_(filters)
        self.done = True

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.done = state_dict["done"]

    def _find(self, module: nn.Module) -> nn.Conv2d:
        layers = {name: m for name, m in module.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1}
        name = next(iter(layers), None) if self.layer is None else self.layer
        if name not in layers:
            known = f"those are {', '.join(list(layers)[:5])}" if layers else f"{type(module).__name__} has none"
            raise ValueError(f"WhitenFirstLayer: layer {self.layer} is no 2-dimensional convolution; {known}")
        return layers[name]


def _kind(x: Any) -> str:
    return str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__
