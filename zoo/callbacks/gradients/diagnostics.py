"""What gradients tell about a net in training: norms, size of updates, dead units, noise, and a verdict in words."""

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


class GradientDiagnostics(Callback):
    """Measures gradients after unscaling and before clipping, once an interval, and says in words what is wrong.

    Logs a few keys. Blocks are modules, opened from the root down while there is room (see `group_into_blocks`):
    `gradients/norm` and `gradients/norm/<block>`, L2 norms of the gradient that the optimizer gets;
    `gradients/update_ratio/<block>`, the step's length over the weights' (about 1e-3 is usual);
    `gradients/dead`, share of ReLU units that gave 0 for the whole batch (units are channels of images, else features);
    `gradients/saturated`, share of tanh and sigmoid outputs at an end of their range, 99 % of the way from its middle;
    both see modules, not functions, on the first process;
    `gradients/noise_scale`, the batch size in samples where noise and signal of the gradient are equal (McCandlish et
    al., "An Empirical Model of Large-Batch Training", 2018, arXiv:1812.06162): only with gradient accumulation or
    several processes, and not for sharded parameters;
    `gradients/clipped`, share of steps since the last measurement that were clipped: only with `gradient_clip_val`.
    Warns once of each verdict that two measurements in a row agree on, of an explosion at once. Training is not changed
    by a bit; a measured step needs room for one more copy of the weights. With several optimizers, that of the measured
    step is meant.

    Args:
        every_n_steps: optimizer steps between measurements; the first step is measured.
        max_blocks: highest number of blocks, so of keys of a kind.
        heatmap: whether `gradients.png`, the norm of each layer at each measurement, is drawn when training ends, in
            the run folder and for the logger if that takes pictures.
        dirpath: folder for the picture; by default the logger's, or else the trainer's `default_root_dir`.
    """

    def __init__(
        self, every_n_steps: int = 50, max_blocks: int = 6, heatmap: bool = True, dirpath: str | None = None
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps}: must be at least 1")
        if max_blocks < 1:
            raise ValueError(f"max_blocks={max_blocks}: must be at least 1")
        self.every_n_steps, self.max_blocks, self.heatmap, self.dirpath = every_n_steps, max_blocks, heatmap, dirpath
        self.stats: GradientStats | None = None
        self.metrics: dict[str, float] = {}
        self.steps: list[int] = []
        self.history: list[list[float]] = []
        self._signal, self._noise = _Mean(), _Mean()
        self._with_gradient: set[str] = set()
        self._suspected: set[str] = set()
        self._warned: set[str] = set()
        self.layers: list[str] = []
        self._folder = Path()
        self._clip_probe: Tensor | None = None
        self._before: Tensor | None = None
        self._clipped: list[Tensor] = []
        self._measurement: StepMeasurement | None = None

    # --- hooks -----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # log_dir is agreed on by all processes, so it must not be asked for when one of them has failed
        self._folder = output_folder(trainer, self.dirpath)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.every_n_steps:
            return
        if self._measurement is None:
            self._measurement = StepMeasurement(trainer, pl_module, batch)
        self._measurement.new_forward()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._measurement is not None and not accumulates(trainer):
            self._measurement.after_backward()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._measurement is not None:
            self._measurement.before_step(optimizer)
        by_norm = trainer.gradient_clip_val and trainer.gradient_clip_algorithm in (None, "norm")
        if by_norm and self._clip_probe is not None and self._clip_probe.grad is not None:
            self._before = self._clip_probe.grad.detach().clone()

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        # Clipping scales all gradients alike, so one small tensor tells, where another norm would cost a percent.
        if self._before is not None and self._clip_probe is not None and self._clip_probe.grad is not None:
            self._clipped.append(local_shard(self._before).ne(local_shard(self._clip_probe.grad)).any())
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
        self.layers, self.steps = list(state_dict["layers"]), list(state_dict["steps"])
        self.history = list(state_dict["history"])
        noise = state_dict["noise"]
        self._signal, self._noise = _Mean(*noise[:2]), _Mean(*noise[2:])
        self._with_gradient, self._suspected = set(state_dict["with_gradient"]), set(state_dict["suspected"])
        self._warned = set(state_dict["warned"])

    # --- from numbers to keys and words ----------------------------------------------------------------------------

    def _log(self, trainer: Trainer, measurement: StepMeasurement) -> None:
        clipped = torch.stack(self._clipped).float().mean() if self._clipped else None
        self._clipped = []
        values = measurement.read(trainer, clipped)
        total = math.hypot(*values["norms"].values())
        metrics = {"gradients/norm": total}
        groups = group_into_blocks(measurement.names, self.max_blocks)
        for block, members in groups.items():
            metrics[f"gradients/norm/{block}"] = _joint_norm(values["norms"], members)
        for block, members in groups.items():
            # weights that are all zero, as some are made, have no size to compare with
            if weight := _joint_norm(values["weights"], members):
                metrics[f"gradients/update_ratio/{block}"] = _joint_norm(values["updates"], members) / weight
        for key in ("dead", "saturated"):
            if shares := values[key]:
                sizes = measurement.sizes[key]
                metrics[f"gradients/{key}"] = sum(shares[k] * sizes[k] for k in shares) / sum(sizes.values())
        if values["small"]:
            signal, noise = noise_scale_terms(
                values["small"]["all"], total**2, measurement.samples, measurement.samples * measurement.num_parts
            )
            if math.isfinite(signal) and math.isfinite(noise):
                self._signal.add(signal)
                self._noise.add(noise)
            if self._signal.mean > 0:
                metrics["gradients/noise_scale"] = self._noise.mean / self._signal.mean
        if values["clipped"]:
            metrics["gradients/clipped"] = values["clipped"]["all"]
        self.metrics = metrics
        # Trainer.log_every_n_steps would drop what module.log is given at most of these steps.
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=logged_step(trainer))
        self._analyse(trainer, measurement, total, values)
        there = [p for p, norm in zip(measurement.params, values["norms"].values(), strict=True) if 0 < norm < math.inf]
        self._clip_probe = min(there, key=lambda param: param.numel(), default=None)

    def _analyse(
        self, trainer: Trainer, measurement: StepMeasurement, total: float, values: dict[str, dict[str, float]]
    ) -> None:
        norms = values["norms"]
        members: dict[str, list[str]] = defaultdict(list)
        for name in norms:
            members[module_of(name)].append(name)
        layers = {layer: _joint_norm(norms, names) for layer, names in members.items()}
        self.layers = list(layers)
        self.steps.append(measurement.step)
        self.history.append(list(layers.values()))
        self._with_gradient |= {layer for layer, norm in layers.items() if norm}
        without_gradient = (
            [layer for layer in layers if layer not in self._with_gradient] if len(self.steps) > 1 else []
        )
        sizes = {
            name: param.numel()
            for name, param in zip(measurement.names, measurement.params, strict=True)
            if param.ndim > 1
        }
        rms = {name: norms[name] / math.sqrt(size) for name, size in sizes.items()}
        self.stats = GradientStats(
            measurement.step, total, layers, rms, without_gradient, values["dead"], values["saturated"]
        )
        if getattr(trainer.precision_plugin, "scaler", None) and not math.isfinite(total):
            return  # the scaler skips this step and halves its scale, as is usual
        problems = {_kind(problem): problem for problem in find_problems(self.stats)}
        for kind, problem in problems.items():
            # One odd batch is no verdict; but one explosion can throw the weights where nothing is left to see.
            if kind not in self._warned and (kind in self._suspected or kind == "exploding"):
                rank_zero_warn(f"GradientDiagnostics, step {measurement.step}: {problem}")
                self._warned.add(kind)
        self._suspected = set(problems)

    def _finish(self, trainer: Trainer) -> None:
        if self._measurement is not None:
            self._measurement.close()
            self._measurement = None
        self._clip_probe, self._before, self._clipped = None, None, []
        if not (self.heatmap and self.history):
            return
        if trainer.is_global_zero:
            figure = heat_map(self.layers, self.steps, self.history)
            save_and_log_figure(trainer, figure, self._folder / "gradients.png", dpi=120)


class _Mean:
    """Running mean that forgets, unbiased from the start."""

    def __init__(self, value: float = 0.0, weight: float = 0.0) -> None:
        self.value, self.weight = value, weight

    def add(self, value: float, keep: float = 0.9) -> None:
        self.value = keep * self.value + (1 - keep) * value
        self.weight = keep * self.weight + (1 - keep)

    @property
    def mean(self) -> float:
        return self.value / self.weight if self.weight else 0.0


def _joint_norm(lengths: dict[str, float], members: list[str]) -> float:
    return math.hypot(*(lengths[name] for name in members))


def _kind(verdict: str) -> str:
    """What makes two verdicts the same one: where a gradient begins to vanish may move by a layer."""
    word = verdict.split()[0]
    return word if word in ("vanishing", "exploding") else verdict
