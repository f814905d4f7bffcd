"""MultiOptimizer: each member's own update, and one optimizer to everybody else."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adagrad, AdamW, Muon
from torch.optim.lr_scheduler import LambdaLR

from zoo.optim import Lion, MultiOptimizer


def make_net(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)


def split(net):
    matrices = [net[0].weight, net[2].weight]
    return matrices, [p for p in net.parameters() if all(p is not m for m in matrices)]


def members_of(net):
    matrices, rest = split(net)
    return [
        Muon(matrices, 0.02, weight_decay=0.1),
        AdamW([{"params": rest[:2]}, {"params": rest[2:], "lr": 1e-2}], 1e-3),
    ]


def backward(net, step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 6, generator=generator).to(net[0].weight)
    loss = (net(x) - x[:, :2].sin()).square().mean()
    loss.backward()
    return loss


def train(net, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        backward(net, step)
        optimizer.step()


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def save_and_load(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_every_member_keeps_its_own_update_bit_for_bit():
    apart, together = make_net(), make_net()
    separate, combined = members_of(apart), MultiOptimizer(members_of(together))
    for step in range(5):
        for optimizer in [*separate, combined]:
            optimizer.zero_grad()
        backward(apart, step)
        backward(together, step)
        for optimizer in [*separate, combined]:
            optimizer.step()
    assert equal(apart, together)


def test_against_formulas():
    """SGD and Lion together, as 10 lines of arithmetic."""
    a, b = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    p, q = nn.Parameter(a.clone()), nn.Parameter(b.clone())
    combined = MultiOptimizer([SGD([p], 0.1, weight_decay=0.01), Lion([q], 0.01)])
    m = torch.zeros(5, dtype=torch.float64)
    for _ in range(4):
        p.grad, q.grad = torch.randn_like(p), torch.randn_like(q)
        a.add_(p.grad.add(a, alpha=0.01), alpha=-0.1)
        b -= 0.01 * torch.lerp(m, q.grad, 1 - 0.9).sign()
        m = torch.lerp(m, q.grad, 1 - 0.99)
        combined.step()
    assert torch.equal(q, b)
    assert torch.equal(p, a)


def test_groups_are_shared_so_schedules_reach_the_members():
    combined = MultiOptimizer(members_of(make_net()))
    assert [len(g["params"]) for g in combined.param_groups] == [2, 2, 2]
    schedule = LambdaLR(combined, lambda step: 0.5**step)
    combined.step()
    schedule.step()
    muon, adamw = combined.optimizers
    assert [g["lr"] for g in muon.param_groups + adamw.param_groups] == [0.01, 5e-4, 5e-3]


@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
def test_a_copy_goes_on_bit_for_bit(how):
    net = make_net()
    combined = MultiOptimizer(members_of(net))
    train(net, combined, range(3))
    if how == "state_dict":
        twin = copy.deepcopy(net)
        other = MultiOptimizer(members_of(twin))
        other.load_state_dict(save_and_load(combined.state_dict()))
    else:
        copier = copy.deepcopy if how == "deepcopy" else lambda pair: pickle.loads(pickle.dumps(pair))
        twin, other = copier((net, combined))
    train(net, combined, range(3, 6))
    train(twin, other, range(3, 6))
    assert equal(net, twin)


def test_state_dict_has_the_usual_form():
    net = make_net()
    combined = MultiOptimizer(members_of(net))
    train(net, combined, range(1))
    state = combined.state_dict()
    assert set(state) == {"state", "param_groups"}
    assert [g["params"] for g in state["param_groups"]] == [[0, 1], [2, 3], [4, 5]]
    assert sorted(state["state"]) == list(range(6))
    assert set(state["state"][0]) == {"momentum_buffer"}


def test_moving_the_state_reaches_the_members():
    """As Lightning does: by assigning to ``optimizer.state``."""
    net = make_net()
    combined = MultiOptimizer(members_of(net))
    train(net, combined, range(1))
    for p, entries in combined.state.items():
        combined.state[p] = {k: v.clone().zero_() for k, v in entries.items()}
    assert all(
        not member.state[p]["momentum_buffer"].any() for member in combined.optimizers[:1] for p in split(net)[0]
    )


def test_members_that_set_up_state_early_or_look_at_it_when_loading():
    """Adagrad does both, and looks at whatever state comes first."""
    net = make_net()
    matrices, rest = split(net)
    combined = MultiOptimizer([Muon(matrices, 0.02), Adagrad(rest, 0.1)])
    train(net, combined, range(2))
    twin = copy.deepcopy(net)
    matrices, rest = split(twin)
    other = MultiOptimizer([Muon(matrices, 0.02), Adagrad(rest, 0.1)])
    other.load_state_dict(save_and_load(combined.state_dict()))
    train(net, combined, range(2, 4))
    train(twin, other, range(2, 4))
    assert equal(net, twin)


@pytest.mark.parametrize("fused", [None, True])
def test_gradient_scaler(fused):
    """Scaled gradients give the unscaled step; an overflow gives none. Muon's normalisation would hide a scale."""

    def build(net):
        matrices, rest = split(net)
        return MultiOptimizer([Lion(matrices, 0.01), AdamW(rest, 1e-2, eps=1.0, fused=fused)])

    plain, scaled = make_net(torch.float32), make_net(torch.float32)
    optimizer, other = build(plain), build(scaled)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        optimizer.zero_grad()
        backward(plain, step)
        nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        optimizer.step()

        other.zero_grad()
        scaler.scale(torch.ones(()))
        for p, g in zip(scaled.parameters(), gradients(scaled, step), strict=True):
            p.grad = g * scaler.get_scale()
        scaler.unscale_(other)
        nn.utils.clip_grad_norm_(scaled.parameters(), 0.1)
        scaler.step(other)
        scaler.update()
    assert equal(plain, scaled)

    before = copy.deepcopy(scaled)
    other.param_groups[-1]["params"][0].grad.fill_(torch.inf)
    scaler.step(other)
    scaler.update()
    assert equal(before, scaled)
    assert scaler.get_scale() == 512.0


def gradients(net, step):
    net.zero_grad()
    backward(net, step)
    return [p.grad.clone() for p in net.parameters()]


def test_closure_and_zero_grad():
    net = make_net()
    combined = MultiOptimizer(members_of(net))
    calls = []

    def closure():
        combined.zero_grad()
        calls.append(1)
        return backward(net, 0)

    before = copy.deepcopy(net)
    assert combined.step(closure) > 0
    assert len(calls) == 1
    assert not equal(before, net)
    combined.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_refusals():
    net = make_net()
    matrices, rest = split(net)
    with pytest.raises(ValueError, match="needs at least one"):
        MultiOptimizer([])
    with pytest.raises(ValueError, match="more than one parameter group"):
        MultiOptimizer([SGD(matrices, 0.1), SGD(net.parameters(), 0.1)])
    with pytest.raises(ValueError, match="LBFGS"):
        MultiOptimizer([SGD(matrices, 0.1), LBFGS(rest)])
    combined = MultiOptimizer([SGD(matrices, 0.1)])
    with pytest.raises(ValueError, match="takes no new groups"):
        combined.add_param_group({"params": rest})
