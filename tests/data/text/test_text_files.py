"""Files and folders of texts with labels: nothing is lost without a line that counts it."""

from __future__ import annotations

import pytest

from zoo.data import MaskedText, TextClassification
from zoo.data.text.text_files import read_splits, read_texts


def test_two_columns_of_one_name(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\ttext\na\tb\tc\n")
    with pytest.raises(ValueError, match=r"a.tsv has two columns 'text': rename one"):
        read_texts(tmp_path / "a.tsv", "text", "label")


def test_empty_lines_of_a_table_are_counted(tmp_path, capsys):
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\na\tb\n\n\t\nc\td\n\n\n")
    assert read_texts(path, "text", "label") == (["a", "c"], ["b", "d"])
    assert capsys.readouterr().err == f"zoo: {path}: 2 of 5 lines are empty and left out\n"
    path.write_text("text\tlabel\n\na\tb\nc\n")
    with pytest.raises(ValueError, match=r"a.tsv, line 4: 1 values for 2 columns"):
        read_texts(path, "text", "label")


def test_files_that_are_no_texts_of_a_class(tmp_path, capsys):
    for name in ("good/1.txt", "good/2.TXT", "good/3.md", "bad/1.txt", "none/1.html", "bad/.hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    texts, labels = read_texts(tmp_path, "text", "label")
    assert (texts, labels) == (["bad/1.txt", "good/1.txt", "good/2.TXT"], ["bad", "good", "good"])
    assert capsys.readouterr().err == (
        f"zoo: {tmp_path}: 2 of 5 files are not .txt and left out, the first is good/3.md\n"
        f"zoo: {tmp_path}: no .txt files, and so no class, in none\n"
    )


def test_splits_by_their_names(tmp_path, capsys):
    for name in ("train.csv", "dev.CSV", "test.xlsx", "extra.csv"):
        (tmp_path / name).write_text("text,label\na,b\n")
    assert set(read_splits(tmp_path, "text", "label")) == {"train", "val"}
    assert capsys.readouterr().err == f"zoo: {tmp_path}: test.xlsx left out, as .csv, .tsv, .jsonl are read\n"
    (tmp_path / "train.tsv").write_text("text\tlabel\na\tb\n")
    with pytest.raises(ValueError, match=r"has two files for train: train.csv and train.tsv; keep one"):
        read_splits(tmp_path, "text", "label")


def test_a_folder_of_texts_for_masking(tmp_path, capsys):
    for name in ("a.txt", "b.txt", "c.rst"):
        (tmp_path / name).write_text("".join(f"a text {name} number {i}\n" for i in range(20)) + "\n")
    data = MaskedText(str(tmp_path), vocab_size=80)
    assert sum(map(len, data._texts.values())) == 40
    assert capsys.readouterr().err == (
        f"zoo: {tmp_path}: 1 of 3 files are not .txt and left out, the first is c.rst\n"
        "zoo: 2 of 42 texts are empty and left out\n"
    )


@pytest.mark.parametrize(("separator", "option"), [(",", None), (";", None), ("\t", None), (";", ";"), ("\t", "tab")])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_separators_and_encodings_of_tables(tmp_path, separator, option, encoding):
    rows = [f"déjà vu {i}{separator}{'yn'[i % 2]}" for i in range(30)]
    (tmp_path / "a.csv").write_text("\n".join([f"text{separator}label", *rows]) + "\n", encoding=encoding)
    path = str(tmp_path / "a.csv")
    data = TextClassification(path, separator=option, encoding=encoding, predict_file=path)
    texts = {text for part, _ in data._texts.values() for text in part}
    assert texts == {f"déjà vu {i}" for i in range(30)}
    assert len(data.dataset("predict")) == 30
    masked = MaskedText(path, vocab_size=60, separator=option, encoding=encoding)
    assert {text for part in masked._texts.values() for text in part} == texts
