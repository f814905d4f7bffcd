"""``export_graph``: from a checkpoint to a file that predicts without zoo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zoo import __version__
from zoo.adapters import load_adapter
from zoo.checkpoints import Weights
from zoo.data.images.base import ImageData
from zoo.data.series.timeseries import TimeSeries
from zoo.data.tabular import Tabular
from zoo.errors import UserError
from zoo.export.files import require_onnx, write_graph
from zoo.export.graph import Export
from zoo.export.heads import Head, head_of
from zoo.export.images import export_of_images
from zoo.export.sequences import export_of_tensors, export_of_text, is_text
from zoo.export.series import export_of_series
from zoo.export.tables import export_of_table
from zoo.prediction import load_with_data


@dataclass
class Report:
    """What was written.

    Args:
        inputs: of the graph, with their descriptions.
        outputs: of the graph, with their descriptions.
        difference: the largest between predictions of the file and of the module.
        compared: how many samples were compared, and what they are.
        any_length: whether sequences may have any length; None where there are none.
    """

    inputs: dict[str, str]
    outputs: dict[str, str]
    difference: float
    compared: str
    any_length: bool | None


def export_graph(
    path: str | Path,
    out: Path,
    format: str,
    weights: Weights = "auto",
    samples: Sequence[str] | None = None,
    adapter: str | None = None,
) -> Report:
    """Write a checkpoint as a graph that holds its preprocessing, once the file predicts the same as the module.

    Args:
        path: the checkpoint.
        out: the file.
        format: ``onnx`` or ``torch_export``.
        weights: ``auto`` takes EMA weights if there are any.
        samples: files of samples to compare the predictions on; null takes what is at hand.
        adapter: LoRA adapter that is added to the weights first.

    Raises:
        UserError: the model has no such graph, or it predicts something else; no file is left.
    """
    if format == "onnx":
        require_onnx()
    module, data = load_with_data(path, weights)
    if adapter is not None:
        load_adapter(module, adapter, weights)
    head = head_of(module)
    class_names = list(getattr(module, "class_names", []))
    export = build_export(head, data, samples)
    outputs = {name: head.descriptions[name] for name in export.expected}
    inputs = {name: export.descriptions[name] for name in export.inputs}
    metadata: dict[str, Any] = {
        "model": type(module).__name__,
        "inputs": inputs,
        "outputs": outputs,
        **({"class_names": class_names} if class_names else {}),
        **export.facts,
        "versions": versions(format),
    }
    difference, any_length = write_graph(export, out, format, metadata)
    count = len(next(iter(export.inputs.values())))
    return Report(
        inputs=inputs,
        outputs=outputs,
        difference=difference,
        compared=f"{count} {export.source}",
        any_length=any_length if export.length_of else None,
    )


def build_export(head: Head, data: Any, samples: Sequence[str] | None) -> Export:
    """Return the graph of a module for the kind of its data.

    Raises:
        UserError: the checkpoint does not describe its data, or there is no graph for their kind.
    """
    if data is None:
        raise UserError(
            "the checkpoint does not describe its data, whose preprocessing belongs into the graph: a checkpoint of "
            "`zoo fit` is needed"
        )
    if isinstance(data, ImageData):
        return export_of_images(head, data, samples)
    if isinstance(data, Tabular):
        return export_of_table(head, data, samples)
    if isinstance(data, TimeSeries):
        return export_of_series(head, data, samples)
    if is_text(data):
        return export_of_text(head, data, samples)
    return export_of_tensors(head, data, samples)


def versions(format: str) -> dict[str, str]:
    """Return the versions of what wrote a file."""
    found = {"zoo": __version__, "torch": torch.__version__}
    if format == "onnx":
        import onnx
        import onnxruntime

        found |= {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    return found
