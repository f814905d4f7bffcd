"""Which of several processes this is."""

from lightning.pytorch.utilities.rank_zero import rank_zero_only


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes files."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]
