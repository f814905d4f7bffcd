"""Recurrent networks against torch's own, against the notes', and against one sequence at a time: float64, 1e-10."""

import pytest
import torch
from torch import Tensor, nn

from zoo.layers.recurrent import length_mask
from zoo.models import GRU, LSTM, VanillaRNN
from zoo.models.rnn import VanillaLayer

LENGTHS = torch.tensor([4, 7, 1, 7, 3])
POOLINGS = ["last", "mean", "max", "attention"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def weigh(*outputs: Tensor) -> Tensor:
    """A number to which every output contributes differently."""
    return sum((out * drawn(*out.shape, seed=i + 5)).sum() for i, out in enumerate(outputs))  # type: ignore[return-value]


def gradients(net: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    return found


def assert_equal(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-10) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert b.abs().max() > 1e4 * tolerance
        assert (a - b).abs().max() < tolerance


# The vanilla network ------------------------------------------------------------------------------------------------


def layer_and_reference(fast: bool) -> tuple[VanillaLayer, nn.RNN]:
    torch.manual_seed(0)
    theirs, ours = nn.RNN(3, 6, batch_first=True).double(), VanillaLayer(3, 6, fast).double()
    with torch.no_grad():
        ours.weight_ih.copy_(theirs.weight_ih_l0)
        ours.weight_hh.copy_(theirs.weight_hh_l0)
        ours.bias.copy_(theirs.bias_ih_l0 + theirs.bias_hh_l0)
    return ours, theirs


@pytest.mark.parametrize("fast", [False, True], ids=["written out", "fast"])
@pytest.mark.parametrize("used", ["states", "last", "both"])
def test_vanilla_layer_is_nn_rnn(fast, used):
    ours, theirs = layer_and_reference(fast)
    results = []
    for net in (ours, theirs):
        x = drawn(5, 9, 3).requires_grad_()
        states, last = net(x)
        last = last.view(5, 6)
        weigh(*{"states": [states], "last": [last], "both": [states, last]}[used]).backward()
        results.append([states, last, x.grad])
    assert_equal(*results)
    w_ih, w_hh, bias = gradients(ours)
    assert_equal([w_ih, w_hh, bias, bias], gradients(theirs))


def test_vanilla_layer_passes_a_numerical_check_of_its_gradient():
    ours, _ = layer_and_reference(False)
    assert torch.autograd.gradcheck(lambda x: ours(x), [drawn(2, 4, 3).requires_grad_()])


class NotesRNN(nn.Module):
    """As in the notes, a time step at a time."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int) -> None:
        super().__init__()
        self.Wx = nn.Linear(input_dim, hidden_dim, bias=False)
        self.Wh = nn.Linear(hidden_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.Wh.in_features)
        for t in range(x.shape[1]):
            h = torch.tanh(self.Wx(x[:, t, :]) + self.Wh(h))
        return self.out(h)


@pytest.mark.parametrize("fast", [False, True], ids=["written out", "fast"])
@pytest.mark.parametrize("steps", [1, 9, 400])
def test_vanilla_rnn_is_that_of_the_notes(fast, steps):
    """At 400 steps the gradient vanishes: what it is set to 0 for does not show."""
    torch.manual_seed(0)
    theirs, ours = NotesRNN(3, 6, 2).double(), VanillaRNN(2, 6, input_dim=3, fast=fast).double()
    pairs = {"rnn.weight_ih": "Wx.weight", "rnn.weight_hh": "Wh.weight", "rnn.bias": "Wh.bias"}
    pairs |= {f"out.{k}": f"out.{k}" for k in ("weight", "bias")}
    state = theirs.state_dict()
    ours.load_state_dict({k: state[v] for k, v in pairs.items()})
    results = []
    for net in (ours, theirs):
        x = drawn(5, steps, 3).requires_grad_()
        out = net(x)
        weigh(out).backward()
        results.append([out, x.grad, *(net.get_parameter(k).grad for k in (pairs if net is ours else pairs.values()))])
    if steps == 1:
        results = [[r for i, r in enumerate(part) if i != 3] for part in results]  # Wh has seen nothing but zeros
    assert_equal(*results)


def test_a_gradient_that_is_nan_stays_so():
    ours, _ = layer_and_reference(False)
    x = drawn(2, 20, 3).requires_grad_()
    (ours(x)[1] * torch.nan).sum().backward()
    assert x.grad.isnan().all()


def test_vanilla_rnn_under_autocast():
    ours = VanillaRNN(2, 6, input_dim=3)
    x = drawn(5, 9, 3).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = ours(x)
        out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())
    assert (out.float() - ours(x)).abs().max() < 0.05


# LSTM and GRU -------------------------------------------------------------------------------------------------------


class NotesLSTM(nn.Module):
    """As in the notes, for any of the two."""

    def __init__(self, kind: type, input_dim: int, dim: int, depth: int, outputs: int, bidirectional: bool) -> None:
        super().__init__()
        self.rnn = kind(input_dim, dim, depth, bidirectional=bidirectional, batch_first=True)
        d = dim * (2 if bidirectional else 1)
        self.head = nn.Sequential(nn.Linear(d, d // 2), nn.ReLU(), nn.Dropout(0.0), nn.Linear(d // 2, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1, :])


KINDS = pytest.mark.parametrize(("kind", "peer"), [(LSTM, nn.LSTM), (GRU, nn.GRU)], ids=["LSTM", "GRU"])


def two(kind, peer, bidirectional: bool) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    theirs = NotesLSTM(peer, 3, 6, 2, 4, bidirectional).double()
    ours = kind(4, 6, 2, bidirectional, hidden=6 if bidirectional else 3, input_dim=3).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@KINDS
@pytest.mark.parametrize("lengths", [None, torch.full((5,), 7)], ids=["no lengths", "full lengths"])
def test_one_way_network_is_that_of_the_notes(kind, peer, lengths):
    ours, theirs = two(kind, peer, False)
    results = []
    for net, more in ((ours, [lengths]), (theirs, [])):
        x = drawn(5, 7, 3).requires_grad_()
        out = net(x, *more)
        weigh(out).backward()
        results.append([out, x.grad, *gradients(net)])
    assert_equal(*results)


@KINDS
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_padded_batch_is_one_sequence_at_a_time(kind, peer, bidirectional, pooling):
    torch.manual_seed(0)
    net = kind(4, 6, depth=2, bidirectional=bidirectional, pooling=pooling, input_dim=3).double()
    check_against_a_loop(net)


@pytest.mark.parametrize("fast", [False, True], ids=["written out", "fast"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_padded_batch_of_the_vanilla_rnn_is_one_sequence_at_a_time(fast, pooling):
    torch.manual_seed(0)
    check_against_a_loop(VanillaRNN(4, 6, input_dim=3, pooling=pooling, fast=fast).double())


def check_against_a_loop(net: nn.Module) -> None:
    x = drawn(5, 7, 3)
    out = net(x, LENGTHS)
    weigh(out).backward()
    padded = [out, *gradients(net)]
    out = torch.cat([net(row[:n].unsqueeze(0)) for row, n in zip(x, LENGTHS.tolist(), strict=True)])
    weigh(out).backward()
    assert_equal(padded, [out, *gradients(net)])


@KINDS
def test_the_notes_take_another_state(kind, peer):
    """``out[:, -1]`` is wrong in a padded batch, and of a two-way network in any."""
    x = drawn(5, 7, 3)
    one_way, notes = two(kind, peer, False)
    wrong = (notes(x) - one_way(x, LENGTHS)).abs().amax(1) > 1e-3
    assert torch.equal(wrong, LENGTHS < 7)
    two_way, notes = two(kind, peer, True)
    assert ((notes(x) - two_way(x)).abs().amax(1) > 1e-3).all()
    reversed_first = two_way.rnn(x)[0][:, 0, 6:]  # the backward direction has seen all at the first step
    forward_last = two_way.rnn(x)[0][:, -1, :6]
    assert (two_way.head(torch.cat([forward_last, reversed_first], 1)) - two_way(x)).abs().max() < 1e-10


@pytest.mark.parametrize("kind", [VanillaRNN, LSTM, GRU])
@pytest.mark.parametrize("pooling", [*POOLINGS, None])
def test_padding_and_the_order_of_the_batch_change_nothing(kind, pooling):
    torch.manual_seed(0)
    both = {} if kind is VanillaRNN else {"bidirectional": True, "depth": 2}
    net = kind(4, 6, input_dim=3, pooling=pooling, **both).double()
    mask, results, order = length_mask(LENGTHS, 7), [], torch.tensor([3, 0, 4, 1, 2])
    for filling, more, permuted in ((0.0, 0, False), (torch.inf, 0, False), (torch.nan, 3, False), (5.0, 0, True)):
        x = torch.full((5, 7 + more, 3), filling, dtype=torch.float64)
        x[:, :7][mask] = drawn(5, 7, 3)[mask]
        rows = order if permuted else torch.arange(5)
        out = net(x[rows], LENGTHS[rows])[torch.argsort(rows)]
        out = out if pooling else out[:, :7] * mask.unsqueeze(2)
        weigh(out).backward()
        results.append([out, *gradients(net)])
    for other in results[1:]:
        assert_equal(other, results[0])


@pytest.mark.parametrize("kind", [VanillaRNN, LSTM, GRU])
def test_tokens_without_lengths_end_where_padding_begins(kind):
    torch.manual_seed(0)
    net = kind(4, 6, vocab_size=9, embed_dim=5, pad_id=2).double()
    x = torch.randint(3, 9, (5, 7), generator=torch.Generator().manual_seed(0))
    x[0, 1] = 2  # a padding token within the sequence is not its end
    x[~length_mask(LENGTHS, 7)] = 2
    assert torch.equal(net(x), net(x, LENGTHS))
    assert (net(x) - net.to(torch.float64)(x[:, :7], torch.full((5,), 7))).abs().max() > 1e-3
