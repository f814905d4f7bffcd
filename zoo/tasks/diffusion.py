"""Diffusion: data from noise (Ho et al. 2020, https://arxiv.org/abs/2006.11239; guidance: Ho and Salimans 2022)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from zoo._lightning import trainer_of
from zoo.diffusion import (
    Noise,
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
GOLDEN = 0.6180339887498949  # multiples of it, without their whole part, fill [0, 1) evenly however many there are
NUM_NOISE_BINS = 4


class Diffusion(Task):
    """Diffusion model: any network that predicts noise, velocity or flow from a noisy image and a timestep.

    A batch is images in [-1, 1], alone or with class indices ``(b,)`` or texts. The network is called with noisy images
    ``(b, c, h, w)``, timesteps ``(b,)`` from 0 to ``timesteps``, and ``labels`` ``(b,)``, where ``num_classes`` stands
    for no class, or ``text``, states ``(b, s, d)``. The loss is the mean squared error of the prediction. Logs
    ``loss``,
    and in validation and test ``loss_t0`` (least noise) to ``loss_t3`` (most), by quarters of the timesteps. There the
    noise of a sample is always the same, so that losses are comparable.

    Args:
        prediction_type: what the network predicts: ``epsilon``, the noise; ``v_prediction``, the velocity (Salimans and
            Ho 2022); ``flow_prediction``, the noise minus the data (rectified flow).
        schedule: of the noise: ``linear``, ``cosine``, ``scaled_linear`` (Stable Diffusion's), or ``flow``, the
            straight line to it; null is ``flow`` for flow_prediction, or else ``cosine``.
        timesteps: noise levels.
        zero_snr: leave nothing of the data at the last noise level.
        beta_start: first beta of ``linear`` and ``scaled_linear``; null is the paper's.
        beta_end: last beta of these.
        min_snr_gamma: signal-to-noise ratio from which on noise levels count alike, 5 in the paper; null weighs none.
        condition: what images are made by: ``class``, ``text`` or ``none``.
        cond_drop_prob: share of the training samples whose condition is left out, so that it can be guided by.
        num_classes: number of classes; null takes it from the data.
        class_names: names for ``zoo sample``; null takes them from the data, or numbers.
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
        schedule = schedule or ("flow" if prediction_type == "flow_prediction" else "cosine")
        if (prediction_type == "flow_prediction") != (schedule == "flow"):
            raise ValueError(
                f"prediction_type flow_prediction and schedule flow go together: got {prediction_type=}, {schedule=}"
            )
        if prediction_type == "epsilon" and zero_snr:
            raise ValueError("prediction_type epsilon does not go with zero_snr: take v_prediction")
        if not 0 <= cond_drop_prob < 1:
            raise ValueError(f"cond_drop_prob is a share in [0, 1), got {cond_drop_prob}")
        if min_snr_gamma is not None and min_snr_gamma <= 0:
            raise ValueError(f"min_snr_gamma must be above 0, got {min_snr_gamma}")
        self.prediction_type: PredictionType = prediction_type
        self.schedule = make_schedule(schedule, timesteps, zero_snr, beta_start, beta_end)
        self.min_snr_gamma, self.cond_drop_prob = min_snr_gamma, cond_drop_prob
        self.condition: Condition = condition
        self.num_classes = require(self, num_classes=num_classes) if condition == "class" else None
        self.class_names = (class_names if self.num_classes else None) or [str(i) for i in range(self.num_classes or 0)]
        if self.num_classes and len(self.class_names) != self.num_classes:
            raise ValueError(f"{len(self.class_names)} class_names for num_classes={num_classes}: {class_names}")
        self._num_evaluated = 0  # samples of this validation or test
        self._checked_pixels = False  # whether pixels are what they should be

    # What a subclass may say otherwise --------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what the network sees, ``(c, h, w)``."""
        raise ValueError(f"{type(self).__name__} does not say what shape its samples have: write shape")

    @property
    def clip(self) -> float | None:
        """How far data can be from 0; None where nobody knows."""
        return 1.0

    def encode(self, x: Float[Tensor, "b c h w"], stage: str) -> Float[Tensor, "b d i j"]:
        """What the network sees of images."""
        return x

    def decode(self, x: Float[Tensor, "b d i j"]) -> Float[Tensor, "b c h w"]:
        """Images of what the network sees."""
        return x

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "b s d"]:
        """The states of texts."""
        raise ValueError(f"{type(self).__name__} has no text encoder, so it cannot be told texts")

    # Training ---------------------------------------------------------------------------------------------------------

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        t: Shaped[Tensor, " b"] | None = None,
        labels: Int[Tensor, " b"] | None = None,
        text: Float[Tensor, "b s d"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """What the network says of images with the noise of times, which are 0 if not given."""
        t = torch.zeros(len(x), dtype=torch.long, device=x.device) if t is None else t
        conditions = {k: v for k, v in (("labels", labels), ("text", text)) if v is not None}
        return self.net(x, self.schedule.model_time(t), **conditions)

    def step(self, batch: Any, stage: str) -> Tensor:
        return self.losses(batch, stage).mean()

    def losses(self, batch: Any, stage: str) -> Float[Tensor, " b"]:
        """The loss of each sample of a batch."""
        parts = [*batch] if isinstance(batch, (tuple, list)) else [batch]
        x, condition = parts if len(parts) > 1 else [parts[0], None]
        self._check_pixels(x)
        with torch.no_grad():
            x0 = at_least_float32(self.encode(x, stage))
            conditions = self._conditions(condition, x0, self.cond_drop_prob if stage == "train" else 0.0)
        u, eps = self._times_and_noise(x0, stage)
        t = self.schedule.training_timesteps(u)
        alpha, sigma = self.schedule.alpha_sigma(t)
        prediction = self(self.schedule.add_noise(x0, eps, t).to(self._net_dtype), t, **conditions)
        target = prediction_target(self.prediction_type, x0, eps, alpha, sigma)
        losses = (prediction.to(target.dtype) - target).square().flatten(1).mean(1)
        if self.min_snr_gamma is not None:
            losses = losses * min_snr_weight(self.prediction_type, alpha, sigma, self.min_snr_gamma).to(losses)
        if stage != "train":
            self._log_loss_by_noise_level(stage, u, losses)
        return losses

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return the column ``loss``: how badly the network tells each image from noise."""
        return {"loss": self.losses(batch, "predict").tolist()}

    def _times_and_noise(self, x0: Tensor, stage: str) -> tuple[Float[Tensor, " b"], Tensor]:
        """Where between data and noise each sample is looked at, and its noise."""
        if stage == "train":
            return torch.rand(len(x0), device=x0.device), torch.randn_like(x0)
        world, rank = (1, 0) if trainer_of(self) is None else (self.trainer.world_size, self.trainer.global_rank)
        numbers = [(self._num_evaluated + i) * world + rank for i in range(len(x0))]
        self._num_evaluated += len(x0)
        u = torch.tensor([(number + 0.5) * GOLDEN % 1 for number in numbers], device=x0.device)
        return u, Noise(0, numbers)(x0)

    def _log_loss_by_noise_level(self, stage: str, u: Tensor, losses: Tensor) -> None:
        quarters = (u * NUM_NOISE_BINS).long()
        for i, count in enumerate(torch.bincount(quarters, minlength=NUM_NOISE_BINS).tolist()):
            if count:
                self.log_mean(stage, count, **{f"loss_t{i}": losses[quarters == i].mean()})

    def _conditions(self, given: Any, x: Tensor, drop: float) -> dict[str, Tensor]:
        """What the network is told beside the time: each sample's condition, or for some of them none."""
        if self.condition == "none":
            return {}
        dropped = torch.rand(len(x), device=x.device) < drop if drop else None
        if self.condition == "class":
            labels = self._labels(given)
            return {"labels": labels if dropped is None else labels.masked_fill(dropped, self.num_classes or 0)}
        if not isinstance(given, (list, tuple)) or not all(isinstance(text, str) for text in given):
            raise ValueError("condition: text needs data whose batches are images with texts, as by --data.captions")
        return {"text": self.encode_text(["" if gone else text for text, gone in zip(
            given, [False] * len(x) if dropped is None else dropped.tolist(), strict=True)])}  # fmt: skip

    def _labels(self, y: Any) -> Int[Tensor, " b"]:
        if not isinstance(y, Tensor) or y.is_floating_point() or y.ndim != 1:
            what = f"a tensor {tuple(y.shape)} of {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"condition: class needs class numbers (b,) beside the images, got {what}")
        if y.device.type == "cpu" and len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.num_classes:  # type: ignore[operator]
            bad = int(y.min()) if int(y.min()) < 0 else int(y.max())
            raise ValueError(f"class {bad} is out of range: num_classes={self.num_classes}")
        return y

    # Pixels -----------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        for name in ("mean", "std"):
            found = getattr(data, name, None)
            if isinstance(found, list) and any(abs(value - 0.5) > 1e-6 for value in found):
                raise ValueError(
                    f"diffusion takes images in [-1, 1]: --data.mean [0.5] --data.std [0.5], or none of them, as "
                    f"zoo's images come so by themselves; {type(data).__name__} has {name} {found}"
                )
        self._checked_pixels = False

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How zoo's data should normalise images: to [-1, 1]."""
        return {"mean": [0.5] * self.image_channels, "std": [0.5] * self.image_channels}

    @property
    def image_channels(self) -> int:
        return self.shape[0]

    def _check_pixels(self, x: Tensor) -> None:
        """Say so where pixels are not in [-1, 1], once: elsewhere looking at values waits for the device."""
        if self._checked_pixels or not isinstance(x, Tensor) or not len(x):
            return
        self._checked_pixels = True
        low, high = (float(v) for v in x.detach().aminmax())
        if low < -1.05 or high > 1.05:
            raise ValueError(f"diffusion takes images in [-1, 1], and these reach from {low:.2f} to {high:.2f}")
        if low >= 0 and high > 0:
            warnings.warn(f"images from {low:.2f} to {high:.2f}: those of diffusion reach from -1 to 1", stacklevel=2)

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
        """Make images, with pixels from 0 to 1, in float32 on the CPU; the state of torch's generators stays.

        Args:
            n: how many; image ``i`` follows from ``seed`` and ``i``, whatever ``n`` and ``batch_size`` are.
            sampler: ``ddpm``, ``ddim``, ``euler``, ``heun`` or ``dpm++``.
            steps: of the sampler.
            guidance_scale: 1 is the condition alone, above 1 exaggerates it, 0 leaves it out.
            labels: class of all, or of each; null takes all classes in turn.
            texts: text of all, or of each.
            seed: of the noise.
            eta: share of the noise that ``ddim`` draws anew at each step; null is none.
            spacing: of the times that the sampler looks at: ``trailing``, ``leading`` or ``linspace``.
            batch_size: how many at a time.
            first: number of the first image, to go on where others end.
            done: called with the images of batches that are done, and of one more step with those in the making.
        """
        given = self._sample_conditions(n, guidance_scale, labels, texts, first)
        if eta is not None and sampler != "ddim":
            raise ValueError(f"eta is for the sampler ddim, got {sampler}")
        more = {} if eta is None else {"eta": eta}
        sampler_fn = make_sampler(sampler, self.schedule, self.prediction_type, steps, spacing, clip=self.clip, **more)
        found = []
        with evaluating(self.net):
            for start in range(0, n, batch_size):
                rows = range(start, min(n, start + batch_size))
                noise = Noise(seed, [first + i for i in rows])
                predict = classifier_free_guidance(
                    self._conditional_predictor([given[i] for i in rows]), guidance_scale
                )
                x = noise.normal(*self.shape).to(self.device)
                x = sampler_fn(predict, x, noise, done and (lambda i: done(start, i)))  # noqa: B023
                if not x.isfinite().all():
                    raise ValueError(f"samples are not finite: the network overflows in {self._net_dtype}")
                found.append((self.decode(x).float().cpu() / 2 + 0.5).clamp(0, 1))
        return torch.cat(found)

    def _conditional_predictor(self, given: list[Any]) -> Callable[[Tensor, Tensor, Sequence[bool]], Tensor]:
        """What the network says with these conditions, or without; samples stay in float32, whatever it computes in."""
        condition_kwargs = {
            flag: self._condition_kwargs(given if flag else [None] * len(given)) for flag in (True, False)
        }

        def predict(x: Tensor, t: Tensor, flags: Sequence[bool]) -> Tensor:
            conditions = {
                name: torch.cat([condition_kwargs[flag][name] for flag in flags]) for name in condition_kwargs[True]
            }
            x_of_each, t_of_each = (torch.cat([part] * len(flags)) for part in (x, t))
            return self(x_of_each.to(self._net_dtype), t_of_each, **conditions).to(x.dtype)

        return predict

    def _condition_kwargs(self, given: list[Any]) -> dict[str, Tensor]:
        if self.condition == "class":
            none = self.num_classes
            return {"labels": torch.tensor([none if c is None else c for c in given], device=self.device)}
        return {"text": self.encode_text([text or "" for text in given])} if self.condition == "text" else {}

    def _sample_conditions(self, n: int, guidance_scale: float, labels: Any, texts: Any, first: int) -> list[Any]:
        """The condition of each image to be made."""
        check_conditions(n, guidance_scale, labels, texts, self.condition, self.cond_drop_prob)
        if self.condition == "class":
            return class_labels(labels, n, self.num_classes or 0, first)
        return [None] * n if self.condition == "none" else broadcast([texts] if isinstance(texts, str) else texts, n)

    @property
    def _net_dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype


@contextmanager
def evaluating(net: nn.Module):
    """A network in eval mode for a while."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
