"""Tokenizers: every text comes back, special tokens are where they belong, published files read as their owners do."""

import json
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from tests import fake_data
from zoo.text import Tokenizer, Vocabulary

TEXT = fake_data.lines_of_text(300)
LINES = TEXT.splitlines(keepends=True)
EXACT = ["characters", "bytes", "bpe", "huggingface", "sentencepiece"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        "huggingface": fake_data.gpt2_tokenizer(root / "gpt2", LINES),
        "sentencepiece": fake_data.llama_tokenizer(root / "llama", LINES),
    }


@pytest.fixture(scope="module")
def tokenizers(folders):
    """One of each level."""
    trained = {level: Tokenizer.train(level, LINES, 400) for level in ("bpe", "wordpiece")}
    counted = {level: Tokenizer.train(level, LINES) for level in ("characters", "bytes", "words")}
    return {**counted, **trained, **{level: Tokenizer.load(folder) for level, folder in folders.items()}}


@pytest.mark.parametrize("level", EXACT)
def test_every_text_comes_back(tokenizers, level):
    tokenizer = tokenizers[level]
    for text in (TEXT, "", LINES[3], "the  cat\n\n saw"):
        ids = tokenizer.encode(text)
        assert all(0 <= i < len(tokenizer) for i in ids)
        assert tokenizer.decode(ids) == text
    assert len(tokenizer.encode(TEXT)) < len(TEXT) or level in ("characters", "bytes")
    assert tokenizer.encode_batch(LINES) == [tokenizer.encode(line) for line in LINES]


def test_words_and_pieces_come_back_in_lower_case(tokenizers):
    assert tokenizers["words"].decode(tokenizers["words"].encode("The cat, saw!")) == "the cat <unk> saw <unk>"
    assert tokenizers["wordpiece"].decode(tokenizers["wordpiece"].encode("The CAT saw 1999")) == "the cat saw 1999"
    cased = Tokenizer.train("wordpiece", iter(["The cat"] * 3), 60, lowercase=False)
    assert cased.decode(cased.encode("The cat")) == "The cat"


@pytest.mark.parametrize("level", [*EXACT, "words", "wordpiece"])
def test_arrays_are_the_same_numbers(tokenizers, level):
    found = tokenizers[level].encode_array(TEXT)
    assert isinstance(found, np.ndarray)
    assert found.tolist() == tokenizers[level].encode(TEXT)


@pytest.mark.parametrize("level", [*EXACT, "words", "wordpiece"])
def test_it_travels_in_plain_values(tokenizers, level, tmp_path):
    tokenizer = tokenizers[level]
    torch.save({"tokenizer": tokenizer.plain()}, tmp_path / "a.ckpt")
    again = Tokenizer.from_plain(torch.load(tmp_path / "a.ckpt", weights_only=True)["tokenizer"])
    assert again.plain() == tokenizer.plain()
    assert (again.level, len(again)) == (level, len(tokenizer))
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    ids = ("pad_id", "unknown_id", "bos_id", "eos_id", "mask_id", "cls_id", "sep_id")
    assert [getattr(again, name) for name in ids] == [getattr(tokenizer, name) for name in ids]


# Special tokens -------------------------------------------------------------------------------------------------------


def test_characters_and_bytes_have_no_special_tokens(tokenizers):
    assert len(tokenizers["characters"]) == len(set(TEXT))
    counts = Counter(TEXT)
    assert tokenizers["characters"].engine.source == sorted(counts, key=lambda c: (-counts[c], c))
    assert len(tokenizers["bytes"]) == 256
    for level in ("characters", "bytes"):
        assert {tokenizers[level].eos_id, tokenizers[level].unknown_id, tokenizers[level].pad_id} == {None}
    assert tokenizers["bytes"].encode("é") == [0xC3, 0xA9]


def test_a_character_that_is_not_known_is_named(tokenizers):
    with pytest.raises(ValueError, match=rf"'Ω' is none of the {len(set(TEXT))} characters of the training texts"):
        tokenizers["characters"].encode("the Ω")
    with pytest.raises(ValueError, match="'Ω' is none of"):
        tokenizers["characters"].encode_array("the Ω")
    with pytest.raises(ValueError, match="'X' is none of"):  # below the highest that is known
        tokenizers["characters"].encode_array("the X")
    tolerant = Tokenizer.train("characters", LINES, specials={"unknown": "<unk>"})
    assert tolerant.encode("aΩX") == tolerant.encode_array("aΩX").tolist() == [*tolerant.encode("a"), 0, 0]
    assert tolerant.decode(tolerant.encode("aΩ"), unknown="?") == "a?"


@pytest.mark.parametrize("level", ["bpe", "wordpiece", "huggingface", "sentencepiece", "bytes"])
def test_a_text_that_names_a_special_token_does_not_mean_it(tokenizers, level):
    tokenizer = tokenizers[level] if level != "bytes" else Tokenizer("bytes", (), {"eos": "<eos>"})
    special = {"wordpiece": tokenizer.sep_id}.get(level, tokenizer.eos_id)
    name = tokenizer.names([special])[0]
    text = f"the cat{name} saw"
    assert special not in tokenizer.encode(text)
    if level != "wordpiece":
        assert tokenizer.decode(tokenizer.encode(text)) == text
    both = [*tokenizer.encode("the cat"), special]
    assert tokenizer.decode(both) == "the cat"
    assert name in tokenizer.decode(both, skip_special_tokens=False)
    parsed = tokenizer.encode(text, parse_special=True)
    assert parsed.count(special) == 1
    assert parsed[: parsed.index(special)] == tokenizer.encode("the cat")


@pytest.mark.parametrize("level", ["characters", "bytes", "bpe", "huggingface", "sentencepiece"])
def test_what_is_no_character_is_said(tokenizers, level):
    """As the command line hands on bytes that are not UTF-8."""
    for parse_special in (False, True):
        with pytest.raises(ValueError, match="half of a surrogate pair"):
            tokenizers[level].encode("the \udcff", parse_special=parse_special)


def test_specials_by_their_roles():
    tokenizer = Tokenizer.train("bpe", LINES, 300, specials={"pad": "<pad>", "bos": "<s>", "eos": "</s>"})
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id) == (0, 1, 2, None)
    assert tokenizer.names([0, 1, *tokenizer.encode(" the")]) == ["<pad>", "<s>", " the"]
    assert Tokenizer.train("bpe", LINES, 300).specials == {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}


def test_bytes_that_are_no_whole_character(tokenizers):
    assert tokenizers["bytes"].decode([0xF0, 0x9F, 0x99]) == "\ufffd"
    for level in ("bytes", "bpe"):
        ids = tokenizers[level].encode("a ü🙂")
        shown = [tokenizers[level].decode(ids[:i]) for i in range(len(ids) + 1)]
        whole = [text for text in shown if not text.endswith("\ufffd")]
        assert all("a ü🙂".startswith(text) for text in whole)
        assert whole[-1] == "a ü🙂"


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["bpe", "wordpiece"])
def test_training_gives_the_same_again(tokenizers, level):
    for _ in range(3):
        assert Tokenizer.train(level, LINES, 400).plain() == tokenizers[level].plain()
    assert len(tokenizers[level]) <= 400


def test_trained_pieces_are_read_by_transformers_alike(tokenizers):
    from tokenizers import Tokenizer as Raw
    from transformers import BertTokenizer, PreTrainedTokenizerFast

    ours = tokenizers["bpe"]
    peer = PreTrainedTokenizerFast(tokenizer_object=Raw.from_str(ours.source))
    assert peer(TEXT)["input_ids"] == ours.encode(TEXT)
    ours = tokenizers["wordpiece"]
    vocab = Raw.from_str(ours.source).get_vocab()
    peer = BertTokenizer(vocab=vocab, do_lower_case=True)
    for text in LINES[:50]:
        assert peer(text)["input_ids"] == ours.encode(text, add_special_tokens=True)
    assert ours.encode("the", add_special_tokens=True)[:: len(ours.encode("the")) + 1] == [ours.cls_id, ours.sep_id]


@pytest.mark.parametrize(
    ("level", "options", "words"),
    [
        ("bpe", {"vocab_size": 100}, "bpe needs 257 tokens or more, one for each byte: got 100"),
        ("bpe", {"vocab_size": 0}, "bpe needs 257 tokens or more, one for each byte: got 0"),
        ("bpe", {"min_freq": -1}, "min_freq starts at 1, got -1"),
        ("wordpiece", {"min_freq": 0}, "min_freq starts at 1, got 0"),
        ("wordpiece", {"vocab_size": 50}, r"wordpiece needs \d+ tokens or more, two for each character: got 50"),
        ("wordpiece", {"specials": {}}, "wordpiece needs an unknown token"),
        ("letters", {}, "trained tokens are characters, bytes, words, bpe, wordpiece, got 'letters'"),
        ("words", {"min_freq": 0}, "a vocabulary takes min_freq from 1"),
        ("bytes", {"specials": {"end": "<eos>"}}, "specials are pad, unknown, .*, got end"),
    ],
)
def test_what_cannot_be_trained(level, options, words):
    with pytest.raises(ValueError, match=words):
        Tokenizer.train(level, LINES, **options)


# Published files ------------------------------------------------------------------------------------------------------


def test_a_tokenizer_json_is_read_as_transformers_does(folders):
    from transformers import AutoTokenizer

    ours = Tokenizer.load(folders["huggingface"])
    peer = AutoTokenizer.from_pretrained(folders["huggingface"])
    assert ours.encode(TEXT) == peer(TEXT, truncation=False)["input_ids"]
    assert len(ours.encode(TEXT)) > 16, "its truncation is switched off"
    assert ours.decode(ours.encode(TEXT)) == peer.decode(ours.encode(TEXT))
    assert ours.encode("the<|endoftext|>cat", parse_special=True) == peer("the<|endoftext|>cat")["input_ids"]
    assert (ours.bos_id, ours.eos_id, ours.unknown_id) == (peer.bos_token_id, peer.eos_token_id, peer.unk_token_id)
    assert len(ours) == len(peer)
    alone = Tokenizer.load(folders["huggingface"] / "tokenizer.json")
    assert alone.plain() == ours.plain()


def test_special_tokens_of_a_file_alone_are_known_by_their_names(tokenizers, tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizers["wordpiece"].source)
    found = Tokenizer.load(tmp_path / "tokenizer.json")
    assert found.specials == tokenizers["wordpiece"].specials
    said = {"cls_token": None, "mask_token": {"content": "[PAD]"}, "sep_token": "[ELSE]"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(said))
    found = Tokenizer.load(tmp_path)
    assert (found.cls_id, found.mask_id, found.sep_id) == (None, found.pad_id, tokenizers["wordpiece"].sep_id)


def test_a_tokenizer_model_is_read_as_sentencepiece_does(folders):
    import sentencepiece

    peer = sentencepiece.SentencePieceProcessor(model_file=str(folders["sentencepiece"] / "tokenizer.model"))
    ours = Tokenizer.load(folders["sentencepiece"] / "tokenizer.model")
    text = TEXT + "Ω unseen"
    assert ours.encode(text) == peer.encode(text)
    assert ours.encode(text, add_special_tokens=True) == [peer.bos_id(), *peer.encode(text)]
    assert ours.decode(ours.encode(text)) == text
    assert (ours.unknown_id, ours.bos_id, ours.eos_id, ours.pad_id) == (0, 1, 2, None)
    assert ours.names(ours.encode("the cat")) == [p.replace("\u2581", " ") for p in peer.encode_as_pieces("the cat")]


def test_files_that_are_no_tokenizers(tmp_path, folders):
    whole = (folders["huggingface"] / "tokenizer.json").read_text()
    written = {
        "half.json": whole[: len(whole) // 2],
        "list.json": "[1]",
        "other.json": '{"a": 1}',
        "wrong.json": '{"model": {"type": "BPE"}}',
        "null.json": '{"model": {"type": "XX"}, "added_tokens": null}',
        "damaged.model": "\x08garbage",
        "llama3.model": "IQ== 0\nIg== 1\n",
    }
    for name, content in written.items():
        (tmp_path / name).write_text(content)
    cases = {
        "none.json": "no tokenizer .*none.json: a tokenizer.json, a tokenizer.model or a folder with one is needed",
        ".": "holds no tokenizer.json and no tokenizer.model",
        "half.json": "half.json is not JSON, or half of it is missing",
        "list.json": "list.json holds no JSON object",
        "other.json": "other.json is no tokenizer of the tokenizers library: it has no 'model'",
        "wrong.json": "wrong.json: no tokenizer in the form of tokenizer.json",
        "null.json": "null.json: no tokenizer in the form of tokenizer.json",
        "damaged.model": "damaged.model: no model of sentencepiece",
        "llama3.model": r"llama3.model is in the form of tiktoken \(LLaMA 3\)",
    }
    for name, words in cases.items():
        with pytest.raises(ValueError, match=words) as caught:
            Tokenizer.load(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_library_that_is_not_there_is_named(monkeypatch, folders):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"a tokenizer\.model needs sentencepiece: pip install sentencepiece"):
        Tokenizer.load(folders["sentencepiece"])
    with pytest.raises(ValueError, match=r"need the tokenizers library: pip install tokenizers"):
        Tokenizer.load(folders["huggingface"])
    assert Tokenizer.train("characters", LINES).decode([0]) == " "


def test_numbers_and_values_that_are_none(tokenizers):
    with pytest.raises(ValueError, match="token 256 is none of the 256 that the tokenizer knows"):
        tokenizers["bytes"].decode([65, 256])
    with pytest.raises(ValueError, match="token -1 is none of"):
        tokenizers["bpe"].names([-1])
    with pytest.raises(ValueError, match="a tokenizer in a checkpoint is a dict with 'packed', got"):
        Tokenizer.from_plain({"level": "bytes"})
    with pytest.raises(ValueError, match=r"level must be one of characters, .*, sentencepiece, got 'letters'"):
        Tokenizer("letters")
    with pytest.raises(ValueError, match="the eos token '<eos>' is not among the 400 tokens"):
        Tokenizer("bpe", tokenizers["bpe"].source, {"eos": "<eos>"})
    with pytest.raises(ValueError, match="a vocabulary begins with <unk>, got a, b"):
        Tokenizer("characters", ["a", "b"], {"unknown": "<unk>"})


def test_a_vocabulary_without_special_tokens():
    vocabulary = Vocabulary.build(Counter("abracadabra"), specials=())
    assert vocabulary.tokens == ["a", "b", "r", "c", "d"]
    assert vocabulary.decode(vocabulary.encode("bad")) == ["b", "a", "d"]
    with pytest.raises(ValueError, match="'x' is none of the 5 characters"):
        vocabulary.encode("ax")
    with pytest.raises(ValueError, match="'ax' is none of the 1 tokens"):
        Vocabulary(["bad"], ()).encode(["ax"])
