"""The line that tells the user how many texts are longer than ``max_length``."""

from __future__ import annotations

from collections.abc import Iterable

from zoo.distributed import say


def report_truncated(lengths: Iterable[int], max_length: int, what: str) -> bool:
    """Print how many texts lose their ends, if any do, and return whether that is so.

    Args:
        lengths: number of tokens of each text.
        max_length: number of tokens that are kept.
        what: what the texts are called, such as ``texts of val``.
    """
    lengths = list(lengths)
    longer = [length for length in lengths if length > max_length]
    if not longer:
        return False
    counts = f"{len(longer):,} of {len(lengths):,} {what} are longer than max_length={max_length} tokens"
    say(f"{counts} (the longest has {max(longer):,}): their ends are left out")
    return True
