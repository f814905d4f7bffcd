"""LSTM and GRU over padded batches against torch's own, on one sequence at a time and packed: float64, 1e-10."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from zoo.layers.padded_rnn import AutocastLSTM, run_packed, run_padded, run_rnn
from zoo.layers.recurrent import length_mask

LENGTHS = torch.tensor([6, 1, 3, 6, 2])
kinds = pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
two_ways = pytest.mark.parametrize("two_way", [False, True], ids=["one-way", "two-way"])
depths = pytest.mark.parametrize("depth", [1, 3])


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def parts(ends) -> list[Tensor]:
    """``h`` and ``c`` of an LSTM, ``h`` of a GRU."""
    return list(ends) if isinstance(ends, tuple) else [ends]


def weigh(tensors: list[Tensor]) -> Tensor:
    """A number to which every value contributes differently."""
    generator = torch.Generator().manual_seed(1)
    return sum((t * torch.randn(t.shape, generator=generator)).sum() for t in tensors)  # type: ignore[return-value]


def with_gradients(rnn: nn.Module, x: Tensor, found: list[Tensor]) -> list[Tensor]:
    return [*found, *torch.autograd.grad(weigh(found), [x, *rnn.parameters()])]


def close(ours: list[Tensor], theirs: list[Tensor], bound: float = 1e-10) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=bound, atol=bound)


@pytest.mark.parametrize("how", [run_padded, run_packed])
@kinds
@two_ways
@depths
def test_every_layer_ends_as_with_each_sequence_alone(how, kind, two_way, depth):
    rnn, x = kind(5, 4, depth, batch_first=True, bidirectional=two_way), (torch.randn(5, 7, 5) * 3).requires_grad_()
    alone = [rnn(x[i : i + 1, :n]) for i, n in enumerate(LENGTHS.tolist())]
    states = pad_sequence([states[0] for states, _ in alone], batch_first=True)
    ends = [torch.cat(rows, 1) for rows in zip(*(parts(ends) for _, ends in alone), strict=True)]
    expected = with_gradients(rnn, x, [states, *ends])
    states, ends = how(rnn, x, LENGTHS)
    own = (states * length_mask(LENGTHS, 7).unsqueeze(2))[:, :6]
    close(with_gradients(rnn, x, [own, *parts(ends)]), expected)


@kinds
@two_ways
@depths
@pytest.mark.parametrize("lengths", [LENGTHS, torch.full((5,), 7), None], ids=["mixed", "equal", "none"])
def test_the_last_states_are_those_of_the_top_layer(kind, two_way, depth, lengths):
    rnn, x = kind(5, 4, depth, batch_first=True, bidirectional=two_way), torch.randn(5, 7, 5).requires_grad_()
    given = torch.full((5,), 7) if lengths is None else lengths
    own = length_mask(given, 7).unsqueeze(2)
    states, ends = run_packed(rnn, x, given)
    top = parts(ends)[0][-2 if two_way else -1 :].transpose(0, 1).flatten(1)
    expected = with_gradients(rnn, x, [states * own, top])
    states, last = run_rnn(rnn, x, lengths)
    close(with_gradients(rnn, x, [states * own, last]), expected)


@kinds
def test_dropout_stands_between_the_layers_only(kind):
    """Where all is dropped, both ways agree to the digit; in eval mode nothing is."""
    rnn, x = kind(3, 6, 2, batch_first=True, bidirectional=True, dropout=1.0), torch.randn(5, 7, 3)
    own = length_mask(LENGTHS, 7).unsqueeze(2)
    (ours, ends), (theirs, expected) = run_padded(rnn, x, LENGTHS), run_packed(rnn, x, LENGTHS)
    close([ours * own, *parts(ends)], [theirs * own, *parts(expected)])
    assert torch.equal(run_rnn(rnn, x, LENGTHS)[1], run_rnn(rnn, x + 1, LENGTHS)[1]), "the second layer sees zeros"
    rnn.eval()
    close(parts(run_padded(rnn, x, LENGTHS)[1]), parts(run_packed(rnn, x, LENGTHS)[1]))
    assert not torch.allclose(run_rnn(rnn, x + 1, LENGTHS)[1], run_rnn(rnn, x, LENGTHS)[1])


@kinds
def test_padding_stays_shut_in_single_and_half_precision(kind):
    rnn, lengths = kind(8, 16, 2, batch_first=True, bidirectional=True).float(), torch.tensor([9, 2, 5])
    x = torch.randn(3, 9, 8, dtype=torch.float32)
    other = x.clone()
    for i, n in enumerate(lengths.tolist()):
        other[i, n:] = 50
    with torch.no_grad():
        one, two, peer = (
            parts(how(rnn, y, lengths)[1]) for how, y in ((run_padded, x), (run_padded, other), (run_packed, x))
        )
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        close(one, peer, 1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            one, two = (parts(run_padded(rnn, y, lengths)[1]) for y in (x, other))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_an_lstm_runs_under_autocast_on_any_cpu():
    """oneDNN has bfloat16 kernels for an LSTM on some CPUs only."""
    torch.manual_seed(0)
    rnn = AutocastLSTM(3, 4, batch_first=True).float()
    x = torch.randn(2, 5, 3, dtype=torch.float32)
    expected, (h, _) = rnn(x)
    with torch.autocast("cpu", torch.bfloat16):
        states, (last, _) = rnn(x)
        again, _ = rnn(x, (last, last))
    assert torch.allclose(states.float(), expected, atol=0.05)
    assert torch.allclose(last.float(), h, atol=0.05)
    assert again.shape == states.shape
