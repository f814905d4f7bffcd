"""``zoo export``: the weights of a checkpoint in one file, or as a folder that transformers or diffusers loads."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, get_args

import lightning as L
import torch

from zoo import models
from zoo.callbacks.ema import with_ema
from zoo.checkpoints import hyperparameters, readable_checkpoint
from zoo.cli.option_parser import OptionParser
from zoo.cli.trainer import Weights
from zoo.diffusion.schedules import linear_betas, scaled_linear_betas
from zoo.errors import UserError
from zoo.models import LatentDiffusion
from zoo.models.latent_diffusion import PREDICTION_TYPES, SCHEDULES
from zoo.rebuild import rebuild
from zoo.tasks.tokenized import TextTask
from zoo.text.save import save_tokenizer
from zoo.weights.files import SUFFIXES, write, write_json
from zoo.weights.formats.diffusers import SCHEDULER, DiffusersNet, save_pipeline
from zoo.weights.formats.huggingface import HuggingFaceNet
from zoo.weights.pretrained import PretrainedNet

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "float16": torch.float16}
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def run(argv: list[str]) -> int:
    """Write a file or folder; return the exit code."""
    given = parser().parse_args(argv)
    path, out = Path(given.ckpt_path), Path(given.out)
    limit = None if given.max_shard_size is None else size(given.max_shard_size)
    if out.suffix in SUFFIXES[1:]:
        raise UserError(f"--out {out} must end in .safetensors, or name a folder")
    if not out.absolute().parent.is_dir():
        raise UserError(f"no folder {str(out.parent)!r} to write {out.name} into")
    if out.suffix == ".safetensors":
        if limit is not None:
            raise UserError("--max_shard_size is of folders: a .safetensors file is one")
        print(f"{export_file(path, out, given.weights, DTYPES.get(given.dtype))} tensors in {out}")
        return 0
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is there already: name a new or an empty folder")
    if out.exists() and out.samefile("."):
        raise UserError(f"--out {out} is the folder you are in: name a new one")
    print(f"{', '.join(export_folder(path, out, given.weights, DTYPES.get(given.dtype), limit))} in {out}")
    return 0


# One file -------------------------------------------------------------------------------------------------------------


def export_file(path: Path, out: Path, weights: Weights = "auto", dtype: torch.dtype | None = None) -> int:
    """Write a network's tensors by zoo's names, of any module; return how many.

    Args:
        path: a checkpoint.
        out: a ``.safetensors`` file; ``weights`` of models takes it.
        weights: averages of EMA where there are any, or raw weights.
        dtype: of the weights; null keeps theirs.
    """
    if "state_dict" not in readable_checkpoint(path):
        raise UserError(f"{path} holds no state_dict in one file, so there is nothing to export")
    state = with_ema(torch.load(path, weights_only=True, map_location="cpu"), weights)["state_dict"]
    net = {key.removeprefix("net."): value for key, value in state.items() if key.startswith("net.")} or state
    net = {key: value for key, value in net.items() if isinstance(value, torch.Tensor)}
    if dtype is not None:
        net = {key: value.to(dtype) if value.is_floating_point() else value for key, value in net.items()}
    told = hyperparameters(path).get("model", {}).get("init_args", {})
    write(out, net, arguments={k: v for k, v in told.items() if k != "preprocessing"},
          preprocessing=told.get("preprocessing"))  # fmt: skip
    return len(net)


# A folder -------------------------------------------------------------------------------------------------------------


def export_folder(
    path: Path,
    out: Path,
    weights: Weights = "auto",
    dtype: torch.dtype | None = None,
    max_shard_size: int | None = None,
) -> list[str]:
    """Write a folder that other libraries load, whole or not at all; return what is in it.

    Args:
        path: a checkpoint.
        out: the folder, new or empty.
        weights: averages of EMA where there are any, or raw weights.
        dtype: of the weights; null keeps theirs.
        max_shard_size: bytes from which on there are several files.
    """
    model = rebuild(path, weights)
    net: Any = getattr(model, "net", None)
    if not has_folder(type(net)):
        raise UserError(
            f"{path} holds a {type(model).__name__}, which other libraries have no folder for (they have for "
            f"{', '.join(known())}): --out FILE.safetensors writes it for zoo"
        )
    if max_shard_size is not None and not isinstance(net, HuggingFaceNet):
        raise UserError(f"--max_shard_size: the folder of a {type(net).__name__} has one file")
    if dtype is not None:
        net.to(dtype)
    new = out.with_name(f".{out.name}.new-{os.getpid()}")
    new.mkdir()
    try:
        if isinstance(model, LatentDiffusion):
            write_diffusion(model, new, dtype)
        elif isinstance(net, HuggingFaceNet):
            write_text_model(model, net, new, max_shard_size)
        else:
            net.save_pretrained(new, **({"format": "huggingface"} if isinstance(net, PretrainedNet) else {}))
        if out.exists():
            out.rmdir()  # an empty one
        os.replace(new, out)
    except ValueError as error:
        said = re.sub(r"(: write (this|it) |; this one is written ).*", "", str(error))
        raise UserError(f"{path}: {said}; --out FILE.safetensors writes it for zoo") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return sorted(item.name for item in out.iterdir())


def has_folder(cls: type) -> bool:
    """Whether networks of a class are written as a folder that another library loads."""
    return issubclass(cls, (HuggingFaceNet, DiffusersNet)) or (
        issubclass(cls, PretrainedNet) and "huggingface" in cls.formats
    )


def known() -> list[str]:
    return [name for name in models.__all__ if isinstance(cls := getattr(models, name), type) and has_folder(cls)]


def write_text_model(model: L.LightningModule, net: HuggingFaceNet, folder: Path, limit: int | None) -> None:
    """For transformers' AutoModel and AutoTokenizer: weights, what the tokens at the ends are, and the tokenizer."""
    tokenizer = model.tokenizer if isinstance(model, TextTask) else None
    ends: dict[str, Any] = {}
    if tokenizer is not None:
        ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
        ends = {f"{k}_token_id": i for k, i in ids.items() if i is not None and net.config.get(f"{k}_token_id") is None}
    if names := model.hparams.get("class_names"):
        net.class_names = names
    net.save_pretrained(folder, **({} if limit is None else {"max_shard_size": limit}), **ends)
    if tokenizer is None:
        return
    length = net.arguments.get("block_size") or net.arguments["max_length"]
    save_tokenizer(folder, tokenizer, length, inputs=getattr(net, "model_input_names", None))


def write_diffusion(model: LatentDiffusion, folder: Path, dtype: torch.dtype | None) -> None:
    """For diffusers: a pipeline of Stable Diffusion where texts are read, or else the parts of one and the noise."""
    noise, net, frozen = scheduler(model), model.net, model._frozen
    assert isinstance(net, DiffusersNet)
    net.config = {**net.config, "sample_size": model.shape[-1]}
    parts: dict[Any, DiffusersNet] = {"unet": net}
    parts |= {name: frozen[own] for name, own in (("vae", "autoencoder"), ("text_encoder",) * 2) if own in frozen}
    for part in parts.values():
        part.to(dtype)
    if model.prompts is None or len(parts) < 3:
        for name, part in parts.items():
            part.save_pretrained(folder / name)
        write_json(folder / "scheduler" / "scheduler_config.json", {**SCHEDULER, **noise})
        return
    with tempfile.TemporaryDirectory() as tokenizer:
        save_tokenizer(tokenizer, model.prompts.tokenizer, model.prompts.length, "CLIPTokenizer")
        save_pipeline(folder, parts, tokenizer, noise)


def scheduler(model: LatentDiffusion) -> dict[str, Any]:
    """What ``scheduler_config.json`` of diffusers says of the noise that a model was trained with."""
    names = {ours: theirs for theirs, ours in SCHEDULES.items()}
    given = model.hparams
    if model.prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"diffusers' DDIMScheduler has no prediction_type {model.prediction_type}")
    name = given.get("schedule") or "cosine"
    makers = {"linear": linear_betas, "scaled_linear": scaled_linear_betas}
    usual = inspect.signature(makers.get(name, linear_betas)).parameters
    ends = {f"beta_{k}": given.get(f"beta_{k}") or usual[k].default for k in ("start", "end")}
    spaced = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if given.get("zero_snr") else {}
    clipped = {"clip_sample": model.clip is not None}
    return {"beta_schedule": names[name], **ends, "num_train_timesteps": given.get("timesteps", 1000),
            "prediction_type": model.prediction_type, **clipped, **spaced}  # fmt: skip


# The command line -----------------------------------------------------------------------------------------------------


def size(text: str) -> int:
    """Bytes, from ``500MB``, say."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(KB|MB|GB|)", text.upper())
    if found is None or float(found[1]) == 0:
        raise UserError(f"--max_shard_size is a number of bytes, or one with KB, MB or GB: got {text!r}")
    return int(float(found[1]) * UNITS[found[2]])


def parser() -> argparse.ArgumentParser:
    text = "Write the weights of a checkpoint to a file, or as a folder that transformers or diffusers loads."
    own = OptionParser("export", text)
    own.add_argument("--ckpt_path", required=True, metavar="FILE", help="a checkpoint")
    what = "a .safetensors file, of any model; or a new folder, of those that transformers or diffusers know"
    own.add_argument("--out", required=True, metavar="PATH", help=what)
    averages = "averages of EMA (where there are any), or raw weights; auto by default"
    own.add_argument("--weights", choices=get_args(Weights), default="auto", help=averages)
    own.add_argument("--dtype", choices=list(DTYPES), help="of the weights; as they are by default")
    own.add_argument("--max_shard_size", metavar="SIZE", help="of a file in a folder, such as 500MB (5GB)")
    return own
