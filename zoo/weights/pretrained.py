"""What networks with published weights have in common: reading them, fitting the ends to the task, writing them."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

from zoo.distributed import say
from zoo.weights.files import Weights, write
from zoo.weights.published import load_by_name

Format = Literal["torchvision", "timm", "huggingface"]


class PretrainedNet(nn.Module, ABC):
    """A network that reads and writes published weights.

    Its attribute ``preprocessing`` says what the images of its weights look like: ``image_size`` (pixels), ``mean`` and
    ``std`` (by channel, of pixels from 0 to 1), ``interpolation`` and ``crop_pct`` (the share of the shorter side that
    the central crop keeps), or None where nobody knows. ``arguments`` are those of its constructor, as plain values.
    """

    weights_enums: ClassVar[tuple[str, ...]]  # groups of names, such as ResNet50_Weights
    input_conv: ClassVar[str]
    classifier_names: ClassVar[
        tuple[str, ...]
    ]  # what may be replaced where classes differ: the last layer, or more of the end
    formats: ClassVar[tuple[Format, ...]] = ("torchvision",)
    preprocessing: dict[str, Any] | None = None
    arguments: dict[str, Any]

    # What a network says ----------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def weights_enum(self) -> str | None:
        """The group of names that fits this network, or None."""

    @classmethod
    def convert_state_dict(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Translate any of ``formats`` to the names used here."""
        return state

    @classmethod
    @abstractmethod
    def infer_config(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
        """Read the constructor's arguments off the shapes of a state (named as here) and a ``config.json``."""

    def resize_to_image_size(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resample what depends on the size of the images."""
        return state

    def save_in_format(self, path: Path, format: Format) -> None:
        """Write in one of ``formats``: here by the names used here, which are torchvision's."""
        write(path, self.state_dict(), arguments=self.arguments, preprocessing=self.preprocessing)

    # What they share --------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name_or_path: str, **arguments: Any) -> Self:
        """Build the network that a file holds, in eval mode, with its weights.

        Args:
            name_or_path: name (``ResNet50_Weights.IMAGENET1K_V2``), file or folder, see :func:`zoo.weights.read`.
            arguments: of the constructor, where the file does not tell or something else is wanted, as ``num_classes``.
        """
        weights = load_by_name(str(name_or_path), cls.weights_enums)
        known = inspect.signature(cls).parameters
        state = cls.convert_state_dict(weights.state)
        told = {k: v for k, v in weights.arguments.items() if k in known and v is not None}
        sizes = cls.infer_config(state, weights.config) if cls.input_conv in state else {}
        net = cls(**{**sizes, **told, **arguments})
        net._load_weights(weights)
        return net.eval()

    def load_pretrained(self, name_or_path: str) -> Self:
        """Load weights into this network; a head that does not fit stays fresh.

        Args:
            name_or_path: name (``ResNet50_Weights.IMAGENET1K_V2``, or ``IMAGENET1K_V2``), file or folder.

        Raises:
            ValueError: they are of another architecture, or cannot be had.
        """
        own = self.weights_enum
        self._load_weights(load_by_name(str(name_or_path), [own] if own else [], own))
        return self

    def save_pretrained(self, path: str | Path, format: Format = "torchvision") -> None:
        """Write the weights for other libraries, whole or not at all.

        Args:
            path: a ``.safetensors`` or ``.pth`` file; for ``huggingface`` a folder.
            format: whose names: ``torchvision``, ``timm`` or ``huggingface``.
        """
        if format not in self.formats:
            raise ValueError(f"{type(self).__name__} is written as {' or '.join(self.formats)}, not as {format!r}")
        self.save_in_format(Path(path), format)

    def _load_weights(self, weights: Weights) -> None:
        state = self.resize_to_image_size(
            self._adapt_input_conv(self.convert_state_dict(weights.state), weights.source)
        )
        # torchvision's files for features alone hold NaN in the rest
        state = {k: v for k, v in state.items() if not (v.is_floating_point() and v.isnan().any())}
        own = self.state_dict()
        # old files lack the counters of batches
        counters = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")}
        state = {k: v for k, v in counters.items() if k.replace("num_batches_tracked", "running_mean") in state} | state
        for head in ("", *self.classifier_names):
            kept = {k: v for k, v in state.items() if not head or not _is_under(k, head)}
            kept = {**{k: v for k, v in own.items() if head and _is_under(k, head)}, **kept}
            if not _differences(own, kept):
                break
        else:
            raise ValueError(self._mismatch_message(weights, state, own))
        if head:
            old = [v for k, v in state.items() if _is_under(k, head) and v.ndim == 2]
            was = f"its head of {len(old[-1])} classes" if old else "it has no head, so one"
            new = len([v for k, v in own.items() if _is_under(k, head) and v.ndim == 2][-1])
            said = f"{was} is replaced by a fresh one of {new}" if old else f"{was} of {new} classes starts fresh"
            say(f"{weights.source}: {said}")
        self.load_state_dict(kept)
        self.preprocessing = weights.preprocessing

    def _adapt_input_conv(self, state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
        """A network for grey images takes the sum over red, green and blue, which is what it would see in grey ones."""
        kernel, own = state.get(self.input_conv), self.state_dict()[self.input_conv]
        if kernel is None or kernel.ndim != 4 or (kernel.shape[1], own.shape[1]) != (3, 1):
            return state
        say(f"{source}: its colour channels are summed, as the images have one")
        return {**state, self.input_conv: kernel.sum(1, keepdim=True)}

    def _mismatch_message(self, weights: Weights, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
        """One line: in which arguments the file differs, or else in which names and shapes."""
        theirs = self.infer_config(state, weights.config) if self.input_conv in state else {}
        unlike = [f"{k}={v} instead of {self.arguments[k]}" for k, v in theirs.items() if self.arguments.get(k, v) != v]
        why = ", ".join(unlike[:3]) or "; ".join(_differences(own, state))
        return f"{weights.source} does not fit this {type(self).__name__}: it has {why}"


def infer_head(state: Mapping[str, Tensor], head: str) -> dict[str, Any]:
    """The kind of head and the number of classes, where the file has a head."""
    for kind, last in (("linear", head), ("mlp", f"{head}.3")):
        if f"{last}.weight" in state:
            return {"head": kind, "num_classes": len(state[f"{last}.weight"])}
    return {}


def _is_under(name: str, head: str) -> bool:
    return name.startswith(f"{head}.")


def _differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    wrong = {
        "missing": [k for k in own if k not in state],
        "unexpected": [k for k in state if k not in own],
        "of another shape": [
            f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
            for k in own
            if k in state and state[k].shape != own[k].shape
        ],
    }
    return [f"{len(v)} {k} ({', '.join(v[:2])}{', ...' if len(v) > 2 else ''})" for k, v in wrong.items() if v]
