"""Prompts as numbers, against transformers' CLIP tokenizer."""

import json

import pytest
import torch
from transformers import CLIPTokenizer

from tests.prompt_files import save_tokenizer
from zoo.text.prompts import PromptTokenizer

TEXTS = ["a photo of a CAT!", "it's  2 cafés\n<|endoftext|> of cat", "", "naïve 日本 x"]


def reference(folder):
    return CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


@pytest.mark.parametrize("form", ["vocab.json", "tokenizer.json"])
def test_equals_transformers(tmp_path, form, capsys):
    save_tokenizer(tmp_path / "tokenizer")
    theirs = reference(tmp_path / "tokenizer")
    expected = theirs(TEXTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    if form == "tokenizer.json":
        theirs.save_pretrained(tmp_path / "new")
        assert not (tmp_path / "new" / "merges.txt").exists()
    prompts = PromptTokenizer.load(tmp_path if form == "vocab.json" else tmp_path / "new")
    assert torch.equal(prompts(TEXTS), expected)
    assert capsys.readouterr().err == ""


def test_a_long_prompt_is_cut_and_said(tmp_path, capsys):
    save_tokenizer(tmp_path / "t")
    text = "cat " * 80 + "photo"
    expected = reference(tmp_path / "t")([text], truncation=True, max_length=77, return_tensors="pt").input_ids
    prompts = PromptTokenizer.load(tmp_path / "t")
    assert torch.equal(prompts([text, text]), expected.expand(2, -1))
    assert capsys.readouterr().err == (
        "zoo: the prompt has 83 tokens, of which 75 are read, without its end: 'cat cat cat cat cat photo'\n"
    )
    assert torch.equal(prompts([text, "cat"])[:1], expected)
    assert capsys.readouterr().err == "", "once"


@pytest.mark.parametrize("before", [True, False])
def test_how_many_prompts_are_cut_is_said_once(tmp_path, capsys, before):
    save_tokenizer(tmp_path / "t")
    texts, prompts = ["cat", "cat " * 90, "", "photo " * 80, "cat " * 90], PromptTokenizer.load(tmp_path / "t")
    prompts.check_lengths(texts) if before else prompts(texts)
    said = capsys.readouterr().err
    assert said.startswith("zoo: 2 of 4 prompts are longer than the 75 tokens that are read: their ends are left out, ")
    assert said.endswith(" of the first (of 90 tokens) 'cat cat cat cat cat cat cat cat cat cat cat cat cat cat cat'\n")
    prompts(texts)
    other = PromptTokenizer.load(tmp_path / "t")
    other.check_lengths(texts[:1])
    assert capsys.readouterr().err == ""


def test_the_second_version_fills_up_with_exclamation_marks(tmp_path):
    save_tokenizer(tmp_path / "t", pad="!")
    prompts = PromptTokenizer.load(tmp_path / "t")
    ids = prompts(["cat"])[0]
    table = json.loads((tmp_path / "t" / "vocab.json").read_text())
    assert ids[:3].tolist() == [table["<|startoftext|>"], table["cat</w>"], table["<|endoftext|>"]]
    assert ids[3:].tolist() == [table["!"]] * 74


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda d: (d / "merges.txt").unlink(), "neither tokenizer.json nor vocab.json and merges.txt"),
        (lambda d: (d / "vocab.json").write_text("{"), "holds a broken tokenizer"),
        (lambda d: (d / "vocab.json").write_text('{"a": 0}'), "broken tokenizer|no <|startoftext|>"),
    ],
)
def test_no_tokenizer_gives_one_line(tmp_path, spoil, said):
    save_tokenizer(tmp_path / "t")
    spoil(tmp_path / "t")
    with pytest.raises(ValueError, match=said) as error:
        PromptTokenizer.load(tmp_path / "t")
    assert "\n" not in str(error.value)
