"""Bugs in the loop, the optimizer and the loss."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults import nets
from tests.faults.corpus import fault
from tests.faults.nets import Data, LanguageModel, Module

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


@fault("overfit", "explodes")
def wide_mlp_rate_that_throws_it_back_to_chance():
    net = torch.nn.Sequential(torch.nn.Flatten(), nets.mlp(64, 10, 64))
    return Module(net, lr=30.0), Data(*nets.images())


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
