"""Bugs in inputs, labels and splits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.faults import nets
from tests.faults.corpus import fault
from tests.faults.nets import Data, LanguageModel, Module


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
