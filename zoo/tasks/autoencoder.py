"""Variational autoencoders of images, the first stage of latent diffusion."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from zoo.distributed import say
from zoo.tasks.base import Task, inputs_of

# Of a mean of squares minus the square of a mean this share may be rounding.
_ROUNDING = 64 * torch.finfo(torch.float64).eps

# Number of training images on which the scale of the latents is measured.
SCALE_SAMPLES = 1024


class Autoencoder(Task):
    """Variational autoencoder: a network that reconstructs images from latents close to a standard normal distribution.

    A batch is images, alone or with labels, which are ignored. The network returns the reconstruction and the
    distribution of the latents, with ``kl()``, ``mean`` and ``logvar``, and has a buffer ``scale``: after each epoch it
    is set to one over the standard deviation of the latents of training images, with the weights that are saved. Logs
    ``loss``, ``reconstruction`` and ``kl``.

    Args:
        reconstruction: reconstruction loss: ``l1``, the absolute difference, or ``l2``, the squared one.
        kl_weight: weight of the KL divergence from the standard normal distribution, in nats per latent value.
    """

    def __init__(
        self,
        net: nn.Module,
        reconstruction: Literal["l1", "l2"] = "l1",
        kl_weight: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(net=net, **kwargs)
        if reconstruction not in ("l1", "l2"):
            raise ValueError(f"reconstruction must be l1 or l2, got {reconstruction!r}")
        if kl_weight < 0:
            raise ValueError(f"kl_weight must be 0 or more, got {kl_weight}")
        self.reconstruction_loss = F.l1_loss if reconstruction == "l1" else F.mse_loss
        self.kl_weight = kl_weight
        # Training images of this epoch, on which the scale is measured.
        self._scale_images: list[Tensor] = []

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the reconstruction of images from the means of their latents."""
        reconstruction, _ = self.net(x)
        return reconstruction

    def step(self, batch: Any, stage: str) -> Tensor:
        (x,) = inputs_of(batch)
        is_training = stage == "train"
        out, latents = self.net(x, sample=is_training)
        if is_training and sum(map(len, self._scale_images)) < SCALE_SAMPLES:
            self._scale_images.append(x.detach())
        reconstruction = self.reconstruction_loss(out, x)
        kl = latents.kl().mean() / latents.mean[0].numel()
        self.log_mean(stage, self.num_items(batch), reconstruction=reconstruction, kl=kl)
        return reconstruction + self.kl_weight * kl

    def on_validation_epoch_end(self) -> None:
        # Not later: EMA weights are swapped in until the end of validation, and these are saved.
        if not self.trainer.sanity_checking:
            self._measure_scale()
        super().on_validation_epoch_end()

    def on_train_epoch_end(self) -> None:
        # For epochs without validation.
        self._measure_scale()
        super().on_train_epoch_end()

    @torch.no_grad()
    def _measure_scale(self) -> None:
        """Set the network's scale by the collected training images, and discard these."""
        if not self._scale_images:
            return
        training = self.net.training
        self.net.eval()
        moments = []
        for x in self._scale_images:
            moments.append(mean_and_mean_square(self.net.encode(x)))  # type: ignore[operator]
        self.net.train(training)
        self._scale_images.clear()
        total = torch.stack(moments).mean(0)  # (2,)
        if self.trainer.world_size > 1:
            total = self.trainer.strategy.reduce(total, reduce_op="mean")
        mean, square = total
        scale = cast(Tensor, self.net.scale)
        variance = (square - mean.square()).clamp(min=0)
        if variance <= _ROUNDING * square:
            say("the latents of the training images do not vary: their scale stays as it is")
            return
        scale.copy_(variance.rsqrt())

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return the column ``reconstruction``: the reconstruction loss of each image."""
        (x,) = inputs_of(batch)
        errors = self.reconstruction_loss(self(x), x, reduction="none")  # (b, c, h, w)
        return {"reconstruction": errors.flatten(1).mean(1).tolist()}


def mean_and_mean_square(latents: Any) -> Float[Tensor, " 2"]:
    """Return mean and mean square of all latent values, expected over the distribution of the latents, in float64."""
    mean = latents.mean.double()
    variance = latents.logvar.double().exp()
    return torch.stack([mean.mean(), (mean.square() + variance).mean()])
