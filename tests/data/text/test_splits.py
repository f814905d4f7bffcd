"""One rule for all texts: none is dropped for being there twice, and equal ones are never in two splits."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests import fake_data
from zoo.data import NER, MaskedText, ParallelText, TextClassification
from zoo.data.base import split_indices
from zoo.data.text.splits import split_shares, split_texts

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
TEXTS = [f"text number {i % 50}" for i in range(70)]


def test_without_repeats_it_is_the_plain_split(capsys):
    texts = [str(i) for i in range(103)]
    labels = ["a" if i % 3 else "b" for i in range(103)]
    for given in (None, labels):
        classes = None if given is None else torch.tensor([int(label == "b") for label in labels])
        expected = split_indices(103, list(SHARES.values()), 7, classes)
        found = split_texts(texts, SHARES, 7, given)
        assert list(found.values()) == [part.tolist() for part in expected]
    assert capsys.readouterr().err == ""


def test_equal_texts_stay_together_and_none_is_lost(capsys):
    found = split_texts(TEXTS, SHARES, 0)
    assert sorted(i for part in found.values() for i in part) == list(range(70))
    assert all(part == sorted(part) for part in found.values())
    texts = [{TEXTS[i] for i in part} for part in found.values()]
    assert [len(part) for part in texts] == [40, 5, 5]
    assert len(set.union(*texts)) == 50
    assert capsys.readouterr().err == "zoo: 50 of 70 texts are different: equal ones are in the same split\n"


def test_too_few_texts_and_given_splits(capsys):
    with pytest.raises(ValueError, match="1 different texts are too few: nothing is left for val"):
        split_texts(["a", "a"], SHARES, 0)
    with pytest.raises(ValueError, match="2 pairs are too few: nothing is left for val"):
        split_texts(["a", "b"], SHARES, 0, what="pairs")
    assert split_shares({"train", "val", "test"}, 0.1, 0.2) == {"train": 1}
    assert split_shares({"train", "val"}, 0.1, 0.2) == {"train": 0.8, "test": 0.2}
    assert split_texts(["a", "a"], {"train": 1.0}, 0) == {"train": [0, 1]}
    assert capsys.readouterr().err == "", "in one split there is nothing to say"


def test_every_dataset_of_texts_keeps_them(tmp_path, capsys):
    line = "50 of 70 {} are different: equal ones are in the same split\n"
    (tmp_path / "a.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    masked = MaskedText(str(tmp_path / "a.txt"), vocab_size=80)._texts
    check(masked, TEXTS)
    assert line.format("texts") in capsys.readouterr().err

    rows = "".join(f"{text}\t{'yn'[i % 2]}\n" for i, text in enumerate(TEXTS))
    (tmp_path / "a.tsv").write_text(f"text\tlabel\n{rows}")
    classified = TextClassification(str(tmp_path / "a.tsv"))._texts
    check({split: texts for split, (texts, _) in classified.items()}, TEXTS)
    assert line.format("texts") in capsys.readouterr().err

    (tmp_path / "b.txt").write_text("".join(f"Übersetzung {i % 55}\n" for i in range(70)))
    parallel = ParallelText(str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))._pairs
    check({split: [source for source, _ in pairs] for split, pairs in parallel.items()}, TEXTS)
    assert line.format("sources") in capsys.readouterr().err

    sentences = [(text.split(), ["O", "O", "B-NUM"]) for text in TEXTS]
    tagged = NER(str(fake_data.conll(tmp_path, sentences)))._sentences
    check({split: [" ".join(words) for words, _ in part] for split, part in tagged.items()}, TEXTS)
    assert line.format("sentences") in capsys.readouterr().err


def check(splits: dict[str, list[str]], texts: list[str]) -> None:
    """All of the texts, each of them in one split."""
    assert sum((Counter(part) for part in splits.values()), Counter()) == Counter(texts)
    assert sum(len(set(part)) for part in splits.values()) == len(set(texts))
    assert all(splits.values())
