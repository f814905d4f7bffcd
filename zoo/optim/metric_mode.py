"""Whether a metric is better high or low, by its name."""

from collections.abc import Iterable
from typing import Literal

HIGHER_IS_BETTER = ("accuracy", "acc", "top5", "f1", "auroc", "r2", "precision", "recall", "bleu", "chrf", "match")


def names(logs: Iterable[str]) -> str:
    """Return the names of logged metrics, for an error message."""
    return ", ".join(sorted(logs)) or "none"


def metric_mode(metric: str) -> Literal["min", "max"]:
    """Return "max" for a metric that is better high, such as ``val/accuracy``, else "min"."""
    name = metric.rpartition("/")[2].lower()
    if any(part in name for part in HIGHER_IS_BETTER):
        return "max"
    return "min"
