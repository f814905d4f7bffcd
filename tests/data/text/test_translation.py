"""Dates that mean what they say, splits that share nothing, files with every mistake one can make."""

import datetime
import re
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch

from zoo.data import DateTranslation, ParallelText
from zoo.data.text.dates import COUNT, generate_dates
from zoo.data.text.translation import SPECIALS
from zoo.text.tokenizer import Tokenizer

LONG = [
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
]  # fmt: skip
MONTHS = [name[:3] for name in LONG]


def texts(data, split: str = "train") -> list[tuple[str, str]]:
    """The pairs of a split as their tokens say them."""
    (sources, _), targets = data.datasets[split].batch(torch.arange(len(data.datasets[split])))
    source, target = data.tokenizers
    return [(source.decode(a), target.decode(b[b >= 0])) for a, b in zip(sources, targets, strict=True)]


def meant(text: str) -> datetime.date:
    """What a date says, read by other rules than it was written by."""
    text = text.lower()
    if match := re.fullmatch(r"(\d\d\d\d)(\d\d)(\d\d)", text):
        year, month, day = map(int, match.groups())
    elif match := re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", text):
        day, month, year = map(int, match.groups())
    elif match := re.fullmatch(r"(\d\d\d\d)/(\d+)/(\d+)", text):
        year, month, day = map(int, match.groups())
    elif match := re.fullmatch(r"(\d+)/(\d+)/(\d+)", text):
        month, day, year = map(int, match.groups())
    else:
        words = re.findall(r"[a-z]+|\d+", re.sub(r"(?<=\d)(st|nd|rd|th)\b", "", text))
        named = [i for w in words for i in range(12) if w in (MONTHS[i], LONG[i])]
        assert len(set(named)) == 1, text
        month = named[0] + 1
        numbers = [w for w in words if w.isdigit()]
        long = [w for w in numbers if len(w) == 4]
        year = int(long[0]) if long else int(numbers[-1])
        (day,) = [int(w) for w in numbers if w != (long[0] if long else numbers[-1])] or [int(numbers[0])]
    if year < 100:
        year += 1900 if year >= 69 else 2000
    return datetime.date(year, month, day)


def test_every_style_says_its_date():
    pairs = generate_dates(3000, 5)
    for text, iso in pairs:
        date = datetime.date.fromisoformat(iso)
        assert meant(text) == date, text
        weekdays = re.findall(r"(?i)\b(mon|tue|wed|thu|fri|sat|sun)", text.replace("month", ""))
        assert all(date.strftime("%a").lower() == day.lower() for day in weekdays), text
    shapes = {
        re.sub(r"[a-z]+", "a", re.sub(r"\d+", "1", re.sub(r"(?<=\d)(st|nd|rd|th)", "th", t.lower()))) for t, _ in pairs
    }
    assert len(shapes) > 12, "many styles"
    assert {"lower", "upper"} <= {name for t, _ in pairs for name in ("lower", "upper") if getattr(t, f"is{name}")()}


def test_no_date_stands_in_two_splits():
    data = DateTranslation(samples=5000, seed=3)
    pairs = {split: texts(data, split) for split in ("train", "val", "test")}
    assert sorted(chain(*pairs.values())) == sorted(generate_dates(5000, 3))
    for side in (0, 1):
        found = {split: {pair[side] for pair in part} for split, part in pairs.items()}
        assert [len(found[split]) for split in ("train", "val", "test")] == [4000, 500, 500]
        assert len(set.union(*found.values())) == 5000


def test_dates_are_those_of_the_seed():
    assert generate_dates(50, 1) == generate_dates(50, 1) != generate_dates(50, 2)
    assert len({iso for _, iso in generate_dates(COUNT, 0)}) == COUNT
    with pytest.raises(ValueError, match="samples must be from 20 to 36,525, as many as there are dates: got 40000"):
        DateTranslation(samples=40000)


def test_a_batch_is_shifted_and_padded_to_its_longest():
    data = DateTranslation(samples=500)
    (src, tgt), labels = data.datasets["train"].batch(torch.tensor([3, 0, 7]))
    pairs = [texts(data)[i] for i in (3, 0, 7)]
    assert set(pairs) <= set(generate_dates(500, 0))
    lengths = [len(source) for source, _ in pairs]
    assert src.shape == (3, max(lengths))
    for row, n, (source, _) in zip(src, lengths, pairs, strict=True):
        assert data.tokenizers[0].encode(source) == row[:n].tolist()
        assert (row[n:] == data.pad_id).all()
        assert (row[:n] != data.pad_id).all()
    assert tgt[:, 0].tolist() == [data.bos_id] * 3
    assert labels[:, -1].tolist() == [data.eos_id] * 3
    assert torch.equal(tgt[:, 1:], labels[:, :-1])
    assert [data.tokenizers[1].decode(row) for row in labels] == [target for _, target in pairs]
    (one, begun), behind = data.datasets["train"][3]
    assert one.tolist() == src[0, : lengths[0]].tolist()
    assert (begun.tolist(), behind.tolist()) == (tgt[0].tolist(), labels[0].tolist())


def test_facts_and_buckets():
    data = DateTranslation(samples=2000, batch_size=50)
    assert (data.pad_id, data.bos_id, data.eos_id, data.max_new_tokens) == (0, 2, 3, 11)
    assert data.tgt_vocab_size == 4 + 11, "special ones, digits and the dash"
    widths = [batch[0][0].shape[1] for batch in data.train_dataloader()]
    wild = DateTranslation(samples=2000, batch_size=50, bucket_by_length=False)
    assert sum(widths) < 0.8 * sum(batch[0][0].shape[1] for batch in wild.train_dataloader())


# Files ----------------------------------------------------------------------------------------------------------------


def files(folder: Path, pairs: list[tuple[str, str]]) -> dict[str, str]:
    for name, side in (("a.txt", 0), ("b.txt", 1)):
        (folder / name).write_text("".join(pair[side] + "\n" for pair in pairs), encoding="utf-8")
    return {"source": str(folder / "a.txt"), "target": str(folder / "b.txt")}


def many(n: int = 60) -> list[tuple[str, str]]:
    return [(f"Number {i} is big.", f"{i} ist groß!") for i in range(n)]


@pytest.mark.parametrize("level", ["characters", "words", "bpe"])
def test_texts_come_back_from_their_numbers(level, tmp_path):
    data = ParallelText(**files(tmp_path, many()), level=level)
    expected = set(many())
    if level == "words":
        expected = {(source.lower().replace(".", " ."), target.replace("!", " !")) for source, target in many()}
    assert len(set(texts(data))) == len(data.datasets["train"]) == 48
    assert set(texts(data)) <= expected
    for tokenizer in data.tokenizers:
        again = Tokenizer.from_plain(tokenizer.plain())
        assert again.plain() == tokenizer.plain()
        assert again.encode("Number 7 ist") == tokenizer.encode("Number 7 ist")
        assert len(again) == len(tokenizer)
    data.setup("fit")
    assert data.hparams["tokenizers"] == [tokenizer.plain() for tokenizer in data.tokenizers]


def test_bpe_knows_every_text_and_takes_no_text_for_a_special_token(tmp_path):
    tokenizer = Tokenizer.train("bpe", [text for text, _ in many()] * 5, 300, specials=SPECIALS)
    assert 260 < len(tokenizer) <= 300
    for text in ("日本 <eos> <pad>", "a  b", "Number 59 is big."):
        numbers = tokenizer.encode(text)
        assert min(numbers) > 3
        assert tokenizer.decode(numbers) == text
    assert len(tokenizer.encode("Number")) < 6, "frequent pieces are one token"
    with pytest.raises(ValueError, match="bpe needs 260 tokens or more"):
        Tokenizer.train("bpe", ["a"], 100, specials=SPECIALS)


def test_tsv_equals_two_files(tmp_path):
    (tmp_path / "c.tsv").write_text("".join(f"{a}\t{b}\tCC-BY\n" for a, b in many()), encoding="utf-8-sig")
    one, two = ParallelText(source=str(tmp_path / "c.tsv")), ParallelText(**files(tmp_path, many()))
    for split, part in one.datasets.items():
        assert texts(one, split) == texts(two, split)
        assert len(part) > 0


def vocabulary(tokenizer: Tokenizer) -> list[str]:
    """Its tokens but for the special ones."""
    return tokenizer.names(range(len(tokenizer)))[len(SPECIALS) :]


def test_the_vocabulary_is_that_of_training_and_the_rest_is_said(tmp_path, capsys):
    data = ParallelText(**files(tmp_path, many()), val_split=0.2)
    words = {word for source, _ in texts(data) for word in source.split()}
    assert {"number", "is", "big", "."} < words
    assert len(words) == 4 + len(data.datasets["train"]), "a number of its own in each"
    assert set(vocabulary(data.tokenizers[0])) == words
    unseen = (data.datasets["val"].batch(torch.arange(12))[0][0] == 1).sum()
    assert unseen == 12
    assert "zoo: val: 12 of 60 tokens of sources are not in the vocabulary" in capsys.readouterr().err
    rare = ParallelText(**files(tmp_path, many()), min_freq=2)
    assert vocabulary(rare.tokenizers[0]) == [".", "big", "is", "number"]
    assert len(ParallelText(**files(tmp_path, many()), max_size=9).tokenizers[0]) == 9


def test_a_source_stands_in_one_split(tmp_path):
    pairs = [(f"source {i % 30}", f"target {i}") for i in range(90)] + many(20) * 2
    data = ParallelText(**files(tmp_path, pairs), level="characters")
    found = {split: texts(data, split) for split in ("train", "val", "test")}
    sources = [{source for source, _ in part} for part in found.values()]
    assert sum(map(len, sources)) == len(set.union(*sources)) == 50
    assert sorted(chain(*found.values())) == sorted(pairs), "no pair is lost"


def test_long_texts_are_cut_and_that_is_said_once(tmp_path, capsys):
    pairs = [*many(), ("w " * 40, "v " * 9), ("w " * 20, "v")]
    data = ParallelText(**files(tmp_path, pairs), max_length=8, val_split=0.01, test_split=0.02)
    (src, _), labels = data.datasets["train"].batch(torch.arange(len(data.datasets["train"])))
    assert src.shape[1] == 8
    assert data.max_new_tokens == labels.shape[1] == 9, "the end stands behind what is kept"
    assert sum(3 in row for row in labels.tolist()) == len(labels)
    said = capsys.readouterr().err
    assert said.count("sources of train are longer than max_length=8 tokens (the longest has 40)") == 1
    assert said.count("targets of train are longer than max_length=8 tokens (the longest has 9)") == 1


def test_empty_lines_are_left_out_and_that_is_said(tmp_path, capsys):
    data = ParallelText(**files(tmp_path, [*many(), ("", "leer"), ("empty", "  "), ("", "")]))
    assert sum(map(len, data.datasets.values())) == 60
    assert "zoo: 3 of 63 pairs are empty on one side or both, and left out" in capsys.readouterr().err
    (tmp_path / "c.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in many()) + "empty\t\n\n")
    assert sum(map(len, ParallelText(source=str(tmp_path / "c.tsv")).datasets.values())) == 60


def test_mistakes_are_told_in_a_line(tmp_path):
    good = files(tmp_path, many())
    (tmp_path / "short.txt").write_text("one\n" * 59)
    (tmp_path / "latin.txt").write_bytes("größer\n".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    (tmp_path / "c.tsv").write_text("a\tb\nno tab here\n")
    cases = [
        ({**good, "target": str(tmp_path / "short.txt")}, r"a.txt has 60 lines, .*short.txt has 59: line by line"),
        ({**good, "target": str(tmp_path / "none.txt")}, r"no file .*none.txt"),
        ({**good, "target": str(tmp_path)}, r"\(it is a folder\)"),
        ({**good, "target": str(tmp_path / "latin.txt")}, r"latin.txt is not text in UTF-8"),
        ({**good, "target": str(tmp_path / "empty.txt")}, r"empty.txt is empty"),
        (
            {"source": str(tmp_path / "few.txt"), "target": str(tmp_path / "few.txt")},
            "2 sources are too few: nothing is left for val",
        ),
        ({"source": str(tmp_path / "c.tsv")}, r"c.tsv, line 2: a text, a tab and its translation needed, got 'no tab"),
        (
            {"source": good["source"]},
            r"takes a source and a target file, or one .tsv: got source='.*a.txt', target=None",
        ),
        ({**good, "level": "letters"}, "level must be characters, words, bpe, got 'letters'"),
        ({**good, "max_length": 0}, "max_length must be 1 or more, got 0"),
        ({**good, "tokenizers": [{"level": "bpe"}] * 2}, "a tokenizer in a checkpoint is a dict with 'packed', got"),
    ]
    for options, words in cases:
        with pytest.raises(ValueError, match=words):
            _ = ParallelText(**options).datasets
    plain = [tokenizer.plain() for tokenizer in ParallelText(**good).tokenizers]
    with pytest.raises(ValueError, match=r"level is characters, but the tokenizers .* are for words"):
        ParallelText(**good, level="characters", tokenizers=plain)


def test_bpe_without_its_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"these tokens need the tokenizers library: pip install tokenizers"):
        _ = ParallelText(**files(tmp_path, many()), level="bpe").datasets
