"""The ways in which a CPU computes attention in bfloat16 agree with torch's own, and with float64."""

import pytest
import torch
import torch.nn.functional as F

from zoo.layers.attention import attention
from zoo.layers.cpu import attention as cpu

MASK = torch.tensor([[True] * 9, [True] * 4 + [False] * 5])[:, None, None]


def make_qkv(kv_heads=4):
    torch.manual_seed(0)
    q = torch.randn(2, 4, 9, 8, dtype=torch.bfloat16, requires_grad=True)
    k = torch.randn(2, kv_heads, 9, 8, dtype=torch.bfloat16, requires_grad=True)
    v = torch.randn(2, kv_heads, 9, 8, dtype=torch.bfloat16, requires_grad=True)
    return q, k, v


@pytest.mark.parametrize("instructions", [False, True])
@pytest.mark.parametrize(("mask", "causal", "kv_heads"), [(None, False, 4), (MASK, False, 4), (None, True, 2)])
def test_bfloat16_on_any_cpu(instructions, mask, causal, kv_heads, monkeypatch):
    """With or without bfloat16 instructions the result and gradients are those of float64, up to rounding."""
    monkeypatch.setattr(cpu, "BFLOAT16_PRODUCTS", instructions)
    q, k, v = make_qkv(kv_heads)
    out = attention(q, k, v, mask, causal=causal)
    assert out.dtype == torch.bfloat16
    grads = torch.autograd.grad(out.float().square().sum(), (q, k, v))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*exact, mask, is_causal=causal, enable_gqa=kv_heads < 4)
    expected_grads = torch.autograd.grad(expected.square().sum(), exact)
    torch.testing.assert_close(out.double(), expected, rtol=0.02, atol=0.03)
    for grad, reference in zip(grads, expected_grads, strict=True):
        scale = float(reference.abs().max())
        torch.testing.assert_close(grad.double(), reference, rtol=0, atol=0.03 * scale)


def test_written_out_attention_is_torchs_own():
    q, k, v = (x.detach().double() for x in make_qkv())
    for mask in (None, MASK):
        expected = F.scaled_dot_product_attention(q, k, v, mask)
        torch.testing.assert_close(cpu.attention_written_out(q, k, v, mask, 0.0), expected, rtol=0, atol=1e-12)
    dropped = cpu.attention_written_out(q, k, v, None, 0.5)
    assert not torch.equal(dropped, cpu.attention_written_out(q, k, v, None, 0.0))
