"""Learning-rate schedules by step; their formulas, and the meaning of step 0, are in :mod:`zoo.optim.curves`."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.optim import curves


class Schedule(LRScheduler):
    """Base of schedules that set every group's learning rate to its peak (``initial_lr``) times a factor of the step.

    Groups keep their ratios. Nothing is computed from the previous step, so a resumed run is exact; resumed with
    another length, the schedule continues on the curve of the new length. Checkpoints hold plain numbers only.

    Args:
        optimizer: the optimizer; its groups' learning rates are the peaks.
        total_steps: length of the run, in optimizer steps; filled in by the task.
        options: further arguments of ``curve``.

    Raises:
        ValueError: ``total_steps`` is missing or not a positive whole number, or an option is out of range.
    """

    interval = "step"
    curve: Callable[..., float]

    def __init__(self, optimizer: Optimizer, total_steps: int | None, **options: Any) -> None:
        name = type(self).__name__
        if total_steps is None:
            raise ValueError(f"{name} needs total_steps: the task fills it in; outside of a task, give it yourself")
        if not isinstance(total_steps, int) or total_steps < 1:
            raise ValueError(f"{name}: total_steps is {total_steps}, but must be a whole number of at least 1")
        self.total_steps = total_steps
        self.options = options
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """Return the factor at any step, past or future.

        Args:
            step: from 0; past the last step the last value holds.

        Returns:
            The learning rate divided by its peak.
        """
        return self.curve(min(step, self.total_steps - 1), self.total_steps, **self.options)

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rates of the current step.

        Returns:
            One learning rate per group.
        """
        factor = self.factor(self.last_epoch)
        return [base * factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the peaks; length and shape belong to the configuration.

        Returns:
            Plain numbers.
        """
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the saved step, and set the learning rates of that step.

        Args:
            state_dict: a value of :meth:`state_dict`.

        Raises:
            ValueError: the optimizer has another number of groups.
        """
        groups = self.optimizer.param_groups
        peaks = state_dict["base_lrs"]
        if len(peaks) != len(groups):
            raise ValueError(f"the saved schedule has {len(peaks)} parameter groups, but the optimizer {len(groups)}")
        for group, peak in zip(groups, peaks, strict=True):
            group["initial_lr"] = peak
        self.base_lrs = list(peaks)
        self.last_epoch = state_dict["last_epoch"]
        self._last_lr = self.get_lr()
        for group, lr in zip(groups, self._last_lr, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr


class _WarmupAnneal(Schedule):
    """Linear warmup, then annealing to a floor in the shape of the subclass.

    Args:
        optimizer: the optimizer; its groups' learning rates are the peaks.
        total_steps: length of the run, in optimizer steps; filled in by the task.
        warmup: fraction of the run (0.05) or number of steps (500).
        min_ratio: the final learning rate, as a fraction of the peak.
    """

    curve = staticmethod(curves.warmup_anneal)
    shape: curves.Shape

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        warmup: int | float = 0.05,
        min_ratio: float = 0.0,
    ) -> None:
        super().__init__(optimizer, total_steps, warmup=warmup, min_ratio=min_ratio, shape=self.shape)


class WarmupCosine(_WarmupAnneal):
    """Linear warmup and cosine decay (Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983).

    Without the paper's restarts.
    """

    shape = "cosine"


class WarmupLinear(_WarmupAnneal):
    """Linear warmup and linear decay."""

    shape = "linear"


class WarmupStableDecay(Schedule):
    """Linear warmup, a constant phase, and a decay at the end: WSD (Hu et al. 2024, https://arxiv.org/abs/2404.06395).

    The sqrt shape is from Hägele et al. 2024, https://arxiv.org/abs/2405.18392.

    Args:
        optimizer: the optimizer; its groups' learning rates are the peaks.
        total_steps: length of the run, in optimizer steps; filled in by the task.
        warmup: fraction of the run (0.05) or number of steps (500).
        decay: fraction of the run or number of steps, at the end.
        min_ratio: the final learning rate, as a fraction of the peak.
        shape: shape of the decay: a line, half a cosine, or 1 - sqrt(progress).
    """

    curve = staticmethod(curves.warmup_stable_decay)

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        warmup: int | float = 0.05,
        decay: int | float = 0.2,
        min_ratio: float = 0.0,
        shape: Literal["linear", "cosine", "sqrt"] = "linear",
    ) -> None:
        super().__init__(optimizer, total_steps, warmup=warmup, decay=decay, min_ratio=min_ratio, shape=shape)


class OneCycle(Schedule):
    """One-cycle schedule: half a cosine up, half a cosine down (Smith and Topin 2017, https://arxiv.org/abs/1708.07120).

    The values of torch's OneCycleLR, but every group keeps its own peak. The momentum (SGD, Muon, RMSprop) or first
    beta (Adam, Lion) cycles inversely to the learning rate.

    Args:
        optimizer: the optimizer; its groups' learning rates are the peaks.
        total_steps: length of the run, in optimizer steps; filled in by the task.
        pct_start: fraction of the run in which the learning rate rises.
        div_factor: the peak divided by the initial learning rate.
        final_div_factor: the initial learning rate divided by the final one.
        cycle_momentum: cycle the momentum too, in groups that have one; it replaces the optimizer's own.
        base_momentum: momentum at the peak of the learning rate.
        max_momentum: momentum at the start and the end.
    """

    curve = staticmethod(curves.one_cycle)

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
    ) -> None:
        if not 0 <= pct_start <= 1:
            raise ValueError(f"OneCycle: pct_start is {pct_start}, but must be a fraction of the run in [0, 1]")
        self.cycle_momentum = cycle_momentum
        self.base_momentum = base_momentum
        self.max_momentum = max_momentum
        options = {"pct_start": pct_start, "div_factor": div_factor, "final_div_factor": final_div_factor}
        super().__init__(optimizer, total_steps, **options)

    def momentum(self, step: int) -> float:
        """Return the momentum at any step, past or future.

        Args:
            step: from 0; past the last step the last value holds.

        Returns:
            A value between ``base_momentum`` and ``max_momentum``.
        """
        step = min(step, self.total_steps - 1)
        height = curves.cycle_height(step, self.total_steps, self.options["pct_start"])
        return self.max_momentum + (self.base_momentum - self.max_momentum) * height

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rates of the current step, and set its momenta, as torch's OneCycleLR does here.

        Returns:
            One learning rate per group.
        """
        if not self.cycle_momentum:
            return super().get_lr()
        momentum = self.momentum(self.last_epoch)
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif "momentum" in group:
                group["momentum"] = momentum
        return super().get_lr()


class StepDecay(Schedule):
    """Step decay: the learning rate drops by a factor at each milestone.

    Args:
        optimizer: the optimizer; its groups' learning rates are the peaks.
        total_steps: length of the run, in optimizer steps; filled in by the task.
        milestones: fractions of the run (0.5) or steps (10000) at which the rate drops.
        gamma: factor of each drop.
        warmup: fraction of the run or number of steps.
    """

    curve = staticmethod(curves.step_decay)

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        milestones: Sequence[int | float] = (0.5, 0.75),
        gamma: float = 0.1,
        warmup: int | float = 0,
    ) -> None:
        super().__init__(optimizer, total_steps, milestones=list(milestones), gamma=gamma, warmup=warmup)


class Constant(Schedule):
    """A constant learning rate, with an optional linear warmup.

    Args:
        optimizer: the optimizer; its groups' learning rates are the peaks.
        total_steps: length of the run, in optimizer steps; filled in by the task.
        warmup: fraction of the run or number of steps.
    """

    curve = staticmethod(curves.constant)

    def __init__(self, optimizer: Optimizer, total_steps: int | None = None, warmup: int | float = 0) -> None:
        super().__init__(optimizer, total_steps, warmup=warmup)
