"""Sound modules that look odd: each breaks a rule of thumb on purpose, and must raise no alarm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import nets
from tests.faults.nets import Data, LanguageModel, Module

SOUND: list[Callable[[], tuple[L.LightningModule, L.LightningDataModule]]] = []


def sound(build: Callable[[], Any]) -> Callable[[], Any]:
    SOUND.append(build)
    return build


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


@sound
def frozen_backbone():
    """In eval mode, frozen, and left out of the optimizer: as transfer learning should."""

    class Transfer(Module):
        def __init__(self) -> None:
            super().__init__(nn.Sequential(nets.cnn(32).requires_grad_(False).eval(), nn.Linear(32, 10)), lr=3e-2)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.net[1].parameters(), lr=self.lr)  # type: ignore[index]

        def on_train_epoch_start(self) -> None:
            self.net[0].eval()  # type: ignore[index]

    return Transfer(), Data(*nets.images())


@sound
def adapters_that_start_at_zero():
    """No gradient reaches the inner matrix before the outer one has moved."""

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.down, self.up = nets.mlp(), nn.Linear(8, 4, bias=False), nn.Linear(4, 4, bias=False)
            nn.init.zeros_(self.up.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) + self.up(self.down(x))

    return Module(Adapted()), Data(*nets.table())


@sound
def tied_gpt_with_smoothing_and_warmup():
    class Warm(LanguageModel):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 50))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    net = nets.GPT()
    net.head.weight = net.tokens.weight
    return Warm(net, partial(F.cross_entropy, label_smoothing=0.1)), Data(nets.text())


@sound
def layer_called_in_a_loop():
    class Looped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared, self.last = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for _ in range(3):
                x = x + self.shared(x.relu())
            return self.last(x)

    return Module(Looped()), Data(*nets.table())


@sound
def multilabel():
    x, y = nets.table()
    several = torch.stack([y == 0, y % 2 == 0, x[:, 0] > 0], 1).float()
    return Module(nets.mlp(outputs=3), F.binary_cross_entropy_with_logits), Data(x, several)


@sound
def weighed_imbalance():
    x, y = nets.table(3000, classes=2)
    keep = (y == 0) | (torch.arange(len(y)) % 40 == 0)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.05, 1.0]))
    return Module(nets.mlp(outputs=2), loss), Data(x[keep], y[keep])


@sound
def raw_pixels_into_batch_norm():
    x, y = nets.images()
    return Module(nn.Sequential(nn.BatchNorm2d(1), *nets.cnn())), Data((x * 50 + 100).round(), y)


@sound
def nll_of_log_probabilities_from_a_dict():
    class FromDict(Module):
        def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
            return {"loss": F.nll_loss(self(batch["x"]).log_softmax(1), batch["label"])}

    class Dicts(Data):
        def train_dataloader(self) -> Any:
            rows = [{"x": x, "label": y} for x, y in zip(*self.parts[0], strict=True)]
            return torch.utils.data.DataLoader(rows, 32, shuffle=True)  # type: ignore[arg-type]

    return FromDict(nets.mlp()), Dicts(*nets.table())


@sound
def loss_written_out():
    class Written(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            return -self(x).log_softmax(1)[torch.arange(len(y)), y].mean()

    return Written(nets.mlp()), Data(*nets.table())


@sound
def gru_over_packed_sequences():
    class Packed(nn.Module):
        pad_id = nets.PAD

        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.gru, self.head = nn.Embedding(13, 16), nn.GRU(16, 24, batch_first=True), nn.Linear(24, 3)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(self.tokens(x), lengths, batch_first=True, enforce_sorted=False)
            return self.head(self.gru(packed)[1][-1])

    class WithLengths(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            return F.cross_entropy(self.net(x, (x != nets.PAD).sum(1)), y)

    return WithLengths(Packed()), Data(*nets.sentences())


@sound
def torch_transformer_with_a_mask():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(24, 2, 48, batch_first=True)
            self.tokens, self.body, self.head = nn.Embedding(13, 24), nn.TransformerEncoder(layer, 2), nn.Linear(24, 3)

        def forward(self, x: Tensor, ignored: Tensor) -> Tensor:
            h = self.body(self.tokens(x), src_key_padding_mask=ignored)
            real = ~ignored.unsqueeze(-1)
            return self.head((h * real).sum(1) / real.sum(1))

    class WithMask(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            return F.cross_entropy(self.net(x, x == nets.PAD), y)

    return WithMask(Masked(), lr=1e-3), Data(*nets.sentences())


@sound
def repeated_rows():
    """Eight different inputs only: samples in two splits are no leak."""
    x = torch.randint(0, 2, (400, 3), generator=nets.generator()).float()
    return Module(nets.mlp(3, 2)), Data(2 * x - 1, (x.sum(1) > 1).long())


@sound
def deep_net_with_dropped_layers():
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 4)
            self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for block in self.blocks:
                keep = torch.rand(len(x), 1) > 0.1 if self.training else 1.0
                x = x + keep * block(x.relu())
            return self.last(x)

    return Module(Dropped()), Data(*nets.table())
