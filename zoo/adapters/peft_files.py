"""Adapters in the files of PEFT: ``adapter_config.json`` and ``adapter_model.safetensors``.

Written and read without ``peft``, which writes them for models that it has wrapped itself. Networks of zoo that
transformers has get transformers' names, by the table of their weights, so that PEFT loads an adapter into the model of
transformers; all others keep their own. A part of a projection that is fused there as well (GPT-2's ``c_attn``) becomes
an update of the whole with zeros, of a higher rank.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.adapters.fused import fused_parts
from zoo.adapters.inject import adapter_of, out_features
from zoo.adapters.layers import LoRAConv, LoRALayer, adapter_class, is_transposed
from zoo.adapters.record import AdapterRecord
from zoo.errors import UserError
from zoo.files import atomic_folder, write_json
from zoo.terminal import printable
from zoo.trust.reading import read_json
from zoo.weights.files import open_file
from zoo.weights.formats.huggingface import HuggingFaceFormat

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TORCH_WEIGHTS = "adapter_model.bin"
PREFIX = "base_model.model."
METADATA_KEY = "zoo"  # in the header of the weights: the digest of the base
# Options of PEFT that compute something else; all of them are off by default.
UNKNOWN_OPTIONS = (
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
# Initializations that change the base weights, too.
BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
DORA = "lora_magnitude_vector"
UPDATE = re.compile(rf"(.*)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|{DORA})(\.weight)?")


@dataclass(frozen=True)
class Place:
    """Rows of a layer of a network, which are a module of their own in another library.

    Args:
        name: name of that module.
        layer: name of the layer.
        start: first row.
        stop: end of the rows.
        transposed: whether its weight is ``(in, out)``.
    """

    name: str
    layer: str
    start: int
    stop: int
    transposed: bool = False


def is_peft_folder(path: Path) -> bool:
    return (path / CONFIG).is_file()


def places(net: Any) -> list[Place]:
    """Return where each layer of a network that can have an update is in the library whose names PEFT's files take."""
    found = []
    entries = {}
    if isinstance(getattr(net, "weights_format", None), HuggingFaceFormat):
        entries = {entry.param: entry for entry in net.weights_format.entries(net)}
    for name, module in net.named_modules():
        if not name or adapter_class(module) is None:
            continue
        rows = out_features(module)
        entry = entries.get(f"{name}.weight")
        if entry is None:
            found.append(Place(name, name, 0, rows, is_transposed(module)))
            continue
        start = 0
        for theirs, size in zip(entry.names, entry.rows or (rows,), strict=True):
            found.append(Place(theirs.removesuffix(".weight"), name, start, start + size, entry.transpose))
            start += size
    return found


def tensor_names(net: Any) -> dict[str, str]:
    """Return the names of parameters and buffers in the other library by their own, without those that are fused."""
    names = {name: name for name in net.state_dict()}
    if isinstance(getattr(net, "weights_format", None), HuggingFaceFormat):
        for entry in net.weights_format.entries(net):
            names.pop(entry.param, None)
            if len(entry.names) == 1 and not entry.transpose:
                names[entry.param] = entry.names[0]
    return names


# Writing --------------------------------------------------------------------------------------------------------------


def save_peft(net: nn.Module, folder: str | Path) -> None:
    """Write the adapter of a network as a folder that PEFT loads, whole or not at all.

    Args:
        net: the network, with an adapter that is not merged.
        folder: new or empty.

    Raises:
        UserError: PEFT has no such adapter.
    """
    from safetensors.torch import save_file

    injected = adapter_of(net)
    assert injected is not None
    record = injected.record
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    transposed = set()
    for place in places(net):
        layer: Any = net.get_submodule(place.layer)
        if place.layer not in record.layers:
            continue
        update = _update_of(layer, place)
        if update is None:
            continue
        a, b, magnitude = update
        ranks[place.name] = len(a)
        transposed.add(place.transposed)
        is_embedding = isinstance(layer, nn.Embedding)
        names = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A.weight", "lora_B.weight")
        if isinstance(layer, LoRAConv):
            b = b.view(*b.shape, *[1] * (a.ndim - 2))  # (rows, rank, 1, 1)
        for name, tensor in zip(names, (a, b), strict=True):
            tensors[f"{PREFIX}{place.name}.{name}"] = tensor
        if magnitude is not None:
            if isinstance(layer, LoRAConv):
                magnitude = magnitude.view(1, -1, *[1] * (a.ndim - 2))  # (1, rows, 1, 1)
            tensors[f"{PREFIX}{place.name}.{DORA}"] = magnitude
    if len(transposed) > 1:
        raise UserError("PEFT's files take either linear layers or transformers' Conv1D, not both")
    whole = _whole_modules(net, record, tensors)
    config = _config(record, ranks, whole, transposed == {True})
    with atomic_folder(folder) as new:
        write_json(new / CONFIG, config)
        contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        own = json.dumps({"base_digest": record.base_digest, "base": record.base})
        save_file(contiguous, new / WEIGHTS, {"format": "pt", METADATA_KEY: own})


def _update_of(layer: Any, place: Place) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Return ``A``, ``B`` and magnitudes of the rows of a place, or None where no part lies in them."""
    own: LoRALayer = layer
    a_parts = []
    b_parts = []
    first = 0
    rows = place.stop - place.start
    magnitude = None
    if own.lora_magnitude is not None:
        magnitude = own.matrix()[place.start : place.stop].detach().flatten(1).norm(dim=1)
    for a, (_, start, stop) in zip(own.lora_A.split(own.lora.rank), own.lora.parts, strict=True):
        begin = max(start, place.start)
        end = min(stop, place.stop)
        if begin < end:
            inside = slice(first + begin - start, first + end - start)
            b = own.lora_B.new_zeros(rows, own.lora.rank)
            b[begin - place.start : end - place.start] = own.lora_B.detach()[inside]
            a_parts.append(a)
            b_parts.append(b)
            if magnitude is not None:
                assert own.lora_magnitude is not None
                magnitude[begin - place.start : end - place.start] = own.lora_magnitude.detach()[inside]
        first += stop - start
    if not a_parts:
        return None
    return torch.cat(a_parts), torch.cat(b_parts, 1), magnitude


def _whole_modules(net: nn.Module, record: AdapterRecord, tensors: dict[str, Tensor]) -> list[str]:
    """Add the modules that are trained whole to the tensors, and return their names."""
    names = tensor_names(net)
    whole: dict[str, None] = {}
    for own, tensor in net.state_dict().items():
        if not any(own == name or own.startswith(f"{name}.") for name in record.modules_to_save):
            continue
        if own not in names:
            raise UserError(f"lora.modules_to_save: {own} is no module of its own in transformers, which PEFT needs")
        theirs = names[own]
        if "." not in theirs:
            raise UserError(f"lora.modules_to_save: {own} is a parameter, and PEFT saves modules")
        tensors[PREFIX + theirs] = tensor
        whole[theirs.rpartition(".")[0]] = None
    return list(whole)


def _config(record: AdapterRecord, ranks: Mapping[str, int], whole: list[str], transposed: bool) -> dict[str, Any]:
    alphas = {}
    for name, rank in ranks.items():
        alphas[name] = record.scale * (math.sqrt(rank) if record.rslora else rank)
    different = [name for name, rank in ranks.items() if rank != record.rank]
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": record.base or None,
        "inference_mode": True,
        "r": record.rank,
        "lora_alpha": record.alpha,
        "lora_dropout": record.dropout,
        "target_modules": list(ranks),
        "rank_pattern": {f"^{re.escape(name)}": ranks[name] for name in different},
        "alpha_pattern": {f"^{re.escape(name)}": alphas[name] for name in different},
        "use_dora": record.dora,
        "use_rslora": record.rslora,
        "fan_in_fan_out": transposed,
        "bias": "none",
        "modules_to_save": whole or None,
        "init_lora_weights": True,
    }


# Reading --------------------------------------------------------------------------------------------------------------


def read_peft(net: Any, folder: str | Path) -> tuple[AdapterRecord, dict[str, Tensor]]:
    """Read a folder of PEFT for a network: its record, and the parameters by their names in the network.

    Raises:
        UserError: it holds another kind of adapter than LoRA, or one of another network.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    file = folder / WEIGHTS
    if not file.is_file() and (folder / TORCH_WEIGHTS).is_file():
        file = folder / TORCH_WEIGHTS
    if not file.is_file():
        raise UserError(f"{folder} holds no {WEIGHTS}")
    opened = open_file(file)
    if file.suffix == ".safetensors":
        content = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        own = _own_metadata(opened.metadata() or {})
    else:
        content = dict(opened) if isinstance(opened, Mapping) else {}
        own = {}
    updates: dict[str, dict[str, Tensor]] = {}
    rest = {}
    for key, tensor in content.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor) or not key.startswith(PREFIX):
            raise UserError(f"{file}: {printable(key, 80)} is no tensor of a PEFT adapter")
        name = key.removeprefix(PREFIX)
        match = UPDATE.fullmatch(name)
        if match is None:
            rest[name] = tensor
        else:
            updates.setdefault(match[1], {})[match[2].replace("embedding_", "")] = tensor
    if not updates:
        raise UserError(f"{folder} holds no LoRA updates")
    return _convert(net, folder, config, updates, rest, own)


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{path}: zoo reads LoRA adapters of PEFT, this is {printable(kind, 40)}")
    for name in UNKNOWN_OPTIONS:
        if config.get(name):
            raise UserError(f"{path}: zoo has no {name}")
    if config.get("bias", "none") != "none":
        raise UserError(f"{path}: zoo has no trained biases beside LoRA (bias: {printable(config['bias'], 40)})")
    initialization = config.get("init_lora_weights")
    if isinstance(initialization, str) and initialization.startswith(BASE_CHANGING):
        raise UserError(f"{path}: {printable(initialization, 40)} changes the base weights, too: convert it with PEFT")
    numbers = [config.get("r", 8), config.get("lora_alpha", 8), config.get("lora_dropout", 0.0)]
    for pattern in ("rank_pattern", "alpha_pattern"):
        values = config.get(pattern) or {}
        if not isinstance(values, dict):
            raise UserError(f"{path}: {pattern} is a {type(values).__name__}")
        numbers += values.values()
    for value in numbers:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 2**31:
            raise UserError(f"{path}: {printable(value, 40)} is no rank, alpha or dropout")
    return config


def _own_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    try:
        own = json.loads(metadata.get(METADATA_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(own, dict):
        return {}
    return {key: own[key] for key in ("base_digest", "base") if isinstance(own.get(key), str)}


def _convert(
    net: Any,
    folder: Path,
    config: dict[str, Any],
    updates: dict[str, dict[str, Tensor]],
    rest: dict[str, Tensor],
    own: dict[str, Any],
) -> tuple[AdapterRecord, dict[str, Tensor]]:
    dora = bool(config.get("use_dora"))
    by_name = {place.name: place for place in places(net)}
    chosen: dict[str, list[tuple[Place, Tensor, Tensor, Tensor | None]]] = {}
    for name, tensors in updates.items():
        place = by_name.get(name)
        if place is None:
            raise UserError(f"{folder} adapts {printable(name, 80)}, which this {type(net).__name__} does not have")
        a = tensors.get("lora_A")
        b = tensors.get("lora_B")
        magnitude = tensors.get(DORA)
        if a is None or b is None or (dora and magnitude is None):
            raise UserError(f"{folder}: the update of {printable(name, 80)} is not whole")
        _check_shapes(net, folder, place, a, b, magnitude)
        b = b.flatten(1) * _scale(config, name, len(a))
        if magnitude is not None:
            magnitude = magnitude.flatten()
        chosen.setdefault(place.layer, []).append((place, a, b, magnitude))
    rank = max(len(a) for group in chosen.values() for _, a, _, _ in group)
    state: dict[str, Tensor] = {}
    layers = {}
    for layer, group in chosen.items():
        group.sort(key=lambda item: item[0].start)
        layers[layer] = _part_names(net, layer, [place for place, *_ in group])
        state[f"{layer}.lora_A"] = torch.cat([_padded(a, rank, 0) for _, a, _, _ in group])
        state[f"{layer}.lora_B"] = torch.cat([_padded(b, rank, 1) for _, _, b, _ in group])
        if dora:
            state[f"{layer}.lora_magnitude"] = torch.cat([m for *_, m in group if m is not None])
    names = {theirs: ours for ours, theirs in tensor_names(net).items()}
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    whole: dict[str, None] = {}
    for name, tensor in rest.items():
        ours = names.get(name)
        if ours is None or shapes[ours] != tensor.shape:
            raise UserError(f"{folder} holds {printable(name, 80)}, which this {type(net).__name__} does not have so")
        state[ours] = tensor
        whole[ours.rpartition(".")[0]] = None  # PEFT saves modules only
    # The scale is in B, where different modules may have different ones.
    record = AdapterRecord(
        rank=rank,
        alpha=float(rank),
        layers=layers,
        dropout=float(config.get("lora_dropout") or 0.0),
        dora=dora,
        modules_to_save=list(whole),
        **own,
    )
    return record, state


def _check_shapes(net: Any, folder: Path, place: Place, a: Tensor, b: Tensor, magnitude: Tensor | None) -> None:
    layer: Any = net.get_submodule(place.layer)
    weight = layer.weight
    inner = tuple(weight.shape[1:])
    if is_transposed(layer) or isinstance(layer, nn.Embedding):
        inner = tuple(weight.shape[:1])
    rows = place.stop - place.start
    fits = tuple(a.shape[1:]) == inner and a.ndim > 1 and len(a) > 0
    fits = fits and b.flatten(1).shape == (rows, len(a))
    if magnitude is not None:
        fits = fits and magnitude.numel() == rows
    if not fits or not a.is_floating_point() or not b.is_floating_point():
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise UserError(f"{folder}: {place.name} has an update of shapes {shapes}, of another model than this")


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """Return the factor on an update; as in PEFT a pattern matches the end of a name from a dot on."""
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        try:
            matches = re.match(rf"(.*\.)?({pattern})$", name)
        except re.error:
            matches = None
        if matches:
            alpha = value
            break
    if config.get("use_rslora"):
        return alpha / math.sqrt(rank)
    return alpha / rank


def _part_names(net: Any, layer: str, found: list[Place]) -> list[str]:
    """Return the names of the parts of a layer that places are; none is the whole layer."""
    module = net.get_submodule(layer)
    if len(found) == 1 and found[0].stop - found[0].start == out_features(module):
        return []
    parent, _, leaf = layer.rpartition(".")
    ranges = {value: part for part, value in fused_parts(net.get_submodule(parent), leaf, module).items()}
    return [ranges[place.start, place.stop] for place in found]


def _padded(tensor: Tensor, size: int, dim: int) -> Tensor:
    """Return a tensor with zeros behind it, up to a size."""
    missing = list(tensor.shape)
    missing[dim] = size - tensor.shape[dim]
    return torch.cat([tensor, tensor.new_zeros(missing)], dim)
