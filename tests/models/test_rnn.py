"""The vanilla recurrent network: what it learns, how it starts, what it says of wrong inputs."""

import pytest
import torch
from torch import nn

from zoo.layers.recurrent import initialize_recurrent
from zoo.models import VanillaRNN, VanillaRNNClassifier, VanillaRNNRegressor, VanillaRNNTagger
from zoo.models.rnn import VanillaLayer, _flush_below


def test_both_paths_share_their_parameters_and_learn_the_same():
    """A checkpoint of one is a checkpoint of the other, and 20 steps of SGD end in the same weights."""
    ends = []
    for fast in (False, True):
        torch.manual_seed(0)
        net = VanillaRNN(2, 8, input_dim=3, fast=fast).double()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        x = torch.randn(6, 12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), torch.tensor([0, 1, 0, 1, 0, 1])).backward()
            optimizer.step()
        ends.append(net.state_dict())
    assert ends[0].keys() == ends[1].keys()
    assert all((ends[0][k] - ends[1][k]).abs().max() < 1e-12 for k in ends[0])


def test_the_states_are_not_changed_by_the_backward_pass():
    layer = VanillaLayer(3, 4)
    states, last = layer(torch.randn(2, 5, 3))
    before = states.clone()
    (states.square().sum() + last.sum()).backward()
    assert torch.equal(states, before)


def test_frozen_weights_and_inference():
    layer = VanillaLayer(3, 4).requires_grad_(False)
    x = torch.randn(2, 5, 3)
    with torch.inference_mode():
        expected, _ = layer(x)
    x.requires_grad_()
    states, _ = layer(x)
    states.sum().backward()
    assert torch.equal(states, expected)
    assert x.grad.abs().min() > 0


def test_a_vanished_gradient_is_zero_where_it_would_be_denormal():
    """The gradient at early steps of a long sequence underflows; what is left of it is no denormal number."""
    torch.manual_seed(0)
    layer = VanillaLayer(3, 16)
    x = torch.randn(4, 600, 3, requires_grad=True)
    layer(x)[1].sum().backward()
    sizes = x.grad.abs().amax((0, 2))
    assert sizes[-1] > 1e-3
    assert sizes[0] == 0
    smallest = x.grad[x.grad != 0].abs().min()
    assert smallest > torch.finfo(torch.float32).tiny
    assert _flush_below(torch.zeros(1, dtype=torch.float16)) == 0, "no number of half precision is that small"


def test_initialisation():
    layer = VanillaLayer(3, 8)
    before = layer.weight_ih.clone()
    initialize_recurrent(layer)
    assert torch.allclose(layer.weight_hh @ layer.weight_hh.T, torch.eye(8), atol=1e-5)
    assert layer.bias.abs().max() == 0
    assert layer.weight_ih.abs().max() <= (6 / 11) ** 0.5
    assert not torch.equal(layer.weight_ih, before)


@pytest.mark.parametrize("cls", [VanillaRNNClassifier, VanillaRNNRegressor, VanillaRNNTagger])
def test_tokens_or_vectors(cls):
    facts = {"num_classes": 3} if cls is not VanillaRNNRegressor else {"output_dim": 3}
    steps = (7,) if cls is VanillaRNNTagger else ()
    tokens = torch.randint(1, 9, (2, 7))
    assert cls(vocab_size=9, pad_id=0, **facts)(tokens).shape == (2, *steps, 3)
    assert cls(input_dim=4, **facts)(torch.randn(2, 7, 4), torch.tensor([7, 3])).shape == (2, *steps, 3)
    with pytest.raises(ValueError, match=r"needs input_dim \(for vectors\) or vocab_size \(for tokens\)"):
        cls(**facts)
    with pytest.raises(ValueError, match=r"needs input_dim .*got input_dim=4, vocab_size=9"):
        cls(input_dim=4, vocab_size=9, **facts)


X, TOKENS = torch.zeros(3, 5, 2), torch.ones(3, 5, dtype=torch.long)


@pytest.mark.parametrize(
    ("facts", "inputs", "message"),
    [
        ({"input_dim": 2}, (X, torch.tensor([5, 0, 2])), "sequence 1 of the batch is empty: .* length of 0"),
        ({"input_dim": 2}, (X, torch.tensor([5, 2, 6])), "sequence 2 of the batch has length 6, but .* 5 steps"),
        (
            {"input_dim": 2},
            (X, torch.tensor([5, 2])),
            r"expected 3 integer lengths .* 3 sequences, got .*\(2,\)",
        ),
        ({"input_dim": 2}, (X[:, :0],), "sequences have no steps"),
        ({"input_dim": 3}, (X,), r"expected sequences of vectors \(b, t, 3\), got \(3, 5, 2\)"),
        ({"vocab_size": 4}, (X,), r"expected token ids \(b, t\), got torch.float32"),
        ({"vocab_size": 4}, (4 * TOKENS,), "token 4 is out of range: vocab_size=4 allows 0 to 3"),
        ({"vocab_size": 4}, (-TOKENS,), "token -1 is out of range"),
        ({"vocab_size": 4, "pad_id": 1}, (TOKENS,), "sequence 0 of the batch is empty: only padding"),
    ],
)
def test_mistakes(facts, inputs, message):
    with pytest.raises(ValueError, match=message):
        VanillaRNN(2, 4, **facts)(*inputs)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="pooling must be last, mean, max, attention, got 'first'"):
        VanillaRNN(2, 4, input_dim=3, pooling="first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pad_id 9 is out of range: vocab_size=4"):
        VanillaRNN(2, 4, vocab_size=4, pad_id=9)
