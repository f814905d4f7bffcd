"""MLP with handwritten backpropagation (Rumelhart et al. 1986, https://doi.org/10.1038/323533a0)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.tasks import Classifier, require


class ScratchLinear(nn.Module):
    """Linear layer ``y = x W + b`` with its gradients.

    Args:
        in_features: number of input features.
        out_features: number of output features.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        # He initialization (2015) preserves the variance of activations through ReLU.
        std = (2.0 / in_features) ** 0.5
        self.weight = nn.Parameter(torch.randn(in_features, out_features) * std)
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        self.x = x
        return x @ self.weight + self.bias

    def backward(self, grad_out: Float[Tensor, "b o"]) -> Float[Tensor, "b i"]:
        """Set the gradients of both parameters; return the gradient of the input."""
        self.weight.grad = self.x.T @ grad_out  # (i, o)
        self.bias.grad = grad_out.sum(0)  # (o,)
        return grad_out @ self.weight.T


class ScratchReLU(nn.Module):
    """ReLU with its gradient, which passes where the input is positive."""

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b i"]:
        self.mask = x > 0
        return x * self.mask

    def backward(self, grad_out: Float[Tensor, "b i"]) -> Float[Tensor, "b i"]:
        """Return the gradient of the input."""
        return grad_out * self.mask


class ScratchCrossEntropy(nn.Module):
    """Mean cross-entropy loss of softmax, from logits, with its gradient."""

    def forward(self, logits: Float[Tensor, "b k"], y: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        # Subtracting the maximum changes no probability and keeps exp from overflowing.
        shifted = logits - logits.max(1, keepdim=True).values
        log_sum = shifted.exp().sum(1, keepdim=True).log()
        self.log_probs = shifted - log_sum
        self.y = y
        rows = torch.arange(len(y), device=y.device)
        return -self.log_probs[rows, y].mean()

    def backward(self) -> Float[Tensor, "b k"]:
        """Return the gradient of the logits: softmax minus the one-hot target, divided by the batch size."""
        grad = self.log_probs.exp()
        rows = torch.arange(len(grad), device=grad.device)
        grad[rows, self.y] -= 1
        return grad / len(grad)


class ScratchMLP(nn.Module):
    """MLP with ReLU between its linear layers; ``backward`` sets every parameter's ``grad`` without autograd.

    Args:
        dims: layer sizes from input to output, such as ``[784, 256, 128, 10]``.
    """

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        if len(dims) < 2:
            raise ValueError(f"dims must have two sizes or more, of input and output, got {list(dims)}")
        layers: list[nn.Module] = []
        for in_features, out_features in pairwise(dims):
            layers.append(ScratchLinear(in_features, out_features))
            layers.append(ScratchReLU())
        self.layers = nn.ModuleList(layers[:-1])  # no ReLU after the last linear layer

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b k"]:
        x = x.flatten(1)  # (b, i)
        for layer in self.layers:
            x = layer(x)
        return x

    def backward(self, grad_out: Float[Tensor, "b k"]) -> Float[Tensor, "b i"]:
        """Backpropagate the gradient of the outputs; return the gradient of the flattened inputs."""
        grad = grad_out
        for layer in reversed(self.layers):
            grad = layer.backward(grad)  # type: ignore[operator]
        return grad


class ScratchMLPClassifier(Classifier):
    """MLP classifier with handwritten forward and backward passes, trained by plain gradient descent.

    Args:
        hidden: sizes of the hidden layers.
        input_dim: number of input features; null takes it from the data.
        num_classes: number of classes; null takes it from the data.
        class_names: class names for predictions; null takes them from the data.
        lr: learning rate.
    """

    tiny = {"lr": 0.1}

    def __init__(
        self,
        hidden: list[int] = [64, 32],
        input_dim: int | None = None,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        lr: float = 0.05,
    ) -> None:
        in_features, classes = require(self, input_dim=input_dim, num_classes=num_classes)
        super().__init__(
            net=ScratchMLP([in_features, *hidden, classes]),
            loss=ScratchCrossEntropy(),
            num_classes=num_classes,
            class_names=class_names,
            lr=lr,
            optimizer=torch.optim.SGD,
        )
        self.automatic_optimization = False

    @torch.no_grad()
    def training_step(self, batch: Any, batch_idx: int) -> None:
        batch_size = len(batch[1])
        loss = self.step(batch, "train")
        grad_logits = self.loss.backward()  # type: ignore[operator, union-attr]
        self.net.backward(grad_logits)  # type: ignore[operator]
        self._average_over_processes(batch_size)
        self.optimizers().step()  # type: ignore[union-attr]
        self.log_train_loss(loss, batch_size)

    def _average_over_processes(self, batch_size: int) -> None:
        """Average the gradients over the samples of all processes, as DDP does for autograd."""
        if self.trainer.world_size == 1:
            return
        strategy = self.trainer.strategy
        total = torch.tensor(float(batch_size), device=self.device)
        total = strategy.reduce(total, reduce_op="sum")
        for parameter in self.parameters():
            assert parameter.grad is not None
            summed = strategy.reduce(parameter.grad * batch_size, reduce_op="sum")
            parameter.grad = summed / total  # type: ignore[assignment]


def numerical_gradient(f: Callable[[], Tensor], x: Tensor, eps: float = 1e-5) -> Tensor:
    """Return the gradient of ``f()`` with respect to ``x`` by central differences.

    Args:
        f: function without arguments that reads ``x`` and returns a scalar.
        x: tensor of any shape; modified in place during the computation, and restored.
        eps: step to either side.
    """
    gradient = torch.zeros_like(x)
    flat_gradient = gradient.view(-1)
    flat_x = x.data.view(-1)
    for i in range(flat_x.numel()):
        value = flat_x[i].item()
        flat_x[i] = value + eps
        above = f()
        flat_x[i] = value - eps
        below = f()
        flat_x[i] = value
        flat_gradient[i] = (above - below) / (2 * eps)
    return gradient
