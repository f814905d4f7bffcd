"""Every optimizer that a configuration may name: trains, and resumes bit for bit from a safely loaded file."""

import copy
import io
from functools import partial

import pytest
import torch
from torch import nn, optim

from zoo.optim import BatchedMuon, Lion, ParamGroupRule, build_optimizer, fused_by_default

MUON = [ParamGroupRule("", optimizer=partial(optim.Muon, adjust_lr_fn="match_rms_adamw"), matrices=True)]
CASES = {
    "SGD": (partial(optim.SGD, momentum=0.9, nesterov=True), 0.05, None),
    "Adam": (optim.Adam, 0.01, None),
    "AdamW": (optim.AdamW, 0.01, None),
    "AdamW, fused": (fused_by_default(optim.AdamW), 0.01, None),
    "RMSprop": (optim.RMSprop, 0.005, None),
    "Adagrad": (optim.Adagrad, 0.05, None),
    "Adadelta": (optim.Adadelta, 1.0, None),
    "Adamax": (optim.Adamax, 0.01, None),
    "NAdam": (optim.NAdam, 0.01, None),
    "RAdam": (optim.RAdam, 0.02, None),
    "LBFGS": (partial(optim.LBFGS, max_iter=4), 0.3, None),
    "Adafactor": (optim.Adafactor, 0.02, None),
    "Lion": (Lion, 0.003, None),
    "Muon": (partial(optim.Muon, adjust_lr_fn="match_rms_adamw"), 0.01, None),
    "BatchedMuon": (partial(BatchedMuon, adjust_lr_fn="match_rms_adamw"), 0.01, None),
    "Muon and AdamW": (optim.AdamW, 0.01, MUON),
    "Muon and Lion": (Lion, 0.01, MUON),
}


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))


def train(net, optimizer, steps):
    x = torch.linspace(-1, 1, 256).view(64, 4)
    losses = []
    for _ in range(steps):

        def closure():
            optimizer.zero_grad()
            loss = (net(x) - (3 * x).sin().sum(1, keepdim=True)).square().mean()
            loss.backward()
            return loss.detach()

        losses.append(optimizer.step(closure).item())
    return losses


@pytest.mark.parametrize("case", CASES)
def test_trains_and_resumes(case):
    factory, lr, rules = CASES[case]
    net = make_net()
    optimizer = build_optimizer(net, factory, lr, rules)
    losses = train(net, optimizer, 30)
    assert losses[-1] < 0.5 * losses[0]

    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin = copy.deepcopy(net)
    resumed = build_optimizer(twin, factory, 123.0, rules)
    resumed.load_state_dict(saved["optimizer"])
    assert train(net, optimizer, 3) == train(twin, resumed, 3)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))
