"""UNet computes its blocks again in training where that is asked for: the same gradients, less memory."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from zoo.models import LatentDiffusion, UNet


def small(text: bool = False) -> UNet:
    torch.manual_seed(0)
    net = UNet(3, (16, 32), attention=(False, True), groups=4, dropout=0.1, text_dim=8 if text else None)
    for p in net.parameters():  # some begin at zero
        nn.init.normal_(p, std=0.1)
    return net


@pytest.mark.parametrize("text", [False, True])
def test_checkpointed_activations_change_no_gradient(text):
    net, found = small(text).double(), []
    x, t, states = torch.randn(2, 3, 8, 8).double(), torch.tensor([3, 700]), torch.randn(2, 4, 8).double()
    for again in (False, True):
        net.activation_checkpointing, calls = again, []
        hook = net.mid_block.resnets[0].register_forward_pre_hook(lambda *args, calls=calls: calls.append(1))
        torch.manual_seed(1)  # the same dropout
        loss = net(x, t, text=states if text else None).square().mean()
        found.append([loss.detach(), *torch.autograd.grad(loss, list(net.parameters()))])
        hook.remove()
        assert len(calls) == (2 if again else 1)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_checkpointed_activations_take_less_memory():
    net, x, t = small(), torch.randn(8, 3, 32, 32), torch.arange(8)
    peaks = []
    for again in (False, True):
        net.activation_checkpointing = again
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            net(x, t).square().mean().backward()
        events = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
        peaks.append(max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))))
    assert peaks[1] < 0.6 * peaks[0], peaks


def test_checkpointing_is_an_option_of_the_task_and_for_training_only():
    module = LatentDiffusion(
        "pixels-8", channels=[16], attention=[False], groups=4, head_dim=16, activation_checkpointing=True,
        in_channels=1, image_size=8, num_classes=2,
    )  # fmt: skip
    net, calls = module.net, []
    net.mid_block.resnets[0].register_forward_pre_hook(lambda *args: calls.append(1))  # type: ignore[union-attr,index]
    for training, expected in ((True, 2), (False, 1)):
        calls.clear()
        net.train(training)(torch.randn(2, 1, 8, 8), torch.tensor([1, 2])).sum().backward()
        assert len(calls) == expected
    assert module.hparams["activation_checkpointing"] is True
