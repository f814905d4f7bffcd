"""``zoo sample``: generate images with a diffusion model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

name = "sample"
help = "generate images with a diffusion model: PNG files, and a grid of them"

DTYPES = {"32": "float32", "bf16": "bfloat16", "16": "float16"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from typing import get_args

    from zoo.cli.common_options import (
        CKPT_PATH_HELP,
        add_adapter_option,
        add_allow_import_option,
        add_device_option,
        add_weights_option,
    )
    from zoo.diffusion.samplers import SAMPLERS
    from zoo.diffusion.schedules import Spacing

    parser.add_argument(
        "--ckpt_path",
        required=True,
        metavar="PATH",
        help=f"{CKPT_PATH_HELP}; or Stable Diffusion as a diffusers folder or a single .safetensors file",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write the images to, new or empty")
    parser.add_argument("--n", type=int, default=64, help="number of images (default: 64)")
    parser.add_argument(
        "--class",
        dest="label",
        metavar="NAME",
        help="class of all images, by name or index (default: each class in turn)",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="text prompt, for text-to-image models")
    parser.add_argument("--sampler", choices=list(SAMPLERS), default="dpm++", help="sampler (default: dpm++)")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="number of sampling steps (default: 20)")
    parser.add_argument(
        "--guidance_scale",
        type=float,
        default=1.0,
        metavar="G",
        help="classifier-free guidance scale; 1 is no guidance (default: 1.0)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    parser.add_argument(
        "--eta",
        type=float,
        metavar="E",
        help="for ddim, the amount of noise added at each step, from 0 (DDIM) to 1 (DDPM)",
    )
    parser.add_argument(
        "--spacing",
        choices=get_args(Spacing),
        default="trailing",
        help="timestep spacing (default: trailing)",
    )
    parser.add_argument("--batch_size", type=int, default=64, metavar="N", help="images per batch (default: 64)")
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="folder with the tokenizer, for a single file of Stable Diffusion, which holds none",
    )
    parser.add_argument("--precision", choices=list(DTYPES), default="32", help="dtype of the network (default: 32)")
    add_device_option(parser)
    add_weights_option(parser)
    add_adapter_option(parser)
    add_allow_import_option(parser)


def run(args: Any) -> None:
    import torch

    from zoo.adapters import load_adapter
    from zoo.cli.common_options import move_to_device, require_at_least_1, require_new_folder, require_parent
    from zoo.cli.image_sampling import SamplingProgress, class_index, load_diffusion, write_images
    from zoo.cli.set_up import set_up

    set_up(args.allow_import)
    out = Path(args.out)
    require_new_folder(out)
    require_parent(out)
    require_at_least_1(args, "n", "batch_size")
    model = load_diffusion(Path(args.ckpt_path), args.weights, args.tokenizer)
    if args.adapter is not None:
        load_adapter(model, args.adapter, args.weights)
    label = None
    if args.label is not None:
        label = class_index(model, args.label)
    move_to_device(model, args.device, getattr(torch, DTYPES[args.precision]))
    options = {
        "texts": args.prompt,
        "sampler": args.sampler,
        "steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "seed": args.seed,
        "eta": args.eta,
        "spacing": args.spacing,
    }
    with SamplingProgress(args.n, args.batch_size, args.steps) as progress:
        images = model.sample(args.n, batch_size=args.batch_size, labels=label, done=progress.update, **options)
    metadata = {
        **options,
        "ckpt_path": args.ckpt_path,
        "precision": args.precision,
        "weights": args.weights,
    }
    write_images(images, out, metadata, model.class_names, label)
    print(f"{args.n} images and grid.png in {out}")
