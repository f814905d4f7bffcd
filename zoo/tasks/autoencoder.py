"""Autoencoding: images through a smaller latent image and back."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from zoo.tasks.base import Task, inputs_of

SCALE_SAMPLES = 1024  # images that the scale of the latents is measured on


class Autoencoder(Task):
    """Train a network to give its images again, through latents that are kept near a standard normal distribution.

    A batch is images, alone or with labels that do not matter; the network returns the images again and the
    distribution of their latents, which has ``kl()``, ``mean`` and ``logvar``, and has a buffer ``scale``. After each
    epoch ``scale`` is set to one over the deviation of the latents of training images, with the weights that are saved.

    Args:
        reconstruction: what counts as near: ``l1``, the absolute difference, or ``l2``, the squared one.
        kl_weight: weight of the divergence from the standard normal distribution, in nats for each number of a latent.
    """

    def __init__(
        self, net: nn.Module, reconstruction: Literal["l1", "l2"] = "l1", kl_weight: float = 1e-4, **kwargs: Any
    ) -> None:
        super().__init__(net=net, **kwargs)
        if reconstruction not in ("l1", "l2"):
            raise ValueError(f"reconstruction must be l1 or l2, got {reconstruction!r}")
        if kl_weight < 0:
            raise ValueError(f"kl_weight must be 0 or more, got {kl_weight}")
        self.reconstruction_loss = F.l1_loss if reconstruction == "l1" else F.mse_loss
        self.kl_weight = kl_weight
        self._scale_images: list[Tensor] = []  # training images of this epoch, to measure the scale on

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The images again, from the means of their latents."""
        return self.net(x)[0]

    def step(self, batch: Any, stage: str) -> Tensor:
        (x,) = inputs_of(batch)
        out, latents = self.net(x, sample=stage == "train")
        if stage == "train" and sum(map(len, self._scale_images)) < SCALE_SAMPLES:
            self._scale_images.append(x.detach())
        reconstruction, kl = self.reconstruction_loss(out, x), latents.kl().mean() / latents.mean[0].numel()
        self.log_mean(stage, self.num_items(batch), reconstruction=reconstruction, kl=kl)
        return reconstruction + self.kl_weight * kl

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self._measure_scale()  # here the averages of EMA are in place, which are what is saved
        super().on_validation_epoch_end()

    def on_train_epoch_end(self) -> None:
        self._measure_scale()  # where there is no validation
        super().on_train_epoch_end()

    @torch.no_grad()
    def _measure_scale(self) -> None:
        if not self._scale_images:
            return
        training = self.net.training
        self.net.eval()
        parts = [mean_and_mean_square(self.net.encode(x)) for x in self._scale_images]  # type: ignore[operator]
        self.net.train(training)
        self._scale_images.clear()
        mean, square = torch.stack(parts).mean(0)
        if self.trainer.world_size > 1:
            mean, square = self.trainer.strategy.reduce(torch.stack([mean, square]), reduce_op="mean")
        scale = cast(Tensor, self.net.scale)
        scale.copy_((square - mean.square()).rsqrt())

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return the column ``reconstruction``: how far each image is from itself again."""
        (x,) = inputs_of(batch)
        return {"reconstruction": self.reconstruction_loss(self(x), x, reduction="none").flatten(1).mean(1).tolist()}


def mean_and_mean_square(latents: Any) -> Float[Tensor, " 2"]:
    """Mean, and mean of squares, of samples of all the latents."""
    mean, logvar = latents.mean.double(), latents.logvar.double()
    return torch.stack([mean.mean(), (mean.square() + logvar.exp()).mean()])
