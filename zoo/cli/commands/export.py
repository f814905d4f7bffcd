"""``zoo export``: write the weights of a checkpoint for other programs."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

name = "export"
help = "write the weights of a checkpoint to a .safetensors file, or to a folder that transformers or diffusers loads"

DTYPES = {"float32": "float32", "bf16": "bfloat16", "float16": "float16"}
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
        help="FILE.safetensors, for any model; or a new folder, for models that transformers or diffusers has",
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
    from zoo.weights.files import SUFFIXES

    set_up(args.allow_import)
    out = Path(args.out)
    if args.peft:
        export_peft(args, out)
        return
    shard_size = None
    if args.max_shard_size is not None:
        shard_size = parse_size(args.max_shard_size)
    dtype = None
    if args.dtype is not None:
        dtype = getattr(torch, DTYPES[args.dtype])
    if out.suffix in SUFFIXES[1:]:
        raise UserError(f"--out {out} must end in .safetensors, or name a folder")
    require_parent(out)
    if out.suffix == ".safetensors":
        if shard_size is not None:
            raise UserError("--max_shard_size is for folders: a .safetensors file is not split")
        count = export_file(args.ckpt_path, out, args.weights, dtype, args.adapter)
        print(f"{count} tensors in {out}")
        return
    require_new_folder(out)
    names = export_folder(args.ckpt_path, out, args.weights, dtype, shard_size, args.adapter)
    print(f"{', '.join(names)} in {out}")


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
