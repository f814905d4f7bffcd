"""One token after another: the same numbers as the whole network, for every kind of decoder, or the network itself."""

import copy

import pytest
import torch
from torch import nn

from zoo.layers.cpu.single_token_decoder import SingleTokenDecoder
from zoo.models import GPT, LLaMA
from zoo.tasks.generation import generate
from zoo.tasks.token_sampling import SamplingConfig

NETS = {
    "GPT": lambda: GPT(61, 32, 48, 3, 4),
    "modern GPT": lambda: GPT(
        61,
        32,
        48,
        3,
        4,
        positions="rotary",
        norm="rmsnorm",
        activation="relu_squared",
        qk_norm=True,
        logit_softcap=3.0,
        token_shift=2,
    ),
    "gated GPT": lambda: GPT(61, 32, 48, 3, 4, activation="swiglu", tied=False, qk_norm=True),
    "shifted GPT": lambda: GPT(61, 32, 48, 3, 4, token_shift=2),
    "LLaMA": lambda: LLaMA(61, 32, 48, 3, 4),
    "grouped LLaMA": lambda: LLaMA(61, 32, 48, 3, 4, kv_heads=2, head_dim=16, tied=True),
}
every_net = pytest.mark.parametrize("kind", NETS)


def make(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    net = NETS[kind]().to(dtype).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return net


def tokens(b: int) -> torch.Tensor:
    return torch.randint(61, (b, 20), generator=torch.Generator().manual_seed(b))


@every_net
@pytest.mark.parametrize("b", [1, 3])
@torch.inference_mode()
def test_it_is_the_network(kind, b):
    net, ids = make(kind), tokens(b)
    cache, plain = net.make_cache(b, 24), net.make_cache(b, 24)
    net(ids[:, :7], cache=cache), net(ids, cache=plain)
    step = SingleTokenDecoder.for_network(net, cache)
    assert step is not None
    found = torch.stack([step(ids[:, t]).clone() for t in range(7, 20)], 1)
    torch.testing.assert_close(found, net(ids)[:, 7:], rtol=0, atol=1e-12)
    assert cache.position == 20
    for ours, theirs in ((cache.keys, plain.keys), (cache.values, plain.values)):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a[:, :, :20], b[:, :, :20], rtol=0, atol=1e-12)


@every_net
@torch.inference_mode()
def test_and_in_halves(kind):
    """As near to the numbers in float64 as the network is."""
    net = make(kind).bfloat16()
    exact = copy.deepcopy(net).double()(tokens(3))
    cache = net.make_cache(3, 24)
    net(tokens(3)[:, :7], cache=cache)
    step = SingleTokenDecoder.for_network(net, cache)
    assert step is not None
    found = torch.stack([step(tokens(3)[:, t]).clone() for t in range(7, 20)], 1)
    errors = [(logits - exact[:, 7:]).square().mean().sqrt() for logits in (found, net(tokens(3))[:, 7:])]
    assert 0 < errors[0] < 1.2 * errors[1]
    assert errors[1] < 0.2 * exact.std(), "which says something"


@every_net
def test_every_kind_is_generated_by_it(kind, monkeypatch):
    net, calls = make(kind), []
    original = SingleTokenDecoder.__call__
    monkeypatch.setattr(SingleTokenDecoder, "__call__", lambda self, ids: calls.append(len(ids)) or original(self, ids))
    texts = generate(net, [[1, 2, 3], [4, 5, 6]], 20, SamplingConfig(), 32)
    assert calls == [2] * 19, "all but the prompt"
    assert texts == generate(net, [[1, 2, 3], [4, 5, 6]], 20, SamplingConfig(), 32, cache=False)
    assert len(calls) == 19


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(net):
    net.blocks[1].register_forward_hook(lambda module, args, out: 2 * out)


def replaced(net):
    net.lm_head = Doubled(48, 61, bias=False, dtype=torch.float64)


def parametrized(net):
    class Half(nn.Module):
        def forward(self, x):
            return x / 2

    nn.utils.parametrize.register_parametrization(net.blocks[0].attn.qkv, "weight", Half())


@pytest.mark.parametrize("change", [hooked, replaced, parametrized])
def test_a_changed_network_is_called_itself(change):
    net = make("GPT")
    plain = generate(net, [[1, 2, 3]], 20, SamplingConfig(), 32)
    change(net)
    texts = [generate(net, [[1, 2, 3]], 20, SamplingConfig(), 32, cache=cache) for cache in (True, False)]
    assert texts[0] == texts[1] != plain
    assert SingleTokenDecoder.for_network(net, net.make_cache(1, 4)) is None


def test_in_training_or_under_autocast_the_network_is_called():
    net = make("GPT", torch.float32)
    cache = net.make_cache(1, 4)
    assert SingleTokenDecoder.for_network(net, cache) is not None
    with torch.autocast("cpu"):
        assert SingleTokenDecoder.for_network(net, cache) is None
    assert SingleTokenDecoder.for_network(net.train(), cache) is None


@torch.inference_mode()
def test_rows_leave_a_cache_without_new_memory_and_may_return_in_more():
    net = make("GPT")
    cache, ids = net.make_cache(3, 24), tokens(3)
    net(ids[:, :10], cache=cache)
    place = cache.data.data_ptr()
    for rows in ([2, 0], [1], [0, 0, 0, 0]):
        rows = torch.tensor(rows)
        ids = ids[rows]
        cache.reorder(rows)
        assert (cache.data.data_ptr() == place) == (len(rows) < 3)
        assert cache.batch == len(rows)
        step = SingleTokenDecoder.for_network(net, cache)
        torch.testing.assert_close(step(ids[:, 10]), net(ids[:, :11])[:, -1], rtol=0, atol=1e-12)
        cache.rewind(10)
