"""Time series that come with zoo: one synthetic, one real."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from zoo.data.series.table import ColumnRoles, Columns

BUNDLED = {
    "seasons": ColumnRoles("time", "value"),
    "google_volume": ColumnRoles("date", "log_volume"),
}
WEEK = 7 * 24


def bundled_roles(name: str, roles: ColumnRoles) -> ColumnRoles:
    """Return the column roles of a bundled series, with the covariates that the user chose.

    Args:
        name: name of the bundled series, a key of ``BUNDLED``.
        roles: roles from the options; only ``past`` and ``future`` may be set.

    Raises:
        ValueError: ``time``, ``target`` or ``series`` is set, which the bundled series fix.
    """
    for role in ("time", "target", "series"):
        if getattr(roles, role):
            raise ValueError(f"{name} has its {role} column already; --data.{role} is only for a CSV file, --data.file")
    bundled = BUNDLED[name]
    return ColumnRoles(
        time=bundled.time,
        target=bundled.target,
        past=roles.past,
        future=roles.future,
    )


def bundled_columns(name: str, seed: int) -> Columns:
    """Return the table of a bundled series as columns of text, as a CSV file would hold it."""
    if name == "google_volume":
        return google_volume()
    return seasons(seed)


def seasons(seed: int, weeks: int = 26) -> Columns:
    """Generate a synthetic hourly series: ``value`` at ``time``.

    It is the sum of a trend, a daily seasonality (weaker at weekends), a weekly seasonality, both growing with the
    trend, and autocorrelated noise.
    """
    generator = np.random.default_rng(seed)
    hours = np.arange(weeks * WEEK)
    trend = 20 + 10 * hours / len(hours)

    angle = 2 * np.pi * hours / 24
    daily = np.sin(angle - 2.0)
    daily = daily + 0.5 * np.sin(2 * angle + 0.7)
    daily = daily + 0.2 * np.sin(3 * angle)
    weekend = (hours // 24) % 7 >= 5
    daily_amplitude = 0.25 * np.where(weekend, 0.5, 1.0)
    weekly = np.sin(2 * np.pi * hours / WEEK + 1.0)

    # AR(1) noise: smooth enough that the last hours help to forecast the next
    noise = generator.normal(0, 1.0, len(hours))
    for t in range(1, len(hours)):
        noise[t] += 0.8 * noise[t - 1]

    value = trend * (1 + daily_amplitude * daily + 0.15 * weekly) + noise
    # 1 January 2024 is a Monday, so that days 5 and 6 are a weekend
    times = np.datetime64("2024-01-01T00", "s") + hours.astype("m8[h]")
    return {
        "time": [str(t) for t in times],
        "value": [repr(v) for v in value.tolist()],
    }


def google_volume() -> Columns:
    """Read the daily trading volume of Google's shares (Yahoo Finance, 2004 to 2008) that matplotlib ships.

    Raises:
        ValueError: matplotlib was installed without its sample data.
    """
    from matplotlib import cbook

    try:
        sample = cast(Any, cbook.get_sample_data("goog.npz"))
        table = sample["price_data"]
    except OSError:
        raise ValueError("google_volume: this matplotlib comes without its sample data (goog.npz)") from None
    numbers = {
        "log_volume": np.log(table["volume"].astype(float)),
        "log_range": np.log(table["high"] / table["low"]),
        "log_close": np.log(table["close"]),
    }
    columns = {"date": [str(d) for d in table["date"]]}
    for name, values in numbers.items():
        columns[name] = [repr(v) for v in values.tolist()]
    return columns
