"""Gradual unfreezing: the head first, then more layers, then all (Howard and Ruder 2018, https://arxiv.org/abs/1801.06146)."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from zoo.adapters import network
from zoo.callbacks.phases import Phase, check_plan, frozen_modules, matching_tensors, phase_at, summarize_names


class FineTuning(L.Callback):
    """Gradual unfreezing: train some layers at first and more later, by a plan of phases; exact after a resume.

    The phase is a function of epoch and step alone. Layers that a phase does not train are frozen: no gradient, no
    weight decay or momentum, and modules without a trainable parameter are in eval mode, so that their normalisation
    keeps its running statistics and their dropout is off. Modules without parameters or buffers follow their parent.
    Parameters that the network itself freezes stay frozen. ``lr_scale`` is applied within the optimizer step only:
    schedules, loggers and checkpoints see the rate of the schedule. The optimizer has to hold all parameters from the
    start, as zoo's does. Works on one device and with DDP. Names are those in ``module.net`` if there is one, else in
    the module. Logs no metrics.

    Args:
        plan: the phases in order; each but the last has ``until``, as in
            ``[{until: 2 epochs, train: head}, {train: all, lr_scale: 0.1}]``.
    """

    def __init__(self, plan: list[Phase]) -> None:
        # In Python, too, a phase may be written as in a config: {"until": "2 epochs", "train": "head"}.
        self.plan = [phase if isinstance(phase, Phase) else Phase(**phase) for phase in plan]
        check_plan(self.plan)
        self.phase: int | None = None
        # One entry per phase.
        self._trainable: list[set[Tensor]] = []
        self._frozen_modules: list[list[nn.Module]] = []
        # Parameters and training modes of the network before fine-tuning.
        self._params: list[nn.Parameter] = []
        self._modes: dict[nn.Module, bool] = {}
        # Parameter groups and their unscaled rates during an optimizer step.
        self._rates: list[tuple[dict[str, Any], Any]] = []
        self._hooks: list[Any] = []

    # Not in setup: modules, optimizers and the DDP wrapper may be created after it.
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        net = network(pl_module)
        self._params = [p for p in net.parameters() if p.requires_grad]
        self._modes = {module: module.training for module in net.modules()}
        self._trainable = []
        self._frozen_modules = []
        for phase in self.plan:
            tensors = matching_tensors(net, phase)
            self._trainable.append({p for p in self._params if p in tensors})
            self._frozen_modules.append(frozen_modules(net, tensors))
        self._check_plan(trainer, net)
        for optimizer in trainer.optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._scale_lr))
            self._hooks.append(optimizer.register_step_post_hook(self._unscale_lr))
        self._enter_phase(trainer)

    # Again, as epoch and step of a checkpoint are restored only now.
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._enter_phase(trainer)
        self._keep_frozen_in_eval()
        self._warn_if_too_short(trainer, pl_module)

    def _warn_if_too_short(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epochs, steps = _length(trainer)
        last = phase_at(self.plan, epochs - 1, steps - 1)
        never = set[Tensor](self._params).difference(*self._trainable[: last + 1])
        if never and last < len(self.plan) - 1:
            names = ", ".join(summarize_names(network(pl_module), never))
            rank_zero_warn(
                f"FineTuning: the run ends before phase {last + 2} begins, so these are never trained: {names}"
            )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._enter_phase(trainer)
        self._keep_frozen_in_eval()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._restore()

    def _enter_phase(self, trainer: L.Trainer) -> None:
        phase = phase_at(self.plan, trainer.current_epoch, trainer.global_step)
        if phase == self.phase:
            return
        self._restore_modes()
        self.phase = phase
        trainable = self._trainable[phase]
        changed = [p for p in self._params if p.requires_grad != (p in trainable)]
        for param in changed:
            param.requires_grad_(param in trainable)
            # An optimizer skips a parameter without a gradient: no weight decay, no momentum.
            param.grad = None
        strategy = trainer.strategy
        if changed and isinstance(strategy, DDPStrategy):
            # DDP reduces exactly the gradients that were required when it was built, so it has to be rebuilt.
            strategy.model = strategy.lightning_module
            strategy.configure_ddp()

    def _keep_frozen_in_eval(self) -> None:
        """Put frozen modules in eval mode; another callback may have called ``train()`` since the last batch."""
        assert self.phase is not None
        for module in self._frozen_modules[self.phase]:
            if module.training:
                module.training = False

    def _restore_modes(self) -> None:
        if self.phase is None:
            return
        for module in self._frozen_modules[self.phase]:
            module.training = self._modes[module]

    def _restore(self) -> None:
        """Restore the module and the optimizers to their state before fine-tuning."""
        self._unscale_lr()
        self._restore_modes()
        for param in self._params:
            param.requires_grad_(True)
        for hook in self._hooks:
            hook.remove()
        self.phase = None
        self._params = []
        self._modes = {}
        self._hooks = []
        self._trainable = []
        self._frozen_modules = []

    def _scale_lr(self, optimizer: Optimizer, *_: Any) -> None:
        assert self.phase is not None
        lr_scale = self.plan[self.phase].lr_scale
        self._rates = [(group, group["lr"]) for group in optimizer.param_groups]
        for group, lr in self._rates:
            group["lr"] = lr * lr_scale

    def _unscale_lr(self, *_: Any) -> None:
        for group, lr in self._rates:
            group["lr"] = lr
        self._rates = []

    def _check_plan(self, trainer: L.Trainer, net: nn.Module) -> None:
        """Raise a ValueError for a plan that this network, optimizer or strategy cannot follow."""
        if isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy)):
            name = type(trainer.strategy).__name__
            raise ValueError(f"FineTuning cannot freeze parameters that {name} flattens: use ddp")
        optimized: set[Tensor] = set()
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                optimized.update(group["params"])
        has_lbfgs = any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers)
        before: set[Tensor] = set()
        for i, trainable in enumerate(self._trainable):
            phase = f"phase {i + 1} of FineTuning"
            if not trainable:
                patterns = ", ".join(self.plan[i].patterns)
                raise ValueError(f"{phase} would train nothing: the network itself freezes {patterns}")
            missing = trainable - optimized
            if missing:
                names = ", ".join(summarize_names(net, missing))
                raise ValueError(f"{phase} trains {names}, but no optimizer holds them")
            # LBFGS updates all parameters along directions from its history, also those without a gradient.
            if has_lbfgs and before - trainable:
                raise ValueError(f"{phase} freezes layers, but LBFGS would still update them from its history")
            before = trainable


def _length(trainer: L.Trainer) -> tuple[float, float]:
    """Return the epochs and the optimizer steps of the run; infinite where unknown."""
    steps = trainer.estimated_stepping_batches
    batches = trainer.num_training_batches
    if math.isinf(steps) or math.isinf(batches):
        return math.inf, steps
    steps_per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    return math.ceil(steps / steps_per_epoch), steps
