"""Networks with published weights: one protocol for all, and an adapter for the files of each architecture."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from zoo.errors import UserError
from zoo.terminal import printable
from zoo.trust.memory import budget_of_machine, check_fits
from zoo.weights.files import Weights
from zoo.weights.sharded import materialize

# What Python and torch raise for sizes that are texts, lists, negative or too large.
ODD_VALUES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError)


class WeightsFormat(ABC):
    """Adapter between a network and the files of its published weights: parameter names, config files, checks.

    ``formats`` names the file formats that it writes; the first is the default. ``on_meta`` says whether files hold
    every parameter, so that a network to be read is built without memory.
    """

    formats: tuple[str, ...]
    on_meta: bool = True

    @abstractmethod
    def open(self, path: str | Path, net: PretrainedNet | None = None) -> Weights:
        """Open a file or folder, or a published name.

        Args:
            path: of the weights.
            net: the network that they are for, which may complete a name; None where they decide on the network.

        Raises:
            UserError: there are no such weights, or the file is broken.
        """

    @abstractmethod
    def infer_arguments(self, weights: Weights, cls: type[PretrainedNet]) -> dict[str, Any]:
        """Return the constructor's arguments that the weights state, by their config or by shapes.

        Raises:
            UserError: they are of another architecture, or compute something else than the network.
        """

    @abstractmethod
    def load(self, net: PretrainedNet, weights: Weights) -> None:
        """Copy weights into a network.

        Raises:
            UserError: they are of another architecture or size, or compute something else than the network.
        """

    @abstractmethod
    def save(self, net: PretrainedNet, path: Path, format: str, **options: Any) -> None:
        """Write a network's weights in one of ``formats``, whole or not at all."""


class PretrainedNet(nn.Module):
    """A network that reads and writes published weights.

    ``weights_format`` is the adapter for its files. ``arguments`` are those of its constructor, as plain values;
    ``config`` is the ``config.json`` that its weights came with. ``preprocessing`` says what images its weights were
    trained on, as :mod:`zoo.weights.preprocessing` describes it, or is None if that is unknown. ``classifier_names``
    are the parts that are replaced where the classes differ: the last layer, or larger parts of the end.
    """

    weights_format: ClassVar[Any]
    classifier_names: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    arguments: dict[str, Any]
    config: Mapping[str, Any] = {}
    preprocessing: dict[str, Any] | None = None

    @classmethod
    def preset(cls, name: str, **arguments: Any) -> Self:
        """Build a network of one of ``presets``; ``arguments`` add to its arguments or replace them."""
        if name not in cls.presets:
            raise UserError(f"there is no {cls.__name__} preset {name!r}: take {', '.join(cls.presets)}")
        return cls(**{**cls.presets[name], **arguments})

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: torch.dtype | None = None, **arguments: Any) -> Self:
        """Build a network with the weights of a file or folder, in eval mode.

        Args:
            path: a published name such as ``ResNet50_Weights.IMAGENET1K_V2``, a file, or a folder.
            dtype: of the parameters; null takes that of the file, for image classifiers float32.
            arguments: of the constructor, which replace those of the weights, such as ``num_classes`` or ``dropout``.

        Raises:
            UserError: the weights cannot be read, or are of another architecture.
        """
        adapter: WeightsFormat = cls.weights_format
        with one_line_for_odd_config(path, cls):
            weights = adapter.open(path)
            found = {**adapter.infer_arguments(weights, cls), **arguments}
            check_complete(cls, found, weights.source)
            try:
                if adapter.on_meta:
                    net = build_empty(cls, found, dtype or weights.dtype)
                else:
                    with budget_of_machine():
                        net = cls(**found)
            except ValueError as error:
                raise UserError(f"{weights.source}: {error}") from None
            adapter.load(net, weights)
        if dtype is not None:
            net.to(dtype)
        return net.eval()

    @classmethod
    def pretrained_arguments(cls, path: str | Path) -> dict[str, Any]:
        """Return the constructor's arguments for the weights in a file or folder."""
        adapter: WeightsFormat = cls.weights_format
        with one_line_for_odd_config(path, cls):
            return adapter.infer_arguments(adapter.open(path), cls)

    def load_pretrained(self, path: str | Path) -> Self:
        """Load weights into this network; a classifier for other classes is replaced by a fresh one.

        Args:
            path: a published name (of this network's own, such as ``IMAGENET1K_V2``, the end is enough), a file, or a
                folder.

        Raises:
            UserError: they cannot be read, are of another architecture or size, or compute something else.
        """
        adapter: WeightsFormat = self.weights_format
        with one_line_for_odd_config(path, type(self)):
            adapter.load(self, adapter.open(path, self))
        return self

    def save_pretrained(self, path: str | Path, format: str | None = None, **options: Any) -> None:
        """Write the weights for other libraries, whole or not at all.

        Of a network sharded over processes (``fully_shard``) all have to call it; the first one writes.

        Args:
            path: a ``.safetensors`` or ``.pth`` file, or a folder for formats of transformers and diffusers.
            format: one of the adapter's: ``torchvision`` and ``timm``, ``huggingface``, ``diffusers``, or ``zoo``, a
                file of any network; null takes the first.
            options: of the format: ``max_shard_size`` in bytes, and entries of ``config.json``, for ``huggingface``.
        """
        formats = self.weights_format.formats
        chosen = format or formats[0]
        if chosen not in formats:
            raise UserError(f"{type(self).__name__} is written as {' or '.join(formats)}, not as {format!r}")
        self.weights_format.save(self, Path(path), chosen, **options)


@contextmanager
def one_line_for_odd_config(source: str | Path, cls: type) -> Iterator[None]:
    """Turn errors of values in a ``config.json`` or header that are of another kind than expected into one line.

    Args:
        source: file, folder or name of the weights.
        cls: the network.

    Raises:
        UserError: in place of such an error.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except ODD_VALUES as error:
        reason = printable(str(error).partition("\n")[0], 200)
        raise UserError(f"{source} does not describe a {cls.__name__} that can be built: {reason}") from error


def check_complete(cls: type, arguments: Mapping[str, Any], source: str) -> None:
    """Raise UserError where the constructor's required arguments are not all known."""
    missing = []
    for name, parameter in inspect.signature(cls).parameters.items():
        required = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if required and name not in arguments:
            missing.append(name)
    if missing:
        raise UserError(
            f"{source} does not state {', '.join(missing)} of a {cls.__name__}: it is of another network, or give "
            "it as an argument"
        )


def build_empty(cls: type[Any], arguments: Mapping[str, Any], dtype: torch.dtype | None) -> Any:
    """Build a network with memory for its parameters, but without their initialization."""
    with budget_of_machine(), torch.device("meta"):
        net = cls(**arguments)
    check_fits(net, dtype)
    for name, buffer in list(net.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        kind = dtype if buffer.is_floating_point() else None
        setattr(net.get_submodule(owner), leaf, torch.empty_like(buffer, device="cpu", dtype=kind))
    materialize(net, dtype=dtype)
    return net


# Messages of the adapters ---------------------------------------------------------------------------------------------


def differences_in_words(theirs: Mapping[str, Any], ours: Mapping[str, Any], most: int = 3) -> str:
    """Return in which arguments weights and network differ, such as ``depth=34 instead of 18``; empty if in none."""
    words = []
    for name, value in theirs.items():
        if name in ours and _plain(value) != _plain(ours[name]):
            words.append(f"{name}={_plain(value)} instead of {_plain(ours[name])}")
    return ", ".join(words[:most])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def some_of(names: list[str], most: int = 2) -> str:
    """Return the first of many names, as words."""
    ending = ", ..." if len(names) > most else ""
    return ", ".join(names[:most]) + ending


def refuse_config(source: str, config: Mapping[str, Any], fixed: Mapping[str, Any], network: str) -> None:
    """Raise UserError where a ``config.json`` asks for what a network does not compute.

    Args:
        source: of the weights.
        config: its content.
        fixed: the values that the network always has, or for each a tuple of those that mean the same; a key that the
            config lacks has such a value.
        network: name of its class.
    """
    for key, allowed in fixed.items():
        values = allowed if isinstance(allowed, tuple) else (allowed,)
        if key in config and config[key] not in values:
            raise UserError(
                f"{source} has {key}={printable(config[key], 80)}, but zoo's {network} computes with {key}={values[0]}"
            )
