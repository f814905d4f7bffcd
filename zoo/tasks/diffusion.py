"""Diffusion models (Ho et al. 2020, https://arxiv.org/abs/2006.11239; guidance: Ho and Salimans 2022)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from zoo._lightning import trainer_of
from zoo.diffusion import (
    Noise,
    Sampler,
    classifier_free_guidance,
    make_sampler,
    make_schedule,
    min_snr_weight,
    prediction_target,
)
from zoo.diffusion.conditioning import broadcast, check_conditions, class_labels
from zoo.diffusion.prediction import PredictionType
from zoo.diffusion.samplers import SamplerName
from zoo.diffusion.schedules import ScheduleName, Spacing
from zoo.losses.embeddings import at_least_float32
from zoo.tasks.base import Task, require

Condition = Literal["none", "class", "text"]
# The fractional parts of its multiples are evenly spread over [0, 1), however many there are.
GOLDEN_RATIO = 0.6180339887498949
# The loss of evaluations is also logged for this many ranges of the noise level.
NUM_NOISE_BINS = 4


class Diffusion(Task):
    """Diffusion model: any network that predicts noise, velocity or flow from a noisy image and a timestep.

    A batch is images in [-1, 1], alone or with class indices ``(b,)`` or texts. The network is called with noisy images
    ``(b, c, h, w)``, timesteps ``(b,)`` from 0 to ``timesteps``, and ``labels`` ``(b,)``, where ``num_classes`` stands
    for no class, or ``text``, states ``(b, s, d)``. The loss is the mean squared error of the prediction. Logs
    ``loss``, and in validation and test ``loss_t0`` (least noise) to ``loss_t3`` (most), by quarters of the timesteps.
    There the noise of a sample is always the same, so that losses are comparable.

    Args:
        prediction_type: what the network predicts: ``epsilon``, the noise; ``v_prediction``, the velocity (Salimans and
            Ho 2022); ``flow_prediction``, the noise minus the data (rectified flow).
        schedule: noise schedule: ``linear``, ``cosine``, ``scaled_linear`` (Stable Diffusion), or ``flow``, the
            straight line from data to noise; null for ``flow`` with flow_prediction, else ``cosine``.
        timesteps: number of noise levels.
        zero_snr: rescale the noise schedule to zero terminal SNR: pure noise at the last timestep.
        beta_start: first beta of ``linear`` and ``scaled_linear``; null for the paper's.
        beta_end: last beta of ``linear`` and ``scaled_linear``; null for the paper's.
        min_snr_gamma: gamma of Min-SNR loss weighting, 5 in the paper; null for no weighting.
        condition: what the model is conditioned on: ``class``, ``text`` or ``none``.
        cond_drop_prob: probability with which the condition of a training sample is dropped, for classifier-free
            guidance.
        num_classes: number of classes; null takes it from the data.
        class_names: names of the classes for ``zoo sample``; null takes them from the data, or numbers.
    """

    def __init__(
        self,
        net: nn.Module,
        prediction_type: PredictionType = "v_prediction",
        schedule: ScheduleName | None = None,
        timesteps: int = 1000,
        zero_snr: bool = False,
        beta_start: float | None = None,
        beta_end: float | None = None,
        min_snr_gamma: float | None = None,
        condition: Condition = "class",
        cond_drop_prob: float = 0.1,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(net=net, **kwargs)
        is_flow = prediction_type == "flow_prediction"
        if schedule is None:
            schedule = "flow" if is_flow else "cosine"
        if is_flow != (schedule == "flow"):
            raise ValueError(
                f"prediction_type flow_prediction and schedule flow go together: got {prediction_type=}, {schedule=}"
            )
        if prediction_type == "epsilon" and zero_snr:
            raise ValueError("prediction_type epsilon does not go with zero_snr: use v_prediction")
        if not 0 <= cond_drop_prob < 1:
            raise ValueError(f"cond_drop_prob must be a probability in [0, 1), got {cond_drop_prob}")
        if min_snr_gamma is not None and min_snr_gamma <= 0:
            raise ValueError(f"min_snr_gamma must be above 0, got {min_snr_gamma}")
        self.prediction_type: PredictionType = prediction_type
        self.schedule = make_schedule(schedule, timesteps, zero_snr, beta_start, beta_end)
        self.min_snr_gamma = min_snr_gamma
        self.cond_drop_prob = cond_drop_prob
        self.condition: Condition = condition
        self.num_classes: int | None = None
        self.class_names: list[str] = []
        if condition == "class":
            classes = require(self, num_classes=num_classes)
            self.num_classes = classes
            self.class_names = class_names or [str(i) for i in range(classes)]
            if len(self.class_names) != classes:
                raise ValueError(f"{len(self.class_names)} class_names for num_classes={classes}: {class_names}")
        # Number of samples of this evaluation so far, which determines their noise.
        self._num_evaluated = 0
        # Whether the range of the pixels has been checked.
        self._checked_pixels = False

    # For subclasses to override ---------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the network's input, ``(c, h, w)``."""
        raise ValueError(f"{type(self).__name__} does not define the shape of its samples: override shape")

    @property
    def clip(self) -> float | None:
        """Largest absolute value of the data, to which sampling clips; None if it is not bounded."""
        return 1.0

    def encode(self, x: Float[Tensor, "b c h w"], stage: str) -> Float[Tensor, "b d i j"]:
        """Return the input of the network for images, without noise."""
        return x

    def decode(self, x: Float[Tensor, "b d i j"]) -> Float[Tensor, "b c h w"]:
        """Return the images of denoised inputs: the inverse of ``encode``."""
        return x

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "b s d"]:
        """Return the states of texts."""
        raise ValueError(f"{type(self).__name__} has no text encoder, which condition: text needs")

    # Training ---------------------------------------------------------------------------------------------------------

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        t: Shaped[Tensor, " b"] | None = None,
        labels: Int[Tensor, " b"] | None = None,
        text: Float[Tensor, "b s d"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Return the prediction for noisy inputs at times of the noise schedule, 0 if not given."""
        if t is None:
            t = torch.zeros(len(x), dtype=torch.long, device=x.device)
        conditions = {}
        if labels is not None:
            conditions["labels"] = labels
        if text is not None:
            conditions["text"] = text
        return self.net(x, self.schedule.model_time(t), **conditions)

    def step(self, batch: Any, stage: str) -> Tensor:
        return self.losses(batch, stage).mean()

    def losses(self, batch: Any, stage: str) -> Float[Tensor, " b"]:
        """Return the loss of each sample of a batch."""
        x, condition = image_and_condition(batch)
        self._check_pixels(x)
        cond_drop_prob = self.cond_drop_prob if stage == "train" else 0.0
        with torch.no_grad():
            x0 = at_least_float32(self.encode(x, stage))
            conditions = self._conditions(condition, x0, cond_drop_prob)
        u, eps = self._times_and_noise(x0, stage)
        t = self.schedule.training_timesteps(u)
        alpha, sigma = self.schedule.alpha_sigma(t)
        noisy = self.schedule.add_noise(x0, eps, t).to(self._net_dtype)
        prediction = self(noisy, t, **conditions)
        target = prediction_target(self.prediction_type, x0, eps, alpha, sigma)
        errors = (prediction.to(target.dtype) - target).square()
        losses = errors.flatten(1).mean(1)  # (b,)
        if self.min_snr_gamma is not None:
            weights = min_snr_weight(self.prediction_type, alpha, sigma, self.min_snr_gamma)
            losses = losses * weights.to(losses)
        if stage != "train":
            self._log_loss_by_noise_level(stage, u, losses)
        return losses

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return the column ``loss``: the denoising loss of each image."""
        return {"loss": self.losses(batch, "predict").tolist()}

    def _times_and_noise(self, x0: Tensor, stage: str) -> tuple[Float[Tensor, " b"], Tensor]:
        """Return times of the noise schedule, as numbers in [0, 1), and noise; in evaluations both are reproducible."""
        if stage == "train":
            u = torch.rand(len(x0), device=x0.device)
            return u, torch.randn_like(x0)
        world_size = 1
        rank = 0
        if trainer_of(self) is not None:
            world_size = self.trainer.world_size
            rank = self.trainer.global_rank
        # Numbers of the samples in the order of the dataset, which processes read in turn.
        numbers = [(self._num_evaluated + i) * world_size + rank for i in range(len(x0))]
        self._num_evaluated += len(x0)
        times = [(number + 0.5) * GOLDEN_RATIO % 1 for number in numbers]
        return torch.tensor(times, device=x0.device), Noise(0, numbers)(x0)

    def _log_loss_by_noise_level(self, stage: str, u: Float[Tensor, " b"], losses: Float[Tensor, " b"]) -> None:
        bins = (u * NUM_NOISE_BINS).long()
        counts = torch.bincount(bins, minlength=NUM_NOISE_BINS).tolist()
        for i, count in enumerate(counts):
            if count:
                self.log_mean(stage, count, **{f"loss_t{i}": losses[bins == i].mean()})

    def _conditions(self, condition: Any, x: Tensor, drop_prob: float) -> dict[str, Tensor]:
        """Return the network's arguments for the conditions of a batch, some of which are dropped."""
        if self.condition == "none":
            return {}
        may_lack = not self.training and self.cond_drop_prob > 0
        if may_lack and isinstance(condition, type(None)):
            return self._no_conditions(x)
        dropped = None
        if drop_prob:
            dropped = torch.rand(len(x), device=x.device) < drop_prob  # (b,)
        if self.condition == "class":
            labels = self._check_labels(condition)
            if dropped is not None:
                labels = labels.masked_fill(dropped, self.num_classes or 0)
            return {"labels": labels}
        is_text = isinstance(condition, (list, tuple)) and all(isinstance(text, str) for text in condition)
        if not is_text:
            raise ValueError("condition: text needs batches of images and texts: set --data.captions")
        is_dropped = [False] * len(x)
        if dropped is not None:
            is_dropped = dropped.tolist()
        texts = ["" if drop else text for text, drop in zip(condition, is_dropped, strict=True)]
        return {"text": self.encode_text(texts)}

    def _no_conditions(self, x: Tensor) -> dict[str, Tensor]:
        """Return the arguments for images without a condition, as training saw some by ``cond_drop_prob``."""
        if self.condition == "class":
            return {"labels": torch.full((len(x),), self.num_classes or 0, device=x.device)}
        return {"text": self.encode_text([""] * len(x))}

    def _check_labels(self, y: Any) -> Int[Tensor, " b"]:
        """Return class indices after checking them; their values only on a CPU, where reading them is free."""
        if not isinstance(y, Tensor):
            raise ValueError(f"condition: class needs batches of images and class indices (b,), got {type(y).__name__}")
        if y.is_floating_point() or y.ndim != 1:
            raise ValueError(
                f"condition: class needs batches of images and class indices (b,), got a tensor {tuple(y.shape)} of "
                f"{y.dtype}"
            )
        if y.device.type == "cpu" and len(y):
            for label in (int(y.min()), int(y.max())):
                if not 0 <= label < (self.num_classes or 0):
                    raise ValueError(f"class {label} is out of range: num_classes={self.num_classes}")
        return y

    # Pixels -----------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        for name in ("mean", "std"):
            values = getattr(data, name, None)
            if isinstance(values, list) and any(abs(value - 0.5) > 1e-6 for value in values):
                raise ValueError(
                    f"diffusion needs images in [-1, 1]: set --data.mean [0.5] --data.std [0.5], or neither, as "
                    f"zoo's datasets then choose this; {type(data).__name__} has {name} {values}"
                )
        self._checked_pixels = False

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Mean and standard deviation that normalize images to [-1, 1]."""
        return {"mean": [0.5] * self.image_channels, "std": [0.5] * self.image_channels}

    @property
    def image_channels(self) -> int:
        return self.shape[0]

    def _check_pixels(self, x: Tensor) -> None:
        """Check once that pixels are in [-1, 1]; checking every batch would synchronize with the device each time."""
        if self._checked_pixels or not isinstance(x, Tensor) or not len(x):
            return
        self._checked_pixels = True
        lowest, highest = x.detach().aminmax()
        low = float(lowest)
        high = float(highest)
        if low < -1.05 or high > 1.05:
            raise ValueError(f"diffusion needs images in [-1, 1], got values from {low:.2f} to {high:.2f}")
        if low >= 0 and high > 0:
            warnings.warn(
                f"diffusion needs images in [-1, 1], got values from {low:.2f} to {high:.2f}",
                stacklevel=2,
            )

    def reset_metrics(self, stage: str) -> None:
        super().reset_metrics(stage)
        self._num_evaluated = 0

    def on_predict_epoch_start(self) -> None:
        self._num_evaluated = 0

    # Sampling ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        n: int = 1,
        sampler: SamplerName = "dpm++",
        steps: int = 20,
        guidance_scale: float = 1.0,
        labels: int | Sequence[int] | Tensor | None = None,
        texts: str | Sequence[str] | None = None,
        seed: int = 0,
        eta: float | None = None,
        spacing: Spacing = "trailing",
        batch_size: int = 64,
        first: int = 0,
        done: Callable[[int, int], None] | None = None,
    ) -> Float[Tensor, "n c h w"]:
        """Generate images, with pixels in [0, 1], in float32 on the CPU; torch's global RNG is not used.

        Args:
            n: number of images; image ``i`` depends on ``seed`` and ``i`` only, not on ``n`` and ``batch_size``.
            sampler: ``ddpm``, ``ddim``, ``euler``, ``heun`` or ``dpm++``.
            steps: number of sampling steps.
            guidance_scale: scale of classifier-free guidance: 1 is without guidance, above 1 strengthens the
                condition, 0 ignores it.
            labels: one class index for all images, or one for each; None cycles through the classes.
            texts: one prompt for all images, or one for each.
            seed: seed of the noise.
            eta: amount of new noise in each step of ``ddim``, from 0 to 1; None for 0.
            spacing: spacing of the timesteps: ``trailing``, ``leading`` or ``linspace``.
            batch_size: number of images that are generated at a time.
            first: index of the first image, to continue an earlier call.
            done: called after each step, with the number of images of finished batches and of steps of this batch.
        """
        conditions = self._sample_conditions(n, guidance_scale, labels, texts, first)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        options = {}
        if eta is not None:
            if sampler != "ddim":
                raise ValueError(f"eta is for the sampler ddim, got {sampler}")
            options["eta"] = eta
        sampler_ = make_sampler(
            sampler,
            self.schedule,
            self.prediction_type,
            steps,
            spacing,
            clip=self.clip,
            **options,
        )
        batches = []
        with evaluating(self.net):
            for start in range(0, n, batch_size):
                stop = min(n, start + batch_size)
                noise = Noise(seed, range(first + start, first + stop))
                predict = classifier_free_guidance(self._conditional_predictor(conditions[start:stop]), guidance_scale)
                step_done = None
                if done is not None:
                    step_done = partial(done, start)
                batches.append(self._sample_batch(sampler_, predict, noise, step_done))
        return torch.cat(batches)

    def _sample_batch(
        self,
        sampler: Sampler,
        predict: Callable[[Tensor, Tensor], Tensor],
        noise: Noise,
        step_done: Callable[[int], None] | None,
    ) -> Float[Tensor, "b c h w"]:
        x = noise.normal(*self.shape).to(self.device)
        x = sampler(predict, x, noise, step_done)
        if not x.isfinite().all():
            raise ValueError(f"samples are not finite: the network overflows in {self._net_dtype}")
        images = self.decode(x).float().cpu()
        return (images / 2 + 0.5).clamp(0, 1)

    def _conditional_predictor(self, conditions: list[Any]) -> Callable[[Tensor, Tensor, Sequence[bool]], Tensor]:
        """Return the network as a function for classifier-free guidance; samples stay in float32 at any precision."""
        arguments = {
            True: self._condition_arguments(conditions),
            False: self._condition_arguments([None] * len(conditions)),
        }

        def predict(x: Tensor, t: Tensor, flags: Sequence[bool]) -> Tensor:
            repeated = {}
            for name in arguments[True]:
                repeated[name] = torch.cat([arguments[flag][name] for flag in flags])  # (flags * b, ...)
            inputs = torch.cat([x] * len(flags)).to(self._net_dtype)  # (flags * b, c, h, w)
            times = torch.cat([t] * len(flags))
            return self(inputs, times, **repeated).to(x.dtype)

        return predict

    def _condition_arguments(self, conditions: list[Any]) -> dict[str, Tensor]:
        """Return the network's arguments for conditions, None being no condition."""
        if self.condition == "class":
            labels = [self.num_classes if label is None else label for label in conditions]
            return {"labels": torch.tensor(labels, device=self.device)}
        if self.condition == "text":
            return {"text": self.encode_text([text or "" for text in conditions])}
        return {}

    def _sample_conditions(self, n: int, guidance_scale: float, labels: Any, texts: Any, first: int) -> list[Any]:
        """Return the condition of each image to be generated."""
        check_conditions(n, guidance_scale, labels, texts, self.condition, self.cond_drop_prob)
        if self.condition == "class":
            return class_labels(labels, n, self.num_classes or 0, first)
        if self.condition == "none":
            return [None] * n
        if isinstance(texts, str):
            texts = [texts]
        return broadcast(texts, n)

    @property
    def _net_dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype


def image_and_condition(batch: Any) -> tuple[Any, Any]:
    """Return the images of a batch, and the labels or texts that may follow them."""
    if not isinstance(batch, (tuple, list)):
        return batch, None
    if len(batch) == 1:
        return batch[0], None
    images, condition = batch
    return images, condition


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put a network in eval mode, and each of its modules back in its mode at the end."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
