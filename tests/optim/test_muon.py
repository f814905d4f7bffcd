"""BatchedMuon against torch's Muon, matrix by matrix."""

import io
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import Muon

from zoo.optim import BatchedMuon, muon

SHAPES = [(8, 8)] * 5 + [(16, 4)] * 3 + [(4, 16)] * 2 + [(8, 24)]


def make_params(dtype=torch.float32):
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in SHAPES]


def step(pairs, generator):
    for optimizer, params in pairs:
        state = generator.get_state()
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()
        if params is not pairs[-1][1]:
            generator.set_state(state)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": False, "weight_decay": 0.0, "momentum": 0.8},
        {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3},
        {"adjust_lr_fn": "spectral_unclamped", "ns_coefficients": (3.0, -3.2, 1.2)},
    ],
)
def test_equals_torch(options):
    ours, theirs = make_params(), make_params()
    optimizers = BatchedMuon(ours, 0.02, **options), Muon(theirs, 0.02, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        step([(optimizers[0], ours), (optimizers[1], theirs)], generator)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_more_matrices_than_a_batch_holds_are_all_updated():
    """200 of 64x64 are 819,200 elements. In bfloat16 a batched product rounds otherwise than a single one."""
    torch.manual_seed(0)
    before = [torch.randn(64, 64) for _ in range(200)]
    gradients = [torch.randn(64, 64) for _ in range(200)]
    found = []
    for kind in (BatchedMuon, Muon):
        params = [nn.Parameter(matrix.clone()) for matrix in before]
        for p, gradient in zip(params, gradients, strict=True):
            p.grad = gradient.clone()
        kind(params, 0.02).step()
        found.append(torch.stack([p.detach() for p in params]))
    ours, theirs = found
    step = (theirs - torch.stack(before)).norm(dim=(1, 2))
    assert ((ours - theirs).norm(dim=(1, 2)) < 0.02 * step).all()


def test_checkpoints_go_both_ways():
    ours, theirs = make_params(torch.float64), make_params(torch.float64)
    pairs = [(BatchedMuon(ours, 0.02), ours), (Muon(theirs, 0.02), theirs)]
    generator = torch.Generator().manual_seed(1)
    step(pairs, generator)
    file = io.BytesIO()
    torch.save([optimizer.state_dict() for optimizer, _ in pairs], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    for (optimizer, _), state in zip(pairs, reversed(saved), strict=True):
        optimizer.load_state_dict(state)
    step(pairs, generator)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_singular_values_come_near_one():
    x = muon.orthogonalize(torch.randn(2, 20, 30), (3.4445, -4.7750, 2.0315), 8, 1e-7)
    values = torch.linalg.svdvals(x)
    assert 0.6 < values.min() <= values.max() < 1.3


def test_closure_and_missing_or_zero_gradients():
    p, zero, frozen = nn.Parameter(torch.eye(2)), nn.Parameter(torch.eye(2)), nn.Parameter(torch.eye(2))
    optimizer = BatchedMuon([p, zero, frozen], 0.1, weight_decay=0.0)

    def closure():
        loss = (p.square() + 0 * zero).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2
    assert p[0, 0] < 1
    assert torch.equal(zero, torch.eye(2))
    assert torch.equal(frozen, torch.eye(2))
    assert frozen not in optimizer.state


@pytest.mark.parametrize("build", [partial(BatchedMuon, lr=-1), partial(BatchedMuon, adjust_lr_fn="none")])
def test_options_are_checked_by_torch(build):
    with pytest.raises(ValueError, match="rate"):
        build([nn.Parameter(torch.eye(2))])


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="2D"):
        BatchedMuon([nn.Parameter(torch.ones(2))])
