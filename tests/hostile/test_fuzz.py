"""A small number of inputs of the fuzzing script."""

from tests.hostile.fuzz import fuzz, table


def test_readers_answer_random_changes_with_clear_errors_only():
    counts = fuzz(2_000)
    assert all(outcomes["read"] + outcomes["refused"] > 0 for outcomes in counts.values()), table(counts)
    assert sum(outcomes["refused"] for outcomes in counts.values()) > 500, table(counts)
    assert sum(outcomes["read"] for outcomes in counts.values()) > 100, table(counts)
