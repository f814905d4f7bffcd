"""What the name of a metric tells."""

from collections.abc import Iterable
from typing import Literal


def names(logs: Iterable[str]) -> str:
    """The metrics that a run logs, for an error."""
    return ", ".join(sorted(logs)) or "none"


def metric_mode(metric: str) -> Literal["min", "max"]:
    """Whether a metric of this name is better high or low."""
    high = ("accuracy", "acc", "top5", "f1", "auroc", "r2", "precision", "recall", "bleu", "chrf", "match")
    return "max" if any(part in metric.rpartition("/")[2].lower() for part in high) else "min"
