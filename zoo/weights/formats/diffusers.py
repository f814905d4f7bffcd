"""Stable Diffusion's files: diffusers' folders (``unet/ vae/ text_encoder/ ...``) and single-file checkpoints."""

from __future__ import annotations

import inspect
import shutil
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.files import atomic_folder, write_json
from zoo.weights.files import DIFFUSERS_STEMS, STEMS, Weights, read, read_folder, read_json, write
from zoo.weights.formats.ldm import from_ldm, infer_config, is_single_file, predicts_velocity, to_ldm
from zoo.weights.pretrained import PretrainedNet, WeightsFormat, differences_in_words, some_of

Part = Literal["unet", "vae", "text_encoder"]
PART_STEMS = {"unet": DIFFUSERS_STEMS, "vae": DIFFUSERS_STEMS, "text_encoder": STEMS}
# Library and class of each part in model_index.json.
CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
}
# The noise schedule of Stable Diffusion 1.x and 2.x.
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
SINGLE_FILE = "ldm"  # under "from" in the config of weights from a single-file checkpoint


# Reading --------------------------------------------------------------------------------------------------------------


def open_part(path: str | Path, part: Part) -> Weights:
    """Open the weights of one network; no tensor is read before it is asked for.

    Args:
        path: a pipeline's folder, the part's own folder, a single-file checkpoint, or a file that zoo wrote.
        part: which network.

    Raises:
        UserError: there is no such file or folder, the part is missing in it, or it is of another version.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _open_folder(path, part)
    weights = read(path)
    if not is_single_file(weights.state):
        return weights
    stated = weights.arguments.get(part, {})
    config = {"from": SINGLE_FILE, **infer_config(weights, part), **stated}
    return Weights(str(path), weights.state, config=config)


def _open_folder(folder: Path, part: Part) -> Weights:
    inner = folder
    if not (folder / "config.json").exists():
        inner = folder / part
    if not (inner / "config.json").exists():
        there = sorted(path.name for path in folder.iterdir() if (path / "config.json").exists())
        content = f"only {', '.join(there)}" if there else "no model directory at all"
        raise UserError(f"{folder} holds no {part} (a folder with config.json), {content}")
    return read_folder(inner, PART_STEMS[part])


def scheduler_config(path: str | Path) -> dict[str, Any]:
    """Return the noise schedule of weights as diffusers' ``scheduler_config.json``, with ``prediction_type`` in it.

    Args:
        path: a pipeline's folder, or a single-file checkpoint.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        config = read_json(path / "scheduler" / "scheduler_config.json")
        return {"prediction_type": "epsilon", **config}
    weights = open_part(path, "unet")
    prediction_type = weights.config.get("prediction_type")
    if prediction_type is None:
        prediction_type = "v_prediction" if predicts_velocity(weights) else "epsilon"
    return {**SCHEDULER, "prediction_type": prediction_type}


class DiffusersFormat(WeightsFormat):
    """Adapter for a network of Stable Diffusion, whose parameters have the names of diffusers."""

    formats = ("diffusers", "zoo")
    part: Part
    # Arguments in which a network may differ from its weights, which stay as they are.
    adjustable = ("dropout", "scale", "clip_skip", "sample_size")

    # What each network implements -------------------------------------------------------------------------------------

    @abstractmethod
    def infer_config(self, weights: Weights) -> dict[str, Any]:
        """Return the constructor's arguments by ``config.json``.

        Raises:
            UserError: the weights compute something else than zoo's network.
            KeyError: the config is of another network.
        """

    @abstractmethod
    def config_json(self, net: PretrainedNet) -> dict[str, Any]:
        """Return the content of ``config.json``."""

    def convert(self, weights: Weights) -> Mapping[str, Tensor]:
        """Return the tensors of a folder by zoo's names."""
        return weights.state

    def export(self, net: PretrainedNet) -> dict[str, Tensor]:
        """Return the parameters by the names that other libraries read."""
        return parameters_of(net)

    # Reading ----------------------------------------------------------------------------------------------------------

    def open(self, path: str | Path, net: PretrainedNet | None = None) -> Weights:
        return open_part(path, self.part)

    def infer_arguments(self, weights: Weights, cls: type[PretrainedNet]) -> dict[str, Any]:
        if weights.config and not weights.arguments and not _is_from_single_file(weights):
            try:
                return self.infer_config(weights)
            except KeyError as error:
                raise UserError(f"{weights.source} is no {cls.__name__}: its config.json has no {error}") from None
        stated = {**weights.arguments, **weights.config} if _is_from_single_file(weights) else weights.arguments
        known = inspect.signature(cls).parameters  # of a module's arguments some are the network's
        return {name: value for name, value in stated.items() if name in known}

    @torch.no_grad()
    def load(self, net: PretrainedNet, weights: Weights) -> None:
        network = type(net).__name__
        stated = self.infer_arguments(weights, type(net))
        compared = {name: value for name, value in stated.items() if name not in self.adjustable}
        words = differences_in_words(compared, net.arguments)
        if words:
            raise UserError(f"{weights.source} does not fit this {network}: it has {words}")
        own = net.state_dict()
        if _is_from_single_file(weights):
            state = from_ldm(self.part, own, net.arguments, weights)
        else:
            state = self.convert(weights)
        # Buffers are in config.json, not among the tensors.
        buffers = {}
        for name, _ in net.named_buffers():
            buffers[name] = torch.as_tensor(stated.get(name, net.arguments.get(name)))
        missing = [name for name in own if name not in state and name not in buffers]
        unexpected = [name for name in state if name not in own]
        for what, names in (("lacks", missing), ("also holds", unexpected)):
            if names:
                raise UserError(
                    f"{weights.source} is no {network} of this kind: it {what} {len(names)} tensors ({some_of(names)})"
                )
        for name, tensor in own.items():
            value = state[name] if name in state else buffers[name]
            if value.ndim == 4 and tensor.ndim == 2 and value.shape[2:] == (1, 1):
                value = value[:, :, 0, 0]  # (out, in): a linear layer that the file has as a convolution
            if value.shape != tensor.shape:
                shapes = f"{name} {tuple(value.shape)} instead of {tuple(tensor.shape)}"
                raise UserError(f"{weights.source} does not fit this {network}: {shapes}")
            tensor.copy_(value)
        net.config = {} if _is_from_single_file(weights) else dict(weights.config)

    # Writing ----------------------------------------------------------------------------------------------------------

    def save(self, net: PretrainedNet, path: Path, format: str, **options: Any) -> None:
        if options:
            raise UserError(f"the format {format} takes no {', '.join(options)}")
        if format == "zoo":
            write(path, net.state_dict(), arguments=net.arguments)
            return
        config = {key: value for key, value in net.config.items() if key != "torch_dtype"}
        config |= self.config_json(net)
        if self.part == "text_encoder":  # as transformers writes it, unlike diffusers
            config["dtype"] = str(next(net.parameters()).dtype).removeprefix("torch.")
        stem, _ = PART_STEMS[self.part]
        write(path / f"{stem}.safetensors", self.export(net))
        # Shards of earlier weights would be read by others before the whole file.
        for pattern in (f"{stem}.safetensors.index.json", f"{stem}-*-of-*"):
            for old in path.glob(pattern):
                old.unlink()
        write_json(path / "config.json", config)


def parameters_of(net: torch.nn.Module) -> dict[str, Tensor]:
    """Return the parameters alone: buffers are in ``config.json``."""
    return {name: parameter.detach() for name, parameter in net.named_parameters()}


def _is_from_single_file(weights: Weights) -> bool:
    return weights.config.get("from") == SINGLE_FILE


# Whole pipelines ------------------------------------------------------------------------------------------------------


def save_pipeline(
    folder: str | Path,
    networks: Mapping[Part, PretrainedNet],
    tokenizer: str | Path | None = None,
    scheduler: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder that diffusers' ``StableDiffusionPipeline`` loads, whole or not at all.

    Args:
        folder: where to; new or empty.
        networks: by part: ``unet``, ``vae`` and ``text_encoder``.
        tokenizer: folder with the tokenizer's files, which are copied.
        scheduler: adds to ``scheduler_config.json``, such as ``{"prediction_type": "v_prediction"}``.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: a pipeline is written to a new folder")
    with atomic_folder(folder) as new:
        index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline"}
        for part, net in networks.items():
            net.save_pretrained(new / part)
            index[part] = list(CLASSES[part])
        if tokenizer is not None:
            shutil.copytree(tokenizer, new / "tokenizer")
            index["tokenizer"] = ["transformers", "CLIPTokenizer"]
        noise = {**SCHEDULER, "prediction_type": "epsilon", **(scheduler or {})}
        write_json(new / "scheduler" / "scheduler_config.json", noise)
        index["scheduler"] = ["diffusers", noise["_class_name"]]
        index["safety_checker"] = [None, None]
        index["feature_extractor"] = [None, None]
        index["requires_safety_checker"] = False
        write_json(new / "model_index.json", index)


def save_single_file(
    path: str | Path,
    networks: Mapping[Part, PretrainedNet],
    prediction_type: str = "epsilon",
) -> None:
    """Write one checkpoint by the names of Stable Diffusion's own code (``model.diffusion_model...``).

    Args:
        path: a ``.safetensors`` file.
        networks: by part: ``unet``, ``vae`` and ``text_encoder``.
        prediction_type: ``epsilon`` or ``v_prediction``.
    """
    state: dict[str, Tensor] = {}
    arguments: dict[str, dict[str, Any]] = {"unet": {}}
    for part, net in networks.items():
        state |= to_ldm(part, parameters_of(net), net.arguments)
        arguments[part] = dict(net.arguments)
    arguments["unet"]["prediction_type"] = prediction_type
    write(path, state, arguments=arguments)
