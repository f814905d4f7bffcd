"""Quantized base weights under trained adapters, QLoRA (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314)."""

from __future__ import annotations

import importlib
from typing import Any, Literal, get_args

from torch import Tensor, nn

from zoo.errors import UserError
from zoo.optim.param_kinds import output_head

Quantization = Literal["nf4", "int8"]
PACKAGES = {"nf4": "bitsandbytes", "int8": "torchao"}


def require(package: str, what: str) -> Any:
    """Import an optional package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"{what} needs the package {package}: pip install 'lightning-zoo[quant]'") from None


def quantize(net: nn.Module, kind: Quantization, left_out: list[str]) -> list[str]:
    """Quantize the weights of linear layers, in place; return the names of the layers.

    Args:
        net: the network.
        kind: ``nf4``, 4-bit NormalFloat with double quantization by bitsandbytes, or ``int8``, 8 bits by torchao.
        left_out: names of modules to leave as they are, beside the output layer and layers that share their weight.

    Raises:
        UserError: the package is not installed, or there are no such layers.
    """
    if kind not in get_args(Quantization):
        raise UserError(f"lora.quantize is {' or '.join(get_args(Quantization))}, got {kind!r}")
    package = require(PACKAGES[kind], f"lora.quantize {kind}")
    head = output_head(net)
    uses: dict[Tensor, int] = {}
    for _, parameter in net.named_parameters(remove_duplicate=False):
        uses[parameter] = uses.get(parameter, 0) + 1
    names = []
    for name, module in list(net.named_modules()):
        is_left_out = any(name == other or name.startswith(f"{other}.") for other in left_out)
        if type(module) is not nn.Linear or name in ("", head) or is_left_out or uses[module.weight] > 1:
            continue
        names.append(name)
    if not names:
        raise UserError(f"lora.quantize: {type(net).__name__} has no linear layers to quantize")
    if kind == "int8":
        quantization = importlib.import_module("torchao.quantization")
        chosen = set(names)
        config = quantization.Int8WeightOnlyConfig()
        quantization.quantize_(net, config, lambda module, name: name in chosen)
        return names
    for name in names:
        path, _, leaf = name.rpartition(".")
        setattr(net.get_submodule(path), leaf, _nf4(package, net.get_submodule(name)))
    return names


def _nf4(package: Any, linear: Any) -> nn.Module:
    weight = linear.weight.data
    layer = package.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=weight.dtype,
        quant_type="nf4",
        device="meta",
    )
    layer.weight = package.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer)
    layer.bias = linear.bias
    layer.train(linear.training)
    # It is quantized when it is moved, also to where it is.
    return layer.to(weight.device)
