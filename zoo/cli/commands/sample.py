"""``zoo sample``: a diffusion model in a checkpoint makes pictures."""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.callbacks.plots.image_samples import tile_images
from zoo.cli.option_parser import OptionParser
from zoo.cli.trainer import Weights
from zoo.diffusion.samplers import SAMPLERS
from zoo.diffusion.schedules import Spacing
from zoo.errors import UserError
from zoo.models import LatentDiffusion
from zoo.rebuild import rebuild
from zoo.tasks.diffusion import Diffusion
from zoo.weights.folders import open_file
from zoo.weights.formats.ldm import is_single_file

PRECISIONS = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}


def run(argv: list[str]) -> int:
    """Make pictures and write them to a folder; return the exit code."""
    given = parser().parse_args(argv)
    out = Path(given.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is there already: name a new or an empty folder")
    if out.exists() and out.samefile("."):
        raise UserError(f"--out {out} is the folder you are in: name a new one")
    if not out.absolute().parent.is_dir():
        raise UserError(f"no folder {str(out.parent)!r} to write {out.name} into")
    for name in ("n", "batch_size"):
        if getattr(given, name) < 1:
            raise UserError(f"--{name} starts at 1, got {getattr(given, name)}")
    model = load(Path(given.ckpt_path), given.weights, given.tokenizer)
    labels = None if given.label is None else class_number(model, given.label)
    told = {
        "labels": labels,
        "texts": given.prompt,
        **{name: getattr(given, name) for name in ("sampler", "steps", "guidance_scale", "seed", "eta", "spacing")},
    }
    try:
        model.to(given.device or ("cuda" if torch.cuda.is_available() else "cpu"), PRECISIONS[given.precision])
    except RuntimeError as error:
        raise UserError(f"--device {given.device}: {str(error).splitlines()[0]}") from None
    bar = Bar(given.n, given.batch_size, given.steps)
    with bar:
        pictures = model.sample(given.n, batch_size=given.batch_size, done=bar.done, **told)
    told.update(ckpt_path=given.ckpt_path, precision=given.precision, weights=given.weights)
    write(pictures, out, {k: v for k, v in told.items() if v is not None}, model, labels)
    print(f"{given.n} pictures and grid.png in {out}")
    return 0


def load(path: Path, weights: Weights = "auto", tokenizer: str | None = None) -> Diffusion:
    """The diffusion model of a checkpoint, of a folder that diffusers reads, or of a single file of Stable Diffusion.

    Args:
        path: the checkpoint, folder or file.
        weights: averages of EMA where there are any, or raw weights.
        tokenizer: folder of that of a single file, which holds none.
    """
    single = path.suffix == ".safetensors" and path.is_file()
    if single or (path / "model_index.json").is_file():
        if single and not is_single_file(open_file(path).keys()):
            raise UserError(f"{path} holds weights alone: sample takes a checkpoint of zoo fit, or a pipeline's folder")
        if single and tokenizer is None:
            raise UserError(f"{path} holds no tokenizer: --tokenizer DIR, the folder of Stable Diffusion's")
        if weights == "ema":
            raise UserError(f"{path} holds no averages")
        return LatentDiffusion.from_pretrained(path, tokenizer=tokenizer)
    if tokenizer is not None and path.exists():
        raise UserError(f"--tokenizer is for a file or folder of Stable Diffusion; {path} is none")
    model = rebuild(path, weights)
    if not isinstance(model, Diffusion):
        raise UserError(f"{path} holds a {type(model).__name__}, which makes no pictures")
    return model


def class_number(model: Diffusion, name: str) -> int:
    """The number of a class by its name, or else its number."""
    names = model.class_names
    if name in names:
        return names.index(name)
    if name.isdigit() and int(name) < len(names):
        return int(name)
    if not names:
        raise UserError(f"--class {name}: this model knows no classes (condition: {model.condition})")
    close = difflib.get_close_matches(name, names, 2)
    known = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names[:20])}"
    raise UserError(f"--class {name}: no such class; {known}{', ...' if not close and len(names) > 20 else ''}")


def write(
    pictures: Float[Tensor, "n c h w"], out: Path, told: dict[str, Any], model: Diffusion, label: int | None
) -> None:
    """Write pictures and a grid of them to a folder, all or none; how each was made stands in its text.

    Args:
        pictures: with pixels from 0 to 1.
        out: the folder, new or empty.
        told: how they were made.
        model: what made them.
        label: class of all; null where they are of all classes in turn.
    """
    new = out.with_name(f".{out.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    told = {k: v for k, v in told.items() if k != "labels"}
    names, digits = model.class_names, len(str(len(pictures) - 1))
    try:
        for i, picture in enumerate(pictures):
            kind = {"class": names[i % len(names) if label is None else label]} if names else {}
            save(picture, new / f"{i:0{max(3, digits)}}.png", {**told, **kind, "number": i})
        columns = len(names) if names and label is None and len(pictures) > len(names) else None
        save(tile_images(pictures, columns), new / "grid.png", {**told, "n": len(pictures)})
        if out.exists():
            out.rmdir()  # an empty one
        os.replace(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def save(picture: Float[Tensor, "c h w"], path: Path, told: dict[str, Any]) -> None:
    """Write a picture of 1 or 3 channels as PNG with text; of others the first only."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Software", "zoo sample")
    for key, value in told.items():
        info.add_itxt(key, str(value))
    pixels = (picture * 255).round().to(torch.uint8)
    array = pixels.permute(1, 2, 0).numpy() if len(pixels) == 3 else pixels[0].numpy()
    Image.fromarray(array).save(path, pnginfo=info)


class Bar:
    """How far it is and the time left: a bar on a terminal, else a line a minute.

    Args:
        n: pictures.
        batch_size: of them at a time.
        steps: for each batch.
    """

    def __init__(self, n: int, batch_size: int, steps: int) -> None:
        self.n, self.batch_size, self.steps = n, batch_size, steps
        self.bar: Any = None
        self.began = self.printed = time.monotonic()

    def __enter__(self) -> None:
        if sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("sampling"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
            self.bar = Progress(*columns, TimeRemainingColumn(), TextColumn("left"), transient=True)
            self.bar.start()
            self.task = self.bar.add_task("", total=self.n * self.steps)

    @property
    def done(self) -> Callable[[int, int], None]:
        return self._done

    def _done(self, start: int, step: int) -> None:
        share = (start * self.steps + step * min(self.batch_size, self.n - start)) / (self.n * self.steps)
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.task, completed=share * self.n * self.steps)
        elif now - self.printed > 60:
            self.printed = now
            left = (now - self.began) * (1 - share) / share
            print(f"sampling: {share:.0%}, {left / 60:.0f} min left", flush=True)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()


def parser() -> argparse.ArgumentParser:
    text = "Let a diffusion model make pictures: PNG files and a grid, each with how it was made in its text."
    own = OptionParser("sample", text)
    own.add_argument(
        "--ckpt_path", required=True, metavar="FILE", help="a checkpoint, or Stable Diffusion: a folder or single file"
    )
    own.add_argument("--out", required=True, metavar="DIR", help="folder to write, new or empty")
    own.add_argument("--n", type=int, default=64, help="how many pictures (64)")
    own.add_argument("--class", dest="label", metavar="NAME", help="class of all, by name or number; else each in turn")
    own.add_argument("--prompt", metavar="TEXT", help="what to make pictures of")
    own.add_argument(
        "--sampler", choices=list(SAMPLERS), default="dpm++", help="how to get from noise to pictures (dpm++)"
    )
    own.add_argument("--steps", type=int, default=20, metavar="N", help="of the sampler (20)")
    own.add_argument(
        "--guidance_scale", type=float, default=1.0, metavar="G", help="classifier-free guidance scale (1.0)"
    )
    own.add_argument("--seed", type=int, default=0, help="another one, other pictures (0)")
    own.add_argument("--eta", type=float, metavar="E", help="share of the noise that ddim draws anew, from 0 to 1")
    spacing = "of the times that the sampler looks at (trailing)"
    own.add_argument("--spacing", choices=get_args(Spacing), default="trailing", help=spacing)
    own.add_argument("--batch_size", type=int, default=64, metavar="N", help="pictures at a time (64)")
    reads = "folder with the tokenizer, for a single file of Stable Diffusion, which holds none"
    own.add_argument("--tokenizer", metavar="DIR", help=reads)
    own.add_argument("--device", metavar="NAME", help="cpu, cuda, ...; cuda where there is one")
    own.add_argument("--precision", choices=list(PRECISIONS), default="32", help="of the network (32)")
    averages = "averages of EMA (where there are any), or raw weights; auto by default"
    own.add_argument("--weights", choices=get_args(Weights), default="auto", help=averages)
    return own
