"""Stable Diffusion's files: diffusers' folders (``unet/ vae/ text_encoder/ ...``) and single-file checkpoints."""

from __future__ import annotations

import abc
import inspect
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from zoo.files import atomic_folder, write_json
from zoo.weights.files import Weights, read, write
from zoo.weights.folders import LazyTensors, open_file, read_json
from zoo.weights.formats.ldm import from_ldm, infer_config, is_single_file, predicts_velocity, to_ldm

DiffusersFormat = Literal["diffusers", "zoo"]
Part = Literal["unet", "vae", "text_encoder"]
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
_KINDS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
# The noise that Stable Diffusion 1.x and 2.x were trained with.
SCHEDULER = {
    "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "num_train_timesteps": 1000, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip


# Reading --------------------------------------------------------------------------------------------------------------


def open_part(path: str | Path, part: Part) -> Weights:
    """Open one network's weights, by diffusers' names; no tensor is read before it is asked for.

    Args:
        path: a pipeline's folder, the part's own folder, a single-file checkpoint, or a file that zoo wrote.
        part: which network.

    Raises:
        ValueError: there is no such file or folder, the part is missing in it, or it is of another version.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _open_folder(path, part)
    if not path.is_file():
        raise ValueError(f"weights: there is no file or folder {path}")
    if path.suffix != ".safetensors":
        weights = read(path)
    else:
        file = open_file(path)
        metadata = json.loads((file.metadata() or {}).get("zoo", "{}"))
        state: Any = LazyTensors(dict.fromkeys(file.keys(), path), {path: file})
        weights = Weights(str(path), state, metadata.get("arguments", {}))
    if not is_single_file(weights.state):
        return weights
    told = weights.arguments.get(part, {})
    return Weights(str(path), weights.state, config={"from": "ldm", **infer_config(weights, part), **told})


def _open_folder(folder: Path, part: Part) -> Weights:
    inner = folder if (folder / "config.json").exists() else folder / part
    if not (inner / "config.json").exists():
        there = sorted(p.name for p in folder.iterdir() if (p / "config.json").exists())
        has = f"only {', '.join(there)}" if there else "no model directory at all"
        raise ValueError(f"{folder} holds no {part} (a folder with config.json), {has}")
    stem = STEMS[part]
    for pattern in (f"{stem}.safetensors.index.json", f"{stem}.safetensors", f"{stem}.*.safetensors", "*.bin"):
        if found := sorted(inner.glob(pattern)):
            break
    else:
        raise ValueError(f"{inner} holds no {stem}.safetensors")
    names: dict[str, Path] = {}
    if found[0].suffix == ".json":
        names = {k: inner / file for k, file in read_json(found[0]).get("weight_map", {}).items()}
        if missing := sorted({p.name for p in names.values() if not p.is_file()}):
            raise ValueError(f"{found[0]} names {missing[0]}, not there")
    opened = {file: open_file(file) for file in set(names.values()) or {found[0]}}
    names = names or dict.fromkeys(opened[found[0]].keys(), found[0])
    state: Any = LazyTensors(names, opened)
    return Weights(str(inner), state, config=read_json(inner / "config.json"))


def scheduler_config(path: str | Path) -> dict[str, Any]:
    """What noise the weights were trained with: diffusers' ``scheduler_config.json``, with ``prediction_type`` in it.

    Args:
        path: a pipeline's folder, or a single-file checkpoint.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        config = read_json(path / "scheduler" / "scheduler_config.json")
        return {"prediction_type": "epsilon", **config}
    weights = open_part(path, "unet")
    told = weights.config.get("prediction_type")
    return {**SCHEDULER, "prediction_type": told or ("v_prediction" if predicts_velocity(weights) else "epsilon")}


# Writing --------------------------------------------------------------------------------------------------------------


def save_pipeline(
    folder: str | Path,
    networks: Mapping[Part, DiffusersNet],
    tokenizer: str | Path | None = None,
    scheduler: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder that diffusers' ``StableDiffusionPipeline`` loads, whole or not at all.

    Args:
        folder: where to; it must not exist, or be empty.
        networks: by part: ``unet``, ``vae`` and ``text_encoder``.
        tokenizer: folder with the tokenizer's files, which are copied.
        scheduler: adds to ``scheduler_config.json``, such as ``{"prediction_type": "v_prediction"}``.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already: a pipeline is written to a new folder")
    with atomic_folder(folder) as new:
        for part, net in networks.items():
            net.save_pretrained(new / part)
        if tokenizer is not None:
            shutil.copytree(tokenizer, new / "tokenizer")
        noise = {**SCHEDULER, "prediction_type": "epsilon", **(scheduler or {})}
        write_json(new / "scheduler" / "scheduler_config.json", noise)
        library = {"unet": "diffusers", "vae": "diffusers", "text_encoder": "transformers"}
        index: dict[str, Any] = {part: [library[part], _KINDS[part]] for part in networks}
        index |= {"tokenizer": ["transformers", "CLIPTokenizer"]} if tokenizer is not None else {}
        index |= {"scheduler": ["diffusers", noise["_class_name"]], "safety_checker": [None, None]}
        index |= {"feature_extractor": [None, None], "requires_safety_checker": False}
        write_json(new / "model_index.json", {"_class_name": "StableDiffusionPipeline", **index})


def save_single_file(path: str | Path, networks: Mapping[Part, DiffusersNet], prediction_type: str = "epsilon") -> None:
    """Write one checkpoint by the names of Stable Diffusion's own code (``model.diffusion_model...``).

    Args:
        path: a ``.safetensors`` file.
        networks: by part: ``unet``, ``vae`` and ``text_encoder``.
        prediction_type: ``epsilon`` or ``v_prediction``.
    """
    state: dict[str, Tensor] = {}
    for part, net in networks.items():
        state |= to_ldm(part, net.parameter_state_dict(), net.arguments)
    arguments = {part: {**net.arguments} for part, net in networks.items()}
    arguments["unet"] = {**arguments.get("unet", {}), "prediction_type": prediction_type}
    write(path, state, arguments=arguments)


# Networks -------------------------------------------------------------------------------------------------------------


class DiffusersNet(nn.Module, abc.ABC):
    """A network of Stable Diffusion: its parameters have the names that diffusers gives them.

    ``arguments`` are those of its constructor, as plain values; ``config`` is the ``config.json`` that it came with.
    """

    part: ClassVar[Part]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    arguments: dict[str, Any]
    config: Mapping[str, Any] = {}

    @classmethod
    @abc.abstractmethod
    def infer_config(cls, weights: Weights) -> dict[str, Any]:
        """Read the constructor's arguments off a ``config.json``."""

    @abc.abstractmethod
    def config_json(self) -> dict[str, Any]:
        """Return what ``config.json`` has to say."""

    def convert_state_dict(self, weights: Weights) -> Mapping[str, Tensor]:
        """The tensors of a folder by the names used here."""
        return weights.state

    def export_state_dict(self) -> dict[str, Tensor]:
        """The state by the names that other libraries read."""
        return self.parameter_state_dict()

    def parameter_state_dict(self) -> dict[str, Tensor]:
        """Parameters only: what a network keeps beside them is in ``config.json``."""
        return {k: v.detach() for k, v in self.named_parameters()}

    @classmethod
    def preset(cls, name: str, **arguments: Any) -> Self:
        """Build one of ``presets``; ``arguments`` add to it or replace what it says."""
        if name not in cls.presets:
            raise ValueError(f"there is no {cls.__name__} preset {name!r}: take {', '.join(cls.presets)}")
        return cls(**{**cls.presets[name], **arguments})

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: torch.dtype | None = None, **arguments: Any) -> Self:
        """Build the network that a folder or file holds, in eval mode, with its weights.

        Tensors go from the file to their place one by one, so the weights are in memory once.

        Args:
            path: a pipeline's folder, the network's own folder, a single-file checkpoint, or a file of zoo.
            dtype: of the parameters; null takes the file's.
            arguments: of the constructor, where the file does not tell or something else is wanted.
        """
        weights = open_part(path, cls.part)
        found = cls._infer_config(weights)
        try:
            with torch.device("meta"):
                net = cls(**{**found, **arguments})
        except TypeError:  # nothing told, or by a file of another network
            told = f"does not tell the sizes of its {cls.__name__}: a folder of diffusers with config.json does"
            raise ValueError(f"{weights.source} {told}") from None
        kind = dtype or next(v.dtype for v in weights.state.values() if v.is_floating_point())
        net.to_empty(device="cpu").to(kind)
        net._load_weights(weights)
        return net.eval()

    def load_pretrained(self, path: str | Path) -> Self:
        """Load weights into this network, which has to be as large as they are.

        Raises:
            ValueError: they are of another architecture or size, or cannot be had.
        """
        self._load_weights(open_part(path, self.part))
        return self

    def save_pretrained(self, path: str | Path, format: DiffusersFormat = "diffusers") -> None:
        """Write the weights, each file whole or not at all.

        Args:
            path: a folder, or for ``zoo`` a ``.safetensors`` file.
            format: ``diffusers``: a folder that diffusers or transformers loads; ``zoo``: one file.
        """
        if format == "zoo":
            write(path, self.state_dict(), arguments=self.arguments)
        elif format == "diffusers":
            dtype = str(next(iter(self.parameters())).dtype).removeprefix("torch.")
            kept = {k: v for k, v in self.config.items() if k != "torch_dtype"}
            config = {**kept, **self.config_json(), **({"dtype": dtype} if self.part == "text_encoder" else {})}
            whole = Path(path) / f"{STEMS[self.part]}.safetensors"
            write(whole, self.export_state_dict())
            for old in (f"{whole.name}.index.json", f"{whole.stem}-*-of-*"):  # of a divided one, read before the whole
                for file in whole.parent.glob(old):
                    file.unlink()
            write_json(Path(path) / "config.json", config)
        else:
            raise ValueError(f"{type(self).__name__} is written as diffusers or zoo, not as {format!r}")

    @classmethod
    def _infer_config(cls, weights: Weights) -> dict[str, Any]:
        if weights.config and weights.config.get("from") != "ldm":
            try:
                return cls.infer_config(weights)
            except KeyError as error:
                raise ValueError(f"{weights.source} is no {cls.__name__}: its config.json has no {error}") from None
        known = inspect.signature(cls).parameters  # of what zoo wrote, or the module's among others
        return {k: v for k, v in {**weights.arguments, **weights.config}.items() if k in known}

    @torch.no_grad()
    def _load_weights(self, weights: Weights) -> None:
        found, own, what = self._infer_config(weights), self.state_dict(), type(self).__name__
        unlike = [k for k, v in found.items() if k in self.arguments and _plain(v) != _plain(self.arguments[k])]
        unlike = [k for k in unlike if k not in ("dropout", "scale", "clip_skip", "sample_size")]
        if unlike:
            said = ", ".join(f"{k}={_plain(found[k])} instead of {_plain(self.arguments[k])}" for k in unlike[:3])
            raise ValueError(f"{weights.source} does not fit this {what}: it has {said}")
        single = weights.config.get("from") == "ldm"
        state = from_ldm(self.part, own, self.arguments, weights) if single else self.convert_state_dict(weights)
        buffers = {k: torch.as_tensor(found.get(k, self.arguments.get(k))) for k, _ in self.named_buffers()}
        for said, names in (
            ("lacks", [k for k in own if k not in state and k not in buffers]),
            ("also holds", [k for k in state if k not in own]),
        ):
            if names:
                some = f"{', '.join(names[:2])}{', ...' if len(names) > 2 else ''}"
                raise ValueError(f"{weights.source} is no {what} of this kind: it {said} {len(names)} tensors ({some})")
        for name, tensor in own.items():
            value = state[name] if name in state else buffers[name]
            if value.ndim == 4 and tensor.ndim == 2 and value.shape[2:] == (1, 1):
                value = value[:, :, 0, 0]  # a linear layer that the file has as a convolution
            if value.shape != tensor.shape:
                shapes = f"{name} {tuple(value.shape)} instead of {tuple(tensor.shape)}"
                raise ValueError(f"{weights.source} does not fit this {what}: {shapes}")
            tensor.copy_(value)
        self.config = {} if single else dict(weights.config)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
