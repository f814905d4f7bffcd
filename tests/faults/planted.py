"""The corpus: bugs planted one at a time into healthy modules, each with the check that must name it, and how.

A fault is a function that builds ``(module, data)``; ``@fault(check, words)`` says that the check's verdict must hold
one of these words. Nothing here is known to ``zoo.diagnosis``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import nets
from tests.faults.nets import Data, LanguageModel, Module


@dataclass(frozen=True)
class Fault:
    """A planted bug.

    Args:
        build: makes the module and its data.
        check: name of the check that must find it.
        words: of which its verdict must hold one.
    """

    build: Callable[[], tuple[L.LightningModule, L.LightningDataModule]]
    check: str
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.build.__name__


FAULTS: list[Fault] = []


def fault(check: str, *words: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def plant(build: Callable[[], Any]) -> Callable[[], Any]:
        FAULTS.append(Fault(build, check, words))
        return build

    return plant


# The loop -------------------------------------------------------------------------------------------------------------


@fault("gradients cleared", "zero_grad")
def mlp_without_zero_grad():
    class Forgetful(Module):
        def optimizer_zero_grad(self, *args: Any) -> None:
            pass

    return Forgetful(nets.mlp()), Data(*nets.table())


@fault("gradients cleared", "zero_grad")
def cnn_by_hand_without_zero_grad():
    class Forgetful(nets.ByHand):
        def clear(self, optimizer: Any) -> None:
            pass

    return Forgetful(nets.cnn()), Data(*nets.images())


@fault("training mode", "eval mode")
def cnn_left_in_eval_mode():
    return Module(nets.cnn().eval()), Data(*nets.images())


@fault("training mode", "eval mode")
def gpt_set_to_eval_in_every_step():
    class Sleeping(LanguageModel):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.net.blocks[1].eval()  # type: ignore[index]
            return super().training_step(batch, batch_idx)

    return Sleeping(nets.GPT()), Data(nets.text())


@fault("learning rate", "too high")
def mlp_rate_100_times_too_high():
    return Module(nets.mlp(), lr=0.3), Data(*nets.table())


@fault("learning rate", "too low")
def mlp_rate_100_times_too_low():
    return Module(nets.mlp(), lr=3e-5), Data(*nets.table())


@fault("learning rate", "too high")
def cnn_rate_100_times_too_high_for_sgd():
    return Module(nets.cnn(), lr=5.0, optimizer=torch.optim.SGD), Data(*nets.images())


@fault("learning rate", "too low")
def gpt_rate_100_times_too_low():
    return LanguageModel(nets.GPT(), lr=3e-5), Data(nets.text())


@fault("learning rate", "too high")
def rnn_rate_100_times_too_high():
    return Module(nets.Recurrent(), lr=0.5), Data(*nets.waves())


@fault("overfit", "optimizer or its rate is wrong")
def mlp_decayed_to_zero():
    class Decayed(Module):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=3)

    return Decayed(nets.mlp()), Data(*nets.table())


@fault("optimizer", "net.0")
def mlp_layer_frozen_by_mistake():
    net = nets.mlp()
    net[0].requires_grad_(False)
    return Module(net), Data(*nets.table())


@fault("training step", "no trainable parameter")
def cnn_entirely_frozen():
    return Module(nets.cnn().requires_grad_(False)), Data(*nets.images())


@fault("optimizer", "in no optimizer")
def cnn_head_absent_from_optimizer():
    class Partly(Module):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.net[:5].parameters(), lr=self.lr)  # type: ignore[index]

    return Partly(nets.cnn()), Data(*nets.images())


# The loss -------------------------------------------------------------------------------------------------------------


@fault("activation on outputs", "softmax is applied twice")
def mlp_softmax_before_cross_entropy():
    return Module(nn.Sequential(*nets.mlp(), nn.Softmax(1))), Data(*nets.table())


@fault("activation on outputs", "softmax is applied twice")
def gpt_softmax_before_cross_entropy():
    return LanguageModel(nets.GPT(), lambda x, y: F.cross_entropy(x.softmax(-1), y)), Data(nets.text())


@fault("activation on outputs", "no log-probabilities")
def rnn_logits_given_to_nll_loss():
    return Module(nets.Recurrent(), F.nll_loss), Data(*nets.waves())


@fault("activation on outputs", "sigmoid is applied twice")
def mlp_sigmoid_twice():
    x, y = nets.table(classes=2)
    net = nn.Sequential(*nets.mlp(outputs=1), nn.Sigmoid(), nn.Flatten(0))
    return Module(net, F.binary_cross_entropy_with_logits), Data(x, y.float())


@fault("activation on outputs", "ReLU")
def cnn_relu_on_the_logits():
    return Module(nn.Sequential(*nets.cnn(), nn.ReLU())), Data(*nets.images())


@fault("activation on outputs", "cannot reach")
def regression_ending_in_a_sigmoid():
    return Module(nn.Sequential(*nets.mlp(6, 1), nn.Sigmoid()), F.mse_loss), Data(*nets.curve())


@fault("shapes", "broadcasting")
def regression_broadcast_over_the_batch():
    x, y = nets.curve()
    return Module(nets.mlp(6, 1), F.mse_loss), Data(x, y[:, 0])


@fault("initial loss", "not scaled")
def regression_of_unscaled_targets():
    x, y = nets.curve()
    return Module(nets.mlp(6, 1), F.mse_loss), Data(x, 150 + 80 * y)


@fault("loss scale", "factor")
def mlp_loss_a_thousand_times_too_large():
    return Module(nets.mlp(), lambda x, y: 1000 * F.cross_entropy(x, y)), Data(*nets.table())


@fault("loss scale", "-1 times")
def gpt_loss_of_the_wrong_sign():
    return LanguageModel(nets.GPT(), lambda x, y: -F.cross_entropy(x, y)), Data(nets.text())


@fault("loss scale", "summed")
def cnn_loss_summed_over_the_batch():
    return Module(nets.cnn(), partial(F.cross_entropy, reduction="sum")), Data(*nets.images())


@fault("influence", "target")
def rnn_loss_that_ignores_the_targets():
    return Module(nets.Recurrent(), lambda x, y: F.cross_entropy(x, x.argmax(1))), Data(*nets.waves())


@fault("target shift", "same token")
def gpt_targets_not_shifted():
    class Unshifted(LanguageModel):
        def split(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
            return tokens[:, :-1], tokens[:, :-1]

    return Unshifted(nets.GPT()), Data(nets.text())


@fault("target shift", "2 positions")
def gpt_targets_shifted_twice():
    class Twice(LanguageModel):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = self.split(batch[0])
            return self.loss(self(x)[:, :-1].flatten(0, 1), y[:, 1:].flatten())

    return Twice(nets.GPT()), Data(nets.text())


@fault("padding", "counts in the loss")
def gpt_padding_in_the_loss():
    tokens = nets.text()
    lengths = torch.randint(6, 17, (len(tokens), 1), generator=nets.generator())
    module = LanguageModel(nets.GPT())
    module.pad_id = nets.PAD
    return module, Data(tokens.masked_fill(torch.arange(17) > lengths, nets.PAD))


# The network ----------------------------------------------------------------------------------------------------------


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


# The data -------------------------------------------------------------------------------------------------------------


@fault("labels", "out of range")
def mlp_labels_from_1():
    x, y = nets.table()
    return Module(nets.mlp()), Data(x, y + 1)


@fault("labels", "shifted by one")
def cnn_labels_from_1_with_an_output_more():
    x, y = nets.images()
    return Module(nets.cnn(11)), Data(x, y + 1)


@fault("labels", "out of range")
def rnn_with_too_few_outputs():
    net = nets.Recurrent()
    net.head = nn.Linear(24, 2)
    return Module(net), Data(*nets.waves())


@fault("labels", "-1")
def mlp_yes_or_no_as_minus_one_and_one():
    x, y = nets.table(classes=2)
    net = nn.Sequential(*nets.mlp(outputs=1), nn.Flatten(0))
    return Module(net, F.binary_cross_entropy_with_logits), Data(x, 2.0 * y - 1)


@fault("relation", "shifted by a sample")
def mlp_labels_of_the_sample_before():
    x, y = nets.table()
    return Module(nets.mlp()), Data(x, y.roll(1))


@fault("relation", "shuffled")
def cnn_labels_shuffled():
    x, y = nets.images()
    return Module(nets.cnn()), Data(x, y[torch.randperm(len(y), generator=nets.generator())])


@fault("class balance", "imbalance")
def mlp_of_extreme_imbalance():
    x, y = nets.table(4000, classes=2)
    keep = (y == 0) | (torch.arange(len(y)) % 50 == 0)
    return Module(nets.mlp(outputs=2)), Data(x[keep], y[keep])


@fault("leaks", "val samples")
def mlp_validation_in_training():
    data = Data(*nets.table())
    data.parts[1] = [torch.cat([own, train[:40]]) for own, train in zip(data.parts[1], data.parts[0], strict=True)]
    return Module(nets.mlp()), data


@fault("leaks", "test samples")
def gpt_test_in_training():
    data = Data(nets.text())
    data.parts[2] = [data.parts[0][0][:30]]
    return LanguageModel(nets.GPT()), data


@fault("input scale", "raw pixels")
def cnn_of_raw_pixels():
    x, y = nets.images()
    net = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 64, 10))
    return Module(net), Data(((x - x.min()) / (x.max() - x.min()) * 255).round(), y)


@fault("input scale", "feature 2")
def mlp_of_an_unscaled_column():
    x, y = nets.table()
    x[:, 2] = 40_000 + 9_000 * x[:, 2]
    return Module(nets.mlp()), Data(x, y)


@fault("input scale", "not normalised")
def rnn_of_unscaled_series():
    x, y = nets.waves()
    return Module(nets.Recurrent()), Data(100 + 40 * x, y)


@fault("finite data", "NaN")
def mlp_of_a_single_nan():
    x, y = nets.table()
    x[100, 3] = float("nan")
    return Module(nets.mlp()), Data(x, y)


@fault("finite data", "infinity")
def regression_of_infinite_targets():
    x, y = nets.curve()
    y[::7] = float("inf")
    return Module(nets.mlp(6, 1), F.mse_loss), Data(x, y)


@fault("constant features", "never change")
def mlp_of_a_constant_column():
    x, y = nets.table()
    x[:, 5] = 0.5
    return Module(nets.mlp()), Data(x, y)
