"""The calendar in tensors: what numpy's datetime64 gives of seconds since 1970, within a graph."""

from __future__ import annotations

import torch
from torch import Tensor

DAY = 86400  # seconds
DAYS_BEFORE_1970 = 719468  # from 1 March of the year 0
DAYS_IN_ERA = 146097  # of 400 years


def _floor(x: Tensor, divisor: int) -> Tensor:
    return torch.div(x, divisor, rounding_mode="floor")


def days_of(seconds: Tensor) -> Tensor:
    """Return the whole days since 1970 of times in whole seconds."""
    return _floor(seconds, DAY)


def year_and_month(days: Tensor) -> tuple[Tensor, Tensor]:
    """Return year and month (1 to 12) of days since 1970, in the Gregorian calendar.

    The year begins in March, so that the leap day is its last; see https://howardhinnant.github.io/date_algorithms.html
    """
    shifted = days + DAYS_BEFORE_1970
    era = _floor(shifted, DAYS_IN_ERA)
    day = shifted - era * DAYS_IN_ERA  # 0 to 146096
    year = _floor(day - _floor(day, 1460) + _floor(day, 36524) - _floor(day, 146096), 365)  # 0 to 399
    day_of_year = day - (365 * year + _floor(year, 4) - _floor(year, 100))  # from 1 March
    month = _floor(5 * day_of_year + 2, 153)  # 0 is March
    is_next_year = month >= 10
    return year + era * 400 + is_next_year.long(), torch.where(is_next_year, month - 9, month + 3)


def first_day(year: Tensor, month: Tensor) -> Tensor:
    """Return the days since 1970 of the first of a month."""
    from_march = torch.where(month > 2, month - 3, month + 9)
    year = year - (month <= 2).long()
    era = _floor(year, 400)
    of_era = year - era * 400
    day_of_year = _floor(153 * from_march + 2, 5)
    day = of_era * 365 + _floor(of_era, 4) - _floor(of_era, 100) + day_of_year
    return era * DAYS_IN_ERA + day - DAYS_BEFORE_1970


def year_bounds(days: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first day of the year of some days, and that of the next year."""
    year, month = year_and_month(days)
    january = torch.ones_like(month)
    return first_day(year, january), first_day(year + 1, january)


def month_bounds(days: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first day of the month of some days, and that of the next month."""
    year, month = year_and_month(days)
    is_december = month == 12
    following = torch.where(is_december, torch.ones_like(month), month + 1)
    return first_day(year, month), first_day(year + is_december.long(), following)


def week_phase(days: Tensor) -> Tensor:
    """Return the elapsed part of the week, in whole days from Monday."""
    since_monday = days + 3  # 1 January 1970 was a Thursday
    return (since_monday - _floor(since_monday, 7) * 7).double() / 7


def waves(phases: list[Tensor]) -> list[Tensor]:
    """Return sine and cosine of each phase."""
    columns = []
    for phase in phases:
        columns.append(torch.sin(2 * torch.pi * phase))
        columns.append(torch.cos(2 * torch.pi * phase))
    return columns
