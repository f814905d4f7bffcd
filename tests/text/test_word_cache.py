"""Words whose pieces are kept: to every text the same tokens as by the tokenizers library."""

import random
import sys
import unicodedata

import pytest

from tests import fake_data
from zoo.text import Tokenizer, library_engines
from zoo.text.word_cache import gpt2_pattern, splits_like_gpt2

LINES = fake_data.lines_of_text(200).splitlines(keepends=True)
SIGNS = " \n\t\r\v'sdlvetrm\u3000\xa0\x00\x1c\x1f\x85\u200b\u2028!?.3a_-é日"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train("bpe", LINES, 400)


def drawn(rng: random.Random, ascii: bool) -> str:
    if rng.random() < 0.5:
        return rng.choice(SIGNS[:10] if ascii else SIGNS)
    while True:
        character = chr(rng.randrange(128 if ascii else sys.maxunicode + 1))
        if unicodedata.category(character) not in ("Cs", "Cn"):
            return character


@pytest.mark.parametrize("ascii", [True, False])
def test_every_text_has_the_tokens_of_the_library(tokenizer, ascii):
    rng, words = random.Random(0), tokenizer.engine._words
    for _ in range(200):
        text = "".join(drawn(rng, ascii) for _ in range(200))
        assert words.encode(text).tolist() == tokenizer.engine.backend.encode(text).ids
        assert "".join(gpt2_pattern(ascii).findall(text)) == text
    for text in ["they'll we'd I'm it's 'tis x'y", "  a  \n\n b \n", "", "".join(LINES)]:
        assert words.encode(text).tolist() == tokenizer.engine.backend.encode(text).ids


def test_long_texts_take_them_and_characters_of_the_future_do_not(tokenizer, monkeypatch):
    again = Tokenizer.from_plain(tokenizer.plain())
    monkeypatch.setattr(library_engines, "CACHE_AFTER", 100)
    assert again.encode_array("the cat").tolist() == again.encode("the cat")
    assert not again.engine._words, "not yet worth it"
    text = "the cat " * 20
    assert again.encode_array(text).tolist() == again.encode(text)
    assert set(again.engine._words) == {"the", " cat", " the", " "}
    unassigned = next(chr(i) for i in range(0x30000, sys.maxunicode) if unicodedata.category(chr(i)) == "Cn")
    assert again.engine._words.encode(text + unassigned) is None
    assert again.encode_array(text + unassigned).tolist() == again.encode(text + unassigned)


def test_only_so_many_words_are_kept(tokenizer, monkeypatch):
    monkeypatch.setattr("zoo.text.word_cache.MAX_WORDS", 20)
    words, text = Tokenizer.from_plain(tokenizer.plain()).engine._words, "".join(LINES)
    assert words.encode(text).tolist() == tokenizer.encode(text)
    assert len(words) <= 20


def test_other_ways_of_cutting_are_left_to_the_library(tokenizer):
    from tokenizers import Tokenizer as Raw
    from tokenizers import normalizers, pre_tokenizers

    source = tokenizer.source
    assert splits_like_gpt2(source)
    for part, value in (
        ("normalizer", normalizers.Lowercase()),
        ("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        ("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        ("pre_tokenizer", pre_tokenizers.Whitespace()),
    ):
        other = Raw.from_str(source)
        setattr(other, part, value)
        assert not splits_like_gpt2(other.to_str())
    other = Raw.from_str(source)
    other.add_tokens(["the cat"])
    assert not splits_like_gpt2(other.to_str())
    assert not splits_like_gpt2(Tokenizer.train("wordpiece", LINES, 400).source)
