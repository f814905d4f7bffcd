"""Dates in the many ways in which people write them."""

from __future__ import annotations

import datetime
import random

# Numbers alone would not say which is the day: with dots it comes first, with slashes the month does, or the year.
STYLES = """{d} {month} {year}|{month} {d}, {year}|{d} {mon} {year}|{mon} {d}, {year}|{nth} {month} {year}
{month} {nth}, {year}|the {nth} of {month}, {year}|{weekday}, {d} {month} {year}|{weekday}, {month} {d}, {year}
{wd} {mon} {d} {year}|{weekday} the {nth} of {month} {year}|{d}-{mon}-{yy}|{d} {mon} '{yy}|{mon} {nth} '{yy}
{m}/{d}/{year}|{mm}/{dd}/{yy}|{d}.{m}.{year}|{dd}.{mm}.{yy}|{year}/{mm}/{dd}|{year}{mm}{dd}|{year} {month} {d}"""
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
FIRST, LAST = datetime.date(1969, 1, 1), datetime.date(2068, 12, 31)  # POSIX reads the years 69 to 68 so
COUNT = (LAST - FIRST).days + 1


def generate_dates(samples: int, seed: int) -> list[tuple[str, str]]:
    """Draw dates, no two alike, as they might be written and in ISO 8601.

    Args:
        samples: how many, of ``COUNT``.
        seed: decides which dates and styles.
    """
    rng = random.Random(seed)
    dates = [FIRST + datetime.timedelta(day) for day in rng.sample(range(COUNT), samples)]
    return [(written(date, rng), date.isoformat()) for date in dates]


def written(date: datetime.date, rng: random.Random) -> str:
    """A date as one might write it."""
    month, day = MONTHS[date.month - 1], DAYS[date.weekday()]
    ending = "th" if 10 <= date.day <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(date.day % 10, "th")
    style = rng.choice(STYLES.replace("\n", "|").split("|"))
    text = style.format(
        d=date.day, dd=f"{date.day:02}", nth=f"{date.day}{ending}", m=date.month, mm=f"{date.month:02}", month=month,
        mon=month[:3], year=date.year, yy=f"{date.year % 100:02}", weekday=day, wd=day[:3],
    )  # fmt: skip
    return rng.choice((str, str.lower, str.upper))(text)
