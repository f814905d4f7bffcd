"""Published weights of image classifiers, in files of torchvision, timm and Hugging Face."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.distributed import say
from zoo.errors import UserError
from zoo.weights.files import STEMS, Weights, write
from zoo.weights.formats.timm import AVERAGE_POOLING, check_timm_config, read_timm_config
from zoo.weights.pretrained import PretrainedNet, WeightsFormat, differences_in_words, some_of
from zoo.weights.published import load_by_name

State = dict[str, Tensor]


class ImageFormat(WeightsFormat):
    """Adapter for image classifiers: parameters are named as in torchvision, and the classifier may be replaced."""

    formats = ("torchvision",)
    on_meta = False  # a fresh classifier has to be initialized
    enums: tuple[str, ...]  # groups of published names, such as ResNet50_Weights
    input_conv: str  # first convolution
    # Which of timm's architectures compute the same, as a regular expression and in words.
    timm_names: str | None = None
    timm_example = "torchvision's files"
    timm_poolings: tuple[str, ...] = AVERAGE_POOLING
    timm_arguments: tuple[str, ...] = ()  # model_args that the network follows
    model_types: tuple[str, ...] = ()  # of transformers

    # What each architecture implements --------------------------------------------------------------------------------

    @abstractmethod
    def enum(self, arguments: Mapping[str, Any]) -> str | None:
        """Return the group of published names that fits a network of these arguments, or None."""

    @abstractmethod
    def infer_from_shapes(self, state: State) -> dict[str, Any]:
        """Return the constructor's arguments that the shapes of a state dict with zoo's names show."""

    def convert(self, state: State) -> State:
        """Rename the keys of any of ``formats`` to zoo's."""
        return state

    def arguments_of_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the constructor's arguments that the ``config.json`` of another library states."""
        return {}

    def hidden_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a network of these arguments computes with and no shape shows, as far as they state it.

        Args:
            arguments: of a network, or of the module that it is part of; some of them may be absent.
        """
        return {}

    def resize(self, net: PretrainedNet, state: State) -> State:
        """Resample what depends on the size of the images."""
        return state

    def check_state(self, weights: Weights) -> None:
        """Raise UserError where names of tensors show that the weights compute something else."""

    # Reading ----------------------------------------------------------------------------------------------------------

    def open(self, path: str | Path, net: PretrainedNet | None = None) -> Weights:
        if net is None:
            weights = load_by_name(str(path), self.enums)
        else:
            own = self.enum(net.arguments)
            weights = load_by_name(str(path), [own] if own else [], own)
        weights.state = dict(weights.state)  # read once
        if not Path(path).expanduser().is_dir() and Path(path).stem not in STEMS:
            weights.config = {}  # of other weights in the same folder
        return weights

    def infer_arguments(self, weights: Weights, cls: type[PretrainedNet]) -> dict[str, Any]:
        self.check_origin(weights, cls.__name__)
        state = self.convert(dict(weights.state))
        kernel = state.get(self.input_conv)
        if kernel is None or kernel.ndim != 4:
            names = some_of(sorted(weights.state))
            raise UserError(f"{weights.source} is no {cls.__name__}: it has no {self.input_conv}, but {names}")
        found = {**self.infer_from_shapes(state), **self.stated_arguments(weights, cls)}
        if "num_classes" not in found:
            found.pop("head", None)
        return found

    def stated_arguments(self, weights: Weights, cls: type[PretrainedNet]) -> dict[str, Any]:
        """Return the constructor's arguments in the header of zoo's file, or in another library's config."""
        known = inspect.signature(cls).parameters
        stated = {**self.arguments_of_config(weights.config), **self.hidden_from_module(weights.arguments)}
        for name, value in weights.arguments.items():
            if name in known and value is not None:
                stated[name] = value
        return stated

    def hidden_from_module(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return network arguments that only a module's arguments state, such as heads by the name of a size."""
        return {}

    def check_origin(self, weights: Weights, network: str) -> None:
        """Raise UserError where ``config.json`` names another architecture, or a variant that computes otherwise."""
        timm = read_timm_config(weights.config)
        if timm is not None:
            check_timm_config(
                weights.source,
                timm,
                network,
                self.timm_names,
                self.timm_example,
                self.timm_poolings,
                self.timm_arguments,
            )
        elif "model_type" in weights.config and weights.config["model_type"] not in self.model_types:
            kind = weights.config["model_type"]
            readable = " or ".join(self.model_types) or "no model of transformers"
            raise UserError(f"{weights.source} holds a model of type {kind!r}: {network} reads {readable}")
        self.check_state(weights)

    # Loading ----------------------------------------------------------------------------------------------------------

    def load(self, net: PretrainedNet, weights: Weights) -> None:
        self.check_origin(weights, type(net).__name__)
        converted = self.convert(dict(weights.state))
        self.check_hidden_arguments(net, weights)
        state = self.fit_input_channels(net, converted, weights.source)
        state = self.resize(net, state)
        state = without_nan(state)
        own = net.state_dict()
        state = with_batch_counters(state, own)
        head, fitting = fit_classifier(net, state, own)
        if fitting is None:
            raise UserError(self.mismatch(net, weights, state, own))
        if head:
            say(f"{weights.source}: {replaced_head_in_words(head, state, own)}")
        net.load_state_dict(fitting)
        net.preprocessing = weights.preprocessing

    def check_hidden_arguments(self, net: PretrainedNet, weights: Weights) -> None:
        """Raise UserError where the weights are known to compute something else with the same shapes."""
        stated = self.stated_arguments(weights, type(net))
        theirs = self.hidden_arguments({**weights.arguments, **stated})
        ours = self.hidden_arguments(net.arguments)
        words = differences_in_words(theirs, ours)
        if words:
            raise UserError(f"{weights.source} does not fit this {type(net).__name__}: it has {words}")

    def fit_input_channels(self, net: PretrainedNet, state: State, source: str) -> State:
        """Sum the first kernel over the colours for grey images: as if they were three equal channels."""
        kernel = state.get(self.input_conv)
        own = net.state_dict()[self.input_conv]
        if kernel is None or kernel.ndim != 4 or (kernel.shape[1], own.shape[1]) != (3, 1):
            return state
        say(f"{source}: its colour channels are summed, as the images have one")
        return {**state, self.input_conv: kernel.sum(1, keepdim=True)}

    def mismatch(self, net: PretrainedNet, weights: Weights, state: State, own: State) -> str:
        """Return one line: in which arguments the weights differ, or else in which names and shapes."""
        theirs: dict[str, Any] = {}
        kernel = state.get(self.input_conv)
        if kernel is not None and kernel.ndim == 4:
            theirs = self.infer_from_shapes(state)
        words = differences_in_words(theirs, net.arguments) or "; ".join(differences(own, state))
        return f"{weights.source} does not fit this {type(net).__name__}: it has {words}"

    # Writing ----------------------------------------------------------------------------------------------------------

    def save(self, net: PretrainedNet, path: Path, format: str, **options: Any) -> None:
        if options:
            raise UserError(f"the format {format} takes no {', '.join(options)}")
        metadata = {"arguments": net.arguments, "preprocessing": net.preprocessing}
        self.write(path, net.state_dict(), format, metadata)

    def write(self, path: Path, state: State, format: str, metadata: dict[str, Any]) -> None:
        """Write a state dict with zoo's names; architectures with more formats override this."""
        write(path, state, **metadata)


def infer_head(state: Mapping[str, Tensor], head: str) -> dict[str, Any]:
    """Return the kind of head and the number of classes, where a state dict has a head."""
    for kind, last in (("linear", head), ("mlp", f"{head}.3")):
        if f"{last}.weight" in state:
            return {"head": kind, "num_classes": len(state[f"{last}.weight"])}
    return {}


def without_nan(state: State) -> State:
    """Drop tensors with NaN: torchvision's files for features alone hold them in the classifier."""
    return {k: v for k, v in state.items() if not (v.is_floating_point() and v.isnan().any())}


def with_batch_counters(state: State, own: State) -> State:
    """Add the batch counters of batch normalizations, which old files lack."""
    counters = {}
    for key, value in own.items():
        if key.endswith("num_batches_tracked") and key.replace("num_batches_tracked", "running_mean") in state:
            counters[key] = value
    return {**counters, **state}


def fit_classifier(net: PretrainedNet, state: State, own: State) -> tuple[str, State | None]:
    """Return what to load, with the network's own classifier where that of the file does not fit.

    Args:
        net: the network, which names the parts that may be replaced.
        state: of the file.
        own: of the network.

    Returns:
        The part that was replaced (empty for none), and the state dict, or None where no replacement makes it fit.
    """
    for head in ("", *net.classifier_names):
        fitting = dict(state)
        if head:
            fitting = {key: value for key, value in state.items() if not _is_under(key, head)}
            fitting |= {key: value for key, value in own.items() if _is_under(key, head)}
        if not differences(own, fitting):
            return head, fitting
    return "", None


def replaced_head_in_words(head: str, state: State, own: State) -> str:
    old = [len(v) for k, v in state.items() if _is_under(k, head) and v.ndim == 2]
    new = [len(v) for k, v in own.items() if _is_under(k, head) and v.ndim == 2]
    if old:
        return f"its head of {old[-1]} classes is replaced by a fresh one of {new[-1]}"
    return f"it has no head, so one of {new[-1]} classes starts fresh"


def differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return in words which tensors are missing, unexpected or of another shape."""
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    reshaped = []
    for key, tensor in own.items():
        if key in state and state[key].shape != tensor.shape:
            reshaped.append(f"{key} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}")
    words = []
    for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped)):
        if names:
            words.append(f"{len(names)} {what} ({some_of(names)})")
    return words


def _is_under(name: str, part: str) -> bool:
    return name.startswith(f"{part}.")


def fuse(state: Mapping[str, Tensor], parts: tuple[str, ...], fused: str) -> State:
    """Return a state dict in which the tensors of several projections stand one below the other in one.

    Args:
        state: such as ``a.query.weight``, ``a.key.weight``, ``a.value.weight``.
        parts: names of the projections, in order.
        fused: name of the one, with ``{}`` for ``weight`` or ``bias``.
    """
    kept = {key: value for key, value in state.items() if not any(f".{part}." in key for part in parts)}
    for key in state:
        owner, found, kind = key.rpartition(f".{parts[0]}.")
        if found:
            tensors = [state[f"{owner}.{part}.{kind}"] for part in parts]
            kept[f"{owner}.{fused.format(kind)}"] = torch.cat(tensors)
    return kept
