"""Texts in one file with end-of-text separators between them: borders where that is meant, else text."""

from __future__ import annotations

import json

import pytest

from zoo.data import TextCorpus
from zoo.data.text import corpus_chunks
from zoo.data.text.corpus_chunks import chunks
from zoo.data.text.corpus_files import from_memory, split_tail
from zoo.data.text.separators import Separators, TextSplitter, check_separator, choose_separators

END = "<|endoftext|>"
ALONE = Separators((END,))
ANYWHERE = Separators((END,), anywhere=True)
STORIES = [f"Once there was a cat number {i}.\nIt sat on the mat.\n" for i in range(40)]


def texts_of(text: str, separators: Separators) -> tuple[list[str], TextSplitter]:
    """The texts of one file, put together from their pieces."""
    splitter = TextSplitter(separators)
    found = [""]
    for chunk in chunks([from_memory("a", text)], True, "", splitter):
        for part, ends in zip(chunk.texts, chunk.ends, strict=True):
            found[-1] += part
            if ends:
                found.append("")
    assert found.pop() == "", "the last text ends too"
    return found, splitter


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"a\n{END}\nb\n", ["a\n", "b\n"]),
        (f"a\n{END}\nb\n{END}\n", ["a\n", "b\n"]),
        (f"a\n{END}\nb\n{END}", ["a\n", "b\n"]),
        (f"{END}\na\n{END}\n\nb", ["a\n", "\nb"]),
        (f"a\r\n{END}\r\nb\r\n", ["a\r\n", "b\r\n"]),
        (f"a\n{END}  \nb", ["a\n", "b"]),
        (f"a {END} b\n{END} c", [f"a {END} b\n{END} c"]),
        (f"a\n{END}\n{END}\n \n{END}\nb", ["a\n", "b"]),
        ("a\n\nb", ["a\n\nb"]),
        ("\n \n", ["\n \n"]),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_lines_of_the_separator_end_a_text(monkeypatch, text, expected, size):
    """However the file comes in pieces."""
    monkeypatch.setattr(corpus_chunks, "CHUNK_BYTES", size)
    found, _ = texts_of(text, ALONE)
    assert found == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"a{END}b{END}c", ["a", "b", "c"]),
        (f"a{END}\nb\n{END}\nc{END}\n", ["a", "b\n", "c"]),
        (f"{END}a", ["a"]),
        (f"a {END} \r\n b", ["a ", " b"]),
    ],
)
def test_a_separator_that_is_given_ends_a_text_anywhere(text, expected):
    found, _ = texts_of(text, ANYWHERE)
    assert found == expected


def test_what_is_cut_is_counted():
    _, splitter = texts_of(f"{END}\na {END}\n{END}\n{END}\nb\n{END}\n", ALONE)
    assert (splitter.num_separators, splitter.num_inline, splitter.num_empty) == (4, 1, 1)
    _, splitter = texts_of("a\nb\n", ALONE)
    assert (splitter.num_separators, splitter.num_inline, splitter.num_empty) == (0, 0, 0)


def test_which_separators():
    assert choose_separators(None, None).names == (END,)
    assert choose_separators(None, END) == ALONE
    assert choose_separators(None, "</s>").names == ("</s>", END)
    assert choose_separators("###", "</s>") == Separators(("###",), anywhere=True)
    assert choose_separators("", END).names == ()
    for option in (None, "", END):
        check_separator(option)
    for option in (" ", "\n", "a\nb"):
        with pytest.raises(ValueError, match=r"separator must be a text within a line, .*, or empty for none: got"):
            check_separator(option)
        with pytest.raises(ValueError, match="separator must be a text within a line"):
            TextCorpus("a.txt", separator=option)


# In a corpus ----------------------------------------------------------------------------------------------------------


def corpus(folder, text: str, **options) -> TextCorpus:
    (folder / "a.txt").write_text(text, encoding="utf-8")
    return TextCorpus(str(folder / "a.txt"), block_size=8, **options)


def tokens(data: TextCorpus) -> list[int]:
    return [*data.datasets["train"].ids.tolist(), *data.datasets["val"].ids.tolist()]


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_stories_of_one_file_are_texts_of_their_own(tmp_path, capsys, cache):
    options = {"tokenizer": "bpe", "vocab_size": 300, "cache": cache, "cache_dir": str(tmp_path / "cache")}
    data = corpus(tmp_path, f"{END}\n".join(STORIES), **options)
    found = tokens(data)
    end = data.tokenizer.eos_id
    assert found.count(end) == 40
    assert data.tokenizer.decode(found) == "".join(STORIES)
    assert "endoftext" not in "".join(data.tokenizer.names(range(1, 300))), "nor is it learned as a word"
    texts = [data.tokenizer.decode(data.datasets[split].ids[:6]) for split in ("train", "val")]
    assert all(text.startswith("Once") for text in texts), "validation begins with a story"
    line = f"zoo: 39 lines '{END}' end a text of their file; --data.separator '' keeps them as text\n"
    assert capsys.readouterr().err == line
    again = corpus(tmp_path, f"{END}\n".join(STORIES), **options)
    assert tokens(again) == found
    assert capsys.readouterr().err == line, "from a cache too"


def test_a_tokenizer_without_an_end_has_a_line_break_there(tmp_path, capsys):
    data = corpus(tmp_path, f"{END}\n".join(STORIES), tokenizer="characters")
    assert data.tokenizer.decode(tokens(data)) == "".join(STORIES)
    assert "<" not in data.tokenizer.source
    assert f"zoo: 39 lines '{END}' end a text" in capsys.readouterr().err


def test_separators_within_lines_are_text_unless_an_option_says_otherwise(tmp_path, capsys):
    options = {"tokenizer": "bpe", "vocab_size": 300}
    joined = END.join(STORIES)
    data = corpus(tmp_path, joined, **options)
    assert tokens(data).count(data.tokenizer.eos_id) == 2, "one at the end of each split"
    assert data.tokenizer.decode(tokens(data)) == joined
    said = f"zoo: '{END}' within a line is text, 39 times: --data.separator '{END}' makes it end a text\n"
    assert capsys.readouterr().err == said
    cut = corpus(tmp_path, joined, separator=END, **options)
    assert tokens(cut).count(cut.tokenizer.eos_id) == 40
    assert cut.tokenizer.decode(tokens(cut)) == "".join(STORIES)
    assert capsys.readouterr().err == ""
    none = corpus(tmp_path, f"{END}\n".join(STORIES), separator="", **options)
    assert none.tokenizer.decode(tokens(none)) == f"{END}\n".join(STORIES)
    assert capsys.readouterr().err == ""
    own = corpus(tmp_path, "### ".join(STORIES), separator="###", **options)
    assert tokens(own).count(own.tokenizer.eos_id) == 40
    _ = corpus(tmp_path, "".join(STORIES), separator="###", **options).datasets
    assert capsys.readouterr().err == "zoo: separator '###' does not occur in the texts\n"


def test_json_lines_and_empty_texts(tmp_path, capsys):
    rows = [f"a text number {i}" for i in range(20)] + ["", f"one\n{END}\ntwo"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (tmp_path / "empty.txt").write_text("")
    paths = [str(tmp_path / name) for name in ("a.jsonl", "empty.txt")]
    data = TextCorpus(paths, block_size=8, tokenizer="bpe", vocab_size=270, val_split=0.2)
    assert tokens(data).count(data.tokenizer.eos_id) == 22
    said = capsys.readouterr().err
    assert "zoo: 2 of 24 texts are empty and left out\n" in said
    assert f"zoo: 1 lines '{END}' end a text of their file" in said


def test_validation_begins_behind_a_separator_where_one_is_near():
    text = f"{END}\n".join(STORIES)
    for share in (0.1, 0.2, 0.5):
        _, val = split_tail([from_memory("a", text)], share, ALONE)
        with val[0].open() as file:
            tail = file.read()[val[0].start :].decode()
        assert tail.startswith("Once there was")
        assert len(tail) == pytest.approx(share * len(text), abs=2 * len(STORIES[10]))


def test_texts_of_other_kinds_in_a_folder_are_counted(tmp_path, capsys):
    for name in ("a.txt", "b.html", "more/c.html", ".hidden/d.html"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text("some text\n" * 20)
    (tmp_path / "texts" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" * 40)
    (tmp_path / "texts" / "empty.css").write_bytes(b"")
    _ = TextCorpus(str(tmp_path / "texts"), block_size=8).datasets
    said = capsys.readouterr().err
    assert said.startswith(f"zoo: {tmp_path}/texts: 2 of 3 text files are left out, as they are no .txt, ")
    assert said.endswith("; the first is b.html\n")
