"""A progress bar on a terminal, for work on data that takes a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

MIN_TOTAL = 2000  # items below which no bar is shown


@contextmanager
def progress_bar(total: int, title: str) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr where that is a terminal; yield a function that advances it.

    Args:
        total: number of items; for few of them no bar is shown.
        title: text in front of the bar.
    """
    from rich.console import Console
    from rich.progress import Progress, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal or total < MIN_TOTAL:
        yield lambda done: None  # a bar that is disabled prints an empty line in rich before 14.3
        return
    columns = (*Progress.get_default_columns()[:3], TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield partial(bar.advance, bar.add_task(title, total=total))
