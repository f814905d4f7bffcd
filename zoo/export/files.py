"""Writing graphs as ``.onnx`` and ``.pt2`` files, and running these files on samples."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.integrity import seal
from zoo.errors import UserError
from zoo.export.graph import Export
from zoo.export.onnx_digest import PLACEHOLDER, seal_onnx
from zoo.export.recurrent import replace_recurrent
from zoo.files import atomic_file

MAX_ONNX_BYTES = 1_900_000_000  # a protobuf message ends at 2 GB
METADATA_FILE = "metadata.json"  # in a .pt2 archive
TOLERANCE = 1e-4
NEEDS_ONNX = "--format onnx needs the packages onnx, onnxscript and onnxruntime: pip install 'lightning-zoo[onnx]'"

Run = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def write_graph(export: Export, out: Path, format: str, metadata: dict[str, Any]) -> tuple[float, bool]:
    """Write a graph to a file, run the file on the samples, and keep it if the predictions agree.

    Args:
        export: the graph and its samples.
        out: the file.
        format: ``onnx`` or ``torch_export``.
        metadata: for the file, values that JSON can hold.

    Returns:
        The largest difference to the predictions of the module, see ``largest_difference``; and whether sequences may
        have any length.

    Raises:
        UserError: the network cannot be exported, or the file predicts something else; no file is left.
    """
    replace_recurrent(export.graph)
    program, any_length = traced(export)
    with atomic_file(out) as temporary:
        if format == "onnx":
            write_onnx(program, export, temporary, metadata)
            run = onnx_runner(temporary, list(export.expected))
        else:
            write_program(program, temporary, metadata)
            run = program_runner(temporary, export)
        difference = compare(export, run, any_length)
    return difference, any_length


# Tracing --------------------------------------------------------------------------------------------------------------


def traced(export: Export) -> tuple[Any, bool]:
    """Return the graph as a ``torch.export`` program, for any batch size and, where it can be, for any length."""
    if export.length_of:
        try:
            return _trace(export, any_length=True), True
        except UserError:
            pass  # a network that takes one length only, such as an MLP
    return _trace(export, any_length=False), False


def _trace(export: Export, any_length: bool) -> Any:
    batch = torch.export.Dim("batch")  # one size for all inputs
    shapes: dict[str, dict[int, Any]] = {}
    for name in export.inputs:
        shapes[name] = {0: batch}
        if any_length and name in export.length_of:
            shapes[name][1] = torch.export.Dim.DYNAMIC
    dynamic: Any = (shapes,) if export.as_dict else tuple(shapes.values())
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(export.graph, export.arguments(), dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # torch raises whatever a network brings it to
        raise cannot_export(export, error) from error


def cannot_export(export: Export, error: Exception) -> UserError:
    """Return the error for a network that no exporter of torch takes, with the first line of its reason."""
    module = export.graph.module
    net = type(getattr(module, "net", module)).__name__
    lines = [line for line in str(error).splitlines() if line.strip()]
    why = lines[0][:200] if lines else type(error).__name__
    return UserError(f"{net} cannot be exported as a graph: {why}; --out FILE.safetensors writes its weights")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters print and log off the terminal."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# ONNX -----------------------------------------------------------------------------------------------------------------


def require_onnx() -> None:
    """Raise a UserError where the packages for ONNX are not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{NEEDS_ONNX} ({error})") from None


def write_onnx(program: Any, export: Export, path: Path, metadata: dict[str, Any]) -> None:
    """Write a program as ONNX, with its metadata and a digest of the file."""
    size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    if size > MAX_ONNX_BYTES:
        raise UserError(f"the weights are {size / 1e9:.1f} GB, and an .onnx file ends at 2 GB: write a .pt2 file")
    try:
        with quiet(), torch.no_grad():
            found: Any = torch.onnx.export(
                program,
                input_names=list(export.inputs),
                output_names=list(export.expected),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch and onnxscript raise whatever a network brings them to
        raise cannot_export(export, error.__cause__ or error) from error  # type: ignore[arg-type]
    for name, value in metadata.items():
        found.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    found.model.metadata_props.update(PLACEHOLDER)
    with quiet():
        found.save(path)
    seal_onnx(path)


def onnx_runner(path: Path, outputs: list[str]) -> Run:
    """Return a function that runs an ``.onnx`` file with onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    used = {item.name for item in session.get_inputs()}

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        fed = {name: value.numpy() for name, value in inputs.items() if name in used}
        results = session.run(outputs, fed)
        return {name: torch.from_numpy(value) for name, value in zip(outputs, results, strict=True)}

    return run


# torch.export ---------------------------------------------------------------------------------------------------------


def write_program(program: Any, path: Path, metadata: dict[str, Any]) -> None:
    """Write a program as an archive of ``torch.export``, with its metadata and a digest of the file."""
    with quiet(), open(path, "wb") as file:
        torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(metadata)})
    seal(path)


def program_runner(path: Path, export: Export) -> Run:
    """Return a function that runs a ``.pt2`` file with torch."""
    with quiet(), open(path, "rb") as file:
        module = torch.export.load(file).module()

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            return module(*export.arguments(inputs))

    return run


# Comparing ------------------------------------------------------------------------------------------------------------


def compare(export: Export, run: Run, any_length: bool) -> float:
    """Run a file on all samples together, and on the first one alone; return the largest difference.

    Raises:
        UserError: the file predicts something else than the module.
    """
    whole = range(len(next(iter(export.inputs.values()))))
    largest = 0.0
    for rows in (whole, whole[:1]):
        inputs = {name: value[rows.start : rows.stop] for name, value in export.inputs.items()}
        expected = {name: value[rows.start : rows.stop] for name, value in export.expected.items()}
        if any_length and len(rows) == 1:
            inputs, expected = without_padding(export, inputs, expected)
        try:
            found = run(inputs)
        except Exception as error:  # of the runtime
            lines = str(error).splitlines() or [type(error).__name__]
            raise UserError(f"the exported file does not run on {len(rows)} samples: {lines[0][:200]}") from error
        largest = max(largest, largest_difference(expected, found))
    if not largest <= TOLERANCE:
        raise UserError(
            f"the exported file predicts otherwise than the module: largest difference {largest:.1e} on "
            f"{len(whole)} {export.source}, allowed {TOLERANCE:.0e}; nothing is written"
        )
    return largest


def without_padding(export: Export, inputs: Any, expected: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return one sample without the padding that other samples need, so that another length is tried, too."""
    length = export.inputs[export.length_of[0]].shape[1]
    if "attention_mask" in inputs:
        length = int(inputs["attention_mask"].sum())
    elif "lengths" in inputs:
        length = int(inputs["lengths"][0])
    cut = {}
    for name, value in inputs.items():
        cut[name] = value[:, :length] if name in export.length_of else value
    steps = export.inputs[export.length_of[0]].shape[1]
    by_step = {}
    for name, value in expected.items():
        is_sequence = value.ndim == 3 and value.shape[1] == steps
        by_step[name] = value[:, :length] if is_sequence else value
    return cut, by_step


def largest_difference(expected: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """Return the largest difference between predictions, relative to the largest of them where that is above 1.

    Padding is NaN in ``expected`` and left out. What is not finite only in ``found`` differs infinitely.
    """
    largest = 0.0
    for name, ours in expected.items():
        ours = ours.double()
        theirs = found[name].double()
        if ours.shape != theirs.shape:
            if ours.ndim != 3 or ours.shape[0] != theirs.shape[0] or ours.shape[2] != theirs.shape[2]:
                return float("inf")
            theirs = theirs[:, : ours.shape[1]]
        known = ~ours.isnan()
        if not known.any():
            raise UserError("the module predicts NaN for all samples: there is nothing to compare the export with")
        scale = ours[known].abs().max().clamp(min=1)
        differences = (ours - theirs)[known].abs() / scale
        differences = torch.where(differences.isnan(), torch.inf, differences)
        largest = max(largest, float(differences.max()))
    return largest
