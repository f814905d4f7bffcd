"""Bugs in a network: what learns nothing, and what mixes that must not."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import nets
from tests.faults.corpus import fault
from tests.faults.nets import Data, LanguageModel, Module

# What learns nothing, or not as meant ---------------------------------------------------------------------------------


@fault("gradient flow", "cut")
def mlp_with_a_detached_branch():
    class TwoBranches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([self.left(x), self.right(x).detach()], 1).relu())

    return Module(TwoBranches()), Data(*nets.table())


@fault("gradient flow", "cut")
def rnn_run_without_gradient():
    class NoGradient(nets.Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                states, _ = self.gru(x)
            return self.head(states[:, -1])

    return Module(NoGradient()), Data(*nets.waves())


@fault("gradient flow", "never called")
def cnn_with_an_unused_layer():
    module = Module(nets.cnn())
    module.extra = nn.Linear(10, 10)
    return module, Data(*nets.images())


@fault("gradient flow", "vanishing below")
def deep_mlp_of_sigmoids():
    hidden = [part for _ in range(10) for part in (nn.Linear(32, 32), nn.Sigmoid())]
    return Module(nn.Sequential(nn.Linear(8, 32), *hidden, nn.Linear(32, 4))), Data(*nets.table())


@fault("gradient flow", "exploding from net.cell")
def rnn_of_large_weights():
    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.RNNCell(2, 32), nn.Linear(32, 3)
            nn.init.normal_(self.cell.weight_hh, std=5 / 32**0.5)

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(len(x), 32)
            for step in x.unbind(1):
                h = self.cell(step, h)
            return self.head(h)

    return Module(Unrolled()), Data(*nets.waves(length=40))


@fault("units", "dead")
def mlp_of_dead_units():
    net = nets.mlp()
    nn.init.constant_(net[2].bias, -20)  # type: ignore[arg-type]
    return Module(net), Data(*nets.table())


@fault("units", "dead")
def cnn_of_dead_units():
    net = nets.cnn()
    nn.init.constant_(net[4].bias, -20)  # type: ignore[arg-type]
    return Module(net), Data(*nets.images())


@fault("units", "saturated")
def mlp_of_saturated_units():
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    nn.init.normal_(net[0].weight, std=20)  # type: ignore[arg-type]
    return Module(net), Data(*nets.table())


@fault("initial loss", "logits are large")
def mlp_initialised_too_large():
    net = nets.mlp()
    nn.init.normal_(net[4].weight, std=5)  # type: ignore[arg-type]
    return Module(net), Data(*nets.table())


@fault("initial loss", "logits are large")
def gpt_initialised_too_large():
    net = nets.GPT()
    nn.init.normal_(net.head.weight)
    return LanguageModel(net), Data(nets.text())


@fault("output bias", "class 3")
def cnn_that_prefers_a_class():
    net = nets.cnn()
    with torch.no_grad():
        net[8].bias[3] = 4.0  # type: ignore[index]
    return Module(net), Data(*nets.images())


@fault("shared modules", "one and the same")
def mlp_of_one_layer_three_times():
    net = nn.Sequential(nn.Linear(8, 32), *[nn.Linear(32, 32)] * 3, nn.ReLU(), nn.Linear(32, 4))
    return Module(net), Data(*nets.table())


@fault("influence", "input")
def encoder_that_ignores_its_input():
    class Blind(nets.Encoder):
        def pool(self, h: Tensor, real: Tensor) -> Tensor:
            return (h * 0).sum(1)

    return Module(Blind()), Data(*nets.sentences())


@fault("eval mode", "dropout")
def mlp_dropout_in_eval_mode():
    class Always(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.dropout(self.first(x).relu(), 0.3))

    return Module(Always()), Data(*nets.table())


@fault("eval mode", "random")
def cnn_noise_mask_in_eval_mode():
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (torch.rand_like(x) > 0.2)

    return Module(nn.Sequential(Masked(), *nets.cnn())), Data(*nets.images())


@fault("eval mode", "do not explain")
def mlp_that_scales_in_training_only():
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 3 if self.training else x

    return Module(nn.Sequential(Scaled(), *nets.mlp())), Data(*nets.table())


# What must not mix ----------------------------------------------------------------------------------------------------


@fault("sample mixing", "net.1")
def mlp_centred_over_the_batch():
    class Centre(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    old = nets.mlp()
    return Module(nn.Sequential(old[0], Centre(), *old[1:])), Data(*nets.table())


@fault("sample mixing", "gru")
def rnn_without_batch_first():
    return Module(nets.Recurrent(batch_first=False)), Data(*nets.waves())


@fault("sample mixing", "own code")
def rnn_view_instead_of_transpose():
    class Viewed(nets.Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            b, t, d = x.shape
            return super().forward(x.reshape(t, b, d).transpose(0, 1))

    return Module(Viewed()), Data(*nets.waves())


@fault("sample mixing", "place in the batch")
def gpt_positions_along_the_batch():
    class Misplaced(nets.GPT):
        def forward(self, x: Tensor) -> Tensor:
            h = self.tokens(x) + self.places(torch.arange(len(x)) % 16)[:, None]
            for block in self.blocks:
                h = block(h, self.allowed(x.shape[1]))
            return self.head(self.norm(h))

    return LanguageModel(Misplaced()), Data(nets.text())


@fault("softmax dimension", "samples")
def rnn_softmax_over_the_batch():
    class Weighted(nets.Recurrent):
        def pool(self, states: Tensor) -> Tensor:
            return (states * states.mean(-1, keepdim=True).softmax(0)).sum(1)

    return Module(Weighted()), Data(*nets.waves())


@fault("softmax dimension", "queries")
def encoder_softmax_over_queries():
    class Wrong(nets.Attention):
        def weigh(self, scores: Tensor) -> Tensor:
            return scores.softmax(-2)

    return Module(nets.Encoder(attention=Wrong)), Data(*nets.sentences())


@fault("causality", "off by one")
def gpt_mask_off_by_one():
    class Peeking(nets.GPT):
        def allowed(self, t: int) -> Tensor:
            return torch.ones(t, t, dtype=torch.bool).tril(1)

    return LanguageModel(Peeking()), Data(nets.text())


@fault("causality", "missing or turned around")
def gpt_mask_turned_around():
    class Backwards(nets.GPT):
        def allowed(self, t: int) -> Tensor:
            return torch.ones(t, t, dtype=torch.bool).triu()

    return LanguageModel(Backwards()), Data(nets.text())


@fault("causality", "attention")
def gpt_heads_viewed_instead_of_transposed():
    class Viewed(nets.Attention):
        def split(self, x: Tensor) -> Tensor:
            b, t, d = x.shape
            return x.reshape(b, self.heads, t, d // self.heads)

    return LanguageModel(nets.GPT(attention=Viewed)), Data(nets.text())


@fault("causality", "gru")
def rnn_language_model_that_reads_both_ways():
    class BothWays(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.gru = nn.Embedding(41, 16), nn.GRU(16, 16, batch_first=True, bidirectional=True)
            self.head = nn.Linear(32, 41)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.gru(self.tokens(x))[0])

    return LanguageModel(BothWays()), Data(nets.text())


@fault("padding", "attention")
def encoder_attending_to_padding():
    class Attending(nets.Encoder):
        def allowed(self, x: Tensor) -> Tensor:
            return torch.ones_like(x, dtype=torch.bool)[:, None, None, :]

    return Module(Attending()), Data(*nets.sentences())


@fault("padding", "own code", "head")
def encoder_averaging_over_padding():
    class Averaging(nets.Encoder):
        def pool(self, h: Tensor, real: Tensor) -> Tensor:
            return h.mean(1)

    return Module(Averaging()), Data(*nets.sentences())


@fault("padding", "net.head")
def rnn_told_lengths_and_not_using_them():
    class Unpacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.gru, self.head = nn.Embedding(13, 16), nn.GRU(16, 24, batch_first=True), nn.Linear(24, 3)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            return self.head(self.gru(self.tokens(x))[1][-1])

    class WithLengths(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            return F.cross_entropy(self.net(x, (x != nets.PAD).sum(1)), y)

    return WithLengths(Unpacked()), Data(*nets.sentences())
