"""Sound modules that break a rule of thumb on purpose, and must raise no alarm."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import nets
from tests.faults.corpus import sound
from tests.faults.nets import Data, LanguageModel, Module


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
