"""Multi-layer perceptron with backpropagation by hand (Rumelhart et al. 1986, https://doi.org/10.1038/323533a0)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.tasks import Classifier, require


class ScratchLinear(nn.Module):
    """``y = x W + b`` and its gradients.

    Args:
        in_features: width of the input.
        out_features: width of the output.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        # He initialisation (2015): keeps the variance of activations through ReLU
        self.weight = nn.Parameter(torch.randn(in_features, out_features) * (2.0 / in_features) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        self.x = x
        return x @ self.weight + self.bias

    def backward(self, d_out: Float[Tensor, "b o"]) -> Float[Tensor, "b i"]:
        self.weight.grad = self.x.T @ d_out
        self.bias.grad = d_out.sum(0)
        return d_out @ self.weight.T


class ScratchReLU(nn.Module):
    """``max(x, 0)``; the gradient passes where the input was above 0."""

    def forward(self, x: Tensor) -> Tensor:
        self.mask = x > 0
        return x * self.mask

    def backward(self, d_out: Tensor) -> Tensor:
        return d_out * self.mask


class ScratchCrossEntropy(nn.Module):
    """Mean cross-entropy of softmax, from logits: the maximum is taken off first, so that exp cannot overflow."""

    def forward(self, logits: Float[Tensor, "b k"], y: Int[Tensor, " b"]) -> Tensor:
        shifted = logits - logits.max(1, keepdim=True).values
        log_sum = shifted.exp().sum(1, keepdim=True).log()
        self.log_probs, self.y = shifted - log_sum, y
        return -self.log_probs[torch.arange(len(y), device=y.device), y].mean()

    def backward(self) -> Float[Tensor, "b k"]:
        d = self.log_probs.exp()
        d[torch.arange(len(d), device=d.device), self.y] -= 1
        return d / len(d)


class ScratchMLP(nn.Module):
    """Linear layers with ReLU between them; ``backward`` fills every parameter's ``grad`` without autograd.

    Args:
        dims: widths from input to output, such as ``[784, 256, 128, 10]``.
    """

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        if len(dims) < 2:
            raise ValueError(f"dims needs an input and an output width, got {list(dims)}")
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(dims):
            layers += [ScratchLinear(width_in, width_out), ScratchReLU()]
        self.layers = nn.ModuleList(layers[:-1])

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b k"]:
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x)
        return x

    def backward(self, d_out: Float[Tensor, "b k"]) -> Float[Tensor, "b i"]:
        for layer in reversed(self.layers):
            d_out = layer.backward(d_out)  # type: ignore[operator]
        return d_out


class ScratchMLPClassifier(Classifier):
    """A perceptron trained by plain gradient descent with forward and backward written by hand.

    Args:
        hidden: widths of the hidden layers.
        input_dim: number of input features; null takes it from the data.
        num_classes: number of classes; null takes it from the data.
        class_names: names for predictions; null takes them from the data.
        lr: step size of the descent.
    """

    def __init__(
        self,
        hidden: list[int] = [64, 32],
        input_dim: int | None = None,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        lr: float = 0.05,
    ) -> None:
        width, classes = require(self, input_dim=input_dim, num_classes=num_classes)
        super().__init__(
            net=ScratchMLP([width, *hidden, classes]),
            loss=ScratchCrossEntropy(),
            num_classes=num_classes,
            class_names=class_names,
            lr=lr,
            optimizer=torch.optim.SGD,
        )
        self.automatic_optimization = False

    @torch.no_grad()
    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.step(batch, "train")
        self.net.backward(self.loss.backward())  # type: ignore[operator, union-attr]
        self._average_over_processes(len(batch[1]))
        self.optimizers().step()  # type: ignore[union-attr]
        self.log_train_loss(loss, len(batch[1]))

    def _average_over_processes(self, n: int) -> None:
        """The mean over all samples of all processes: what DDP does for autograd."""
        if self.trainer.world_size == 1:
            return
        total = self.trainer.strategy.reduce(torch.tensor(float(n), device=self.device), reduce_op="sum")
        for p in self.parameters():
            assert p.grad is not None
            p.grad = self.trainer.strategy.reduce(p.grad * n, reduce_op="sum") / total  # type: ignore[assignment]


def numerical_gradient(f: Callable[[], Tensor], x: Tensor, eps: float = 1e-5) -> Tensor:
    """Central differences of the number ``f()`` in every element of ``x``, which ``f`` reads.

    Args:
        f: a function of nothing that depends on ``x``.
        x: changed in place while measuring, and put back.
        eps: half the distance of the two points.
    """
    gradient, flat = torch.zeros_like(x), x.data.view(-1)
    for i in range(flat.numel()):
        before = flat[i].item()
        flat[i] = before + eps
        above = f()
        flat[i] = before - eps
        gradient.view(-1)[i] = (above - f()) / (2 * eps)
        flat[i] = before
    return gradient
