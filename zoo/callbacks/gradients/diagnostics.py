"""Gradient diagnostics in training: norms, update ratios, dead units, noise scale, and warnings about problems."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from zoo._lightning import accumulates, logged_step
from zoo.callbacks.fail_safe import FailSafeCallback, fail_safe
from zoo.callbacks.gradients.analysis import (
    GradientStats,
    find_problems,
    group_into_blocks,
    module_of,
    noise_scale_terms,
)
from zoo.callbacks.gradients.heat_map import heat_map
from zoo.callbacks.gradients.measurement import StepMeasurement, local_shard
from zoo.callbacks.output_folder import output_folder
from zoo.callbacks.plots.figures import save_and_log_figure

Values = dict[str, dict[str, float]]
"""Measured values by kind and name, as ``StepMeasurement.read`` returns them."""


class GradientDiagnostics(FailSafeCallback, Callback):
    """Monitor gradients after unscaling and before clipping, and warn about vanishing, exploding and missing ones.

    Logs, where blocks are groups of modules (see ``group_into_blocks``):

    - ``gradients/norm`` and ``gradients/norm/<block>``: L2 norms of the gradient that the optimizer gets;
    - ``gradients/update_ratio/<block>``: norm of the update over norm of the weights (about 1e-3 is usual);
    - ``gradients/dead``: fraction of ReLU units that output 0 for the whole batch (units are channels of images, else
      features); ``gradients/saturated``: fraction of tanh and sigmoid outputs at an end of their range, 99 % of the way
      from its middle; both for modules, not functions, on rank 0;
    - ``gradients/noise_scale``: the gradient noise scale in samples, the batch size at which noise and signal of the
      gradient are equal (McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", arXiv:1812.06162); only
      with gradient accumulation or several processes, and not for sharded parameters;
    - ``gradients/clipped``: fraction of steps since the last measurement that were clipped; only with
      ``gradient_clip_val``.

    Each problem is warned about once, after two measurements in a row that show it; exploding gradients at once.
    Training is unchanged, bit for bit; a measured step needs memory for one more copy of the weights. With several
    optimizers, the one that takes the measured step is monitored. An error of the diagnostics themselves switches them
    off with a warning and does not end the training.

    Args:
        every_n_steps: optimizer steps between two measurements; the first step is measured.
        max_blocks: maximum number of blocks, that is, of keys of a kind.
        heatmap: whether to plot the gradient norm of each layer at each measurement when training ends, to
            ``gradients.png`` in the run folder and to loggers that accept images.
        dirpath: output folder; null for the logger's, or else the trainer's ``default_root_dir``.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        max_blocks: int = 6,
        heatmap: bool = True,
        dirpath: str | None = None,
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps}: must be at least 1")
        if max_blocks < 1:
            raise ValueError(f"max_blocks={max_blocks}: must be at least 1")
        self.every_n_steps = every_n_steps
        self.max_blocks = max_blocks
        self.heatmap = heatmap
        self.dirpath = dirpath
        self.stats: GradientStats | None = None
        self.metrics: dict[str, float] = {}
        self.steps: list[int] = []
        self.history: list[list[float]] = []
        self.layers: list[str] = []
        self._signal = _RunningAverage()
        self._noise = _RunningAverage()
        self._with_gradient: set[str] = set()
        self._suspected: set[str] = set()
        self._warned: set[str] = set()
        self._folder = Path()
        self._clip_probe: Tensor | None = None
        self._before: Tensor | None = None
        self._clipped: list[Tensor] = []
        self._measurement: StepMeasurement | None = None

    # --- hooks -----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.switched_off = False
        self._begin(trainer)

    @fail_safe()
    def _begin(self, trainer: Trainer) -> None:
        # log_dir is a collective call, so it must not be read in on_exception, where one rank may have failed.
        self._folder = output_folder(trainer, self.dirpath)

    @fail_safe()
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.every_n_steps:
            return
        if self._measurement is None:
            self._measurement = StepMeasurement(trainer, pl_module, batch)
        self._measurement.new_forward()

    @fail_safe()
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._measurement is not None and not accumulates(trainer):
            self._measurement.after_backward()

    @fail_safe()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._measurement is not None:
            self._measurement.before_step(optimizer)
        clips_norm = trainer.gradient_clip_val and trainer.gradient_clip_algorithm in (None, "norm")
        if clips_norm and self._clip_probe is not None and self._clip_probe.grad is not None:
            self._before = self._clip_probe.grad.detach().clone()

    @fail_safe()
    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        # Clipping scales all gradients alike, so one small tensor shows it; another norm would cost a percent.
        if self._before is not None and self._clip_probe is not None and self._clip_probe.grad is not None:
            clipped = local_shard(self._before).ne(local_shard(self._clip_probe.grad))
            self._clipped.append(clipped.any())
            self._before = None
        measurement = self._measurement
        if measurement is not None and measurement.stepped:
            self._measurement = None
            measurement.close()
            self._log(trainer, measurement)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._finish(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {
            "layers": self.layers,
            "steps": self.steps,
            "history": self.history,
            "noise": [self._signal.value, self._signal.weight, self._noise.value, self._noise.weight],
            "with_gradient": sorted(self._with_gradient),
            "suspected": sorted(self._suspected),
            "warned": sorted(self._warned),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.layers = list(state_dict["layers"])
        self.steps = list(state_dict["steps"])
        self.history = list(state_dict["history"])
        signal, signal_weight, noise, noise_weight = state_dict["noise"]
        self._signal = _RunningAverage(signal, signal_weight)
        self._noise = _RunningAverage(noise, noise_weight)
        self._with_gradient = set(state_dict["with_gradient"])
        self._suspected = set(state_dict["suspected"])
        self._warned = set(state_dict["warned"])

    # --- metrics ---------------------------------------------------------------------------------------------------

    def _log(self, trainer: Trainer, measurement: StepMeasurement) -> None:
        clipped = None
        if self._clipped:
            clipped = torch.stack(self._clipped).float().mean()
        self._clipped = []
        values = measurement.read(trainer, clipped)
        total = math.hypot(*values["norms"].values())
        metrics = {"gradients/norm": total}
        metrics |= self._block_metrics(measurement.names, values)
        metrics |= _activation_metrics(measurement, values)
        if values["small"]:
            self._add_noise(measurement, values["small"]["all"], total)
            if self._signal.mean > 0:
                metrics["gradients/noise_scale"] = self._noise.mean / self._signal.mean
        if values["clipped"]:
            metrics["gradients/clipped"] = values["clipped"]["all"]
        self.metrics = metrics
        # Not by module.log: with Trainer.log_every_n_steps it would drop most of these steps.
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=logged_step(trainer))
        self._analyse(trainer, measurement, total, values)
        self._clip_probe = _smallest_with_gradient(measurement, values)

    def _block_metrics(self, names: list[str], values: Values) -> dict[str, float]:
        metrics: dict[str, float] = {}
        blocks = group_into_blocks(names, self.max_blocks)
        for block, members in blocks.items():
            metrics[f"gradients/norm/{block}"] = _joint_norm(values["norms"], members)
        for block, members in blocks.items():
            weight = _joint_norm(values["weights"], members)
            # A block whose weights are initialised to 0 has no norm to divide by.
            if weight:
                metrics[f"gradients/update_ratio/{block}"] = _joint_norm(values["updates"], members) / weight
        return metrics

    def _add_noise(self, measurement: StepMeasurement, small: float, total: float) -> None:
        batch = measurement.samples
        signal, noise = noise_scale_terms(small, total**2, batch, batch * measurement.num_parts)
        if math.isfinite(signal) and math.isfinite(noise):
            self._signal.add(signal)
            self._noise.add(noise)

    # --- warnings --------------------------------------------------------------------------------------------------

    def _analyse(self, trainer: Trainer, measurement: StepMeasurement, total: float, values: Values) -> None:
        layers = _layer_norms(values["norms"])
        self.layers = list(layers)
        self.steps.append(measurement.step)
        self.history.append(list(layers.values()))
        self._with_gradient |= {layer for layer, norm in layers.items() if norm}
        without_gradient: list[str] = []
        if len(self.steps) > 1:
            without_gradient = [layer for layer in layers if layer not in self._with_gradient]
        self.stats = GradientStats(
            step=measurement.step,
            norm=total,
            layers=layers,
            rms=_gradient_rms(measurement, values["norms"]),
            without_gradient=without_gradient,
            dead=values["dead"],
            saturated=values["saturated"],
        )
        if getattr(trainer.precision_plugin, "scaler", None) and not math.isfinite(total):
            # An overflow is normal with a gradient scaler: it skips the step and halves its scale.
            return
        problems = {_kind(problem): problem for problem in find_problems(self.stats)}
        for kind, problem in problems.items():
            # A single batch may be an outlier; but after one explosion there may be no finite weight left to measure.
            confirmed = kind in self._suspected or kind == "exploding"
            if confirmed and kind not in self._warned:
                rank_zero_warn(f"GradientDiagnostics, step {measurement.step}: {problem}")
                self._warned.add(kind)
        self._suspected = set(problems)

    def release(self) -> None:
        """Remove the hooks and references to the weights."""
        if self._measurement is not None:
            self._measurement.close()
            self._measurement = None
        self._clip_probe = None
        self._before = None
        self._clipped = []

    @fail_safe()
    def _finish(self, trainer: Trainer) -> None:
        self.release()
        if not self.heatmap or not self.history:
            return
        if trainer.is_global_zero:
            figure = heat_map(self.layers, self.steps, self.history)
            save_and_log_figure(trainer, figure, self._folder / "gradients.png", dpi=120)


class _RunningAverage:
    """Exponential moving average with bias correction."""

    def __init__(self, value: float = 0.0, weight: float = 0.0) -> None:
        self.value = value
        self.weight = weight

    def add(self, value: float, keep: float = 0.9) -> None:
        self.value = keep * self.value + (1 - keep) * value
        self.weight = keep * self.weight + (1 - keep)

    @property
    def mean(self) -> float:
        if not self.weight:
            return 0.0
        return self.value / self.weight


def _activation_metrics(measurement: StepMeasurement, values: Values) -> dict[str, float]:
    """Return the fractions of dead and saturated units over all activations of the network."""
    metrics: dict[str, float] = {}
    for key in ("dead", "saturated"):
        fractions = values[key]
        if fractions:
            sizes = measurement.sizes[key]
            units = sum(fractions[name] * sizes[name] for name in fractions)
            metrics[f"gradients/{key}"] = units / sum(sizes.values())
    return metrics


def _smallest_with_gradient(measurement: StepMeasurement, values: Values) -> Tensor | None:
    """Return the smallest parameter with a finite gradient other than 0, from which clipping is detected cheaply."""
    candidates: list[Tensor] = []
    for param, norm in zip(measurement.params, values["norms"].values(), strict=True):
        if 0 < norm < math.inf:
            candidates.append(param)
    return min(candidates, key=lambda param: param.numel(), default=None)


def _layer_norms(norms: dict[str, float]) -> dict[str, float]:
    """Return the gradient norm of each module with parameters of its own."""
    members: dict[str, list[str]] = defaultdict(list)
    for name in norms:
        members[module_of(name)].append(name)
    return {layer: _joint_norm(norms, names) for layer, names in members.items()}


def _gradient_rms(measurement: StepMeasurement, norms: dict[str, float]) -> dict[str, float]:
    """Return the root mean square of the gradient of each parameter with at least two dimensions."""
    rms: dict[str, float] = {}
    for name, param in zip(measurement.names, measurement.params, strict=True):
        if param.ndim > 1:
            rms[name] = norms[name] / math.sqrt(param.numel())
    return rms


def _joint_norm(norms: dict[str, float], names: list[str]) -> float:
    return math.hypot(*(norms[name] for name in names))


def _kind(problem: str) -> str:
    """Return what identifies a problem: the layer where a gradient begins to vanish may differ between steps."""
    word = problem.split()[0]
    if word in ("vanishing", "exploding"):
        return word
    return problem
