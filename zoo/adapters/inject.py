"""LoRA in any network: which layers get an update, what stays frozen, and merging."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from zoo._torch import BATCH_NORM, INSTANCE_NORM
from zoo.adapters.fused import aliases, fused_parts
from zoo.adapters.layers import CONVOLUTIONS, LayerAdapter, LoRALayer, adapter_class, add
from zoo.adapters.quantized import Quantization, quantize
from zoo.adapters.record import AdapterRecord, weights_digest
from zoo.errors import UserError
from zoo.optim.param_kinds import output_head

ALL_LINEAR = "all-linear"
ATTRIBUTE = "zoo_adapter"  # of a network with an adapter
LORA_NAMES = ("lora_A", "lora_B", "lora_magnitude")
MAX_NAMES = 3


@dataclass
class Injected:
    """An adapter in a network.

    Args:
        record: the adapter.
        base_names: names of the frozen parameters and buffers in the network.
        frozen_norms: names of the normalization layers whose running statistics stay those of the base.
        is_quantized: whether base weights are quantized in this network.
    """

    record: AdapterRecord
    base_names: frozenset[str]
    frozen_norms: tuple[str, ...]
    is_quantized: bool = False


# Choosing layers ------------------------------------------------------------------------------------------------------


def choose_layers(net: nn.Module, target: str | list[str]) -> dict[str, list[str]]:
    """Return the layers that a target matches, each with its parts: none is the whole layer.

    Args:
        net: the network.
        target: ``all-linear``, all linear layers but the output layer; or one or more regular expressions, each of
            which has to match the end of a module's name from a dot on, or all of it: ``qkv``, ``attn\\.(q|v)``. The
            parts of a fused projection have names of their own beside it: ``q``, ``k``, ``v``, ``gate``, ``up``.

    Raises:
        ValueError: an expression is invalid, matches nothing, or a layer that cannot have an update of low rank.
    """
    if target == ALL_LINEAR:
        return _all_linear(net)
    patterns = [target] if isinstance(target, str) else target
    if not patterns or not all(patterns):
        raise ValueError(f"lora.target is empty: give {ALL_LINEAR}, or regular expressions for names of layers")
    chosen: dict[str, list[str]] = {}
    for pattern in patterns:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"lora.target: {pattern!r} is not a regular expression: {error}") from error
        matches = _matches(net, expression)
        if not matches:
            raise ValueError(
                f"lora.target: {pattern!r} matches no layer of {type(net).__name__}; near are {_near(net, pattern)}"
            )
        for name, parts in matches.items():
            if name in chosen and (not parts or not chosen[name]):
                chosen[name] = []
            else:
                chosen[name] = [*chosen.get(name, []), *(part for part in parts if part not in chosen.get(name, []))]
    ordered = {}
    for name, _ in net.named_modules():
        if name in chosen:
            known = fused_parts(*_owner(net, name), net.get_submodule(name))
            ordered[name] = [part for part in known if part in chosen[name]]
    for name in ordered:
        _check_layer(net, name)
    return ordered


def _all_linear(net: nn.Module) -> dict[str, list[str]]:
    head = output_head(net)
    chosen = {}
    for name, module in net.named_modules():
        is_linear = isinstance(module, nn.Linear) or (adapter_class(module) is not None and hasattr(module, "nf"))
        if is_linear and name and name != head and problem(net, name) is None:
            chosen[name] = []
    if not chosen:
        raise ValueError(f"lora.target: {type(net).__name__} has no linear layers but its output: name layers")
    return chosen


def _matches(net: nn.Module, pattern: re.Pattern[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, module in net.named_modules():
        if not name or adapter_class(module) is None:
            continue
        parent, leaf = _owner(net, name)
        path = name.removesuffix(leaf)
        if any(_fits(pattern, path + alias) for alias in aliases(leaf)):
            found[name] = []
            continue
        parts = fused_parts(parent, leaf, module)
        named = [part for part in parts if any(_fits(pattern, path + alias) for alias in aliases(part))]
        if named:
            found[name] = named
    return found


def _fits(pattern: re.Pattern[str], name: str) -> bool:
    pieces = name.split(".")
    return any(pattern.fullmatch(".".join(pieces[i:])) for i in range(len(pieces)))


def _owner(net: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return net.get_submodule(path), leaf


def _near(net: nn.Module, pattern: str) -> str:
    names = set()
    for name, module in net.named_modules():
        if name and adapter_class(module) is not None:
            parent, leaf = _owner(net, name)
            names.update((name, leaf, *fused_parts(parent, leaf, module)))
    if not names:
        return "none: it has no linear layer, convolution or embedding"
    return ", ".join(difflib.get_close_matches(pattern, sorted(names), n=MAX_NAMES, cutoff=0.0))


def problem(net: nn.Module, name: str) -> str | None:
    """Return why a layer cannot have an update of low rank, or None if it can."""
    layer: Any = net.get_submodule(name)
    if adapter_class(layer) is None:
        return f"is a {type(layer).__name__}; there is LoRA for linear layers, convolutions and embeddings"
    if isinstance(layer, CONVOLUTIONS) and layer.groups != 1:
        return "is a grouped convolution, whose kernels are too small for an update of low rank"
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return "rescales its rows (max_norm)"
    if isinstance(_owner(net, name)[0], nn.MultiheadAttention):
        return "is in torch's MultiheadAttention, which reads its weight without calling it"
    for other, parameter in net.named_parameters(remove_duplicate=False):
        if parameter is getattr(layer, "weight", None) and net.get_submodule(other.rpartition(".")[0]) is not layer:
            return f"shares its weight with {other.rpartition('.')[0]}, which an update of one alone would part"
    return None


def _check_layer(net: nn.Module, name: str) -> None:
    reason = problem(net, name)
    if reason is not None:
        raise ValueError(f"lora.target: {name} {reason}")


# Adding and merging ---------------------------------------------------------------------------------------------------


def add_adapter(
    net: nn.Module,
    record: AdapterRecord,
    source: Any = "the adapter",
    quantization: Quantization | None = None,
) -> Injected:
    """Give layers of a network updates of low rank, and freeze everything else, in place.

    Args:
        net: the network, with its base weights.
        record: the adapter. Its ``base_digest`` is filled in, or if it has one compared with that of the network.
        source: where the adapter comes from, for errors.
        quantization: how to quantize the base weights.

    Raises:
        UserError: the network has no such layers, or other base weights than the adapter was trained on.
    """
    if adapter_of(net) is not None:
        raise UserError(f"{type(net).__name__} has an adapter already")
    whole = _trained_whole(net, record)
    base_names = set()
    for name in net.state_dict(keep_vars=True):
        if not _is_in(name, whole):
            base_names.add(name)
    for name, _ in [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]:
        if not _is_in(name, whole):
            base_names.add(name)
    adapters = {name: _layer_adapter(net, name, parts, record, source) for name, parts in record.layers.items()}
    found = weights_digest(item for item in net.state_dict().items() if item[0] in base_names)
    if record.base_digest and record.base_digest != found:
        base = f" ({record.base})" if record.base else ""
        raise UserError(
            f"{source} is an adapter of other base weights{base}: their digest is {record.base_digest}, "
            f"that of these is {found}"
        )
    record.base_digest = found
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(_is_in(name, whole) and parameter.requires_grad)
    if quantization is not None:
        if record.dora:
            raise UserError("lora: dora needs the norms of the base weights, so it does not go with quantize")
        quantize(net, quantization, whole)
    for name, adapter in adapters.items():
        add(net.get_submodule(name), adapter)
    norms = []
    for name, module in net.named_modules():
        if isinstance(module, (BATCH_NORM, INSTANCE_NORM)) and not _is_in(name, whole):
            norms.append(name)
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerEncoder)):
            # In evaluation it would read the weights of its layers without calling them.
            torch.backends.mha.set_fastpath_enabled(False)
    injected = Injected(record, frozenset(base_names), tuple(norms), quantization is not None)
    setattr(net, ATTRIBUTE, injected)
    return injected


def _layer_adapter(net: nn.Module, name: str, parts: list[str], record: AdapterRecord, source: Any) -> LayerAdapter:
    try:
        layer: Any = net.get_submodule(name)
    except AttributeError:
        raise UserError(f"{source} adapts {name}, which {type(net).__name__} does not have") from None
    reason = problem(net, name)
    if reason is not None:
        raise UserError(f"{source}: {name} {reason}")
    if record.dora and isinstance(layer, nn.Embedding):
        raise UserError(f"{source}: {name} is an embedding: dora is for linear layers and convolutions")
    known = fused_parts(*_owner(net, name), layer)
    unknown = [part for part in parts if part not in known]
    if unknown:
        raise UserError(f"{source} adapts {', '.join(unknown)} of {name}, which has no such parts")
    ranges = [(part, *known[part]) for part in parts]
    if not parts:
        ranges = [("", 0, out_features(layer))]
    return LayerAdapter(record.rank, record.scale, record.dropout, record.dora, tuple(ranges))


def out_features(layer: Any) -> int:
    """Return the number of output features of a layer that can have an update of low rank."""
    for name in ("out_features", "out_channels", "embedding_dim", "nf"):
        if hasattr(layer, name):
            return getattr(layer, name)
    raise TypeError(type(layer).__name__)


def _trained_whole(net: nn.Module, record: AdapterRecord) -> list[str]:
    """Return the names of modules and parameters that are trained whole, beside the updates."""
    for name in record.modules_to_save:
        if not any(_is_in(other, [name]) for other, _ in net.named_parameters()):
            raise UserError(f"lora.modules_to_save: {type(net).__name__} has no {name!r} with parameters")
        inside = [layer for layer in record.layers if _is_in(layer, [name])]
        if inside:
            raise UserError(f"lora.modules_to_save: {name} is trained whole, but lora.target matches {inside[0]} in it")
    return record.modules_to_save


def find_modules(net: nn.Module, patterns: str | list[str] | None) -> list[str]:
    """Return the names of the largest modules, and of parameters, that regular expressions match (as ``target`` does).

    Raises:
        ValueError: one of them is invalid or matches nothing.
    """
    if patterns is None:
        return []
    found: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"lora.modules_to_save: {pattern!r} is not a regular expression: {error}") from error
        before = len(found)
        names = dict.fromkeys(accumulated for name, _ in net.named_parameters() for accumulated in _prefixes(name))
        for name in names:
            if _fits(expression, name) and not _is_in(name, found):
                found.append(name)
        if len(found) == before:
            near = ", ".join(difflib.get_close_matches(pattern, sorted(names), n=MAX_NAMES, cutoff=0.0))
            raise ValueError(f"lora.modules_to_save: {pattern!r} matches nothing; the nearest names are {near}")
    return found


def _prefixes(name: str) -> list[str]:
    return list(accumulate(name.split("."), "{}.{}".format))


def _is_in(name: str, owners: list[str]) -> bool:
    return any(name == owner or name.startswith(f"{owner}.") for owner in owners)


def merge_adapter(net: nn.Module) -> None:
    """Add the updates to the base weights, and make the network the plain one again, in place.

    Raises:
        UserError: the base is quantized.
    """
    if getattr(net, ATTRIBUTE).is_quantized:
        raise UserError("quantized weights take no updates: load the adapter into the base as it was")
    for module in list(net.modules()):
        if isinstance(module, LoRALayer):
            module.merge()
    delattr(net, ATTRIBUTE)


# What a module has ----------------------------------------------------------------------------------------------------


def network(module: nn.Module) -> nn.Module:
    """Return ``module.net`` where there is one, else the module itself."""
    net = getattr(module, "net", None)
    if isinstance(net, nn.Module):
        return net
    return module


def adapter_of(module: nn.Module) -> Injected | None:
    """Return the adapter of a module, or of its network, or None."""
    return getattr(network(module), ATTRIBUTE, None) or getattr(module, ATTRIBUTE, None)


def frozen_names(module: nn.Module) -> frozenset[str]:
    """Return the names, in the module, of the parameters and buffers that its adapter freezes for good."""
    injected = adapter_of(module)
    if injected is None:
        return frozenset()
    net = network(module)
    prefix = ""
    if net is not module:
        prefix = "net."
    return frozenset(prefix + name for name in injected.base_names)


def frozen_params(module: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that the adapter of a module freezes for good; none without an adapter."""
    names = frozen_names(module)
    if not names:
        return set()
    return {parameter for name, parameter in module.named_parameters(remove_duplicate=False) if name in names}


def without_base(state: dict[str, Any], module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a ``state_dict`` that do not belong to the base of the module's adapter."""
    names = frozen_names(module)
    for name, value in state.items():
        # Quantized layers keep the constants of a weight below its name.
        if not any(prefix in names for prefix in _prefixes(name)):
            yield name, value
