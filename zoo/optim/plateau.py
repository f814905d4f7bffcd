"""The learning-rate schedule that drops when a metric stops improving."""

from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from zoo.optim.metric_mode import metric_mode


class Plateau(ReduceLROnPlateau):
    """torch's ReduceLROnPlateau, with the task's metric and its direction as defaults; stepped after every epoch.

    Args:
        optimizer: the optimizer whose learning rates are reduced.
        monitor: the metric to monitor; null is the task's own (``val/accuracy`` of a classifier), or ``val/loss``.
        mode: whether ``min`` or ``max`` is better; null infers it from the metric's name.
        factor: factor on the learning rate at each drop.
        patience: epochs without improvement before a drop.
        threshold: the smallest relative change that counts as an improvement.
        cooldown: epochs after a drop in which patience is not counted.
        min_lr: lower bound of every group's learning rate.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        if not 0 < factor < 1:
            raise ValueError(f"Plateau: factor is {factor}, but must be between 0 and 1")
        self.monitor = monitor
        self.user_mode = mode
        mode = mode or metric_mode(monitor or "val/loss")
        super().__init__(optimizer, mode, factor, patience, threshold, cooldown=cooldown, min_lr=min_lr)


def plateau_monitor(schedule: ReduceLROnPlateau, monitor: str, mode: str) -> str:
    """Return the metric that a plateau schedule monitors; zoo's gets the task's own where the user has named none.

    Args:
        schedule: zoo's, Lightning's (which has a ``monitor``) or torch's (which has none).
        monitor: the task's own metric.
        mode: whether ``min`` or ``max`` of it is better.

    Returns:
        The metric's name. For torch's schedule it suits its ``mode``: ``val/loss`` for min, else the task's.

    Raises:
        ValueError: torch's has mode "max", and the task's metric is better low.
    """
    named = getattr(schedule, "monitor", None)
    if named is not None:
        return named
    if isinstance(schedule, Plateau):
        schedule.monitor = monitor
        schedule.load_state_dict({"mode": schedule.user_mode or mode})  # which sets the worst value, too
        schedule.best = schedule.mode_worse
        return monitor
    if schedule.mode == mode:
        return monitor
    if schedule.mode == "max":
        raise ValueError(f"ReduceLROnPlateau has mode max, but {monitor} is better low; name a metric with Plateau")
    return "val/loss"
