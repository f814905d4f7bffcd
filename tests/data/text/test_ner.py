"""CoNLL files: columns, ways to mark entities, pieces of words, mistakes with file and line."""

from __future__ import annotations

import csv

import pytest
import torch

from tests import fake_data
from zoo.data import NER
from zoo.data.text.conll import read_conll, scheme_of, to_iob2
from zoo.data.text.synthetic_entities import generate_sentences

SENTENCES = []
for number in range(10):
    SENTENCES += [
        (["Ada", "Lovelace", "lived", "in", f"London{number}", "."], ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]),
        (["Unimaginableness", "of", f"Paris{number}"], ["O", "O", "B-LOC"]),
    ]


@pytest.mark.parametrize(("tags", "scheme", "expected"), [
    ("O B-PER I-PER B-PER O", "IOB2", "O B-PER I-PER B-PER O"),
    ("I-PER I-PER O I-LOC", "IOB1", "B-PER I-PER O B-LOC"),
    ("I-PER B-PER I-PER", "IOB1", "B-PER B-PER I-PER"),
    ("I-PER I-LOC", "IOB1", "B-PER B-LOC"),
    ("S-PER B-LOC I-LOC E-LOC S-LOC", "IOBES", "B-PER B-LOC I-LOC I-LOC B-LOC"),
    ("U-PER B-LOC L-LOC U-LOC", "IOBES", "B-PER B-LOC I-LOC B-LOC"),
    ("B-PER M-PER E-PER O S-LOC", "BMES", "B-PER I-PER I-PER O B-LOC"),
    ("O O", "IOB2", "O O"),
])  # fmt: skip
def test_ways_to_mark_entities(tags, scheme, expected):
    assert scheme_of([tags.split()]) == scheme
    assert to_iob2(tags.split()) == expected.split()


def test_columns_documents_and_empty_lines(tmp_path, capsys):
    path = fake_data.conll(tmp_path, SENTENCES[:2])
    assert read_conll(path) == SENTENCES[:2]
    assert capsys.readouterr().err == ""
    commented = read_conll_of(tmp_path, "# a comment\nNew York\tB-LOC\n\n\n# text = Number 1\nx\tO\n#\tO\n1\tO\n")
    assert commented == [(["New York"], ["B-LOC"]), (["x", "#", "1"], ["O"] * 3)], "a number sign may be a word"
    strange = [(["a\u2028b", "New\xa0York"], ["O", "B-LOC"])]
    assert read_conll_of(tmp_path, "a\u2028b O\nNew\xa0York  B-LOC\r\n") == strange
    with pytest.raises(ValueError, match=r"two.tsv, line 6"):
        read_conll_of(tmp_path, "New York\tB-LOC\nx\tO\n\n\nA\tO\nx\tX\n")
    assert read_conll_of(tmp_path, "New York\tB-LOC\nx\tO\n") == [(["New York", "x"], ["B-LOC", "O"])]
    assert read_conll_of(tmp_path, "Rome I-LOC\nx O\n") == [(["Rome", "x"], ["B-LOC", "O"])]
    assert "its tags are IOB1, taken as IOB2" in capsys.readouterr().err


def test_tabs_and_spaces_around_columns(tmp_path):
    expected = [(["New York", "x"], ["B-LOC", "O"]), (["y"], ["O"])]
    assert read_conll_of(tmp_path, "New York\tB-LOC\t\nx \t O\n\t\ny\tO\n") == expected


def test_two_files_of_one_split_and_files_that_are_not_read(tmp_path, capsys):
    fake_data.conll(tmp_path, SENTENCES)
    fake_data.conll(tmp_path, SENTENCES[:3], "dev.txt")
    (tmp_path / "test.json").write_text("[]")
    (tmp_path / "notes.json").write_text("[]")
    assert len(NER(path=str(tmp_path), vocab_size=90).datasets["val"]) == 3
    left_out = f"zoo: {tmp_path}: test.json left out, as .txt, .conll, .iob, .iob2, .bio, .tsv are read\n"
    assert capsys.readouterr().err == left_out
    fake_data.conll(tmp_path, SENTENCES[:3], "valid.txt")
    with pytest.raises(ValueError, match=r"has two files for val: dev.txt and valid.txt; keep one"):
        NER(path=str(tmp_path)).setup("fit")


def test_words_that_the_tokenizer_drops_are_counted(tmp_path, capsys):
    words = ["Ada", "\u200b", "lived", "\u200b"]
    path = fake_data.conll(tmp_path, [*SENTENCES, (words, ["B-PER", "O", "O", "O"])], "all.txt")
    data = NER(path=str(path), vocab_size=90, val_split=0.3)
    assert set(data.datasets) == {"train", "val", "test"}
    assert "words have no token and so no tag, the first is '\\u200b'" in capsys.readouterr().err


def read_conll_of(folder, text):
    (folder / "two.tsv").write_text(text)
    return read_conll(folder / "two.tsv")


@pytest.mark.parametrize(("text", "said"), [
    ("a O\nb\n", "two.tsv, line 2: 2 columns as in the first line needed, got 'b'"),
    ("a NN O\n\nb O\n", "two.tsv, line 3: 3 columns as in the first line needed"),
    ("a\n", "two.tsv, line 1: a word and its tag needed"),
    ("a PER\n", "two.tsv, line 1: a tag is O, B-TYPE or I-TYPE, got 'PER'"),
    ("\n\n", "holds no sentences"),
    ("a\tO\n\tB-PER\n", "two.tsv, line 2: the tag B-PER has no word"),
    ("a\tO\n \tO\n", "two.tsv, line 2: the tag O has no word"),
])  # fmt: skip
def test_mistakes_name_file_and_line(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        read_conll_of(tmp_path, text)


def test_folders_and_missing_files(tmp_path):
    fake_data.conll(tmp_path, SENTENCES)
    fake_data.conll(tmp_path, SENTENCES[:3], "valid.txt")
    data = NER(path=str(tmp_path), vocab_size=80)
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == [18, 3, 2]
    for path, said in ((tmp_path / "none", "no file"), (tmp_path / "empty", "holds no train")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=said):
            len(NER(path=str(path)).class_names)


def test_tags_of_first_pieces(tmp_path):
    data = NER(path=str(fake_data.conll(tmp_path, SENTENCES)), vocab_size=80, batch_size=20)
    assert data.class_names == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    ((x, lengths), y) = data.datasets["train"].batch(torch.arange(len(data.datasets["train"])))
    for ids, length, tags in zip(x, lengths, y, strict=True):
        names = data.tokenizer.names(ids[:length].tolist())
        asked = [(name, data.class_names[tag]) for name, tag in zip(names, tags, strict=False) if tag >= 0]
        words, true = next((w, t) for w, t in SENTENCES if len(w) == len(asked))
        assert [tag for _, tag in asked] == true
        assert all(word.startswith(piece) for (piece, _), word in zip(asked, words, strict=True))
        assert (ids[length:] == data.pad_id).all()
        assert (tags[length:] == -100).all()
        assert tags[0] == tags[length - 1] == -100
    assert max(lengths) > 8, "some word has several pieces"


def test_unknown_tags_of_another_split(tmp_path):
    fake_data.conll(tmp_path, SENTENCES)
    fake_data.conll(tmp_path, [(["x"], ["B-MISC"])], "test.txt")
    with pytest.raises(ValueError, match="test has the tag B-MISC; training has O, B-LOC"):
        NER(path=str(tmp_path)).setup("fit")


def test_drawn_sentences():
    first, again, other = generate_sentences(300, 0), generate_sentences(300, 0), generate_sentences(300, 1)
    assert first == again != other
    assert scheme_of([tags for _, tags in first]) == "IOB2"
    assert {tag[2:] for _, tags in first for tag in tags if tag != "O"} == {"PER", "LOC", "ORG", "DATE"}
    assert all(len(words) == len(tags) for words, tags in first)
    kinds = {}
    for words, tags in first:
        for word, tag in zip(words, tags, strict=True):
            kinds.setdefault(word, set()).add(tag[2:])
    assert sum(len(kind) > 1 for kind in kinds.values()) > 10, "a word alone does not tell what it is"


def test_new_texts_are_tagged_word_by_word(zoo, here):
    fake_data.conll(here / "news", SENTENCES)
    code, _, err = zoo(
        "fit", "-c", "configs/bert_ner.yaml", "--data.path", "news", "--run_dir", "run", "--trainer.max_epochs", 2
    )
    assert code == 0, err
    (here / "new.txt").write_text("Ada lives in London.\nUnimaginableness!\n")
    (here / "news").rename(here / "gone")
    code, _, err = zoo(
        "predict", "--ckpt_path", "run/checkpoints/last.ckpt", "--out", "out.csv", "--data.predict_file", "new.txt"
    )
    assert (code, err) == (0, "")
    with open("out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [len(row["name"].split(",")) for row in rows] == [5, 2]
