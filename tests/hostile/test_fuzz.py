"""A small number of inputs of the fuzzing script."""

from tests.hostile.fuzz import fuzz


def test_readers_answer_random_changes_with_clear_errors_only():
    refused = fuzz(1_500)
    assert min(refused.values()) > 10, refused  # each reader saw inputs that it has to refuse
