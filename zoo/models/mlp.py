"""Multi-layer perceptron (MLP; Rumelhart et al. 1986, https://doi.org/10.1038/323533a0)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from zoo import layers
from zoo.layers.build import LayerSpec
from zoo.tasks import Classifier, Regressor, require


class MLP(nn.Sequential):
    """MLP: linear layers, each hidden one followed by normalization, activation and dropout.

    Args:
        input_dim: number of input features; inputs with more dimensions are flattened.
        hidden: sizes of the hidden layers.
        output_dim: number of outputs.
        activation: activation of torch.nn by name, or ``{class_path, init_args}``.
        norm: normalization before the activation: ``none``, ``batch``, ``layer`` or a name of torch.nn; one for all
            hidden layers or a list.
        dropout: dropout probability after the activation; one for all hidden layers or a list.
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
            raise ValueError(f"layer sizes must be 1 or more, got {input_dim=}, hidden={list(hidden)}, {output_dim=}")
        norms = per_layer(norm, len(hidden), "norm")
        dropouts = per_layer(dropout, len(hidden), "dropout")
        stack: list[nn.Module] = [nn.Flatten()]
        in_features = input_dim
        for i, width in enumerate(hidden):
            stack.append(nn.Linear(in_features, width))
            stack += norm_layers(norms[i], width)
            stack.append(layers.activation(activation))
            if dropouts[i]:
                stack.append(layers.build(dropout_type, dropouts[i]))
            in_features = width
        stack.append(nn.Linear(in_features, output_dim))
        super().__init__(*stack)

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b k"]:
        return super().forward(x)


def per_layer(value: Any, num_layers: int, name: str) -> list[Any]:
    """Return one value per hidden layer: a list as it is, a single value repeated.

    Raises:
        ValueError: a list has another length.
    """
    if not isinstance(value, (list, tuple)):
        return [value] * num_layers
    if len(value) != num_layers:
        raise ValueError(f"{name} has {len(value)} values for {num_layers} hidden layers: give one, or one per layer")
    return list(value)


def norm_layers(norm: LayerSpec, width: int) -> list[nn.Module]:
    """Return the layers that normalize ``width`` features: none, one, or instance normalization with its reshapes."""
    if norm == "none":
        return []
    if norm in ("instance", "InstanceNorm1d"):
        # torch reads (b, f) as one sample of b channels; here each sample has one channel of f values.
        return [
            nn.Unflatten(1, (1, width)),  # (b, 1, f)
            layers.norm(norm, 1),
            nn.Flatten(),  # (b, f)
        ]
    return [layers.norm(norm, width)]


class MLPClassifier(Classifier):
    """MLP classifier.

    Args:
        hidden: sizes of the hidden layers.
        activation: activation of torch.nn by name (ReLU, LeakyReLU, GELU, SiLU, Tanh, Sigmoid, ...), or
            ``{class_path, init_args}``.
        norm: ``none``, ``batch``, ``layer`` or a name of torch.nn; one for all hidden layers or a list.
        dropout: dropout probability after each activation; one for all hidden layers or a list.
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
        in_features, classes = require(self, input_dim=input_dim, num_classes=num_classes)
        net = MLP(
            input_dim=in_features,
            hidden=hidden,
            output_dim=classes,
            activation=activation,
            norm=norm,
            dropout=dropout,
            dropout_type=dropout_type,
        )
        super().__init__(net=net, num_classes=num_classes, **kwargs)


class MLPRegressor(Regressor):
    """MLP regressor.

    Args:
        hidden: sizes of the hidden layers.
        activation: activation of torch.nn by name, or ``{class_path, init_args}``.
        norm: ``none``, ``batch``, ``layer`` or a name of torch.nn; one for all hidden layers or a list.
        dropout: dropout probability after each activation; one for all hidden layers or a list.
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
        in_features, outputs = require(self, input_dim=input_dim, output_dim=output_dim)
        net = MLP(
            input_dim=in_features,
            hidden=hidden,
            output_dim=outputs,
            activation=activation,
            norm=norm,
            dropout=dropout,
            dropout_type=dropout_type,
        )
        super().__init__(net=net, **kwargs)
