"""``zoo export``: write the weights of a checkpoint for other programs."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

name = "export"
help = "write a checkpoint for other programs: an ONNX or torch.export graph, or its weights"

DTYPES = {"float32": "float32", "bf16": "bfloat16", "float16": "float16"}
# The suffix of each format; those without one are folders.
FORMATS = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors", "huggingface": "", "diffusers": ""}
GRAPHS = ("onnx", "torch_export")
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from zoo.cli.common_options import (
        CKPT_PATH_HELP,
        add_adapter_option,
        add_allow_import_option,
        add_weights_option,
    )

    parser.add_argument("--ckpt_path", required=True, metavar="FILE", help=CKPT_PATH_HELP)
    parser.add_argument(
        "--out",
        required=True,
        metavar="PATH",
        help=(
            "FILE.onnx or FILE.pt2, a graph with its preprocessing; FILE.safetensors, the weights of any model; "
            "or a new folder, for models that transformers or diffusers has"
        ),
    )
    parser.add_argument("--format", choices=list(FORMATS), help="what to write (default: by the suffix of --out)")
    parser.add_argument(
        "--samples",
        nargs="+",
        metavar="FILE",
        help=(
            "samples on which the predictions of an .onnx or .pt2 file are compared with the module's "
            "(default: the test split where it is at hand, else generated ones)"
        ),
    )
    add_weights_option(parser)
    add_adapter_option(parser)
    parser.add_argument(
        "--peft",
        action="store_true",
        help="write the adapter alone, as a folder that PEFT loads, rather than the model with the adapter added to it",
    )
    parser.add_argument("--dtype", choices=list(DTYPES), help="dtype of the written weights (default: as they are)")
    parser.add_argument(
        "--max_shard_size",
        metavar="SIZE",
        help="split the weights in a folder into files of at most SIZE, such as 500MB (default: 5GB)",
    )
    add_allow_import_option(parser)


def run(args: Any) -> None:
    import torch

    from zoo.cli.common_options import require_new_folder, require_parent
    from zoo.cli.export_weights import export_file, export_folder
    from zoo.cli.set_up import set_up
    from zoo.errors import UserError

    set_up(args.allow_import)
    out = Path(args.out)
    if args.peft:
        export_peft(args, out)
        return
    require_parent(out)
    format = chosen_format(out, args.format)
    if format in GRAPHS:
        write_graph_file(args, out, format)
        return
    if args.samples is not None:
        raise UserError("--samples is for .onnx and .pt2 files, which are run: weights are written as they are")
    shard_size = None
    if args.max_shard_size is not None:
        shard_size = parse_size(args.max_shard_size)
    dtype = None
    if args.dtype is not None:
        dtype = getattr(torch, DTYPES[args.dtype])
    if format == "safetensors":
        if shard_size is not None:
            raise UserError("--max_shard_size is for folders: a .safetensors file is not split")
        count = export_file(args.ckpt_path, out, args.weights, dtype, args.adapter)
        print(f"{count} tensors in {out}")
        return
    require_new_folder(out)
    names = export_folder(args.ckpt_path, out, args.weights, dtype, shard_size, args.adapter, args.format)
    print(f"{', '.join(names)} in {out}")


def chosen_format(out: Path, format: str | None) -> str | None:
    """Return the format of a file, by its suffix where none is given; None for a folder of either library.

    Raises:
        UserError: the suffix is that of another format, or of none.
    """
    from zoo.errors import UserError
    from zoo.weights.files import SUFFIXES

    by_suffix = {suffix: name for name, suffix in FORMATS.items() if suffix}
    of_suffix = by_suffix.get(out.suffix.lower())
    if format is None:
        if of_suffix is None and out.suffix in SUFFIXES:
            raise UserError(f"--out {out} must end in {', '.join(by_suffix)}, or name a folder")
        return of_suffix
    if of_suffix is not None and of_suffix != format:
        raise UserError(f"--out {out} is a file of --format {of_suffix}, not of {format}")
    if FORMATS[format] and of_suffix is None:
        raise UserError(f"--out {out} must end in {FORMATS[format]} for --format {format}")
    return format


def write_graph_file(args: Any, out: Path, format: str) -> None:
    """Write a graph, and print what it takes and returns and how well it agrees with the module."""
    from zoo.errors import UserError
    from zoo.export.export import export_graph
    from zoo.terminal import visible

    if args.dtype is not None or args.max_shard_size is not None:
        raise UserError("--dtype and --max_shard_size are for weights: a graph computes as the module does")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file")
    report = export_graph(args.ckpt_path, out, format, args.weights, args.samples, args.adapter)
    for kind, described in (("input", report.inputs), ("output", report.outputs)):
        for text, names in grouped(described).items():
            print(f"{kind} {visible(', '.join(names))}: {visible(text)}")
    if report.any_length is False:
        print("the network takes sequences of this length only")
    print(f"{out} predicts as the module does: largest difference {report.difference:.1e} on {report.compared}")


def grouped(described: dict[str, str]) -> dict[str, list[str]]:
    """Return the names that have the same description, as columns of a table do, by that description."""
    groups: dict[str, list[str]] = {}
    for name, text in described.items():
        groups.setdefault(text, []).append(name)
    return groups


def export_peft(args: Any, out: Path) -> None:
    """Write an adapter as a folder of PEFT."""
    from zoo.cli.adapters import export_adapter
    from zoo.cli.common_options import require_new_folder, require_parent
    from zoo.errors import UserError

    if args.adapter is None:
        raise UserError("--peft writes an adapter: name it with --adapter")
    if args.dtype is not None or args.max_shard_size is not None:
        raise UserError("--peft writes the adapter as it is: leave --dtype and --max_shard_size out")
    require_parent(out)
    require_new_folder(out)
    names = export_adapter(args.ckpt_path, args.adapter, out, args.weights)
    print(f"{', '.join(names)} in {out}")


def parse_size(text: str) -> int:
    """Return the number of bytes in a text such as ``500MB``."""
    from zoo.errors import UserError

    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(KB|MB|GB|)", text.upper())
    if match is None or float(match[1]) == 0:
        raise UserError(f"--max_shard_size is a number of bytes, or a number with KB, MB or GB: got {text!r}")
    number, unit = match.groups()
    return int(float(number) * UNITS[unit])
