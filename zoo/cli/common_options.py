"""Options that several commands share, worded once. Nothing here imports torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from zoo.errors import UserError

WEIGHTS = ("auto", "ema", "raw")
WEIGHTS_HELP = "EMA weights (if the checkpoint has any) or raw weights; auto takes EMA weights if there are any"
ADAPTER_HELP = "LoRA adapter of this model: a checkpoint of a run with lora, or a folder of PEFT"
CKPT_PATH_HELP = "checkpoint of `zoo fit`, such as runs/mlp_digits/1/checkpoints/best.ckpt"


def add_evaluation_options(parser: Any) -> None:
    """Add the checkpoint and the choice of its weights to a parser of jsonargparse."""
    from typing import Literal

    parser.add_argument("--ckpt_path", type=str | None, default=None, help=CKPT_PATH_HELP)
    parser.add_argument("--weights", type=Literal["auto", "ema", "raw"], default="auto", help=WEIGHTS_HELP)
    parser.add_argument("--adapter", type=str | None, default=None, help=ADAPTER_HELP)
    hide_options_of_lightning(parser, "weights_only", "verbose")


def hide_options_of_lightning(parser: Any, *names: str) -> None:
    """Accept arguments of the Trainer's methods that zoo sets itself, as configs of earlier versions hold them."""
    for name in names:
        parser.add_argument(f"--{name}", type=bool | None, default=None, help=argparse.SUPPRESS)


def add_weights_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--weights`` to an argparse parser."""
    parser.add_argument("--weights", choices=WEIGHTS, default="auto", help=f"{WEIGHTS_HELP} (default: auto)")


def add_adapter_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--adapter`` to an argparse parser."""
    parser.add_argument("--adapter", metavar="PATH", help=ADAPTER_HELP)


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--device`` to an argparse parser."""
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cuda if there is a GPU)")


def add_allow_import_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--allow-import`` to an argparse parser."""
    parser.add_argument(
        "--allow-import",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="package that the checkpoint may import, besides zoo, lightning and torch; repeatable",
    )


def move_to_device(model: Any, device: str | None, dtype: Any = None) -> None:
    """Move a model to a device and convert it to a dtype.

    Args:
        model: the module.
        device: name of the device; None is cuda if there is a GPU, else cpu.
        dtype: of the weights; None keeps theirs.

    Raises:
        UserError: if torch has no such device.
    """
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model.to(device=device, dtype=dtype)
    except RuntimeError as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from None


def require_parent(out: Path) -> None:
    """Raise a UserError if the folder that a file or folder is to be written into does not exist."""
    if not out.absolute().parent.is_dir():
        raise UserError(f"no folder {str(out.parent)!r} to write {out.name} into")


def require_new_folder(out: Path) -> None:
    """Raise a UserError if an output folder is there already, unless it is empty and not the working directory."""
    if not out.exists():
        return
    if not out.is_dir() or any(out.iterdir()):
        raise UserError(f"--out {out} exists already: name a new or an empty folder")
    if out.samefile("."):
        raise UserError(f"--out {out} is the working directory: name a new folder")


def require_at_least_1(args: argparse.Namespace, *names: str) -> None:
    """Raise a UserError for an option that is a count and below 1."""
    for name in names:
        value = getattr(args, name)
        if value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
