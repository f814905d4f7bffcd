"""How often rows of two splits are equal by chance, as in tables of few values, estimated without the equal rows."""

from __future__ import annotations

import numpy as np

MAX_SINGLE_COLUMNS = 64
BLOCKS = 16
MAX_GAPS = 5  # possible values of a column for each one that occurs, up to which it is a scale of whole numbers


def expected_share(rows: np.ndarray, others: np.ndarray, samples: int) -> float:
    """Return the share of rows that have an equal among independent rows of the same distribution.

    The equal rows themselves may be copies, the fault in question, and say nothing. The probability that a row equals
    another is estimated by the rows that agree with it in some columns, times those that agree in the others; pairs of
    rows that agree in all columns are left out of both. A column of continuous numbers makes it 0.

    Args:
        rows: rows of a split ``(m, f)``.
        others: rows of the other split ``(n, f)``.
        samples: number of samples in the other split, of which ``others`` is a part.
    """
    row_terms = _terms(rows)
    other_terms = _terms(others)
    probability = np.maximum(
        _probability_of_each(row_terms, other_terms),
        _probability_of_any(others, other_terms),
    )
    return float((1 - np.exp(-samples * probability)).mean())


def _terms(rows: np.ndarray) -> np.ndarray:
    """Return a random number for each value ``(n, f)``; their sum over some columns is a hash of these columns."""
    columns = rows.shape[1]
    generator = np.random.default_rng(0)
    factors = generator.integers(1, 2**63, columns, dtype=np.uint64) | np.uint64(1)
    bits = (rows + 0.0).view(np.uint64)  # the sum turns -0.0 into 0.0
    bits = (bits ^ (bits >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    return (bits ^ (bits >> np.uint64(29))) * factors


def _hash(terms: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return terms[:, columns].sum(1, dtype=np.uint64)


# Of each row ----------------------------------------------------------------------------------------------------------


def _probability_of_each(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return for each row the probability that another one equals it ``(m,)``.

    With three blocks of columns it is P(a and b agree) P(c agrees | a agrees): rows of a survey or of images agree in c
    more often where they agree in a. The largest estimate over several ways to form the blocks counts.
    """
    everything = np.arange(rows.shape[1])
    equal = _agree(rows, others, everything)  # (m, n)
    different = np.maximum((~equal).sum(1), 1)
    best = np.zeros(len(rows))
    for a, b, c in _blocks(rows.shape[1]):
        agree_a = _agree(rows, others, a) & ~equal
        agree_c = _agree(rows, others, c) & ~equal
        agree_ab = _agree(rows, others, np.concatenate([a, b])) & ~equal
        conditional = (agree_a & agree_c).sum(1) / np.maximum(agree_a.sum(1), 1)
        best = np.maximum(best, agree_ab.sum(1) / different * conditional)
    return best


def _blocks(columns: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return ways to form three blocks of columns, neighbouring or every third one, in all orders that matter."""
    indices = np.arange(columns)
    nothing = indices[:0]
    if columns == 1:
        return []
    if columns == 2:
        # Then P(a) P(c), without a condition.
        return [(nothing, indices[:1], indices[1:]), (nothing, indices[1:], indices[:1])]
    ways: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for thirds in (np.array_split(indices, 3), [indices[i::3] for i in range(3)]):
        a, b, c = thirds
        ways += [(a, b, c), (b, c, a), (c, a, b)]
    return ways


def _agree(rows: np.ndarray, others: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return which pairs of rows agree in some columns ``(m, n)``."""
    return _hash(rows, columns)[:, None] == _hash(others, columns)[None]


# Of any row -----------------------------------------------------------------------------------------------------------


def _probability_of_any(rows: np.ndarray, terms: np.ndarray) -> float:
    """Return the probability that two rows are equal, from the different rows, for all rows alike.

    One-hot columns need it: there, rows that agree in the column of the 1 agree in all columns.
    """
    columns = rows.shape[1]
    total, first = np.unique(_hash(terms, np.arange(columns)), return_index=True)
    terms = terms[first]
    if columns == 1 or len(total) < 2:
        return 1.0  # no other columns to compare with
    best = _chance_of_scale(rows[first])
    for group in _groups(columns):
        part = _hash(terms, group)
        best = max(best, _agreement(part) * _agreement(total - part))
    return best


def _groups(columns: int) -> list[np.ndarray]:
    """Return groups of columns: halves, every other one, and single ones or blocks."""
    indices = np.arange(columns)
    groups = [indices[: columns // 2], indices[::2]]
    if columns <= MAX_SINGLE_COLUMNS:
        groups += list(indices.reshape(-1, 1))
    else:
        groups += np.array_split(indices, BLOCKS)
    return groups


def _agreement(hashes: np.ndarray) -> float:
    """Return the probability that two rows have the same hash."""
    counts = np.unique(hashes, return_counts=True)[1].astype(float)
    n = len(hashes)
    return float((counts * (counts - 1)).sum()) / (n * (n - 1))


def _chance_of_scale(rows: np.ndarray) -> float:
    """Return the probability that two rows are equal if one column of whole numbers, such as an age, determines a row.

    Args:
        rows: different rows ``(n, f)``; columns may be standardised.
    """
    best = 0.0
    for column in rows.T:
        values = np.unique(column)
        if len(values) < len(rows) or len(values) < 3:
            continue
        steps = np.diff(values) / np.diff(values).min()
        is_scale = np.abs(steps - steps.round()).max() < 1e-2 * steps.max()
        positions = steps.sum() + 1
        if is_scale and positions <= MAX_GAPS * len(values):
            best = max(best, 1 / positions)
    return best
