"""Networks that read and write model directories of Hugging Face, tensor by tensor."""

from __future__ import annotations

import abc
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from zoo.distributed import copy_into_shard, reshard
from zoo.weights.files import Weights, write
from zoo.weights.folders import NamedTensors, open_weights, write_folder
from zoo.weights.sharded import GatheredTensors, materialize, write_on_rank_zero

LayoutFormat = Literal["huggingface", "zoo"]


@dataclass(frozen=True)
class Entry:
    """One parameter of a network, and the tensors of a file that it is made of.

    Args:
        param: the parameter's name.
        names: the tensors' names in a file; several stand one below the other in the parameter.
        rows: how many rows of the parameter each of several takes.
        transpose: whether the file has the matrix on its side, as GPT-2's have.
    """

    param: str
    names: tuple[str, ...]
    rows: tuple[int, ...] = ()
    transpose: bool = False

    def pieces(self, parameter: Tensor) -> Sequence[Tensor]:
        """The parameter's parts, as views in the form that the file has."""
        parts = parameter.split(list(self.rows)) if self.rows else (parameter,)
        return [part.T if self.transpose else part for part in parts]


class HuggingFaceNet(nn.Module, abc.ABC):
    """A network that reads and writes model directories of Hugging Face, and files of zoo.

    ``arguments`` are those of its constructor, as plain values; ``config`` is the ``config.json`` that it came with.
    """

    ignored_keys: ClassVar[str] = r"$^"  # regular expression of names in files that are no parameters
    arguments: dict[str, Any]
    config: dict[str, Any]
    blocks: nn.ModuleList
    activation_checkpointing: bool = False

    # What a network says ----------------------------------------------------------------------------------------------

    @classmethod
    @abc.abstractmethod
    def infer_config(cls, weights: Weights) -> dict[str, Any]:
        """Read the constructor's arguments off a ``config.json``, or else the shapes."""

    @abc.abstractmethod
    def entries(self) -> list[Entry]:
        """Where each parameter is in a file, in the file's order."""

    @abc.abstractmethod
    def config_json(self) -> dict[str, Any]:
        """Return what ``config.json`` has to say, or raise where transformers has no such architecture."""

    @classmethod
    def open_pretrained(cls, path: str | Path) -> Weights:
        """Open what may be of another layout, so that names are those of ``entries``."""
        return open_weights(path)

    # What they share --------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: torch.dtype | None = None, **arguments: Any) -> Self:
        """Build the network that a folder or file holds, in eval mode, with its weights.

        Tensors go from the file to their place one by one, so the weights are in memory once.

        Args:
            path: a model directory, or a file of zoo.
            dtype: of the parameters; null takes the file's, of the first tensor that is no mask of whole numbers.
            arguments: of the constructor, where something else is wanted, as ``dropout``.
        """
        weights = cls.open_pretrained(path)
        with torch.device("meta"):
            net = cls(**{**cls._infer_config(weights), **arguments})
        materialize(net, dtype=dtype or next(t.dtype for t in weights.state.values() if t.is_floating_point()))
        net._load_weights(weights)
        return net.eval()

    def load_pretrained(self, path: str | Path) -> Self:
        """Load weights into this network, which has to be as large as they are.

        Raises:
            ValueError: they are of another architecture or size, or cannot be had.
        """
        self._load_weights(self.open_pretrained(path))
        return self

    def save_pretrained(
        self,
        path: str | Path,
        format: LayoutFormat = "huggingface",
        max_shard_size: int = 5 * 10**9,
        **config: Any,
    ) -> None:
        """Write the weights, whole or not at all.

        Of a network divided among processes (``fully_shard``) all have to call it; the first one writes.

        Args:
            path: a folder, or for ``zoo`` a ``.safetensors`` file.
            format: ``huggingface``: a model directory that transformers loads; ``zoo``: one file, of any network.
            max_shard_size: bytes from which on a model directory has several files; no more are gathered at a time.
            config: what else ``config.json`` is to say, as ``eos_token_id``.
        """
        reshard(self)
        own = dict(self.named_parameters())  # tied ones once
        if format == "zoo":
            gathered = GatheredTensors(own)
            write_on_rank_zero(gathered, lambda: write(path, gathered, arguments=self.arguments))
        elif format == "huggingface":
            dtype = str(next(self.parameters()).dtype).removeprefix("torch.")
            said, entries = {**self.config_json(), **config, "dtype": dtype}, self.entries()
            if homeless := own.keys() - {entry.param for entry in entries}:
                some = ", ".join(sorted(homeless)[:2])
                raise ValueError(f"files of Hugging Face have no place for {some}: write this network with format zoo")
            gathered = GatheredTensors({entry.param: own[entry.param] for entry in entries})
            tensors = _FileTensors(entries, gathered)
            write_on_rank_zero(gathered, lambda: write_folder(path, said, tensors, tensors.shapes(), max_shard_size))
        else:
            raise ValueError(f"{type(self).__name__} is written as huggingface or zoo, not as {format!r}")

    @classmethod
    def pretrained_arguments(cls, path: str | Path) -> dict[str, Any]:
        """Return the constructor's arguments for the weights in a folder or file."""
        return cls._infer_config(cls.open_pretrained(path))

    @classmethod
    def _infer_config(cls, weights: Weights) -> dict[str, Any]:
        if weights.arguments:  # zoo wrote it: the network's arguments, or the module's among others
            told = {k: v for k, v in weights.arguments.items() if k in inspect.signature(cls).parameters}
            context = weights.arguments.get("context")  # of a module, whose block_size is that of its data
            return {**told, "block_size": context} if context else told
        return cls.infer_config(weights)

    @torch.no_grad()
    def _load_weights(self, weights: Weights) -> None:
        self._compare(weights)
        reshard(self)
        own, state = dict(self.named_parameters()), weights.state
        entries = [Entry(k, (k,)) for k in own] if own.keys() <= state.keys() else self.entries()
        used = {k for e in entries for k in e.names} | set(dict(self.named_parameters(remove_duplicate=False)))
        missing = [k for e in entries for k in e.names if k not in state]
        unexpected = [k for k in state if k not in used and not re.search(self.ignored_keys, k)]
        for what, names in (("lacks", missing), ("also holds", unexpected)):
            if names:
                some = f"{', '.join(names[:2])}{', ...' if len(names) > 2 else ''}"
                raise ValueError(
                    f"{weights.source} is no {type(self).__name__}: it {what} {len(names)} tensors ({some})"
                )
        for entry in entries:
            parameter = target = own[entry.param]
            if isinstance(parameter, DTensor):  # all of it, of which this process keeps its part
                target = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
            for name, piece in zip(entry.names, entry.pieces(target), strict=True):
                if (tensor := state[name]).shape != piece.shape:
                    shapes = f"{name} {tuple(tensor.shape)} instead of {tuple(piece.shape)}"
                    raise ValueError(f"{weights.source} does not fit this {type(self).__name__}: {shapes}")
                piece.copy_(tensor)
            if target is not parameter:
                copy_into_shard(target, parameter)
        self.config = dict(weights.config)

    def _compare(self, weights: Weights) -> None:
        """In which arguments the file differs, where that can be told, is clearer than in which shapes."""
        theirs, ours = self._infer_config(weights), self.arguments
        shaping = [k for k in theirs if k in ours and k not in ("dropout", "block_size")]
        if unlike := [f"{k}={theirs[k]} instead of {ours[k]}" for k in shaping if theirs[k] != ours[k]]:
            raise ValueError(f"{weights.source} does not fit this {type(self).__name__}: it has {', '.join(unlike)}")


class _FileTensors(NamedTensors):
    """A network's parameters as a file has them, each made when asked for.

    Args:
        entries: where each is in the file.
        parameters: by their own names.
    """

    def __init__(self, entries: Sequence[Entry], parameters: GatheredTensors) -> None:
        super().__init__({name: (entry, i) for entry in entries for i, name in enumerate(entry.names)})
        self.parameters = parameters

    def __getitem__(self, name: str) -> Tensor:
        entry, i = self.names[name]
        return entry.pieces(self.parameters[entry.param])[i]

    def shapes(self) -> dict[str, Tensor]:
        """The same without memory."""
        empty = {k: torch.empty(v.shape, dtype=v.dtype, device="meta") for k, v in self.parameters.tensors.items()}
        return {name: entry.pieces(empty[entry.param])[i] for name, (entry, i) in self.names.items()}
