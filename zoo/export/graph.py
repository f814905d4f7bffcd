"""A graph to export: raw samples in, predictions out."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zoo.export.heads import Head, Outputs

NUM_SAMPLES = 8


class Graph(nn.Module):
    """Base of graphs: subclasses prepare raw samples in ``forward`` as the data of training do, and call ``head``.

    Args:
        head: what the task returns.
    """

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.module = without_training(head.module)
        self._head = (head,)  # a tuple hides the module from nn.Module, which has it already

    def head(self, *inputs: Tensor) -> Outputs:
        """Return the outputs for prepared inputs."""
        return self._head[0].outputs(*inputs)


@dataclass
class Export:
    """What is written to a file, and the samples that it is compared on.

    Args:
        graph: from raw samples to predictions.
        inputs: raw samples, by the name of the input; all have the batch as their first dimension.
        expected: predictions of the module itself for them, by the name of the output.
        descriptions: of the inputs, by name.
        as_dict: whether the graph takes its inputs as one dict, rather than one by one.
        length_of: inputs whose second dimension is the length of a sequence.
        facts: further values for the metadata of the file.
        source: what the samples are, for a message.
    """

    graph: Graph
    inputs: dict[str, Tensor]
    expected: Outputs
    descriptions: dict[str, str]
    as_dict: bool = False
    length_of: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    source: str = "generated samples"

    def arguments(self, inputs: dict[str, Tensor] | None = None) -> tuple[Any, ...]:
        """Return the positional arguments of the graph for some samples; null for all."""
        inputs = self.inputs if inputs is None else inputs
        return (inputs,) if self.as_dict else tuple(inputs.values())


def without_training(module: Any) -> Any:
    """Remove losses and metrics from a module, which no graph needs and whose states would go into the file."""
    for name in ("loss", "metrics", "entities"):
        if isinstance(getattr(module, name, None), nn.Module):
            setattr(module, name, nn.ModuleDict())
    return module.eval().requires_grad_(False)


@contextmanager
def without_messages() -> Iterator[None]:
    """Keep what is said about the samples, which may be generated, off the terminal."""
    with redirect_stderr(io.StringIO()):
        yield


@torch.no_grad()
def predicted(head: Head, batch: Any) -> Outputs:
    """Return what the module's own ``predict_step`` predicts for a prepared batch."""
    head.before()
    return head.expected(head.module.predict_step(batch, 0))
