"""Values of JSON that are not texts are refused with file and line by every reader, and none is made a text."""

from __future__ import annotations

import json

import pytest

from zoo.data import MaskedText, TextClassification, TextCorpus
from zoo.data.text.text_files import read_texts

GOOD = {"text": "some text", "other": "more", "label": "x"}


def write(path, row: str) -> str:
    """Ten good lines and a bad one in line 11."""
    lines = [json.dumps({**GOOD, "text": f"some text {i}"}) for i in range(10)]
    path.write_text("\n".join([*lines, row]) + "\n", encoding="utf-8")
    return str(path)


BAD = [
    ('{"text": ["a", "b"], "label": "x"}', r"""line 11: 'text' is \["a", "b"\], not a text"""),
    ('{"text": 5, "label": "x"}', "line 11: 'text' is 5, not a text"),
    ('{"text": true, "label": "x"}', "line 11: 'text' is true, not a text"),
    ('{"text": {"en": "a"}, "label": "x"}', "line 11: 'text' is .*, not a text"),
    ('{"text": NaN, "label": "x"}', "line 11: 'text' is NaN, not a text"),
    ('{"txt": "a", "label": "x"}', "line 11 has no field 'text'; it has txt, label"),
    ('{"text": "a", "text": "b", "label": "x"}', "line 11 has the field 'text' twice"),
    ('["a"]', r"line 11: an object \{...\} needed, got \[\"a\"\]"),
    ('{"text": ', "line 11 is not JSON"),
    ("[" * 100_000, "line 11 is not JSON that can be read: it is nested too deeply"),
    ('{"text": ' + "9" * 5000 + "}", "line 11 is not JSON: Exceeds the limit"),
    ('{"text": "\\ud800", "label": "x"}', "line 11: 'text' holds half of a surrogate pair"),
]


@pytest.mark.parametrize(("row", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_every_reader_names_file_and_line(tmp_path, row, message):
    path = write(tmp_path / "a.jsonl", row)
    for read in (
        lambda: read_texts(tmp_path / "a.jsonl", "text", None),
        lambda: read_texts(tmp_path / "a.jsonl", "text", "label"),
        lambda: MaskedText(path)._texts,
        lambda: TextClassification(path).class_names,
        lambda: TextCorpus(path, block_size=4).datasets,
    ):
        with pytest.raises(ValueError, match=rf"a\.jsonl, {message}") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_labels_may_be_numbers_but_not_lists(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": True}, {"text": "c", "label": 1.5}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_texts(path, "text", "label") == (["a", "b", "c"], ["1", "True", "1.5"])
    write(path, '{"text": "a", "label": ["x", "y"]}')
    with pytest.raises(ValueError, match=r"""a.jsonl, line 11: 'label' is \["x", "y"\], not a text or a number"""):
        read_texts(path, "text", "label")
    write(path, '{"text": "a", "label": null}')
    with pytest.raises(ValueError, match=r"a.jsonl, row 11 has no 'label'"):
        read_texts(path, "text", "label")


def test_pairs_and_fields_that_are_not_asked_for(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, '{"text": "a", "other": ["b"], "label": "x"}')
    assert read_texts(path, "text", "label")[0][-1] == "a", "what is not asked for may be anything"
    with pytest.raises(ValueError, match=r"""a.jsonl, line 11: 'other' is \["b"\], not a text"""):
        read_texts(path, "text", "label", "other")


def test_empty_lines_are_counted(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n  \n{"text": "b"}\n\n')
    assert read_texts(path, "text", None) == (["a", "b"], [])
    assert f"zoo: {path}: 2 of 4 lines are empty and left out\n" == capsys.readouterr().err
