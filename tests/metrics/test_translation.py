"""BLEU and chrF, with the scores that sacrebleu 2.6.0 gives."""

import pytest
import torch

from zoo.metrics.translation import CharacterF, SacreBLEU

NO_FOUR_IN_COMMON = ["the dog sat there", "a big mat"], ["the cat sat on it", "a mat was big"]


def score(metric, hypotheses, references) -> float:
    metric.update(hypotheses, [[text] for text in references])
    return float(metric.compute())


def test_no_four_words_in_common():
    assert score(SacreBLEU(tokenize="13a"), *NO_FOUR_IN_COMMON) == pytest.approx(0.12411264901419447, abs=1e-6)
    assert score(CharacterF(), *NO_FOUR_IN_COMMON) == pytest.approx(0.21118847249395856, abs=1e-6)


def test_orders_that_short_texts_lack_are_left_out_of_chrf():
    assert score(CharacterF(), ["ab", "abc d"], ["abd", "abc"]) == pytest.approx(0.6944444444444446, abs=1e-6)


@pytest.mark.parametrize(
    ("hypotheses", "references", "bleu"),
    [
        (["a b c d e"], ["a b c d e"], 1.0),
        (["a b c"], ["a b c"], 0.0),  # no translation has four words
        (["x y z w"], ["a b c d"], 0.0),
        ([""], ["a b c d"], 0.0),
    ],
)
def test_ends_of_the_scale(hypotheses, references, bleu):
    assert score(SacreBLEU(tokenize="13a"), hypotheses, references) == pytest.approx(bleu)


def test_nothing_to_compare_with():
    for metric in (SacreBLEU(tokenize="13a"), CharacterF()):
        assert torch.isnan(torch.tensor(score(metric, ["a b"], [" "])))


def test_batches_add_up():
    whole, parts = SacreBLEU(tokenize="char"), SacreBLEU(tokenize="char")
    hypotheses, references = NO_FOUR_IN_COMMON
    whole.update(hypotheses, [[text] for text in references])
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        parts.update([hypothesis], [[reference]])
    assert float(whole.compute()) == pytest.approx(float(parts.compute()))
