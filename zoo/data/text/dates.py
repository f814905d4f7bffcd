"""Dates in the many ways in which people write them."""

from __future__ import annotations

import datetime
import random

# In numbers alone the day comes first with dots; with slashes the month does, or the year if it has four digits.
STYLES = """{d} {month} {year}|{month} {d}, {year}|{d} {mon} {year}|{mon} {d}, {year}|{nth} {month} {year}
{month} {nth}, {year}|the {nth} of {month}, {year}|{weekday}, {d} {month} {year}|{weekday}, {month} {d}, {year}
{wd} {mon} {d} {year}|{weekday} the {nth} of {month} {year}|{d}-{mon}-{yy}|{d} {mon} '{yy}|{mon} {nth} '{yy}
{m}/{d}/{year}|{mm}/{dd}/{yy}|{d}.{m}.{year}|{dd}.{mm}.{yy}|{year}/{mm}/{dd}|{year}{mm}{dd}|{year} {month} {d}"""
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# The years that POSIX reads 69, ..., 99, 00, ..., 68 as.
FIRST = datetime.date(1969, 1, 1)
LAST = datetime.date(2068, 12, 31)
COUNT = (LAST - FIRST).days + 1


def generate_dates(samples: int, seed: int) -> list[tuple[str, str]]:
    """Generate different dates, each in one of the styles and in ISO 8601.

    Args:
        samples: how many, of ``COUNT``.
        seed: decides which dates and styles.
    """
    rng = random.Random(seed)
    dates = [FIRST + datetime.timedelta(day) for day in rng.sample(range(COUNT), samples)]
    return [(write_date(date, rng), date.isoformat()) for date in dates]


def write_date(date: datetime.date, rng: random.Random) -> str:
    """Return a date in a random style."""
    month = MONTHS[date.month - 1]
    weekday = DAYS[date.weekday()]
    style = rng.choice(STYLES.replace("\n", "|").split("|"))
    text = style.format(
        d=date.day,
        dd=f"{date.day:02}",
        nth=f"{date.day}{_ordinal_suffix(date.day)}",
        m=date.month,
        mm=f"{date.month:02}",
        month=month,
        mon=month[:3],
        year=date.year,
        yy=f"{date.year % 100:02}",
        weekday=weekday,
        wd=weekday[:3],
    )
    change_case = rng.choice((str, str.lower, str.upper))
    return change_case(text)


def _ordinal_suffix(day: int) -> str:
    if 10 <= day <= 20:
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
