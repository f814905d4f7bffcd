"""Weights of a checkpoint as a .safetensors file for zoo, or as a folder for transformers or diffusers."""

from __future__ import annotations

import inspect
import re
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch

from zoo import models
from zoo.adapters import load_adapter
from zoo.checkpoints import Checkpoint, Weights
from zoo.diffusion.schedules import linear_betas, scaled_linear_betas
from zoo.errors import UserError
from zoo.files import atomic_folder, write_json
from zoo.models import LatentDiffusion
from zoo.models.pretrained_noise import PREDICTION_TYPES, SCHEDULES
from zoo.tasks.tokenized import TextTask
from zoo.text.save import save_tokenizer
from zoo.weights.files import write
from zoo.weights.formats.diffusers import SCHEDULER, save_pipeline
from zoo.weights.formats.huggingface import HuggingFaceFormat
from zoo.weights.pretrained import PretrainedNet

# Errors of the writers that name another way to write the same net; the command line names its own.
OTHER_WAY = r"(: write (this|it) |; this one is written ).*"

# One file -------------------------------------------------------------------------------------------------------------


def export_file(
    path: str | Path,
    out: Path,
    weights: Weights = "auto",
    dtype: torch.dtype | None = None,
    adapter: str | None = None,
) -> int:
    """Write the tensors of a network under zoo's names, for any module; return their number.

    Args:
        path: the checkpoint.
        out: a ``.safetensors`` file, which ``weights`` of zoo's models takes.
        weights: ``auto`` takes EMA weights if there are any.
        dtype: of floating-point tensors; None keeps theirs.
        adapter: LoRA adapter that is added to the weights first.
    """
    checkpoint = Checkpoint(path)
    checkpoint.refuse_adapter()
    if adapter is None:
        state = checkpoint.state_dict(weights)
    else:
        model = checkpoint.build(weights)
        load_adapter(model, adapter, weights)
        state = model.state_dict()
    net = {}
    for key, value in state.items():
        if key.startswith("net."):
            net[key.removeprefix("net.")] = value
    tensors = {}
    for key, value in (net or state).items():
        if not isinstance(value, torch.Tensor):
            continue
        if dtype is not None and value.is_floating_point():
            value = value.to(dtype)
        tensors[key] = value
    arguments = dict(checkpoint.hyperparameters.get("model", {}).get("init_args", {}))
    preprocessing = arguments.pop("preprocessing", None)
    write(out, tensors, arguments=arguments, preprocessing=preprocessing)
    return len(tensors)


# A folder -------------------------------------------------------------------------------------------------------------


def export_folder(
    path: str | Path,
    out: Path,
    weights: Weights = "auto",
    dtype: torch.dtype | None = None,
    max_shard_size: int | None = None,
    adapter: str | None = None,
    format: str | None = None,
) -> list[str]:
    """Write a folder that other libraries load, whole or not at all; return the names in it.

    Args:
        path: the checkpoint.
        out: the folder, new or empty.
        weights: ``auto`` takes EMA weights if there are any.
        dtype: of the weights; None keeps theirs.
        max_shard_size: in bytes; larger weights are split into several files.
        adapter: LoRA adapter that is added to the weights first.
        format: ``huggingface`` or ``diffusers``, which must be that of the model; None takes the one it has.

    Raises:
        UserError: if no other library has the model, or it has options that theirs does not have.
    """
    model = Checkpoint(path).build(weights)
    if adapter is not None:
        load_adapter(model, adapter, weights)
    net: Any = getattr(model, "net", None)
    if folder_format(type(net)) is None:
        raise UserError(
            f"{path} holds a {type(model).__name__}, which has no folder format (there is one for "
            f"{', '.join(names_with_folder_format())}): --out FILE.safetensors writes it for zoo"
        )
    if format is not None and format != folder_format(type(net)):
        raise UserError(f"a {type(net).__name__} is written as --format {folder_format(type(net))}, not {format}")
    if max_shard_size is not None and not writes_shards(net):
        raise UserError(f"--max_shard_size: the folder of a {type(net).__name__} has one file")
    if dtype is not None:
        net.to(dtype)
    try:
        with atomic_folder(out) as folder:
            if isinstance(model, LatentDiffusion):
                write_diffusion(model, folder, dtype)
            elif writes_shards(net):
                write_text_model(model, net, folder, max_shard_size)
            else:
                net.save_pretrained(folder, format=folder_format(type(net)))
    except ValueError as error:
        reason = re.sub(OTHER_WAY, "", str(error))
        raise UserError(f"{path}: {reason}; --out FILE.safetensors writes it for zoo") from None
    return sorted(item.name for item in out.iterdir())


def folder_format(cls: type) -> str | None:
    """Return the format in which networks of a class are written as a folder for another library, or None."""
    if issubclass(cls, PretrainedNet):
        for name in ("huggingface", "diffusers"):
            if name in cls.weights_format.formats:
                return name
    return None


def writes_shards(net: Any) -> bool:
    """Return whether the weights of a network may be split into several files."""
    return isinstance(getattr(net, "weights_format", None), HuggingFaceFormat)


def names_with_folder_format() -> list[str]:
    """Return the names of the networks in ``zoo.models`` with a folder format."""
    names = []
    for name in models.__all__:
        cls = getattr(models, name)
        if isinstance(cls, type) and folder_format(cls):
            names.append(name)
    return names


def write_text_model(model: L.LightningModule, net: Any, folder: Path, max_shard_size: int | None) -> None:
    """Write weights, special tokens and the tokenizer for transformers' AutoModel and AutoTokenizer."""
    options: dict[str, Any] = {}
    if max_shard_size is not None:
        options["max_shard_size"] = max_shard_size
    class_names = model.hparams.get("class_names")
    if class_names:
        net.class_names = class_names
    tokenizer = None
    if isinstance(model, TextTask):
        tokenizer = model.tokenizer
    if tokenizer is None:
        net.save_pretrained(folder, **options)
        return
    special_tokens = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    for name, token_id in special_tokens.items():
        if token_id is not None and net.config.get(name) is None:
            options[name] = token_id
    net.save_pretrained(folder, **options)
    length = net.arguments.get("block_size") or net.arguments["max_length"]
    save_tokenizer(folder, tokenizer, length, inputs=getattr(net, "model_input_names", None))


# Diffusion ------------------------------------------------------------------------------------------------------------


def write_diffusion(model: LatentDiffusion, folder: Path, dtype: torch.dtype | None) -> None:
    """Write a Stable Diffusion pipeline for text-to-image models, else its networks and noise schedule alone."""
    scheduler = scheduler_config(model)
    net = model.net
    assert isinstance(net, PretrainedNet)
    net.config = {**net.config, "sample_size": model.shape[-1]}
    parts: dict[Any, PretrainedNet] = {"unet": net}
    frozen = model._frozen
    if "autoencoder" in frozen:
        parts["vae"] = frozen["autoencoder"]
    if "text_encoder" in frozen:
        parts["text_encoder"] = frozen["text_encoder"]
    for part in parts.values():
        part.to(dtype)
    if model.prompts is None or len(parts) < 3:
        for name, part in parts.items():
            part.save_pretrained(folder / name)
        write_json(folder / "scheduler" / "scheduler_config.json", {**SCHEDULER, **scheduler})
        return
    with tempfile.TemporaryDirectory() as tokenizer:
        save_tokenizer(tokenizer, model.prompts.tokenizer, model.prompts.length, "CLIPTokenizer")
        save_pipeline(folder, parts, tokenizer, scheduler)


def scheduler_config(model: LatentDiffusion) -> dict[str, Any]:
    """Return the noise schedule of a model as diffusers' ``scheduler_config.json`` describes it."""
    if model.prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"diffusers' DDIMScheduler has no prediction_type {model.prediction_type}")
    arguments = model.hparams
    schedule = arguments.get("schedule") or "cosine"
    names = {ours: theirs for theirs, ours in SCHEDULES.items()}
    betas = scaled_linear_betas if schedule == "scaled_linear" else linear_betas
    defaults = inspect.signature(betas).parameters
    config: dict[str, Any] = {"beta_schedule": names[schedule]}
    for name in ("beta_start", "beta_end"):
        config[name] = arguments.get(name) or defaults[name.removeprefix("beta_")].default
    config["num_train_timesteps"] = arguments.get("timesteps", 1000)
    config["prediction_type"] = model.prediction_type
    config["clip_sample"] = model.clip is not None
    if arguments.get("zero_snr"):
        config["rescale_betas_zero_snr"] = True
        config["timestep_spacing"] = "trailing"
    return config
