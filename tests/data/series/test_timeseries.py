"""Time series: what is read, what a window may see, what is refused."""

import numpy as np
import pytest
import torch

from zoo.data import TimeSeries
from zoo.data.series.bundled_series import seasons
from zoo.data.series.table import find_leak
from zoo.data.series.time_grid import calendar, find_grid, read_times
from zoo.data.series.windows import WindowDataset

HOUR = np.timedelta64(1, "h")


def write(path, columns: dict) -> str:
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


def hours(n: int, start: str = "2024-01-01T00") -> list[str]:
    return [str(np.datetime64(start, "s") + i * HOUR) for i in range(n)]


def noise(n: int, seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).normal(5, 2, n).round(6).tolist()


@pytest.fixture
def make(tmp_path):
    def build(columns: dict, **kwargs) -> TimeSeries:
        given = {"time": "t", "target": "y", "context": 8, "horizon": 4, **kwargs}
        return TimeSeries(file=write(tmp_path / "s.csv", columns), **given)

    return build


def whole(data: TimeSeries, split: str):
    chosen = data.datasets[split]
    return chosen.batch(torch.arange(len(chosen)))


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "frequency", "season"),
    [
        (hours(60), "1h", 24),
        ([str(t) for t in np.datetime64("2024-01-01T00:00") + np.arange(50) * np.timedelta64(15, "m")], "15min", 96),
        ([str(d) for d in np.arange("2024-01-01", "2024-03-01", dtype="M8[D]")], "1D", 7),
        ([str(d) for d in np.arange("2024-01-01", "2024-03-01", dtype="M8[D]") if np.is_busday(d)], "1B", 5),
        ([str(d) for d in np.arange("2024-01-03", "2024-12-01", 7, dtype="M8[D]")], "1W", 1),
        ([f"{m}-15" for m in np.arange("2020-01", "2023-01", dtype="M8[M]")], "1M", 12),
        ([str((m + 1).astype("M8[D]") - 1) for m in np.arange("2020-01", "2023-01", dtype="M8[M]")], "1M", 12),
        ([f"{m}-01" for m in np.arange("2020-01", "2023-01", 3, dtype="M8[M]")], "3M", 4),
        ([f"{y}-01-01" for y in range(1990, 2020)], "1Y", 1),
        ([str(3 * i) for i in range(40)], "3", 1),
    ],
    ids=["hours", "quarters", "days", "business days", "weeks", "months", "month ends", "3 months", "years", "numbers"],
)
def test_frequency_is_found_and_leads_back_to_the_times(cells, frequency, season):
    times = read_times(cells, "t")
    kept = np.delete(times, [5, 6, 11])  # gaps must not mislead it
    grid = find_grid({"y": kept})
    assert (str(grid), grid.season) == (frequency, season)
    numbers = grid.numbers(times)
    assert (numbers == np.arange(len(times))).all()
    assert (grid.times(numbers) == times).all()
    assert str(find_grid({"y": kept}, frequency)) == frequency


def test_a_time_off_the_grid_is_named():
    times = read_times([*hours(30), "2024-01-02T06:30"], "t")
    with pytest.raises(ValueError, match="most are 1h apart, but 2024-01-02T06:30:00 is not a whole number of steps"):
        find_grid({"y": times})
    with pytest.raises(ValueError, match="frequency is 1D, but 2024-01-01T01:00:00"):
        find_grid({"y": times[:-1]}, "1D")
    with pytest.raises(ValueError, match=r"frequency is '2x', but must be one such as 15min"):
        find_grid({"y": times}, "2x")


def test_styles_and_zones_of_times():
    assert (
        read_times(["31.12.2023", "01.01.2024"], "t", "%d.%m.%Y").tolist()
        == read_times(["2023-12-31", "2024-01-01"], "t").tolist()
    )
    assert read_times(["2024-01-01T02:00+02:00"], "t")[0] == np.datetime64("2024-01-01T00:00:00")
    with pytest.raises(ValueError, match=r"row 3: '31\.12\.2023' in column 't' is not a time such as"):
        read_times(["2023-12-30", "31.12.2023"], "t")
    with pytest.raises(ValueError, match="row 3: the time is missing"):
        read_times(["2023-12-30", ""], "t")
    with pytest.raises(ValueError, match="some times in column 't' have a time zone"):
        read_times(["2024-01-01T02:00+02:00", "2024-01-01T03:00"], "t")


def test_calendar_features():
    times = np.array(["2024-01-01T00", "2024-01-01T06", "2024-01-04T12"], dtype="M8[s]")  # the first a Monday
    found = calendar(times, ["hour_of_day", "day_of_week", "day_of_year"])
    angle = 2 * np.pi * np.array([[0, 0, 0], [0.25, 0, 0.25 / 366], [0.5, 3 / 7, 3.5 / 366]])
    assert np.allclose(found[:, 0::2], np.sin(angle), atol=1e-12)
    assert np.allclose(found[:, 1::2], np.cos(angle), atol=1e-12)


def test_rows_out_of_order_and_duplicates_and_gaps(make, capfd):
    y, t = noise(100), hours(100)
    expected = make({"t": t, "y": y}).datasets["train"].rows.values
    capfd.readouterr()
    shuffled = make({"t": [*t[50:], *t[:50]], "y": [*y[50:], *y[:50]]}).datasets["train"].rows.values
    assert torch.equal(shuffled, expected)
    assert "1 rows were not in order of time and were sorted" in capfd.readouterr().err
    doubled = make({"t": [*t, t[99]], "y": [*y[:99], y[99] - 1, y[99] + 1]}).datasets["train"].rows.values
    assert torch.allclose(doubled, expected)
    assert "1 rows with a duplicate time were averaged" in capfd.readouterr().err
    gap = {"t": t[:20] + t[22:], "y": [*y[:20], *y[22:30], "", *y[31:]]}
    data = make(gap)
    rows = data.datasets["train"].rows
    assert "3 of 100 steps of 1h have no target" in capfd.readouterr().err
    assert (~rows.observed[:100]).nonzero().flatten().tolist() == [20, 21, 30]
    assert rows.values[20:22, 0].tolist() == [rows.values[19, 0]] * 2, "what comes later is not seen"
    assert rows.values[30, 0] == rows.values[29, 0]


def test_missing_targets_do_not_count(make):
    y = noise(200)
    y[40] = ""
    data = make({"t": hours(200), "y": y})
    places = data.datasets["train"].places
    batch = data.datasets["train"].batch((places == 38).nonzero().flatten())
    assert batch[2]["observed"].tolist() == [[True, True, False, True]]
    mean, std, _ = data.datasets["train"].rows.scales[0]
    seen = torch.tensor([v for v in y[:140] if v != ""])
    assert mean == pytest.approx(float(seen.mean()), rel=1e-5)
    assert std == pytest.approx(float(seen.std(correction=0)), rel=1e-5)


# Leaks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_window_depends_on_nothing_later(split):
    """By gradient: inputs on rows before the first target, and known covariates of the horizon; targets on the rest."""
    data = TimeSeries(past=[], calendar=["hour_of_day"], context=30, horizon=6)
    chosen = data.datasets[split]
    index = torch.tensor([len(chosen) // 2])
    place = int(chosen.places[index])
    rows = chosen.rows
    kept, rows.values = rows.values, rows.values.clone().requires_grad_()
    (past, future), _, *rest = chosen.batch(index)
    seen = torch.autograd.grad(past.square().sum(), rows.values, retain_graph=True)[0]
    assert seen[place - 30 : place].abs().sum() > 0
    assert seen[place:].abs().max() == 0
    known = torch.autograd.grad(future.square().sum(), rows.values, retain_graph=True)[0]
    assert known[:, 0].abs().max() == 0, "no target among what is known"
    assert known[place : place + 6, 1:].abs().sum() > 0
    if split != "train":
        ahead = torch.autograd.grad(rest[0]["seasonal_naive"].square().sum(), rows.values)[0]
        assert ahead[place:].abs().max() == 0
    rows.values = kept


def test_changing_the_future_changes_no_input(make):
    t, y = hours(200), noise(200)
    first = make({"t": t, "y": y, "p": noise(200, 1)}, past=["p"])
    cut = 150  # in validation: statistics are of the training part, 140 steps
    wild = [v * 100 for v in noise(50, 2)]
    second = make({"t": t, "y": y[:cut] + wild, "p": noise(200, 1)[:cut] + wild[::-1]}, past=["p"])
    for split in ("train", "val"):
        chosen = first.datasets[split]
        before = (chosen.places <= cut).nonzero().flatten()
        a, b = chosen.batch(before), second.datasets[split].batch(before)
        assert len(before) > 5
        assert torch.equal(a[0][0], b[0][0])
        if split == "train":
            assert torch.equal(a[1], b[1])
        else:
            assert torch.equal(a[2]["mean"], b[2]["mean"])
            assert torch.equal(a[2]["std"], b[2]["std"])
            assert torch.equal(a[2]["error"], b[2]["error"])
            assert torch.equal(a[2]["seasonal_naive"], b[2]["seasonal_naive"])


def test_statistics_come_from_the_training_part(make):
    y = [*noise(140), *(100 + np.arange(60)).tolist()]
    data = make({"t": hours(200), "y": y, "p": [2 * v for v in noise(140, 1)] + [1e6] * 60}, past=["p"])
    rows = data.datasets["train"].rows
    assert rows.values[:140].mean(0).abs().max() < 1e-5
    assert (rows.values[:140].std(0, correction=0) - 1).abs().max() < 1e-5


def test_parts_are_cut_by_time_and_share_no_target(make):
    data = make({"t": hours(200), "y": noise(200)})
    spans = {k: (int(d.places.min()), int(d.places.max()) + 3) for k, d in data.datasets.items()}
    assert spans == {"train": (8, 139), "val": (140, 169), "test": (170, 199)}


def test_several_series_are_cut_at_the_same_moment(make):
    late = hours(100, "2024-01-03T12")  # begins 60 hours after the first
    y = [*noise(160), *(v * 9 for v in noise(100, 3))]
    data = make({"t": [*hours(160), *late], "id": ["a"] * 160 + ["b"] * 100, "y": y}, series="id")
    for split, (low, high) in {"train": (0, 112), "val": (112, 136), "test": (136, 160)}.items():
        chosen = data.datasets[split]
        rows = chosen.rows
        moment = chosen.places - rows.first[chosen.series] + torch.tensor(rows.starts)[chosen.series]
        assert (moment >= low).all()
        assert (moment + 3 < high).all()
        assert set(chosen.series.tolist()) == {0, 1}
        inside = chosen.places - 8 >= rows.first[chosen.series]
        assert inside.all(), "no window reaches into the other series"
    first = data.datasets["train"].rows.first[1]
    assert data.datasets["train"].rows.values[first : first + 52, 0].mean().abs() < 1e-5, "each by its own statistics"


# Forecasts to compare with --------------------------------------------------------------------------------------------


def test_seasonal_naive_against_a_loop(make):
    y = noise(260)
    data = make({"t": hours(260), "y": y}, horizon=7, season_length=5)
    mean, std, error = (float(v) for v in data.datasets["train"].rows.scales[0])
    (_, _, about), chosen = whole(data, "test"), data.datasets["test"]
    for place, row in zip(chosen.places.tolist(), about["seasonal_naive"], strict=True):
        history = y[:place]
        for value in row.tolist():
            assert value * std + mean == pytest.approx(history[-5], abs=1e-4)
            history.append(history[-5])
    training = y[:182]
    assert error == pytest.approx(np.mean([abs(training[i] - training[i - 5]) for i in range(5, 182)]), rel=1e-5)


def test_seasonal_naive_where_no_season_lies_behind(make):
    data = make({"t": hours(100), "y": noise(100)}, season_length=24)
    rows = data.datasets["val"].rows
    chosen = WindowDataset(rows, rows.windows(8, 4, 0, 30), 8, 4, details=True)
    past, about = chosen.batch(torch.tensor([0]))[0][0], chosen.batch(torch.tensor([0]))[-1]
    assert about["seasonal_naive"].tolist() == [[past[0, -1, 0].item()] * 4], "the last value"


def test_known_future_reaches_over_the_end(make):
    y, x = [*noise(100), *[""] * 4], noise(104, 1)
    data = make({"t": hours(104), "y": y, "x": x}, future=["x"])
    (past, future), _, about = data.dataset("predict").batch(torch.tensor([0]))
    training = torch.tensor(x[:70])
    expected = (torch.tensor(x) - training.mean()) / training.std(correction=0)
    assert torch.allclose(past[0, :, 1], expected[92:100], atol=1e-5)
    assert torch.allclose(future[0, :, 0], expected[100:], atol=1e-5)
    assert about["time"] == [[f"2024-01-05T0{h}:00:00" for h in range(4, 8)]]
    assert about["series"] == ["y"]
    less = make({"t": hours(103), "y": y[:103], "x": x[:103]}, future=["x"])
    assert len(less.datasets["test"]) > 0
    with pytest.raises(ValueError, match="x must be known for 4 steps after the end of series 'y'"):
        less.predict_dataloader()


def test_single_samples_are_rows_of_batches():
    data = TimeSeries(name="google_volume", context=10, horizon=3, calendar=["day_of_week"])
    (past, future), y, about = data.datasets["test"][7]
    batch = data.datasets["test"].batch(torch.tensor([6, 7]))
    assert torch.equal(past, batch[0][0][1])
    assert torch.equal(future, batch[0][1][1])
    assert torch.equal(y, batch[1][1])
    assert torch.equal(about["seasonal_naive"], batch[2]["seasonal_naive"][1])


# Series that come with it ---------------------------------------------------------------------------------------------


def test_default_is_drawn_from_the_seed(capfd):
    first, again, other = (seasons(s)["value"] for s in (0, 0, 1))
    assert first == again != other
    data = TimeSeries()
    assert (str(data.grid), data.season_length, data.input_dim, data.future_dim) == ("1h", 168, 1, 0)
    x, y = data.datasets["train"].batch(torch.arange(5))
    assert [tuple(v.shape) for v in (*x, y)] == [(5, 168, 1), (5, 24)]
    assert capfd.readouterr().err == ""


def test_google_volume_is_real_and_has_holidays(capfd):
    data = TimeSeries(name="google_volume", past=["log_range"], calendar=["day_of_week"], context=40, horizon=5)
    rows = data.datasets["train"].rows
    assert str(data.grid) == "1B"
    assert int(rows.observed.sum()) == 1047, "the days in matplotlib's file"
    assert rows.gaps
    assert capfd.readouterr().err == ""
    assert (data.input_dim, data.future_dim) == (4, 2)


# Mistakes -------------------------------------------------------------------------------------------------------------

T, Y = hours(100), noise(100)
MISTAKES = {
    "both": ({"name": "seasons", "file": "x.csv", "time": "t", "target": "y"}, "either a name .* or a file"),
    "no target": ({"file": "x.csv", "time": "t"}, "the roles of the columns of x.csv are unknown: give --data.target"),
    "no file": ({"file": "none.csv", "time": "t", "target": "y"}, "no file none.csv"),
    "time of a known series": ({"time": "t"}, "seasons has its time column already; --data.time is only for a CSV"),
    "horizon 0": ({"horizon": 0}, "context, horizon and season_length must be >= 1, got context=168, horizon=0"),
    "shares": (
        {"val_split": 0.6, "test_split": 0.5},
        "must be above 0 and their sum below 1, got val_split=0.6, test_split=0.5",
    ),
    "unknown covariate": ({"past": ["log_range"]}, "seasons has no column 'log_range'; it has time, value"),
    "target as covariate": ({"future": ["value"]}, "column 'value' is target and future"),
    "horizon too long": ({"horizon": 5000}, "context=168 and horizon=5000 need 168 \\+ 5000"),
    "context too long": ({"context": 3050}, "no window fits into the 3058 steps for train .of 4368"),
    "horizon over validation": ({"horizon": 700}, "no window fits into the 655 steps for val"),
    "unknown feature": ({"calendar": ["week"]}, "calendar feature 'week' is unknown; choose from hour_of_day"),
    "wrong frequency": ({"frequency": "1D"}, "seasons: frequency is 1D, but 2024-01-01T01:00:00"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_in_options(case):
    kwargs, words = MISTAKES[case]
    with pytest.raises(ValueError, match=words) as caught:
        _ = TimeSeries(**kwargs).datasets
    assert "\n" not in str(caught.value)


FILES = {
    "no time column": ({"when": T, "y": Y}, {}, "has no column 't'; it has when, y"),
    "no target column": ({"t": T, "value": Y}, {}, "has no column 'y'; it has t, value"),
    "text in the target": ({"t": T, "y": [*Y[:50], "many", *Y[51:]]}, {}, "'many' in column 'y' is not a number"),
    "no time": ({"t": [*T[:50], "", *T[51:]], "y": Y}, {}, "row 52: the time is missing"),
    "constant": ({"t": T, "y": [3.5] * 100}, {}, "constant in its training part, 3.5: there is nothing to learn"),
    "empty target": ({"t": T, "y": [""] * 100}, {}, "the target 'y' is missing in every row"),
    "too many gaps": ({"t": [T[0], T[1], *T[4::4]], "y": Y[:26]}, {"frequency": "1h"}, "26 of its 97 steps of 1h"),
    "dates for numbers": ({"t": range(100), "y": Y}, {"calendar": ["day_of_week"]}, "but the times are integers"),
    "short": ({"t": T[:12], "y": Y[:12]}, {}, "no window fits into the 8 steps for train"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_mistakes_in_files(case, make):
    columns, kwargs, words = FILES[case]
    with pytest.raises(ValueError, match=words) as caught:
        _ = make(columns, **kwargs).datasets
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("s.csv") == 1


def test_constant_series_among_others_is_left_out(make, capfd):
    table = {"t": T * 2, "id": ["a"] * 100 + ["b"] * 100, "y": [*Y, *[1.0] * 100]}
    assert make(table, series="id").datasets["train"].rows.names == ["a"]
    assert "series 'b' is constant in its training part, 1: left out" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["future", "past"])
@pytest.mark.parametrize("shift", [-5, -4, -2, 0, 1, 3, 4])
def test_a_leaking_target_is_diagnosed(kind, shift, make):
    """x[t] = y[t + shift] in other units: over a horizon of 4, a past column must not run ahead of it at all."""
    y = np.array(noise(120))
    x = (np.roll(y, -shift) * 3.7 + 11).round(4)
    build = lambda: make({"t": hours(120), "y": y, "x": x}, **{kind: ["x"]}).datasets  # noqa: E731
    leaks = shift > 0 if kind == "past" else shift > -4
    if not leaks:
        build()
        return
    word = "of the same time" if shift == 0 else f"of {abs(shift)} steps? {'later' if shift > 0 else 'before'}"
    with pytest.raises(ValueError, match=f"{kind} column 'x' holds the target {word} .correlation 1.0000"):
        build()


def test_what_is_alike_but_no_leak():
    t = np.arange(3000.0)
    smooth, trend = np.sin(t / 500), t + 0.01 * np.sin(t)
    assert find_leak(smooth, smooth.copy(), 24, future=False) is None, "a smooth series beside its own next steps"
    assert find_leak(trend, t, 24, future=True) is None, "a common trend"
    assert find_leak(trend, np.full(3000, 2.0), 24, future=True) is None
    generator = np.random.default_rng(0)
    y = generator.normal(size=3000).cumsum()
    assert find_leak(y, y + generator.normal(size=3000), 24, future=True) is None, "a noisy forecast of the target"
    assert find_leak(y, np.roll(y, -2), 24, future=False)[0] == 2


# What a checkpoint keeps ----------------------------------------------------------------------------------------------


def kept(data: TimeSeries) -> dict:
    return {"fitted": data.fitted_hparams()["fitted"]}


def test_a_forecast_needs_the_context_and_no_training_file(make):
    y, t = noise(100), hours(100)
    trained = make({"t": t, "y": y})
    whole_file = trained.dataset("predict").batch(torch.tensor([0]))
    new = make({"t": t[-8:], "y": y[-8:]}, **kept(trained))
    (past,), _, about = new.dataset("predict").batch(torch.tensor([0]))
    assert torch.equal(past, whole_file[0][0])
    assert about["time"] == whole_file[2]["time"] == [[f"2024-01-05T0{h}:00:00" for h in range(4, 8)]]
    assert torch.equal(about["mean"], whole_file[2]["mean"])
    with pytest.raises(ValueError, match=r"needs the last 8 steps \(--data.context\), and series 'y' has 7"):
        make({"t": t[-7:], "y": y[-7:]}, **kept(trained)).predict_dataloader()


def test_new_rows_keep_scales_and_splits(make, capfd):
    """The file has grown: later steps are tested, none of training is, and all are scaled as in training."""
    y, t = noise(200), hours(200)
    trained = make({"t": t[:100], "y": y[:100]})
    before = {split: data.batch(torch.arange(len(data)))[0][0] for split, data in trained.datasets.items()}
    grown = make({"t": t, "y": y}, **kept(trained)).datasets
    assert torch.equal(grown["train"].batch(torch.arange(len(grown["train"])))[0][0], before["train"])
    assert torch.equal(grown["val"].batch(torch.arange(len(grown["val"])))[0][0], before["val"])
    assert int(grown["test"].places.min()) == 85
    assert len(grown["test"]) == 112
    assert "the windows from 2024-01-04T13:00:00 on are its test split" in capfd.readouterr().err
    later = make({"t": t[120:], "y": y[120:]}, **kept(trained)).datasets
    assert "train" not in later
    assert len(later["test"]) == 80 - 8 - 3, "all of it"
    earlier = make({"t": hours(60, "2023-05-01"), "y": y[:60]}, **kept(trained)).datasets
    assert len(earlier["test"]) == 60 - 8 - 3
    assert "no window of the test split of training: all its windows are used" in capfd.readouterr().err
    resumed = make({"t": t[120:], "y": y[120:]}, **kept(trained))
    resumed.setup("fit")
    assert len(resumed.datasets["train"]) > len(resumed.datasets["test"]) > 0


def test_a_new_series_is_scaled_by_its_own_past(make, capfd):
    t = hours(100)
    trained = make({"t": t * 2, "id": ["a"] * 100 + ["b"] * 100, "y": noise(100) + noise(100, 1)}, series="id")
    y = [1000 + 7 * v for v in noise(8, 2)]
    table = {"t": t[:8] * 2, "id": ["c"] * 8 + ["b"] * 8, "y": [*y, *noise(8, 1)]}
    new = make(table, series="id", **kept(trained))
    (past,), _, about = new.dataset("predict").batch(torch.tensor([0, 1]))
    assert about["series"] == ["c", "b"]
    assert float(past[0].mean()) == pytest.approx(0, abs=1e-4)
    assert float(about["mean"][0]) == pytest.approx(np.mean(y), rel=1e-6)
    assert float(about["mean"][1]) == pytest.approx(trained.fitted.scales["b"][0], rel=1e-6)
    assert "1 series are not of training ('c', ...) and scaled by their own past" in capfd.readouterr().err


def test_what_is_kept_is_plain_and_equal(make):
    import yaml

    trained = make({"t": hours(200), "y": noise(200), "p": noise(200, 1)}, past=["p"])
    again = yaml.safe_load(yaml.safe_dump(kept(trained)["fitted"]))
    assert again == kept(trained)["fitted"]
    state = trained.state_dict()
    other = make({"t": hours(150), "y": noise(150, 5), "p": noise(150, 6)}, past=["p"])
    _ = other.datasets
    other.load_state_dict(state)
    assert other.fitted == trained.fitted


@pytest.mark.parametrize("value", [14.62, 0.1, 37.7])
def test_a_covariate_that_is_constant_but_for_rounding_becomes_zero(make, value):
    y = noise(200)
    data = make({"t": hours(200), "y": y, "p": [value] * 140 + [value + 0.5] * 60}, past=["p"])
    rows = data.datasets["train"].rows.values
    assert rows[:140, 1].abs().max() == 0
    assert torch.allclose(rows[140:200, 1], torch.tensor(0.5))
    with pytest.raises(ValueError, match="constant in its training part"):
        _ = make({"t": hours(200), "y": [value] * 200}).datasets


def test_several_series_without_a_name_are_refused(make):
    table = {"t": hours(100) * 2, "shop": ["a"] * 100 + ["b"] * 100, "y": noise(200)}
    with pytest.raises(ValueError, match="100 rows have the time of another row, and another 'shop': are they"):
        _ = make(table).datasets


def test_files_of_spreadsheets(make, tmp_path):
    plain = make({"t": hours(100), "y": noise(100)}).datasets["train"].rows.values
    text = (tmp_path / "s.csv").read_text().replace(",", ";").replace(".", ",")
    (tmp_path / "e.csv").write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode("utf-16-le"))
    data = TimeSeries(file=str(tmp_path / "e.csv"), time="t", target="y", context=8, horizon=4)
    assert torch.equal(data.datasets["train"].rows.values, plain)
