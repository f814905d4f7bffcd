"""A progress bar on a terminal, for work on data that takes a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

MIN_TOTAL = 2000  # items below which no bar is shown
MIN_BYTES = 4 << 20  # bytes below which no bar is shown


@contextmanager
def progress_bar(total: int, title: str, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr where that is a terminal; yield a function that advances it.

    Args:
        total: number of items; for few of them no bar is shown.
        title: text in front of the bar.
        in_bytes: whether the items are bytes, which are shown in megabytes.
    """
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    least = MIN_BYTES if in_bytes else MIN_TOTAL
    if not console.is_terminal or total < least:
        yield lambda done: None  # a bar that is disabled prints an empty line in rich before 14.3
        return
    title_column, bar_column, amount_column, *_ = Progress.get_default_columns()
    if in_bytes:
        amount_column = DownloadColumn()
    columns = (title_column, bar_column, amount_column, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield partial(bar.advance, bar.add_task(title, total=total))
