"""Lion against its formula, to the last bit."""

import copy
import io

import pytest
import torch
from timm.optim.lion import Lion as TimmLion
from torch import nn

from zoo.optim import Lion


def reference_step(params, grads, momenta, lr, betas, weight_decay):
    """Algorithm 2 of the paper."""
    for p, g, m in zip(params, grads, momenta, strict=True):
        update = torch.sign(torch.lerp(m, g, 1 - betas[0]))
        p.mul_(1 - lr * weight_decay).sub_(lr * update)
        m.copy_(torch.lerp(m, g, 1 - betas[1]))


def tensors(dtype=torch.float64):
    """Some small, one so large that on a CPU it is updated piece by piece."""
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype) for shape in [(3,), (4, 5), (300,), (2, 3, 3, 3), (3, 100_001)]]


def sparse_gradients():
    """With exact zeros, where the sign is zero too."""
    return [torch.randn_like(t) * (torch.rand_like(t) > 0.3) for t in tensors()]


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_the_reference(foreach, weight_decay):
    expected, momenta = tensors(), [torch.zeros_like(t) for t in tensors()]
    params = [nn.Parameter(t) for t in tensors()]
    optimizer = Lion(params, 0.01, betas=(0.8, 0.95), weight_decay=weight_decay, foreach=foreach)
    for _ in range(5):
        grads = sparse_gradients()
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        optimizer.step()
        reference_step(expected, grads, momenta, 0.01, (0.8, 0.95), weight_decay)
    for p, e in zip(params, expected, strict=True):
        assert torch.equal(p, e)
    assert [set(optimizer.state[p]) for p in params] == [{"exp_avg"}] * len(params)


@pytest.mark.parametrize("foreach", [False, True])
def test_equals_timm(foreach):
    ours, theirs = ([nn.Parameter(t) for t in tensors(torch.float32)] for _ in range(2))
    optimizers = Lion(ours, weight_decay=0.3, foreach=foreach), TimmLion(theirs, weight_decay=0.3, foreach=False)
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("foreach", [False, True])
def test_maximize_is_the_step_of_the_negated_gradient(foreach):
    up, down = ([nn.Parameter(t) for t in tensors()] for _ in range(2))
    for a, b in zip(up, down, strict=True):
        a.grad = torch.randn_like(a)
        b.grad = -a.grad
    Lion(up, 0.1, maximize=True, foreach=foreach).step()
    Lion(down, 0.1, foreach=foreach).step()
    assert all(torch.equal(a, b) for a, b in zip(up, down, strict=True))


def test_channels_last_and_contiguous_weights_are_updated_alike():
    plain = torch.randn(256, 128, 3, 3)
    gradient = torch.randn_like(plain)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        p = nn.Parameter(plain.clone(memory_format=layout))
        p.grad = gradient.clone()
        Lion([p], 0.1, weight_decay=0.1).step()
        results.append(p.detach())
    assert torch.equal(*results)


def test_tensor_lr_closure_and_missing_gradients():
    p, frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = Lion([p, frozen], torch.tensor(0.5))

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 3
    assert p.tolist() == [0.5] * 3
    assert frozen.tolist() == [1.0] * 3
    assert frozen not in optimizer.state


def test_a_resumed_run_goes_on_bit_for_bit():
    params = [nn.Parameter(t) for t in tensors()]
    optimizer = Lion(params, 0.01, weight_decay=0.1)
    torch.manual_seed(1)
    gradients = [[torch.randn_like(p) for p in params] for _ in range(4)]

    def run(params, optimizer, steps):
        for grads in steps:
            for p, g in zip(params, grads, strict=True):
                p.grad = g.clone()
            optimizer.step()

    run(params, optimizer, gradients[:2])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = copy.deepcopy(params)
    again = Lion(resumed, 1.0)
    again.load_state_dict(torch.load(file, weights_only=True))
    run(params, optimizer, gradients[2:])
    run(resumed, again, gradients[2:])
    assert all(torch.equal(a, b) for a, b in zip(params, resumed, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"betas": (0.9, 1.0)}, "betas are"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        Lion([nn.Parameter(torch.ones(1))], **options)


def test_sparse_gradients_and_complex_parameters_are_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="dense gradients only"):
        Lion(embedding.parameters()).step()
    p = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="real parameters only"):
        Lion([p]).step()
