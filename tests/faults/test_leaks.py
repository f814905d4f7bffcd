"""Leaks between the splits are measured as a share, and data whose rows repeat by chance raises no alarm."""

import pytest
import torch
import torch.nn.functional as F

from tests.faults import nets
from tests.faults.nets import Data, Module, generator
from zoo.diagnosis import Finding, diagnose
from zoo.diagnosis.runner import CHECKS


@pytest.fixture(autouse=True)
def _only_leaks(monkeypatch):
    monkeypatch.setattr("zoo.diagnosis.runner.CHECKS", {"leaks": CHECKS["leaks"]})


def finding(x: torch.Tensor, y: torch.Tensor, shuffle: bool = True, net=None) -> Finding:
    if shuffle:
        order = torch.randperm(len(x), generator=generator(7))
        x = x[order]
        y = y[order]
    network = net or torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(4))
    network(x[:2])
    (leaks,) = diagnose(Module(network), Data(x, y), overfit_steps=20).findings
    return leaks


def classes(n: int) -> torch.Tensor:
    return torch.randint(4, (n,), generator=generator(5))


def numbers(n: int, columns: int = 2) -> torch.Tensor:
    return torch.randn(n, columns, generator=generator(1))


def digits(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = nets.images(n)
    return x, y % 4


# Copies ---------------------------------------------------------------------------------------------------------------


def three_times(x):
    return x.repeat(3, *[1] * (x.ndim - 1))


def oversampled(x):
    """Rows drawn with replacement."""
    return x[torch.randint(len(x), (3 * len(x),), generator=generator(3))]


def with_binary_columns(n):
    return torch.cat([numbers(n, 1), torch.randint(2, (n, 5), generator=generator(4)).float()], 1)


COPIES = {
    "numbers three times": lambda: three_times(numbers(200)),
    "numbers twice": lambda: numbers(200).repeat(2, 1),
    "numbers oversampled": lambda: oversampled(numbers(200)),
    "one column of numbers three times": lambda: three_times(numbers(200, 1)),
    "one number among binary columns, three times": lambda: three_times(with_binary_columns(200)),
    "one number among binary columns, oversampled": lambda: oversampled(with_binary_columns(200)),
    "images three times": lambda: three_times(digits(160)[0]),
    "images oversampled": lambda: oversampled(digits(160)[0]),
    "many categories three times": lambda: three_times(torch.randint(9, (200, 8), generator=generator(2)).float()),
    "discrete rows that repeat by chance, too, three times": lambda: three_times(
        torch.randint(6, (200, 3), generator=generator(2)).float()
    ),
}


@pytest.mark.parametrize("build", COPIES.values(), ids=COPIES)
def test_copies_are_an_error_with_their_share(build):
    x = build()
    copies = 3 if len(x) != 400 else 2
    y = classes(len(x) // copies).repeat(copies)
    result = finding(x, y)
    assert result.status == "error", result
    for name in ("val", "test"):
        share = float(result.message.split(f" {name} samples (")[1].split("%")[0])
        assert 50 < share <= 100, result
    assert "split" in result.advice


def test_a_few_copies_are_measured():
    x = numbers(1000, 5)
    y = classes(1000)
    x[700:720] = x[:20]  # 20 of 150 in validation
    result = finding(x, y, shuffle=False)
    assert result.status == "error"
    assert "20 of 150 val samples (13%) are in train, too" in result.message
    x[702:720] = torch.randn(18, 5)
    result = finding(x, y, shuffle=False)
    assert result.status == "warning", result
    assert "2 of 150 val samples (1%)" in result.message


def test_copied_texts_are_an_error():
    x = three_times(nets.text(200))
    network = torch.nn.Sequential(torch.nn.Embedding(64, 4), torch.nn.Flatten(), torch.nn.LazyLinear(4))
    assert finding(x, classes(200).repeat(3), net=network).status == "error"


# Near copies ----------------------------------------------------------------------------------------------------------


def photographs(n: int) -> torch.Tensor:
    """Smooth random images (n, 3, 32, 32), no two of them alike."""
    coarse = torch.randn(n, 3, 6, 6, generator=generator(1))
    return F.interpolate(coarse, size=32, mode="bicubic", align_corners=False)


def with_near_copies(x: torch.Tensor, change) -> torch.Tensor:
    x = x.clone()
    x[210:240] = change(x[:30])
    return x


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x + 0.02 * torch.randn(x.shape, generator=generator(2)),
        lambda x: 0.8 * x + 0.1,
        lambda x: F.interpolate(F.interpolate(x, size=24, mode="bilinear"), size=32, mode="bilinear"),
        lambda x: x.flip(3),
    ],
    ids=["noise", "contrast", "resized", "mirrored"],
)
def test_near_copies_of_images_are_a_warning(change):
    x = with_near_copies(photographs(300), change)
    result = finding(x, classes(300), shuffle=False)
    assert result.status == "warning"
    assert "30 of 45 val samples (67%) are almost equal to one of train" in result.message


def test_near_copies_of_texts_are_a_warning():
    x = torch.randint(1, 60, (300, 40), generator=generator(1))

    def edited(rows):
        rows = rows.clone()
        rows[:, 0] = 61
        return F.pad(rows, (2, 0))[:, :40]  # moved by padding

    network = torch.nn.Sequential(torch.nn.Embedding(64, 4), torch.nn.Flatten(), torch.nn.LazyLinear(4))
    result = finding(with_near_copies(x, edited), classes(300), shuffle=False, net=network)
    assert result.status == "warning"
    assert "30 of 45 val samples" in result.message


# Healthy data ---------------------------------------------------------------------------------------------------------


def iris() -> torch.Tensor:
    from sklearn.datasets import load_iris

    return torch.from_numpy(load_iris().data).float()


def skewed(n: int) -> torch.Tensor:
    """Nine scores from 1 to 10, as in the breast cancer data of 1990: half of all rows are nearly all ones."""
    draw = torch.rand(n, 9, generator=generator(1))
    benign = torch.rand(n, 1, generator=generator(2)) < 0.65
    return torch.where(benign, 1 + (draw > 0.85).float() + (draw > 0.97).float(), (1 + 10 * draw).floor())


def survey(n: int) -> torch.Tensor:
    """Ten answers from 1 to 5 that depend on a common opinion."""
    opinion = torch.randn(n, 1, generator=generator(1))
    return (3 + opinion + 0.6 * torch.randn(n, 10, generator=generator(2))).round().clamp(1, 5)


def one_hot(n: int, categories: int) -> torch.Tensor:
    return F.one_hot(torch.randint(categories, (n,), generator=generator(1)), categories).float()


def squares(n: int) -> torch.Tensor:
    """Images of one bright square at 49 possible places."""
    x = torch.zeros(n, 1, 8, 8)
    places = torch.randint(0, 7, (n, 2), generator=generator(1))
    for image, (i, j) in zip(x, places.tolist(), strict=True):
        image[0, i : i + 2, j : j + 2] = 1
    return x


def waves_as_images(n: int) -> torch.Tensor:
    """Images of few parameters: every one has close neighbours."""
    grid = torch.linspace(0, 6.28, 16)
    phase = 6.28 * torch.rand(n, 2, 1, generator=generator(1))
    return (torch.sin(grid + phase[:, 0]).unsqueeze(1) + torch.sin(grid + phase[:, 1]).unsqueeze(2)).unsqueeze(1)


def ages_twice(n: int) -> torch.Tensor:
    """An age, and a second column that it determines."""
    ages = torch.randint(18, 90, (n, 1), generator=generator(1)).float()
    return torch.cat([ages, 12 * ages], 1)


def test_short_sequences_repeat_by_chance():
    """Three symbols of eight, then blanks, as in the copying task: 512 different sequences."""
    x = F.pad(torch.randint(1, 9, (2000, 3), generator=generator(1)), (0, 7))
    network = torch.nn.Sequential(torch.nn.Embedding(64, 4), torch.nn.Flatten(), torch.nn.LazyLinear(4))
    assert finding(x, classes(2000), net=network).status == "ok"


HEALTHY = {
    "iris": iris,
    "three binary columns": lambda: torch.randint(2, (400, 3), generator=generator(1)).float(),
    "eight binary columns": lambda: torch.randint(2, (600, 8), generator=generator(1)).float(),
    "skewed scores": lambda: skewed(700),
    "a survey": lambda: survey(1000),
    "one category of 50": lambda: one_hot(600, 50),
    "one category of 5": lambda: one_hot(400, 5),
    "ages": lambda: torch.randint(18, 90, (400, 1), generator=generator(1)).float(),
    "ages and sex": lambda: torch.stack([torch.arange(400) % 72, torch.arange(400) % 2], 1).float(),
    "numbers": lambda: numbers(400, 6),
    "ages in years and months": lambda: ages_twice(400),
    "few bright squares": lambda: squares(400),
    "waves": lambda: waves_as_images(400),
    "digits": lambda: digits(480)[0],
    "photographs": lambda: photographs(300),
}


@pytest.mark.parametrize("build", HEALTHY.values(), ids=HEALTHY)
def test_healthy_data_raises_no_alarm(build):
    x = build()
    result = finding(x, classes(len(x)))
    assert result.status == "ok", result


def test_a_repeated_training_set_is_no_leak():
    x = iris()
    data = Data(x, classes(150))
    data.parts[0] = [part.repeat(4, *[1] * (part.ndim - 1)) for part in data.parts[0]]
    (result,) = diagnose(Module(torch.nn.Linear(4, 4)), data, overfit_steps=20).findings
    assert result.status == "ok", result


def test_the_validation_set_may_be_the_test_set():
    data = Data(*nets.table(400))
    data.parts[2] = data.parts[1]
    (result,) = diagnose(Module(nets.mlp()), data, overfit_steps=20).findings
    assert result.status == "ok"
    assert "val and test are the same samples" in result.message
