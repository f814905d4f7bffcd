import lightning as L
import pytest
import torch
from torch import nn

from zoo.data import Quadrants
from zoo.models import MLPClassifier, ScratchMLP, ScratchMLPClassifier
from zoo.models.scratch_mlp import ScratchCrossEntropy, numerical_gradient


def copy_into(scratch: ScratchMLP, plain: nn.Module) -> None:
    linears = [m for m in plain.modules() if isinstance(m, nn.Linear)]
    own = [m for m in scratch.layers if hasattr(m, "weight")]
    with torch.no_grad():
        for a, b in zip(linears, own, strict=True):
            a.weight.copy_(b.weight.T)
            a.bias.copy_(b.bias)


@pytest.mark.parametrize("dims", [[2, 64, 32, 4], [20, 7, 3], [5, 2]])
def test_gradients_equal_autograd(dims):
    torch.manual_seed(0)
    net, loss = ScratchMLP(dims).double(), ScratchCrossEntropy()
    x, y = torch.randn(33, dims[0], dtype=torch.float64), torch.randint(0, dims[-1], (33,))
    with torch.no_grad():
        value = loss(net(x), y)
        d_input = net.backward(loss.backward())
    by_hand = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    inputs = x.requires_grad_()
    reference = nn.functional.cross_entropy(net(inputs), y)
    reference.backward()
    assert torch.allclose(value, reference, rtol=0, atol=1e-12)
    for hand, p in zip(by_hand, net.parameters(), strict=True):
        assert (hand - p.grad).abs().max() < 1e-10
    assert (d_input - inputs.grad).abs().max() < 1e-10


def test_gradients_equal_finite_differences():
    torch.manual_seed(0)
    net, loss = ScratchMLP([3, 5, 4]).double(), ScratchCrossEntropy()
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.randint(0, 4, (8,))
    with torch.no_grad():
        loss(net(x), y)
        net.backward(loss.backward())
        for p in net.parameters():
            numeric = numerical_gradient(lambda: loss(net(x), y), p)
            assert (numeric - p.grad).abs().max() < 1e-8


def test_cross_entropy_does_not_overflow():
    loss = ScratchCrossEntropy()
    value = loss(torch.tensor([[1e4, -1e4], [0.0, 5e3]]), torch.tensor([1, 1]))
    assert value.item() == pytest.approx(1e4)
    assert loss.backward().isfinite().all()


def test_trains_to_the_same_weights_as_autograd(tmp_path):
    trained = []
    for make in (
        lambda: ScratchMLPClassifier(hidden=[16, 8], input_dim=2, num_classes=4, lr=0.1),
        lambda: MLPClassifier(hidden=[16, 8], input_dim=2, num_classes=4, lr=0.1, optimizer=torch.optim.SGD),
    ):
        torch.manual_seed(0)
        module = make()
        scratch = ScratchMLPClassifier(hidden=[16, 8], input_dim=2, num_classes=4)
        torch.manual_seed(7)
        for layer in scratch.net.layers:
            if hasattr(layer, "weight"):
                nn.init.normal_(layer.weight, std=0.5)
        if isinstance(module, ScratchMLPClassifier):
            module.load_state_dict(scratch.state_dict())
        else:
            copy_into(scratch.net, module.net)
        trainer = L.Trainer(
            max_epochs=3, precision="64-true", accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, Quadrants())
        trained.append(module)
    scratch, plain = trained
    own = [m for m in scratch.net.layers if hasattr(m, "weight")]
    linears = [m for m in plain.net.modules() if isinstance(m, nn.Linear)]
    for a, b in zip(own, linears, strict=True):
        assert (a.weight.T - b.weight).abs().max() < 1e-10
        assert (a.bias - b.bias).abs().max() < 1e-10
