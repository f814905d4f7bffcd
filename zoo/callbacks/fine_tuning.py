"""Fine-tuning by plan: the head first, then more, then all (Howard and Ruder 2018, https://arxiv.org/abs/1801.06146)."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from zoo.optim.anatomy import output_head


@dataclass
class Phase:
    """A stretch of training in which some layers learn and the rest is frozen.

    Args:
        until: where it ends, counted from the start of the run: ``2 epochs`` or ``500 steps`` (updates of the weights);
            null in the last phase, and only there.
        train: what learns: ``all``, ``head``, or one or more regular expressions, each for the whole name of a module
            or parameter of the network; all inside that module is meant, so ``layer4`` or ``blocks\\.(10|11)``.
            ``head`` is the module of that name, or else the layer that computes the output.
        lr_scale: factor on the learning rates.
    """

    until: str | None = None
    train: str | list[str] = "all"
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.lr_scale <= 0:
            raise ValueError(f"lr_scale of a phase must be above 0, got {self.lr_scale}")
        if not self.train:
            raise ValueError("a phase has to train something: give it layers, head or all")
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"train: {pattern!r} is not a regular expression: {error}") from error
        _ = self.end

    @property
    def patterns(self) -> list[str]:
        return [self.train] if isinstance(self.train, str) else self.train

    @property
    def end(self) -> tuple[str, int] | None:
        """``until`` as unit and number."""
        if self.until is None:
            return None
        match = re.fullmatch(r"\s*(\d+)\s*(epoch|step)s?\s*", self.until)
        if not match or int(match[1]) == 0:
            raise ValueError(f"until is a number of epochs or steps, such as '2 epochs', got {self.until!r}")
        return match[2], int(match[1])

    def over(self, epoch: float, step: float) -> bool:
        return self.end is not None and (epoch if self.end[0] == "epoch" else step) >= self.end[1]


def check_plan(plan: list[Phase]) -> None:
    """Refuse a plan in which a phase has no end or no time."""
    if not plan:
        raise ValueError("the plan of FineTuning is empty: give it at least one phase")
    reached: dict[str, int] = {}
    for i, phase in enumerate(plan, 1):
        if (phase.end is None) != (i == len(plan)):
            said = f"'{phase.until}' in the last phase" if phase.until else f"missing in phase {i} of {len(plan)}"
            raise ValueError(f"every phase but the last says until when; until is {said}")
        unit, number = phase.end or ("", 0)
        if phase.end and number <= reached.get(unit, 0):
            raise ValueError(f"phase {i} lasts until {phase.until}, but that is over when it begins")
        reached[unit] = number


def phase_at(plan: list[Phase], epoch: float, step: float) -> int:
    """Return the index of the phase in force: the first that is not over.

    Args:
        plan: the phases; the last has no end.
        epoch: epochs done.
        step: updates of the weights done.
    """
    return next(i for i, phase in enumerate(plan) if not phase.over(epoch, step))


def chosen(net: nn.Module, phase: Phase) -> set[Tensor]:
    """Return the parameters and buffers that a phase names; a tied parameter counts under all its names."""
    tensors = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
    everything: set[Tensor] = set()
    for pattern in phase.patterns:
        found = {tensor for name, tensor in tensors if pattern == "all" or _names(pattern, name)}
        if not found and pattern == "head":
            found = _head(net)
        if not found:
            known = sorted({prefix for name, _ in tensors for prefix in _prefixes(name)})
            near = ", ".join(difflib.get_close_matches(pattern, known, n=3, cutoff=0.0))
            raise ValueError(
                f"train: {pattern!r} matches nothing in {type(net).__name__}; the nearest names are {near}"
            )
        everything |= found
    return everything


def still(net: nn.Module, learning: set[Tensor]) -> list[nn.Module]:
    """Return the modules that hold parameters or buffers of which none learns, and all modules inside these."""
    frozen = [m for m in net.modules() if (held := {*m.parameters(), *m.buffers()}) and held.isdisjoint(learning)]
    return list(dict.fromkeys(inner for module in frozen for inner in module.modules()))


def describe(
    plan: list[Phase], module: nn.Module, epochs: float = math.inf, steps: float = math.inf
) -> list[dict[str, Any]]:
    """One row per phase, and a last one for what is never trained, for the table printed before anything trains.

    Args:
        plan: the phases.
        module: the LightningModule, or a network.
        epochs: length of the run.
        steps: length of the run, in updates of the weights.

    Returns:
        Rows with ``phase`` (from 1, or ``never``), ``until``, ``train``, ``tensors`` and ``parameters`` (how many of
        them learn), ``lr_scale``, and ``reached``: whether the run is long enough. What is never trained is told by the
        names of its largest modules; parameters that the network itself keeps frozen do not count.
    """
    net, last = network(module), phase_at(plan, epochs - 1, steps - 1)
    own = [p for p in net.parameters() if p.requires_grad]
    learning = [[p for p in own if p in named] for named in (chosen(net, phase) for phase in plan)]
    rows = [
        {
            "phase": i + 1,
            "until": phase.until,
            "train": ", ".join(phase.patterns),
            "tensors": len(learning[i]),
            "parameters": sum(p.numel() for p in learning[i]),
            "lr_scale": phase.lr_scale,
            "reached": i <= last,
        }
        for i, phase in enumerate(plan)
    ]
    never = set[Tensor](own).difference(*learning[: last + 1])
    if never:
        names, size = ", ".join(_outline(net, never)), sum(p.numel() for p in never)
        row = {"phase": "never", "until": None, "train": names, "tensors": len(never), "parameters": size}
        rows.append({**row, "lr_scale": None, "reached": True})
    return rows


def network(module: nn.Module) -> nn.Module:
    """``module.net`` where there is one, else the module itself."""
    net = getattr(module, "net", None)
    return net if isinstance(net, nn.Module) else module


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
        self._own: list[nn.Parameter] = []
        self._learning: list[set[Tensor]] = []
        self._still: list[list[nn.Module]] = []
        self._modes: dict[nn.Module, bool] = {}
        self._rates: list[tuple[dict[str, Any], Any]] = []
        self._hooks: list[Any] = []

    # Not in setup: modules may be built, optimizers made and DDP wrapped around them only after it.
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        net = network(pl_module)
        self._own = [p for p in net.parameters() if p.requires_grad]
        self._modes = {module: module.training for module in net.modules()}
        named = [chosen(net, phase) for phase in self.plan]
        self._learning = [{p for p in self._own if p in tensors} for tensors in named]
        self._still = [still(net, tensors) for tensors in named]
        self._refuse(trainer, net)
        for optimizer in trainer.optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._scale))
            self._hooks.append(optimizer.register_step_post_hook(self._unscale))
        self._enter(trainer)

    # Once more, as a checkpoint's epoch and step are restored only now.
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._enter(trainer)
        self._keep_still()
        epochs, steps = _length(trainer)
        last = phase_at(self.plan, epochs - 1, steps - 1)
        never = set[Tensor](self._own).difference(*self._learning[: last + 1])
        if never and last < len(self.plan) - 1:
            names = ", ".join(_outline(network(pl_module), never))
            rank_zero_warn(
                f"FineTuning: the run ends before phase {last + 2} begins, so these are never trained: {names}"
            )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._enter(trainer)
        self._keep_still()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._leave()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._leave()

    def _enter(self, trainer: L.Trainer) -> None:
        phase = phase_at(self.plan, trainer.current_epoch, trainer.global_step)
        if phase == self.phase:
            return
        self._wake()
        self.phase, learning = phase, self._learning[phase]
        changed = [p for p in self._own if p.requires_grad != (p in learning)]
        for param in changed:
            param.requires_grad_(param in learning)
            param.grad = None
        strategy = trainer.strategy
        if changed and isinstance(strategy, DDPStrategy):
            # DDP waits for all gradients, and only for those, that were required when it was built. So build it anew.
            strategy.model = strategy.lightning_module
            strategy.configure_ddp()

    def _keep_still(self) -> None:
        """Anyone may have called ``train()`` since the last batch."""
        assert self.phase is not None
        for module in self._still[self.phase]:
            if module.training:
                module.training = False

    def _wake(self) -> None:
        for module in self._still[self.phase] if self.phase is not None else []:
            module.training = self._modes[module]

    def _leave(self) -> None:
        """Put everything back, so that whatever uses the module next finds it as it was."""
        self._unscale()
        self._wake()
        for param in self._own:
            param.requires_grad_(True)
        for hook in self._hooks:
            hook.remove()
        self.phase, self._own, self._modes, self._hooks = None, [], {}, []
        self._learning, self._still = [], []

    def _scale(self, optimizer: Optimizer, *_: Any) -> None:
        assert self.phase is not None
        self._rates = [(group, group["lr"]) for group in optimizer.param_groups]
        for group, lr in self._rates:
            group["lr"] = lr * self.plan[self.phase].lr_scale

    def _unscale(self, *_: Any) -> None:
        for group, lr in self._rates:
            group["lr"] = lr
        self._rates = []

    def _refuse(self, trainer: L.Trainer, net: nn.Module) -> None:
        """What could not work, before anything trains."""
        if isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy)):
            raise ValueError(f"FineTuning cannot freeze what {type(trainer.strategy).__name__} flattens: use ddp")
        held = {p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
        for i, learning in enumerate(self._learning):
            if not learning:
                named = ", ".join(self.plan[i].patterns)
                raise ValueError(f"phase {i + 1} of FineTuning would train nothing: the network itself freezes {named}")
            if learning - held:
                names = ", ".join(_outline(net, learning - held))
                raise ValueError(f"phase {i + 1} of FineTuning trains {names}, but no optimizer holds that")
            lbfgs = any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers)
            if lbfgs and i and self._learning[i - 1] - learning:
                raise ValueError(
                    f"phase {i + 1} of FineTuning freezes layers, but LBFGS would move them by its history"
                )


def _length(trainer: L.Trainer) -> tuple[float, float]:
    """Epochs and updates of the run; infinite where unknown."""
    steps, batches = trainer.estimated_stepping_batches, trainer.num_training_batches
    if math.isinf(steps) or math.isinf(batches):
        return math.inf, steps
    return math.ceil(steps / math.ceil(batches / trainer.accumulate_grad_batches)), steps


def _prefixes(name: str) -> list[str]:
    """``a``, ``a.b``, ``a.b.c`` of ``a.b.c``."""
    return list(accumulate(name.split("."), "{}.{}".format))


def _names(pattern: str, name: str) -> bool:
    return any(re.fullmatch(pattern, prefix) for prefix in _prefixes(name))


def _head(net: nn.Module) -> set[Tensor]:
    name = output_head(net)
    if name is None:
        raise ValueError(
            f"train: head: {type(net).__name__} has no output layer behind its blocks; name layers instead"
        )
    head = net.get_submodule(name)
    return {*head.parameters(), *head.buffers()}


def _outline(net: nn.Module, params: set[Tensor]) -> list[str]:
    """The names of the largest modules that consist of ``params``, and of parameters beside these."""
    names: list[str] = []

    def inside(name: str) -> bool:
        return any(name.startswith(f"{outer}.") for outer in names)

    for name, module in net.named_modules():
        held: set[Tensor] = {*module.parameters()}
        if name and held and held <= params and not inside(name):
            names.append(name)
    return names + [name for name, param in net.named_parameters() if param in params and not inside(name)]
