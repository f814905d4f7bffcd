"""Files in UTF-16, latin-1 and others are read right by every dataset of texts, or refused with their place."""

from __future__ import annotations

import codecs
import json

import pytest

from tests import fake_data
from zoo.data import NER, MaskedText, ParallelText, TextClassification, TextCorpus
from zoo.data.text.conll import read_conll
from zoo.data.text.encoding import check_encoding, read_lines, read_text
from zoo.data.text.text_files import read_texts

TEXT = "Größe 日本\nnaïve\r\nlast\r"
LINES = ["Größe 日本", "naïve", "last"]


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
@pytest.mark.parametrize("option", [None, "utf-8", "latin-1"])
def test_a_byte_order_mark_is_decoded_whatever_the_option(tmp_path, mark, encoding, option):
    path = tmp_path / "a.txt"
    path.write_bytes(mark + TEXT.encode(encoding))
    if mark or option != "latin-1":
        assert read_lines(path, option) == LINES
    else:
        assert read_lines(path, option)[0] == "GrÃ¶Ã\x9fe æ\x97¥æ\x9c¬", "as the option says"


@pytest.mark.parametrize(
    ("content", "option", "message"),
    [
        (b"one\ntw\xe9\n", None, r"a.txt is not text in UTF-8 \(line 2, byte 6: 0xe9\); save it as UTF-8"),
        (b"one\ntw\xe9\n", "utf-8", r"\(line 2, byte 6: 0xe9\); --data.encoding names its encoding, such as latin-1"),
        (b"\xef\xbb\xbf\xe9", "utf-8", r"a.txt is not text in UTF-8 \(line 1, byte 3: 0xe9\)"),
        (b"tw\xe9\n", "ascii", r"a.txt is not text in ASCII \(line 1, byte 2: 0xe9\)"),
        (b"one\0two", "utf-8", "a.txt is binary, not text: byte 3 is zero; --data.encoding names"),
        ("no mark".encode("utf-16-le"), "utf-8", "UTF-16 without a byte order mark: --data.encoding utf-16-le"),
        ("no mark".encode("utf-16-be"), "utf-8", "UTF-16 without a byte order mark: --data.encoding utf-16-be"),
        ("no mark".encode("utf-16-be"), None, r"is it UTF-16 without a byte order mark\?$"),
    ],
)
def test_what_is_not_text_is_named_with_its_place(tmp_path, content, option, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_text(path, option)
    assert "\n" not in str(caught.value)


def test_names_of_encodings():
    for name in ("utf-8", "UTF8", "latin-1", "cp1252", "utf-16", "utf-16-le", "shift_jis"):
        check_encoding(name)
    for name in ("latin-0", "zip", "rot13", ""):
        with pytest.raises(ValueError, match=rf"encoding must be a text encoding such as utf-8, .*, got '{name}'"):
            check_encoding(name)
    for make in (NER, MaskedText, TextClassification):
        with pytest.raises(ValueError, match="encoding must be a text encoding"):
            make(encoding="latin-0")
    with pytest.raises(ValueError, match="encoding must be a text encoding"):
        TextCorpus("a.txt", encoding="latin-0")


def contents(encoding: str) -> dict[str, bytes]:
    """A file of each kind with texts that need other characters than ASCII."""
    texts = [f"café number {i}" for i in range(40)]
    rows = [f"{text}\t{('good', 'schön')[i % 2]}" for i, text in enumerate(texts)]
    files = {
        "a.txt": "".join(f"{text}\n" for text in texts),
        "a.tsv": "text\tlabel\n" + "".join(f"{row}\n" for row in rows),
        "a.jsonl": "".join(json.dumps({"text": text, "label": "x"}, ensure_ascii=False) + "\n" for text in texts),
        "pairs.tsv": "".join(f"{text}\tá{i}\n" for i, text in enumerate(texts)),
        "a.conll": "".join(f"café{i} O\nJosé B-PER\n\n" for i in range(40)),
    }
    mark = codecs.BOM_UTF16_LE if encoding == "utf-16-le" else b""
    return {name: mark + content.encode(encoding) for name, content in files.items()}


@pytest.mark.parametrize(("encoding", "option"), [("latin-1", "latin-1"), ("utf-16-le", "utf-8")])
def test_every_dataset_reads_them(tmp_path, encoding, option):
    for name, content in contents(encoding).items():
        (tmp_path / name).write_bytes(content)
    path = {name: str(tmp_path / name) for name in contents(encoding)}
    texts = {f"café number {i}" for i in range(40)}
    assert set(read_texts(tmp_path / "a.txt", "text", None, encoding=option)[0]) == texts
    data = TextClassification(path["a.tsv"], encoding=option, predict_file=path["a.txt"])
    assert data.class_names == ["good", "schön"]
    assert "café" in data.vocabulary.tokens
    assert len(data.dataset("predict")) == 40
    assert set(read_texts(tmp_path / "a.jsonl", "text", "label", encoding=option)[0]) == texts
    masked = MaskedText(path["a.txt"], vocab_size=80, encoding=option)
    assert set().union(*masked._texts.values()) == texts
    pairs = ParallelText(path["pairs.tsv"], encoding=option, predict_file=path["a.txt"])
    assert {source for part in pairs.pairs().values() for source, _ in part} == texts
    assert pairs.dataset("predict") is not None
    row = {"source": "", "translation": "x"}
    assert pairs.new_samples.finish(row, 0) == {"source": "café number 0", "translation": "x"}
    ner = NER(path["a.conll"], vocab_size=80, encoding=option)
    assert read_conll(tmp_path / "a.conll", option)[3] == (["café3", "José"], ["O", "B-PER"])
    assert len(ner.datasets["train"]) == 32


@pytest.mark.parametrize(("encoding", "option"), [("latin-1", "latin-1"), ("utf-16-le", "utf-8")])
@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_corpus_in_another_encoding_has_the_tokens_of_utf8(tmp_path, encoding, option, cache):
    text = fake_data.lines_of_text(60).encode("latin-1", "ignore").decode("latin-1") + "Größe é\n" * 20
    mark = codecs.BOM_UTF16_LE if encoding == "utf-16-le" else b""
    (tmp_path / "utf8.txt").write_text(text, encoding="utf-8")
    (tmp_path / "other.txt").write_bytes(mark + text.encode(encoding))
    options = {"block_size": 8, "cache": cache, "cache_dir": str(tmp_path / "cache")}
    expected = TextCorpus(str(tmp_path / "utf8.txt"), **options)
    found = TextCorpus(str(tmp_path / "other.txt"), encoding=option, **options)
    assert found.tokenizer.plain() == expected.tokenizer.plain()
    for split in ("train", "val"):
        assert found.datasets[split].ids.tolist() == expected.datasets[split].ids.tolist()
    assert found.bytes_per_token == expected.bytes_per_token
    rows = [json.dumps({"text": line}, ensure_ascii=False) for line in text.splitlines()]
    (tmp_path / "rows.jsonl").write_bytes(mark + "\n".join(rows).encode(encoding))
    lines = TextCorpus(str(tmp_path / "rows.jsonl"), encoding=option, **options)
    decoded = "\n".join(lines.tokenizer.decode(lines.datasets[split].ids) for split in ("train", "val"))
    assert decoded == text.removesuffix("\n")


def test_the_line_of_a_byte_is_counted_over_a_whole_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.data.text.corpus_chunks.CHUNK_BYTES", 100)
    (tmp_path / "a.txt").write_bytes(b"a line\n" * 99 + b"caf\xe9\n" + b"a line\n" * 50)
    with pytest.raises(ValueError, match=r"a.txt is not text in UTF-8 \(line 100, byte 696: 0xe9\); --data.encoding"):
        _ = TextCorpus(str(tmp_path / "a.txt"), block_size=8).datasets
