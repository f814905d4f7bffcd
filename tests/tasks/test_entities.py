"""Entities counted as conlleval does: by hand, and against a loop over words."""

from __future__ import annotations

import math
import random

import pytest
import torch

from zoo.tasks.entities import EntityF1

NAMES = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def scores(true: list[str], found: list[str]) -> EntityF1:
    """Of sentences, each a string of tags, in which - is a word that is not asked for."""
    width = max(len(row.split()) for row in true)
    metric = EntityF1(NAMES)

    def numbers(rows: list[str], gap: int) -> torch.Tensor:
        padded = [row.split() + ["-"] * (width - len(row.split())) for row in rows]
        return torch.tensor([[gap if tag == "-" else NAMES.index(tag) for tag in row] for row in padded])

    metric.update(numbers(found, 0), numbers(true, -1))
    return metric


@pytest.mark.parametrize(("true", "found", "right", "n_found", "n_true"), [
    (["B-PER I-PER O"], ["B-PER I-PER O"], 1, 1, 1),
    (["B-PER I-PER O"], ["B-PER O O"], 0, 1, 1),  # half of a name is none
    (["B-PER I-PER O"], ["B-PER I-PER I-PER"], 0, 1, 1),
    (["B-PER I-PER O"], ["B-LOC I-LOC O"], 0, 1, 1),  # another type
    (["B-PER I-PER O"], ["B-PER B-PER O"], 0, 2, 1),  # cut in two
    (["B-PER B-PER"], ["B-PER I-PER"], 0, 1, 2),  # grown together
    (["B-PER I-PER"], ["I-PER I-PER"], 1, 1, 1),  # an I- from nowhere begins one
    (["B-PER I-PER"], ["B-PER I-LOC"], 0, 2, 1),  # and one of another type
    (["O B-LOC"], ["O B-LOC"], 1, 1, 1),  # up to the end
    (["O B-LOC", "I-LOC O"], ["O B-LOC", "I-LOC O"], 2, 2, 2),  # a new sentence begins a new one
    (["B-PER - I-PER - O"], ["B-PER B-PER I-PER O O"], 1, 1, 1),  # pieces that are not asked for
    (["O O"], ["O O"], 0, 0, 0),
    (["B-LOC O B-PER"], ["B-LOC B-LOC B-PER"], 2, 3, 2),
])  # fmt: skip
def test_by_hand(true, found, right, n_found, n_true):
    metric = scores(true, found)
    assert [int(part.sum()) for part in (metric.right, metric.found, metric.true)] == [right, n_found, n_true]
    values = metric.compute()
    for name, numerator, total in (("precision", right, n_found), ("recall", right, n_true),
                                   ("f1", 2 * right, n_found + n_true)):  # fmt: skip
        expected = numerator / total if total else math.nan
        assert float(values[name]) == pytest.approx(expected, nan_ok=True)


def spans(tags: list[str]) -> set[tuple[str, int, int]]:
    found, begin, kind = set(), None, ""
    for i, tag in enumerate([*tags, "O"]):
        if begin is not None and (tag[:2] != "I-" or tag[2:] != kind):
            found.add((kind, begin, i))
            begin = None
        if tag != "O" and begin is None:
            begin, kind = i, tag[2:]
    return found


def test_random_tags_against_a_loop():
    rng = random.Random(0)
    metric, right, n_found, n_true = EntityF1(NAMES), 0, 0, 0
    for _ in range(5):
        lengths = [rng.randint(1, 12) for _ in range(40)]
        true, found = ([[rng.choice(NAMES) for _ in range(n)] for n in lengths] for _ in range(2))
        found = [
            [t if rng.random() < 0.7 else f for t, f in zip(*pair, strict=True)]
            for pair in zip(true, found, strict=True)
        ]
        rows = [
            [[NAMES.index(tag) for tag in row] + [gap] * (12 - len(row)) for row in part]
            for part, gap in ((found, 0), (true, -1))
        ]
        metric.update(*map(torch.tensor, rows))
        for a, b in zip(map(spans, found), map(spans, true), strict=True):
            right, n_found, n_true = right + len(a & b), n_found + len(a), n_true + len(b)
    assert [int(part.sum()) for part in (metric.right, metric.found, metric.true)] == [right, n_found, n_true]
    assert 0.2 < metric.compute()["f1"] < 0.9


def test_of_each_type():
    metric = scores(["B-LOC O B-PER", "B-LOC O O"], ["B-LOC O O", "O O O"])
    assert metric.by_type() == pytest.approx({"LOC": 2 / 3, "PER": 0.0})
    empty = scores(["B-LOC"], ["B-LOC"])
    assert empty.by_type() == pytest.approx({"LOC": 1.0, "PER": math.nan}, nan_ok=True)
