"""Series that come with zoo: one generated, one real."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from zoo.data.series.table import ColumnRoles, Columns

BUNDLED = {"seasons": ColumnRoles("time", "value"), "google_volume": ColumnRoles("date", "log_volume")}
WEEK = 7 * 24


def bundled_roles(name: str, given: ColumnRoles) -> ColumnRoles:
    """The roles of a known series' columns, with the user's covariates."""
    for role in ("time", "target", "series"):
        if getattr(given, role):
            raise ValueError(f"{name} has its {role} already; --data.{role} is for a file, --data.file")
    return ColumnRoles(BUNDLED[name].time, BUNDLED[name].target, None, given.past, given.future)


def bundled_columns(name: str, seed: int) -> Columns:
    """The table of a known series."""
    return google_volume() if name == "google_volume" else seasons(seed)


def seasons(seed: int, weeks: int = 26) -> Columns:
    """Generate an hourly series: ``value`` at ``time``.

    A trend, seasons of a day (weaker at weekends) and a week that grow with it, and noise that lasts some hours.
    """
    generator = np.random.default_rng(seed)
    hours = np.arange(weeks * WEEK)
    angle, weekend = 2 * np.pi * hours / 24, (hours // 24) % 7 >= 5
    daily = np.sin(angle - 2.0) + 0.5 * np.sin(2 * angle + 0.7) + 0.2 * np.sin(3 * angle)
    weekly = np.sin(2 * np.pi * hours / WEEK + 1.0)
    trend = 20 + 10 * hours / len(hours)
    noise = generator.normal(0, 1.0, len(hours))
    for t in range(1, len(hours)):
        noise[t] += 0.8 * noise[t - 1]
    value = trend * (1 + 0.25 * np.where(weekend, 0.5, 1.0) * daily + 0.15 * weekly) + noise
    times = np.datetime64("2024-01-01T00", "s") + hours.astype("m8[h]")  # a Monday
    return {"time": [str(t) for t in times], "value": [repr(v) for v in value.tolist()]}


def google_volume() -> Columns:
    """Read the daily trading of Google's shares (Yahoo Finance, 2004 to 2008) that matplotlib ships."""
    from matplotlib import cbook

    try:
        table = cast(Any, cbook.get_sample_data("goog.npz"))["price_data"]
    except OSError:
        raise ValueError("google_volume: this matplotlib comes without its sample data (goog.npz)") from None
    numbers = {
        "log_volume": np.log(table["volume"].astype(float)),
        "log_range": np.log(table["high"] / table["low"]),
        "log_close": np.log(table["close"]),
    }
    return {"date": [str(d) for d in table["date"]], **{k: [repr(x) for x in v.tolist()] for k, v in numbers.items()}}
