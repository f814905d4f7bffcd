"""Published weights of language models: model directories of transformers, read and written tensor by tensor."""

from __future__ import annotations

import inspect
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from zoo.distributed import copy_into_shard, reshard
from zoo.errors import UserError
from zoo.weights.files import Weights, read, read_json, write
from zoo.weights.folders import MAX_SHARD_SIZE, write_folder
from zoo.weights.pretrained import PretrainedNet, WeightsFormat, differences_in_words, some_of
from zoo.weights.sharded import GatheredTensors, write_on_rank_zero
from zoo.weights.tensors import NamedTensors


@dataclass(frozen=True)
class Entry:
    """One parameter of a network, and the tensors of a file that it consists of.

    Args:
        param: name of the parameter.
        names: names of the tensors in a file; several stand one below the other in the parameter.
        rows: number of rows of the parameter that each of several takes.
        transpose: whether the file holds the transposed matrix, as GPT-2's do.
    """

    param: str
    names: tuple[str, ...]
    rows: tuple[int, ...] = ()
    transpose: bool = False

    def pieces(self, parameter: Tensor) -> Sequence[Tensor]:
        """Return the parts of the parameter, as views of the shapes in the file."""
        parts = parameter.split(list(self.rows)) if self.rows else (parameter,)
        if self.transpose:
            return [part.T for part in parts]
        return parts


class HuggingFaceFormat(WeightsFormat):
    """Adapter for model directories of transformers, and files of zoo."""

    formats = ("huggingface", "zoo")
    ignored_keys = r"$^"  # regular expression of names in files that are no parameters
    # Arguments in which a network may differ from its weights, which stay as they are.
    adjustable = ("dropout", "block_size")

    # What each architecture implements --------------------------------------------------------------------------------

    @abstractmethod
    def infer_config(self, weights: Weights) -> dict[str, Any]:
        """Return the constructor's arguments by ``config.json``, or else by the shapes.

        Raises:
            UserError: the weights are of another architecture, or compute something else than zoo's network.
        """

    @abstractmethod
    def entries(self, net: PretrainedNet) -> list[Entry]:
        """Return where each parameter is in a file, in the file's order."""

    @abstractmethod
    def config_json(self, net: PretrainedNet) -> dict[str, Any]:
        """Return the content of ``config.json``.

        Raises:
            UserError: transformers has no such architecture.
        """

    def standardize(self, weights: Weights) -> Weights:
        """Return the weights by the names of ``entries``."""
        return weights

    # Reading ----------------------------------------------------------------------------------------------------------

    def open(self, path: str | Path, net: PretrainedNet | None = None) -> Weights:
        folder = Path(path).expanduser()
        if folder.is_dir():
            read_json(folder / "config.json")  # shapes alone do not show the heads
        return self.standardize(read(path))

    def infer_arguments(self, weights: Weights, cls: type[PretrainedNet]) -> dict[str, Any]:
        if not weights.arguments:
            return self.infer_config(weights)
        # zoo wrote the file: the arguments are the network's, or the module's among others
        found = {name: value for name, value in weights.arguments.items() if name in constructor_arguments(cls)}
        context = weights.arguments.get("context")
        if context:  # the module's own block_size is that of its data
            found["block_size"] = context
        return found

    def check(self, net: PretrainedNet, weights: Weights) -> None:
        """Raise UserError where weights state other arguments than the network's, which is clearer than shapes."""
        theirs = self.infer_arguments(weights, type(net))
        compared = {name: value for name, value in theirs.items() if name not in self.adjustable}
        words = differences_in_words(compared, net.arguments, most=len(compared))
        if words:
            raise UserError(f"{weights.source} does not fit this {type(net).__name__}: it has {words}")

    @torch.no_grad()
    def load(self, net: PretrainedNet, weights: Weights) -> None:
        self.check(net, weights)
        reshard(net)
        own = dict(net.named_parameters())  # tied ones once
        entries = self.entries_in_file(net, weights)
        self.check_names(net, weights, entries)
        for entry in entries:
            fill(own[entry.param], entry, weights, type(net).__name__)
        net.config = dict(weights.config)

    def entries_in_file(self, net: PretrainedNet, weights: Weights) -> list[Entry]:
        """Return where each parameter is in a file of transformers, or under its own name in one of zoo."""
        own = dict(net.named_parameters())
        if own.keys() <= weights.state.keys():
            return [Entry(name, (name,)) for name in own]
        return self.entries(net)

    def check_names(self, net: PretrainedNet, weights: Weights, entries: Sequence[Entry]) -> None:
        """Raise UserError where tensors are missing, or there are more than the network has."""
        used = set(dict(net.named_parameters(remove_duplicate=False)))
        missing = []
        for entry in entries:
            used.update(entry.names)
            missing += [name for name in entry.names if name not in weights.state]
        unexpected = []
        for name in weights.state:
            if name not in used and not re.search(self.ignored_keys, name):
                unexpected.append(name)
        for what, names in (("lacks", missing), ("also holds", unexpected)):
            if names:
                network = type(net).__name__
                raise UserError(f"{weights.source} is no {network}: it {what} {len(names)} tensors ({some_of(names)})")

    # Writing ----------------------------------------------------------------------------------------------------------

    def save(
        self,
        net: PretrainedNet,
        path: Path,
        format: str,
        max_shard_size: int = MAX_SHARD_SIZE,
        **options: Any,
    ) -> None:
        reshard(net)
        own = dict(net.named_parameters())  # tied ones once
        if format == "zoo":
            gathered = GatheredTensors(own)
            write_on_rank_zero(gathered, lambda: write(path, gathered, arguments=net.arguments))
            return
        dtype = str(next(net.parameters()).dtype).removeprefix("torch.")
        config = {**self.config_json(net), **options, "dtype": dtype}
        entries = self.entries(net)
        homeless = own.keys() - {entry.param for entry in entries}
        if homeless:
            some = some_of(sorted(homeless))
            raise UserError(f"files of Hugging Face have no place for {some}: write this network with format zoo")
        gathered = GatheredTensors({entry.param: own[entry.param] for entry in entries})
        tensors = TensorsInFile(entries, gathered)
        write_on_rank_zero(gathered, lambda: write_folder(path, config, tensors, tensors.shapes(), max_shard_size))


def constructor_arguments(cls: type) -> set[str]:
    """Return the names of the arguments of a constructor and of those that it passes others on to."""
    names: set[str] = set()
    for base in cls.__mro__:
        if base is nn.Module:
            break
        if "__init__" in vars(base):
            names.update(inspect.signature(base).parameters)
    return names - {"args", "kwargs"}


def fill(parameter: Tensor, entry: Entry, weights: Weights, network: str) -> None:
    """Copy the tensors of an entry into its parameter, of a sharded one into the shard of this process."""
    target = parameter
    if isinstance(parameter, DTensor):
        target = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
    for name, piece in zip(entry.names, entry.pieces(target), strict=True):
        tensor = weights.state[name]
        if tensor.shape != piece.shape:
            shapes = f"{name} {tuple(tensor.shape)} instead of {tuple(piece.shape)}"
            raise UserError(f"{weights.source} does not fit this {network}: it has {shapes}")
        piece.copy_(tensor)
    if isinstance(parameter, DTensor):
        copy_into_shard(target, parameter)


class TensorsInFile(NamedTensors):
    """The parameters of a network as the tensors of a file, each made when it is asked for.

    Args:
        entries: where each parameter is in the file.
        parameters: by their own names.
    """

    def __init__(self, entries: Sequence[Entry], parameters: GatheredTensors) -> None:
        names = {}
        for entry in entries:
            for i, name in enumerate(entry.names):
                names[name] = (entry, i)
        super().__init__(names)
        self.parameters = parameters

    def __getitem__(self, name: str) -> Tensor:
        entry, i = self.names[name]
        return entry.pieces(self.parameters[entry.param])[i]

    def shapes(self) -> dict[str, Tensor]:
        """Return the same tensors on the meta device."""
        empty = {}
        for name, parameter in self.parameters.tensors.items():
            empty[name] = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        return {name: entry.pieces(empty[entry.param])[i] for name, (entry, i) in self.names.items()}


def known_config(config: Mapping[str, Any], names: Mapping[str, str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return a constructor's arguments by a ``config.json``.

    Args:
        config: its content.
        names: from arguments to its keys.
        defaults: by key, what transformers takes for granted where a file does not state it.
    """
    complete = {**defaults, **{key: value for key, value in config.items() if value is not None}}
    return {ours: complete[theirs] for ours, theirs in names.items() if theirs in complete}
