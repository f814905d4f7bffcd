"""Check for leaks: samples of validation or test that stand in training, too."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from zoo.diagnosis.chance_duplicates import expected_share
from zoo.diagnosis.data_statistics import SplitStatistics
from zoo.diagnosis.near_duplicates import near_duplicates
from zoo.diagnosis.probe import Probe
from zoo.diagnosis.report import Finding, Skip, error, ok, warning

PAIRS = (("val", "train"), ("test", "train"), ("test", "val"))
ERROR_SHARE = 0.05
WARNING_SHARE = 0.01
MIN_NEAR = 5  # near duplicates
MAX_TEXT_SHARE = 0.1
CHANCE_FACTOR = 3.0  # the estimated chance of equal rows neglects correlations between columns
# Data of so few different rows, each of them so often, are categories and not copies.
FEW_ROWS = 50
OFTEN = 10
ADVICE = (
    "remove duplicates, then split, then augment or oversample the training samples only; keep the samples of one"
    " source (person, document, recording) in one split"
)


def leaks(probe: Probe) -> Finding:
    """Compare the splits: equal samples beyond what tables of few values have by chance, then near duplicates."""
    splits = probe.splits
    if "train" not in splits or len(splits) < 2:
        raise Skip("there is no validation or test split")
    copied = _is_copied(splits)
    leaking: list[str] = []
    notes: list[str] = []
    worst = 0.0
    for name, against in _pairs(splits):
        count = sum(n for key, n in splits[name].hashes.items() if key in splits[against].hashes)
        if not count:
            continue
        samples = splits[name].samples
        share = count / samples
        text = f"{count} of {samples} {name} samples ({share:.0%}) are in {against}, too"
        by_chance = _most_by_chance(splits[name], splits[against])
        if share > WARNING_SHARE and count > 1 and (copied or count > by_chance):
            leaking.append(text)
            worst = max(worst, share)
        else:
            notes.append(text)
    if leaking:
        report = error if worst > ERROR_SHARE else warning
        return report(f"leak: {'; '.join(leaking)}", ADVICE)
    near = _near(splits)
    if near:
        return warning(f"leak of near duplicates: {'; '.join(near)}", ADVICE)
    if _test_is_val(splits):
        notes.append("val and test are the same samples")
    elif notes:
        notes.append("as often as rows of so few different values repeat by chance")
    counts = ", ".join(f"{split.samples} {name}" for name, split in splits.items())
    return ok(f"compared {counts} samples: {'; '.join(notes) or 'none in two splits'}")


def _pairs(splits: dict[str, SplitStatistics]) -> list[tuple[str, str]]:
    """Return the pairs of splits to compare; data without a test set of its own returns val in its place."""
    pairs = [(name, against) for name, against in PAIRS if name in splits and against in splits]
    if _test_is_val(splits):
        pairs.remove(("test", "val"))
    return pairs


def _test_is_val(splits: dict[str, SplitStatistics]) -> bool:
    return "val" in splits and "test" in splits and splits["val"].hashes == splits["test"].hashes


# Chance ---------------------------------------------------------------------------------------------------------------


def _most_by_chance(split: SplitStatistics, other: SplitStatistics) -> float:
    """Return the number of samples of a split up to which chance explains that they equal one of another split."""
    most = 1.0
    expected = split.samples * _expected_share(split, other)
    if expected >= 0.01:
        most = CHANCE_FACTOR * expected + 3
    if other.is_text:
        # Some short texts and windows of a text repeat. Not more than MAX_TEXT_SHARE, for all may be copied.
        repeated = sum(n for n in other.hashes.values() if n > 1) / other.samples
        most = max(most, split.samples * min(CHANCE_FACTOR * repeated, MAX_TEXT_SHARE))
    return most


def _expected_share(split: SplitStatistics, other: SplitStatistics) -> float:
    """Return the share of samples of a split that equal one of another split by chance."""
    different = len(other.hashes)
    if different <= FEW_ROWS and other.samples >= OFTEN * different:
        return 1.0
    parts = split.flat + other.flat
    if not split.flat or not other.flat or len({part.shape[1] for part in parts}) > 1:
        return 0.0  # too large to keep, or sequences of different lengths
    return expected_share(np.concatenate(split.flat), np.concatenate(other.flat), other.samples)


def _is_copied(splits: dict[str, SplitStatistics]) -> bool:
    """Return whether rows were copied a fixed number of times, by how many rows occur once, twice, three times, ...

    Rows drawn from any distribution over discrete values occur a Poisson-distributed number of times, each with a rate
    of its own. Of any mixture of Poisson distributions, k! times the number of rows that occur k times are moments,
    and thus log-convex in k. Copies make a peak instead.
    """
    rows: Counter[bytes] = Counter()
    for name, split in splits.items():
        if name == "test" and _test_is_val(splits):
            continue
        # A training set that is repeated as a whole, for longer epochs, is no copy between splits.
        repeats = math.gcd(*split.rows.values())
        for row, count in split.rows.items():
            rows[row] += count // repeats
    numbers = Counter(rows.values())
    for k, number in numbers.items():
        if k < 2 or number < 10:
            continue
        # Zero rows may be three, within the error of a Poisson distribution.
        below = numbers[k - 1] + 3
        above = numbers[k + 1] + 3
        # (k! n_k)^2 against (k-1)! n_(k-1) (k+1)! n_(k+1), divided by k!^2
        if number**2 * k > 4 * below * above * (k + 1):
            return True
    return False


# Near duplicates ------------------------------------------------------------------------------------------------------


def _near(splits: dict[str, SplitStatistics]) -> list[str]:
    """Return a sentence for each pair of splits with near duplicates."""
    sentences: list[str] = []
    for name, against in _pairs(splits):
        if any(row in splits[against].hashes for row in splits[name].hashes):
            continue  # images of few kinds, which repeat by chance
        count, compared = near_duplicates(splits[name].descriptors, splits[against].descriptors)
        if count >= MIN_NEAR and count > ERROR_SHARE * compared:
            share = count / compared
            sentences.append(f"{count} of {compared} {name} samples ({share:.0%}) are almost equal to one of {against}")
    return sentences
