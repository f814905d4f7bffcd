"""The seam for adapters: after the weights are read, before the optimizer is built, remembered by checkpoints."""

import torch
from torch import nn

from zoo.models import MLPClassifier
from zoo.tasks.adapter import NetAdapter


class LowRank(nn.Module):
    """A frozen linear layer plus a trainable product of two thin matrices."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / rank)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


class LowRankAdapter(NetAdapter):
    """Replace every linear layer of a network by one with a low-rank update.

    Args:
        rank: rank of the update.
    """

    def __init__(self, rank: int = 2) -> None:
        self.rank = rank

    def adapt(self, net: nn.Module) -> None:
        for name, module in list(net.named_modules()):
            if isinstance(module, nn.Linear):
                parent, _, leaf = name.rpartition(".")
                setattr(net.get_submodule(parent), leaf, LowRank(module, self.rank))


def test_only_adapters_are_trained_and_they_start_as_the_network():
    torch.manual_seed(0)
    plain = MLPClassifier(hidden=[4], input_dim=3, num_classes=2)
    torch.manual_seed(0)
    adapted = MLPClassifier(hidden=[4], input_dim=3, num_classes=2, adapters=[LowRankAdapter()])
    x = torch.randn(5, 3)
    assert torch.equal(plain(x), adapted(x))
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trainable
    assert all(name.endswith((".down", ".up")) for name in trainable)


FILE = '''
import torch
from torch import nn
from zoo.tasks.adapter import NetAdapter

class Scaled(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(base.out_features))
    def forward(self, x):
        return self.base(x) * self.scale

class ScaleOutputs(NetAdapter):
    """Scales every output.

    Args:
        match: name of the layers.
    """
    def __init__(self, match: str = "") -> None:
        self.match = match
    def adapt(self, net):
        for name, module in list(net.named_modules()):
            if isinstance(module, nn.Linear) and self.match in name:
                parent, _, leaf = name.rpartition(".")
                setattr(net.get_submodule(parent), leaf, Scaled(module))
'''


def test_a_checkpoint_remembers_its_adapters_through_the_command_line(zoo, here):
    (here / "scaling.py").write_text(FILE)
    adapters = '[{"class_path": "scaling.ScaleOutputs", "init_args": {"match": ""}}]'
    fit = ("fit", "-c", "configs/mlp_digits.yaml", "--trainer.max_epochs", 1, "--model.adapters", adapters)
    code, _, err = zoo(*fit, "--model.optimizer", "SGD")
    assert code == 0, err
    last = "runs/mlp_digits/1/checkpoints/last.ckpt"
    state = torch.load(last, weights_only=True)["state_dict"]
    assert any(name.endswith(".scale") for name in state)
    code, out, err = zoo("test", "--ckpt_path", last)
    assert code == 0, err
    assert "test/accuracy" in out
    code, _, err = zoo("fit", "--resume", "mlp_digits/1", "--trainer.max_epochs", 2)
    assert code == 0, err
