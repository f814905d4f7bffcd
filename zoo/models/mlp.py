"""Multi-layer perceptron (Rumelhart et al. 1986, https://doi.org/10.1038/323533a0)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from zoo.layers.build import LayerSpec, activation, build, norm
from zoo.tasks import Classifier, Regressor, require


def spread(value: Any, n: int, name: str) -> list[Any]:
    """One value for each of ``n`` layers: the list as given, or the single value repeated."""
    values = list(value) if isinstance(value, (list, tuple)) else [value] * n
    if len(values) != n:
        raise ValueError(f"{name} has {len(values)} values for {n} hidden layers: give one, or one for each")
    return values


class MLP(nn.Sequential):
    """Fully connected layers, each followed by normalisation, activation and dropout; the last one is bare.

    Args:
        input_dim: number of input features; inputs of more dimensions are flattened.
        hidden: widths of the hidden layers.
        output_dim: number of outputs.
        activation: layer of torch.nn by name, or ``{class_path, init_args}``.
        norm: normalisation before the activation: ``none``, ``batch``, ``layer`` or a name of torch.nn; one for all
            layers or a list.
        dropout: share of units dropped after the activation; one for all layers or a list.
        dropout_type: ``Dropout`` or ``AlphaDropout``.
    """

    def __init__(
        self,
        input_dim: int,
        hidden: Sequence[int],
        output_dim: int,
        activation: LayerSpec = "ReLU",
        norm: LayerSpec | list[LayerSpec] = "none",
        dropout: float | list[float] = 0.0,
        dropout_type: str = "Dropout",
    ) -> None:
        if min(input_dim, *hidden, output_dim) < 1:
            raise ValueError(f"widths start at 1, got {input_dim=}, hidden={list(hidden)}, {output_dim=}")
        layers: list[nn.Module] = [nn.Flatten()]
        norms, drops = spread(norm, len(hidden), "norm"), spread(dropout, len(hidden), "dropout")
        for width_in, width, kind, p in zip([input_dim, *hidden], hidden, norms, drops, strict=False):
            layers += [nn.Linear(width_in, width), *_norm(kind, width), _activation(activation)]
            layers += [build(dropout_type, p)] if p else []
        super().__init__(*layers, nn.Linear([input_dim, *hidden][-1], output_dim))

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b k"]:
        return super().forward(x)


_activation = activation


def _norm(kind: LayerSpec, width: int) -> list[nn.Module]:
    if kind == "none":
        return []
    if kind in ("instance", "InstanceNorm1d"):
        # torch takes (b, f) for one unbatched sample of b channels; here a sample is one channel of f values
        return [nn.Unflatten(1, (1, width)), norm(kind, 1), nn.Flatten()]
    return [norm(kind, width)]


class MLPClassifier(Classifier):
    """A multi-layer perceptron that tells classes apart.

    Args:
        hidden: widths of the hidden layers.
        activation: layer of torch.nn by name (ReLU, LeakyReLU, GELU, SiLU, Tanh, Sigmoid, ...), or
            ``{class_path, init_args}``.
        norm: ``none``, ``batch``, ``layer`` or a name of torch.nn; one for all layers or a list.
        dropout: share of units dropped after each activation; one for all layers or a list.
        dropout_type: ``Dropout`` or ``AlphaDropout``.
        input_dim: number of input features; null takes it from the data.
        num_classes: number of classes; null takes it from the data.
    """

    def __init__(
        self,
        hidden: list[int] = [64, 64],
        activation: LayerSpec = "ReLU",
        norm: LayerSpec | list[LayerSpec] = "none",
        dropout: float | list[float] = 0.0,
        dropout_type: str = "Dropout",
        input_dim: int | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        width, classes = require(self, input_dim=input_dim, num_classes=num_classes)
        net = MLP(width, hidden, classes, activation, norm, dropout, dropout_type)
        super().__init__(net=net, num_classes=num_classes, **kwargs)


class MLPRegressor(Regressor):
    """A multi-layer perceptron that predicts numbers.

    Args:
        hidden: widths of the hidden layers.
        activation: layer of torch.nn by name, or ``{class_path, init_args}``.
        norm: ``none``, ``batch``, ``layer`` or a name of torch.nn; one for all layers or a list.
        dropout: share of units dropped after each activation; one for all layers or a list.
        dropout_type: ``Dropout`` or ``AlphaDropout``.
        input_dim: number of input features; null takes it from the data.
        output_dim: number of targets; null takes it from the data.
    """

    def __init__(
        self,
        hidden: list[int] = [64, 64],
        activation: LayerSpec = "ReLU",
        norm: LayerSpec | list[LayerSpec] = "none",
        dropout: float | list[float] = 0.0,
        dropout_type: str = "Dropout",
        input_dim: int | None = None,
        output_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        width, outputs = require(self, input_dim=input_dim, output_dim=output_dim)
        super().__init__(net=MLP(width, hidden, outputs, activation, norm, dropout, dropout_type), **kwargs)
