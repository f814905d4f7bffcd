"""Latent diffusion (Rombach et al. 2022, https://arxiv.org/abs/2112.10752), of pixels too (Ho et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.diffusion.prediction import PredictionType
from zoo.diffusion.schedules import DDPMSchedule, NoiseSchedule, ScheduleName, make_schedule
from zoo.distributed import say
from zoo.models.autoencoder_kl import AutoencoderKL, DiagonalGaussian
from zoo.models.frozen import digest, open_autoencoder, open_text_encoder, pipeline_containing, states_equal
from zoo.models.unet import UNet
from zoo.tasks.base import require
from zoo.tasks.diffusion import Condition, Diffusion
from zoo.text.prompts import PromptTokenizer
from zoo.text.tokenizer import Tokenizer
from zoo.weights.formats.diffusers import DiffusersNet, open_part, scheduler_config

# What a network of diffusers may predict; the names of schedules are diffusers' too, from theirs to ours.
PREDICTION_TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction")
SCHEDULES: dict[str, ScheduleName]
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}


class LatentDiffusion(Diffusion):
    """Diffusion model with a U-Net denoiser, in pixel space or in the latent space of an autoencoder.

    Autoencoder and text encoder are frozen. They are not part of the network, so optimizers and EMA leave them alone,
    but every checkpoint contains them and needs nothing else for sampling. They compute in float32, in which nothing
    overflows. With the dataset ``Latents``, batches hold precomputed latents instead of images.

    Args:
        preset: sizes of the U-Net by name: ``pixels-8``, ``pixels-32``, ``latents``, ``sd-1.5``, ``sd-2.1``. The
            arguments below override them.
        channels: channels by stage; the resolution is halved between stages.
        blocks: residual blocks per stage.
        attention: for each stage, whether attention follows its blocks.
        heads: number of attention heads, the same in every stage.
        head_dim: dimension of an attention head, instead of ``heads``.
        groups: groups of the group normalizations; divides all numbers of channels.
        linear_projection: linear instead of 1x1 convolutional projections around cross-attention, as in Stable
            Diffusion 2.
        dropout: dropout probability in the residual blocks.
        activation_checkpointing: recompute the activations of the U-Net's blocks in the backward pass.
        weights: of the U-Net to start from: a folder of diffusers, a single-file checkpoint, or a file of zoo; null
            starts fresh. From a whole pipeline come autoencoder and text encoder, too, where they are null.
        autoencoder: of which the latents are: a checkpoint of an ``AutoencoderKLModule``, or a folder of diffusers;
            null makes pixels. In a checkpoint it is the sizes of the one that lies there.
        text_encoder: which reads texts, for ``condition: text``: a folder of diffusers with ``text_encoder`` and
            ``tokenizer``, or a single-file checkpoint. In a checkpoint it is the sizes of the one that lies there.
        tokenizer: folder with the tokenizer of the text encoder, which single-file checkpoints lack; null takes that
            beside the text encoder.
        condition: what images are made by: ``class``, ``text`` or ``none``.
        in_channels: channels of the images; null takes it from the data.
        image_size: side of the images in pixels; null takes it from the data.
        num_classes: number of classes; null takes it from the data.
    """

    tiny = {"preset": "pixels-8", "channels": [16, 32], "head_dim": 16}

    def __init__(
        self,
        preset: str = "pixels-32",
        channels: list[int] | None = None,
        blocks: int | None = None,
        attention: list[bool] | None = None,
        heads: int | None = None,
        head_dim: int | None = None,
        groups: int | None = None,
        linear_projection: bool | None = None,
        dropout: float = 0.0,
        activation_checkpointing: bool = False,
        weights: str | None = None,
        autoencoder: str | dict[str, Any] | None = None,
        text_encoder: str | dict[str, Any] | None = None,
        tokenizer: str | None = None,
        condition: Condition = "class",
        in_channels: int | None = None,
        image_size: int | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        image_channels, side = require(self, in_channels=in_channels, image_size=image_size)
        num_classes = require(self, num_classes=num_classes) if condition == "class" else None
        autoencoder = autoencoder or pipeline_containing("vae", weights)
        text_encoder = text_encoder or (pipeline_containing("text_encoder", weights) if condition == "text" else None)
        if condition == "text" and text_encoder is None:
            raise ValueError("condition: text needs a text_encoder: a folder of diffusers that holds one")
        for name, given in (("text_encoder", text_encoder), ("tokenizer", tokenizer)):
            if condition != "text" and given is not None:
                raise ValueError(f"condition: {condition} has no use for a {name}; condition: text has")
        frozen: dict[str, DiffusersNet] = {}
        shape = (image_channels, side, side)
        if autoencoder is not None:
            frozen["autoencoder"] = opened = open_autoencoder(autoencoder)
            shape = latent_shape(opened, image_channels, side)
        if text_encoder is not None:
            frozen["text_encoder"] = open_text_encoder(text_encoder)
        given = {"channels": channels, "blocks": blocks, "attention": attention, "heads": heads, "head_dim": head_dim,
                 "groups": groups, "linear_projection": linear_projection}  # fmt: skip
        sizes = {k: v for k, v in given.items() if v is not None}
        if heads or head_dim:  # instead of what the preset says of either
            sizes.update(heads=heads, head_dim=head_dim)
        width = frozen["text_encoder"].arguments["dim"] if text_encoder is not None else None
        fit = {"in_channels": shape[0], "num_classes": num_classes, "text_dim": width, "dropout": dropout}
        net = UNet.preset(preset, **{**sizes, **fit})
        if over := shape[1] % net.factor:
            halved = f"the U-Net halves {shape[1]} positions to 1/{net.factor}, which leaves {over} over"
            raise ValueError(f"images of {side} pixels: {halved}; take another image_size, or fewer stages")
        net.activation_checkpointing = activation_checkpointing
        self._weights = weights
        super().__init__(net=net, condition=condition, num_classes=num_classes, **kwargs)
        if weights is not None:
            check_prediction_type(weights, self.prediction_type, self.schedule)
        # a plain dict: torch does not look into it
        self._shape, self._channels, self._frozen = shape, image_channels, frozen
        self._from_files = {name for name, source in (("autoencoder", autoencoder), ("text_encoder", text_encoder))
                       if isinstance(source, str)}  # fmt: skip
        self.prompts = None
        if isinstance(text_encoder, str):
            self.prompts = PromptTokenizer.load(tokenizer or text_encoder, self._max_text_length)
            known = frozen["text_encoder"].arguments["vocab_size"]
            if len(self.prompts.tokenizer) > known:
                has = f"{len(self.prompts.tokenizer):,} tokens, and the text encoder knows {known:,}"
                raise ValueError(f"the tokenizer of {tokenizer or text_encoder} is of another one: it has {has}")
        alone = {"weights": None, "tokenizer": None}  # a checkpoint needs neither
        self.hparams.update({name: plain(net.arguments) for name, net in frozen.items()}, **alone)

    def adapt(self) -> None:
        if self._weights is not None:
            self.net.load_pretrained(self._weights)  # type: ignore[operator]
        super().adapt()

    @classmethod
    def from_pretrained(cls, path: str | Path, **kwargs: Any) -> Self:
        """Stable Diffusion: its U-Net, autoencoder, text encoder, tokenizer, and the noise it was trained with.

        Args:
            path: a pipeline's folder, as diffusers writes it, or a single-file checkpoint, with ``tokenizer``.
            kwargs: of the constructor, where something else is wanted.
        """
        noise, net, source = scheduler_config(path), UNet.from_pretrained(path), str(path)
        names = ("channels", "blocks", "attention", "heads", "head_dim", "groups", "linear_projection")
        large = net.arguments["text_dim"] == 1024 and noise["prediction_type"] == "v_prediction"  # of 768 pixels
        side = int(net.config.get("sample_size") or (96 if large else 64)) * AutoencoderKL.from_pretrained(path).factor
        given = {
            **{name: net.arguments[name] for name in names},
            **training_schedule(noise, path), "preset": "sd-1.5", "weights": source,
            "autoencoder": source, "text_encoder": source, "condition": "text", "in_channels": 3, "image_size": side,
        }  # fmt: skip
        return cls(**plain({**given, **kwargs})).eval()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        texts = getattr(getattr(self.trainer, "datamodule", None), "texts", None)
        if texts and self.prompts is not None:
            self.prompts.check_lengths(texts)

    # Pixels, latents, texts -------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def image_channels(self) -> int:
        return self._channels

    @property
    def clip(self) -> float | None:
        return 1.0 if self.autoencoder is None else None  # latents reach as far as they like

    @property
    def autoencoder(self) -> AutoencoderKL | None:
        """That of the latents, where this module is; None where pixels are made."""
        return self._on_device("autoencoder")

    @property
    def _max_text_length(self) -> int:
        """Tokens of a text."""
        return self._frozen["text_encoder"].arguments["max_length"]

    def _on_device(self, name: str) -> Any:
        found = self._frozen.get(name)
        return None if found is None else found.to(self.device)

    def encode(self, x: Float[Tensor, "b c h w"] | tuple[Tensor, Tensor], stage: str) -> Float[Tensor, "b d i j"]:
        if (autoencoder := self._frozen.get("autoencoder")) is None:
            return x  # type: ignore[return-value]
        mean, logvar = self.moments(x) if isinstance(x, Tensor) else x
        latents = DiagonalGaussian(mean.float(), logvar.float())
        return (latents.sample() if stage == "train" else latents.mean) * autoencoder.get_buffer("scale")

    @torch.no_grad()
    def moments(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d i j"], Float[Tensor, "b d i j"]]:
        """Means and logarithms of the variances of the latents of images, without their scale."""
        autoencoder = self.autoencoder
        assert autoencoder is not None
        if x.ndim != 4:
            raise ValueError(f"the autoencoder takes images (b, c, h, w), got {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            latents = autoencoder.encode(x.float())
        return latents.mean, latents.logvar

    @property
    def encoder_key(self) -> str:
        """A name for the weights that make latents."""
        state = self._frozen["autoencoder"].state_dict()
        return digest({name: state[name] for name in state if name.startswith(("encoder.", "quant_conv."))})

    def decode(self, x: Float[Tensor, "b d i j"]) -> Float[Tensor, "b c h w"]:
        autoencoder = self.autoencoder
        return x if autoencoder is None else autoencoder.decode(x.float() / autoencoder.scale)

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "b s d"]:
        encoder = self._on_device("text_encoder")
        if encoder is None or self.prompts is None:
            return super().encode_text(texts)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return encoder(self.prompts(texts).to(self.device)).to(self._net_dtype)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["frozen"] = {name: net.state_dict() for name, net in self._frozen.items()}
        if self.prompts is not None:
            checkpoint["tokenizer"] = self.prompts.tokenizer.plain()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get("frozen", {})
        others = {"autoencoder": "the latents of another autoencoder", "text_encoder": "another text encoder"}
        for name, what in others.items():
            own, state = self._frozen.get(name), saved.get(name)
            if (own is None) != (state is None):
                here, there = ("none" if part is None else "one" for part in (own, state))
                raise ValueError(f"--model.{name}: the checkpoint has {there}, this model has {here}")
            if own is None or state is None:
                continue
            if name in self._from_files and not states_equal(own.state_dict(), state):
                raise ValueError(f"the checkpoint was trained on {what} than that of --model.{name}")
            own.load_state_dict(state)
        if tokenizer := checkpoint.get("tokenizer"):
            self.prompts = PromptTokenizer(Tokenizer.from_plain(tokenizer), self._max_text_length)


def latent_shape(autoencoder: AutoencoderKL, channels: int, side: int) -> tuple[int, int, int]:
    """Of the latents of square images, ``(c, h, w)``, or what is wrong with the images."""
    autoencoder.check(side, side)
    if (own := autoencoder.arguments["in_channels"]) != channels:
        raise ValueError(f"the autoencoder is of images of {own} channels, and these have {channels}")
    return autoencoder.arguments["latent_channels"], side // autoencoder.factor, side // autoencoder.factor


def training_schedule(noise: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Prediction type and schedule, as the constructor of ``LatentDiffusion`` takes them.

    Args:
        noise: diffusers' ``scheduler_config.json``.
        path: what it is of, for an error.
    """
    for key, names in (("prediction_type", PREDICTION_TYPES), ("beta_schedule", SCHEDULES)):
        if noise.get(key) not in names:
            raise ValueError(
                f"{path}: {key} {noise.get(key)} of its scheduler is not known: zoo has {', '.join(names)}"
            )
    name = SCHEDULES[noise["beta_schedule"]]
    ends = {} if name == "cosine" else {end: noise[end] for end in ("beta_start", "beta_end") if end in noise}
    return {"prediction_type": noise["prediction_type"], "schedule": name, **ends,
            "timesteps": noise.get("num_train_timesteps", 1000),
            "zero_snr": noise.get("rescale_betas_zero_snr", False)}  # fmt: skip


def check_prediction_type(weights: str, prediction_type: PredictionType, schedule: NoiseSchedule) -> None:
    """Say so where weights were trained to say something else than they are taken for, or with other noise."""
    path = Path(weights).expanduser()
    if path.is_dir() and not (path / "scheduler" / "scheduler_config.json").is_file():
        return  # nobody knows
    if path.is_file() and (file := open_part(path, "unet")).config.get("from") != "ldm":
        # a module tells, of a network alone nobody knows
        trained = file.arguments.get("prediction_type", prediction_type)
    else:
        noise = scheduler_config(path)
        trained = noise["prediction_type"]
        if trained == prediction_type and noise.get("beta_schedule") in SCHEDULES:
            warn_other_schedule(weights, noise, schedule)
    if trained != prediction_type:
        raise ValueError(
            f"{weights} was trained for {trained}: that is --model.prediction_type {trained}, not {prediction_type}"
        )


def warn_other_schedule(weights: str, noise: Mapping[str, Any], schedule: NoiseSchedule) -> None:
    """Say so where weights that were trained with some noise go on with another; one may want that."""
    given = {k: v for k, v in training_schedule(noise, weights).items() if k != "prediction_type"}
    names = {"schedule": "name", "timesteps": "steps"}
    theirs = make_schedule(**{names.get(k, k): v for k, v in given.items()})
    tables = [found.alphas_cumprod for found in (theirs, schedule) if isinstance(found, DDPMSchedule)]
    if len(tables) < 2 or len(tables[0]) != len(tables[1]) or not torch.allclose(*tables, rtol=1e-6, atol=0):
        say(f"{weights} was trained with {', '.join(f'{k}={v}' for k, v in given.items())}; other noise is used here")


def plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as they are saved: lists for tuples."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}
