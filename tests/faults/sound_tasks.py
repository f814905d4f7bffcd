"""Sound modules of many kinds: plain ones, optimised by hand, with noise, several losses or none of torch's."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import nets
from tests.faults.corpus import sound
from tests.faults.nets import Data, LanguageModel, Module


@sound
def plain_mlp():
    return Module(nets.mlp()), Data(*nets.table())


@sound
def plain_cnn():
    return Module(nets.cnn()), Data(*nets.images())


@sound
def plain_rnn():
    return Module(nets.Recurrent()), Data(*nets.waves())


@sound
def plain_gpt():
    return LanguageModel(nets.GPT()), Data(nets.text())


@sound
def plain_encoder():
    return Module(nets.Encoder()), Data(*nets.sentences())


@sound
def plain_regression():
    return Module(nets.mlp(6, 1), F.mse_loss), Data(*nets.curve())


@sound
def cnn_by_hand():
    return nets.ByHand(nets.cnn()), Data(*nets.images())


@sound
def mlp_by_hand_clearing_after_the_step():
    class After(nets.ByHand):
        def clear(self, optimizer: Any) -> None:
            pass

        def training_step(self, batch: Any, batch_idx: int) -> None:
            super().training_step(batch, batch_idx)
            self.optimizers().zero_grad()  # type: ignore[union-attr]

    return After(nets.mlp()), Data(*nets.table())


@sound
def mlp_by_hand_accumulating_two_batches():
    class Twice(nets.ByHand):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer, (x, y) = self.optimizers(), batch
            self.manual_backward(self.loss(self(x), y) / 2)
            if batch_idx % 2:
                optimizer.step()  # type: ignore[union-attr]
                optimizer.zero_grad()  # type: ignore[union-attr]

    return Twice(nets.mlp()), Data(*nets.table())


@sound
def gan():
    """Two optimizers, each with its own loss; the discriminator ends in one logit."""

    class Gan(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.generator, self.discriminator = nets.mlp(4, 8), nets.mlp(8, 1)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            real, (first, second) = batch[0], self.optimizers()  # type: ignore[misc]
            fake = self.generator(torch.randn(len(real), 4))
            ones = torch.ones(len(real), 1)
            bce = F.binary_cross_entropy_with_logits
            second.zero_grad()
            judged = bce(self.discriminator(real), ones) + bce(self.discriminator(fake.detach()), 0 * ones)
            self.manual_backward(judged)
            second.step()
            first.zero_grad()
            self.manual_backward(bce(self.discriminator(fake), ones))
            first.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.Adam(net.parameters(), lr=1e-3) for net in (self.generator, self.discriminator)]

    return Gan(), Data(nets.table()[0])


@sound
def vae():
    """Draws noise in eval mode too, and sums its reconstruction error over the pixels."""

    class Vae(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nets.mlp(64, 8), nets.mlp(4, 64)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mean, log_var = self.encoder(x.flatten(1)).chunk(2, 1)
            z = mean + torch.randn_like(mean) * (log_var / 2).exp()
            return self.decoder(z).view_as(x), mean, log_var

    class VaeModule(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            out, mean, log_var = self(batch[0])
            divergence = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(1).mean()
            return F.mse_loss(out, batch[0], reduction="sum") / len(out) + 0.1 * divergence

    return VaeModule(Vae()), Data(*nets.images())


@sound
def diffusion():
    """Draws noise and times in every training step; the last layer starts at zero."""

    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nets.mlp(9, 8, 128)
            nn.init.zeros_(self.body[4].weight)  # type: ignore[arg-type]

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return self.body(torch.cat([x, time], 1))

    class Diffusion(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0]
            time, noise = torch.rand(len(x), 1), torch.randn_like(x)
            return F.mse_loss(self.net((1 - time).sqrt() * x + time.sqrt() * noise, time), noise)

    return Diffusion(Denoiser(), lr=1e-3), Data(nets.table()[0])


@sound
def contrastive():
    """Compares every sample with every other one."""

    class Contrastive(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0]
            one = F.normalize(self(x), dim=1)
            two = F.normalize(self(x + 0.1 * torch.randn_like(x)), dim=1)
            return F.cross_entropy(one @ two.T / 0.2, torch.arange(len(x)))

    return Contrastive(nets.mlp(outputs=16), lr=1e-3), Data(nets.table()[0])
