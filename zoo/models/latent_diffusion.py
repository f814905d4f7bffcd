"""Latent diffusion (Rombach et al. 2022, https://arxiv.org/abs/2112.10752); also of pixels (Ho et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.models.autoencoder_kl import AutoencoderKL, DiagonalGaussian
from zoo.models.frozen import digest, open_autoencoder, open_text_encoder, pipeline_containing, states_equal
from zoo.models.pretrained_noise import check_prediction_type, training_schedule
from zoo.models.unet import UNet
from zoo.tasks.base import require
from zoo.tasks.diffusion import Condition, Diffusion
from zoo.text.prompts import PromptTokenizer
from zoo.text.tokenizer import Tokenizer
from zoo.weights.formats.diffusers import scheduler_config
from zoo.weights.pretrained import PretrainedNet

# Arguments of the U-Net that its preset gives and the module can override.
SIZES = ("channels", "blocks", "attention", "heads", "head_dim", "groups", "linear_projection")


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
        weights: pretrained weights of the U-Net: a diffusers folder, a single-file checkpoint of Stable Diffusion, or a
            file of zoo; null for random weights. A whole pipeline also provides the autoencoder and the text encoder,
            where they are null.
        autoencoder: autoencoder of the latents: a checkpoint of an ``AutoencoderKLModule``, a diffusers folder, or a
            single-file checkpoint; null for diffusion of pixels. Checkpoints store its arguments here.
        text_encoder: text encoder, for ``condition: text``: a diffusers folder with ``text_encoder`` and
            ``tokenizer``, or a single-file checkpoint. Checkpoints store its arguments here.
        tokenizer: folder with the tokenizer of the text encoder, which single-file checkpoints lack; null takes it from
            the folder of the text encoder.
        condition: what the model is conditioned on: ``class``, ``text`` or ``none``.
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
        if condition == "class":
            num_classes = require(self, num_classes=num_classes)
        else:
            num_classes = None
        autoencoder = autoencoder or pipeline_containing("vae", weights)
        if condition == "text":
            text_encoder = text_encoder or pipeline_containing("text_encoder", weights)
        check_text_arguments(condition, text_encoder, tokenizer)

        frozen: dict[str, PretrainedNet] = {}
        shape = (image_channels, side, side)
        text_dim = None
        if autoencoder is not None:
            latent_autoencoder = open_autoencoder(autoencoder)
            shape = latent_shape(latent_autoencoder, image_channels, side)
            frozen["autoencoder"] = latent_autoencoder
        if text_encoder is not None:
            encoder = open_text_encoder(text_encoder)
            text_dim = encoder.arguments["dim"]
            frozen["text_encoder"] = encoder

        overrides = {
            "channels": channels,
            "blocks": blocks,
            "attention": attention,
            "heads": heads,
            "head_dim": head_dim,
            "groups": groups,
            "linear_projection": linear_projection,
        }
        net = UNet.preset(
            preset,
            **explicit_sizes(overrides),
            in_channels=shape[0],
            num_classes=num_classes,
            text_dim=text_dim,
            dropout=dropout,
        )
        check_resolution(net, shape, side)
        net.activation_checkpointing = activation_checkpointing
        self._weights = weights
        super().__init__(net=net, condition=condition, num_classes=num_classes, **kwargs)
        if weights is not None:
            check_prediction_type(weights, self.prediction_type, self.schedule)

        self._shape = shape
        self._channels = image_channels
        # A plain dict hides them from torch: they are not in parameters() and state_dict().
        self._frozen = frozen
        # The others are built from the arguments in a checkpoint, which then provides their weights.
        self._from_files: set[str] = set()
        if isinstance(autoencoder, str):
            self._from_files.add("autoencoder")
        self.prompts = None
        if isinstance(text_encoder, str):
            self._from_files.add("text_encoder")
            self.prompts = load_prompt_tokenizer(tokenizer or text_encoder, frozen["text_encoder"])
        # Checkpoints contain these networks and the tokenizer, so they do not depend on other files.
        for name, network in frozen.items():
            self.hparams[name] = plain(network.arguments)
        self.hparams["weights"] = None
        self.hparams["tokenizer"] = None

    def adapt(self) -> None:
        if self._weights is not None:
            self.net.load_pretrained(self._weights)  # type: ignore[operator]
        super().adapt()

    @classmethod
    def from_pretrained(cls, path: str | Path, **kwargs: Any) -> Self:
        """Build Stable Diffusion: U-Net, autoencoder, text encoder, tokenizer, and its training noise schedule.

        Args:
            path: diffusers folder of a pipeline, or a single-file checkpoint, which also needs ``tokenizer``.
            kwargs: arguments of the constructor, which override those of the pipeline.
        """
        config = scheduler_config(path)
        net = UNet.from_pretrained(path)
        autoencoder = AutoencoderKL.from_pretrained(path)
        positions = net.config.get("sample_size")
        if not positions:
            # Single files do not state their size: Stable Diffusion 2 for 768 pixels predicts v, that for 512 epsilon.
            is_large = net.arguments["text_dim"] == 1024 and config["prediction_type"] == "v_prediction"
            positions = 96 if is_large else 64
        source = str(path)
        arguments = {
            "preset": "sd-1.5",
            "weights": source,
            "autoencoder": source,
            "text_encoder": source,
            "condition": "text",
            "in_channels": 3,
            "image_size": int(positions) * autoencoder.factor,
        }
        for name in SIZES:
            arguments[name] = net.arguments[name]
        arguments.update(training_schedule(config, path))
        arguments.update(kwargs)
        return cls(**plain(arguments)).eval()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        texts = getattr(data, "texts", None)
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
        if self.autoencoder is None:
            return 1.0
        return None  # latents are not bounded

    @property
    def autoencoder(self) -> AutoencoderKL | None:
        """The autoencoder of the latents, on the device of this module; None for diffusion of pixels."""
        return self._on_device("autoencoder")

    def _on_device(self, name: str) -> Any:
        network = self._frozen.get(name)
        if network is None:
            return None
        return network.to(self.device)

    def encode(
        self,
        x: Float[Tensor, "b c h w"] | tuple[Tensor, Tensor],
        stage: str,
    ) -> Float[Tensor, "b d i j"]:
        """Return pixels as they are, or scaled latents: samples in training, else means.

        Args:
            x: images, or mean and log-variance of their latents.
            stage: ``train`` or another.
        """
        autoencoder = self._frozen.get("autoencoder")
        if autoencoder is None:
            return x  # type: ignore[return-value]
        if isinstance(x, Tensor):
            x = self.moments(x)
        mean, logvar = x
        distribution = DiagonalGaussian(mean.float(), logvar.float())
        latents = distribution.sample() if stage == "train" else distribution.mean
        return latents * autoencoder.get_buffer("scale")

    @torch.no_grad()
    def moments(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d i j"], Float[Tensor, "b d i j"]]:
        """Return mean and log-variance of the latents of images, before scaling."""
        autoencoder = self.autoencoder
        assert autoencoder is not None
        if x.ndim != 4:
            raise ValueError(f"the autoencoder takes images (b, c, h, w), got {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            latents = autoencoder.encode(x.float())
        return latents.mean, latents.logvar

    @property
    def encoder_key(self) -> str:
        """Hash of the weights that determine the latents."""
        state = {}
        for name, value in self._frozen["autoencoder"].state_dict().items():
            if name.startswith(("encoder.", "quant_conv.")):
                state[name] = value
        return digest(state)

    def decode(self, x: Float[Tensor, "b d i j"]) -> Float[Tensor, "b c h w"]:
        autoencoder = self.autoencoder
        if autoencoder is None:
            return x
        return autoencoder.decode(x.float() / autoencoder.scale)

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "b s d"]:
        encoder = self._on_device("text_encoder")
        if encoder is None or self.prompts is None:
            return super().encode_text(texts)
        tokens = self.prompts(texts).to(self.device)  # (b, s)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            states = encoder(tokens)
        return states.to(self._net_dtype)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["frozen"] = {name: network.state_dict() for name, network in self._frozen.items()}
        if self.prompts is not None:
            checkpoint["tokenizer"] = self.prompts.tokenizer.plain()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get("frozen", {})
        self._load_frozen("autoencoder", saved, "the latents of another autoencoder")
        self._load_frozen("text_encoder", saved, "another text encoder")
        tokenizer = checkpoint.get("tokenizer")
        if tokenizer:
            max_length = self._frozen["text_encoder"].arguments["max_length"]
            self.prompts = PromptTokenizer(Tokenizer.from_plain(tokenizer), max_length)

    def _load_frozen(self, name: str, saved: dict[str, dict[str, Tensor]], other: str) -> None:
        """Load a frozen network's weights from a checkpoint; one that was given as a file has to have the same.

        Args:
            name: ``autoencoder`` or ``text_encoder``.
            saved: weights in the checkpoint, by name of the network.
            other: what the checkpoint was trained on where the weights differ, for the error.
        """
        network = self._frozen.get(name)
        state = saved.get(name)
        if network is None and state is None:
            return
        if network is None:
            raise ValueError(f"--model.{name}: the checkpoint has one, this model has none")
        if state is None:
            raise ValueError(f"--model.{name}: the checkpoint has none, this model has one")
        if name in self._from_files and not states_equal(network.state_dict(), state):
            raise ValueError(f"the checkpoint was trained on {other} than that of --model.{name}")
        network.load_state_dict(state)


def check_text_arguments(condition: Condition, text_encoder: Any, tokenizer: str | None) -> None:
    """Raise a ValueError where text encoder and tokenizer do not go with the condition."""
    if condition == "text":
        if text_encoder is None:
            raise ValueError("condition: text needs a text_encoder: a diffusers folder with text_encoder and tokenizer")
        return
    if text_encoder is not None:
        raise ValueError(f"text_encoder is for condition: text, but this model has condition: {condition}")
    if tokenizer is not None:
        raise ValueError(f"tokenizer is for condition: text, but this model has condition: {condition}")


def explicit_sizes(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that override a preset of the U-Net: those that are not None."""
    sizes = {name: value for name, value in arguments.items() if value is not None}
    if arguments["heads"] or arguments["head_dim"]:
        # Either of them replaces both of the preset.
        sizes["heads"] = arguments["heads"]
        sizes["head_dim"] = arguments["head_dim"]
    return sizes


def check_resolution(net: UNet, shape: tuple[int, ...], image_size: int) -> None:
    """Raise a ValueError where a U-Net cannot halve the resolution as often as it has to.

    Args:
        net: the network.
        shape: shape of its input, ``(c, h, w)``.
        image_size: side of the images in pixels.
    """
    if shape[1] % net.factor:
        raise ValueError(
            f"image_size {image_size} gives the U-Net {shape[1]} positions per side, which its stages need divisible "
            f"by {net.factor}: take another image_size, or fewer stages"
        )


def latent_shape(autoencoder: AutoencoderKL, channels: int, side: int) -> tuple[int, int, int]:
    """Return the shape of the latents of square images, ``(c, h, w)``.

    Args:
        autoencoder: the autoencoder.
        channels: channels of the images.
        side: side of the images in pixels.

    Raises:
        ValueError: it does not take such images.
    """
    autoencoder.check(side, side)
    expected = autoencoder.arguments["in_channels"]
    if expected != channels:
        raise ValueError(f"the autoencoder takes images with {expected} channels, got in_channels={channels}")
    latent_side = side // autoencoder.factor
    return autoencoder.arguments["latent_channels"], latent_side, latent_side


def load_prompt_tokenizer(source: str, encoder: Any) -> PromptTokenizer:
    """Load the tokenizer of a text encoder.

    Args:
        source: folder that contains it.
        encoder: the text encoder, which limits the length of prompts.

    Raises:
        ValueError: there is none, or it has more tokens than the text encoder.
    """
    prompts = PromptTokenizer.load(source, encoder.arguments["max_length"])
    num_tokens = len(prompts.tokenizer)
    vocab_size = encoder.arguments["vocab_size"]
    if num_tokens > vocab_size:
        raise ValueError(
            f"the tokenizer of {source} does not belong to the text encoder: it has {num_tokens:,} tokens, and the "
            f"text encoder {vocab_size:,}"
        )
    return prompts


def plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments as checkpoints store them: with lists instead of tuples."""
    result = {}
    for name, value in arguments.items():
        if isinstance(value, tuple):
            value = list(value)
        result[name] = value
    return result
