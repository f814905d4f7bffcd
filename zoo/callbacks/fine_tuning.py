"""Fine-tuning by plan: the head first, then more, then all (Howard and Ruder 2018, https://arxiv.org/abs/1801.06146)."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from zoo.callbacks.phases import Phase, check_plan, frozen_modules, matching_tensors, network, phase_at, summarize_names


class FineTuning(L.Callback):
    """Train only some layers at first and more later, by a plan that a resumed run follows as if never interrupted.

    The phase is a function of epoch and step alone. What it does not name is frozen: no gradient, no weight decay or
    momentum, and modules in which nothing learns are in eval mode, so their normalisation keeps its statistics and
    their dropout is off. Layers without parameters or buffers follow the module around them. What the network itself
    keeps frozen stays so. ``lr_scale`` acts within the optimizer's step only: schedules, loggers and checkpoints see
    the rate of the schedule. The optimizer has to hold all parameters from the start, as zoo's does. Works on one
    device and with DDP. Names are those in ``module.net`` if there is one, else in the module. Logs nothing.

    Args:
        plan: the phases in order; each but the last says ``until`` when, as in
            ``[{until: 2 epochs, train: head}, {train: all, lr_scale: 0.1}]``.
    """

    def __init__(self, plan: list[Phase]) -> None:
        check_plan(plan)
        self.plan = plan
        self.phase: int | None = None
        self._params: list[nn.Parameter] = []
        self._trainable: list[set[Tensor]] = []
        self._frozen_modules: list[list[nn.Module]] = []
        self._modes: dict[nn.Module, bool] = {}
        self._rates: list[tuple[dict[str, Any], Any]] = []
        self._hooks: list[Any] = []

    # Not in setup: modules may be built, optimizers made and DDP wrapped around them only after it.
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        net = network(pl_module)
        self._params = [p for p in net.parameters() if p.requires_grad]
        self._modes = {module: module.training for module in net.modules()}
        named = [matching_tensors(net, phase) for phase in self.plan]
        self._trainable = [{p for p in self._params if p in tensors} for tensors in named]
        self._frozen_modules = [frozen_modules(net, tensors) for tensors in named]
        self._check_plan(trainer, net)
        for optimizer in trainer.optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._scale_lr))
            self._hooks.append(optimizer.register_step_post_hook(self._unscale_lr))
        self._enter_phase(trainer)

    # Once more, as a checkpoint's epoch and step are restored only now.
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._enter_phase(trainer)
        self._keep_frozen_in_eval()
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
        self.phase, learning = phase, self._trainable[phase]
        changed = [p for p in self._params if p.requires_grad != (p in learning)]
        for param in changed:
            param.requires_grad_(param in learning)
            param.grad = None
        strategy = trainer.strategy
        if changed and isinstance(strategy, DDPStrategy):
            # DDP waits for all gradients, and only for those, that were required when it was built. So build it anew.
            strategy.model = strategy.lightning_module
            strategy.configure_ddp()

    def _keep_frozen_in_eval(self) -> None:
        """Anyone may have called ``train()`` since the last batch."""
        assert self.phase is not None
        for module in self._frozen_modules[self.phase]:
            if module.training:
                module.training = False

    def _restore_modes(self) -> None:
        for module in self._frozen_modules[self.phase] if self.phase is not None else []:
            module.training = self._modes[module]

    def _restore(self) -> None:
        """Put everything back, so that whatever uses the module next finds it as it was."""
        self._unscale_lr()
        self._restore_modes()
        for param in self._params:
            param.requires_grad_(True)
        for hook in self._hooks:
            hook.remove()
        self.phase, self._params, self._modes, self._hooks = None, [], {}, []
        self._trainable, self._frozen_modules = [], []

    def _scale_lr(self, optimizer: Optimizer, *_: Any) -> None:
        assert self.phase is not None
        self._rates = [(group, group["lr"]) for group in optimizer.param_groups]
        for group, lr in self._rates:
            group["lr"] = lr * self.plan[self.phase].lr_scale

    def _unscale_lr(self, *_: Any) -> None:
        for group, lr in self._rates:
            group["lr"] = lr
        self._rates = []

    def _check_plan(self, trainer: L.Trainer, net: nn.Module) -> None:
        """What could not work, before anything trains."""
        if isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy)):
            raise ValueError(f"FineTuning cannot freeze what {type(trainer.strategy).__name__} flattens: use ddp")
        held = {p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
        for i, learning in enumerate(self._trainable):
            if not learning:
                named = ", ".join(self.plan[i].patterns)
                raise ValueError(f"phase {i + 1} of FineTuning would train nothing: the network itself freezes {named}")
            if learning - held:
                names = ", ".join(summarize_names(net, learning - held))
                raise ValueError(f"phase {i + 1} of FineTuning trains {names}, but no optimizer holds that")
            lbfgs = any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers)
            if lbfgs and i and self._trainable[i - 1] - learning:
                raise ValueError(
                    f"phase {i + 1} of FineTuning freezes layers, but LBFGS would move them by its history"
                )


def _length(trainer: L.Trainer) -> tuple[float, float]:
    """Epochs and updates of the run; infinite where unknown."""
    steps, batches = trainer.estimated_stepping_batches, trainer.num_training_batches
    if math.isinf(steps) or math.isinf(batches):
        return math.inf, steps
    return math.ceil(steps / math.ceil(batches / trainer.accumulate_grad_batches)), steps
