"""Corpora: blocks, epochs, processes and resume; what is kept on disk; what validation sees; mistakes of one line."""

import json
import pickle
import resource
import shutil
import signal
from itertools import islice, pairwise
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml

from tests import fake_data
from tests.conftest import abandoned
from zoo.data import PythonDocs, PythonSource, TextCorpus
from zoo.data.text import corpus_chunks, token_cache
from zoo.data.text.corpus_chunks import chunks
from zoo.data.text.corpus_files import find_texts, from_memory, split_tail
from zoo.data.text.token_blocks import ShiftedBlockSampler, TokenBlocks
from zoo.text import Tokenizer


@pytest.fixture
def folder(tmp_path):
    return fake_data.text_files(tmp_path / "texts")


def corpus(path, **options) -> TextCorpus:
    return TextCorpus(str(path), **{"block_size": 8, "batch_size": 4, **options})


def ids(data, split="train") -> list[int]:
    return data.datasets[split].ids.tolist()


def on_disk(path, cache_dir, **options) -> TextCorpus:
    return corpus(path, cache="disk", cache_dir=str(cache_dir), **options)


# Blocks ---------------------------------------------------------------------------------------------------------------


def test_blocks_are_the_text_and_the_next_tokens():
    tokens = np.arange(23, dtype=np.uint8)
    blocks = TokenBlocks(tokens, 5)
    assert len(blocks) == 4
    x, y = blocks.batch(torch.tensor([3, 0]))
    assert (x.tolist(), y.tolist()) == (
        [[15, 16, 17, 18, 19], [0, 1, 2, 3, 4]],
        [[16, 17, 18, 19, 20], [1, 2, 3, 4, 5]],
    )
    assert x.dtype == y.dtype == torch.int64
    assert x.is_contiguous()
    assert y.is_contiguous()
    assert blocks[1][0].tolist() == [5, 6, 7, 8, 9]
    assert [x.tolist() for x, _ in islice(blocks, 9)] == tokens[:20].reshape(4, 5).tolist(), "a loop ends"
    assert blocks[-1][0].tolist() == [15, 16, 17, 18, 19]
    x, y = blocks.batch(torch.tensor([4 * 2 + 1, 4 * 4 + 3]))  # shifted by 2 and by 4, the last to the end of the text
    assert (x[:, 0].tolist(), y[1].tolist()) == ([7, 17], [18, 19, 20, 21, 22])


def test_an_epoch_reads_every_token_once_and_each_epoch_otherwise(folder):
    data = corpus(folder)
    text, loader = ids(data), data.train_dataloader()
    n, orders, shifts = (len(text) - 1) // 8, [], set()
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        order = loader.sampler.order()
        assert sorted((order % n).tolist()) == list(range(n))
        shifts |= set((order // n).tolist())
        orders.append(order)
        x = torch.cat([batch[0] for batch in loader])
        y = torch.cat([batch[1] for batch in loader])
        assert x.shape == y.shape == (n, 8)
        whole = x[(order % n).argsort()][:-1].flatten().tolist()  # but for the last block, which the end may hold back
        shift = int(order[0]) // n
        assert whole == text[shift : shift + len(whole)]
        assert torch.equal(x[:, 1:], y[:, :-1])
    assert len(shifts) > 1
    assert all(not torch.equal(a % n, b % n) for a, b in pairwise(orders))


def test_the_order_is_that_of_the_seed(folder, monkeypatch):
    def epoch():
        return torch.cat([x for x, _ in corpus(folder).train_dataloader()])

    first = epoch()
    torch.manual_seed(123)
    assert torch.equal(epoch(), first)
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert not torch.equal(epoch(), first)


def test_a_resumed_run_goes_on_where_it_stopped(folder):
    whole = corpus(folder).train_dataloader()
    whole.sampler.set_epoch(2)
    expected = list(whole)
    data = corpus(folder)
    data.load_state_dict({"batches_done": 3})
    rest = data.train_dataloader()
    rest.sampler.set_epoch(2)
    found = list(rest)
    assert len(found) == len(expected) - 3 > 3
    for (x, y), (a, b) in zip(found, expected[3:], strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)


def test_two_processes_share_an_epoch(folder, monkeypatch):
    found = []
    for rank in range(2):
        data = corpus(folder)
        monkeypatch.setattr(data, "_rank_and_world", lambda rank=rank: {"rank": rank, "world": 2})
        loaders = {"train": data.train_dataloader(), "val": data.val_dataloader()}
        found.append({split: torch.cat([i for _, i in loader.sampler]) for split, loader in loaders.items()})
        n = len(data.datasets["val"])
    train = torch.cat([part["train"] for part in found])
    assert len(train) == len(train.unique()) == len(data.datasets["train"])
    assert len((train // len(data.datasets["train"])).unique()) == 1, "both shift their blocks alike"
    assert sorted(torch.cat([part["val"] for part in found]).tolist()) == list(range(n))


def test_workers_load_the_same_and_get_no_copy_of_a_mapped_text(folder, tmp_path):
    data = on_disk(folder, tmp_path / "cache")
    blocks = data.datasets["train"]
    packed = pickle.dumps(blocks)
    assert len(packed) < 1000 < blocks.ids.nbytes
    again = pickle.loads(packed)
    assert all(
        torch.equal(a, b) for a, b in zip(again.batch(torch.arange(9)), blocks.batch(torch.arange(9)), strict=True)
    )
    in_memory = pickle.loads(pickle.dumps(corpus(folder).datasets["train"]))
    assert torch.equal(in_memory[3][0], blocks[3][0])
    two = corpus(folder, num_workers=2, persistent_workers=False)
    for (x, _), (a, _) in zip(two.train_dataloader(), data.train_dataloader(), strict=True):
        assert torch.equal(x, a)


def test_validation_is_the_same_each_time_and_from_the_beginning(folder):
    data = corpus(folder, eval_batch_size=16)
    x = torch.cat([x for x, _ in data.val_dataloader()])
    assert torch.equal(x, torch.cat([x for x, _ in data.val_dataloader()]))
    text = ids(data, "val")
    assert x.flatten().tolist() == text[: len(x) * 8]
    assert len(text) - len(x) * 8 <= 8
    assert ids(data, "test") == text


# Tokens ---------------------------------------------------------------------------------------------------------------


def contents(folder) -> list[str]:
    names = ("0.txt", "1.txt", "more/last.md")
    return [(folder / name).read_text(encoding="utf-8") for name in names]


@pytest.mark.parametrize("level", ["characters", "bytes", "bpe"])
def test_texts_come_back_from_their_blocks(folder, level):
    data = corpus(folder, tokenizer=level, vocab_size=400 if level == "bpe" else None)
    first, second, third = contents(folder)
    train, val = (data.tokenizer.decode(ids(data, split)) for split in ("train", "val"))
    assert train + val == first + second + third
    assert val == third[-len(val) :]
    assert val.count("\n") > 1
    assert train.endswith("\n"), "cut at the end of a line"
    ends = ids(data).count(data.tokenizer.eos_id)
    assert ends == (3 if level == "bpe" else 0)


def test_facts(folder):
    data = corpus(folder, tokenizer="bpe", vocab_size=300)
    assert data.vocab_size == len(data.tokenizer) == 300
    text = data.tokenizer.decode(ids(data, "val"))
    assert data.bytes_per_token == len(text.encode()) / len(ids(data, "val"))
    assert data.block_size == 8
    (folder / "other.txt").write_text("日本語の文字\n" * 40)
    tested = corpus(folder, test_path=str(folder / "other.txt"))
    tested.trainer = L.Trainer(logger=False, barebones=True)
    before = tested.bytes_per_token
    tested.trainer.testing = True
    assert before < 1.2 < 2.5 < tested.bytes_per_token, "of the text that is tested on"
    assert data.override_spec("vocab_size", 320)
    assert not data.override_spec("vocab_size", 299)
    assert data.override_spec("block_size", 16)
    assert not data.override_spec("block_size", 4), "the network could not see a block"
    assert data.block_size == 8
    free = TextCorpus(str(folder))
    assert free.block_size == 256
    assert free.override_spec("block_size", 32)
    assert free.block_size == 32
    assert next(iter(free.train_dataloader()))[0].shape == (64, 32)


@pytest.mark.parametrize(
    ("size", "dtype"), [(256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.uint32)]
)  # fmt: skip
def test_the_smallest_type_of_tokens(tmp_path, size, dtype):
    tokens = ["a", *(chr(0x4E00 + i) if i < 20000 else chr(0x20000 + i) for i in range(size - 1))]
    (tmp_path / "a.txt").write_text(tokens[-1] + "a" * 400)
    data = corpus(tmp_path / "a.txt", tokenizer=Tokenizer("characters", tokens).plain(), val_split=0.3)
    assert data.datasets["train"].ids.dtype == dtype
    assert ids(data)[:2] == [size - 1, 0]


def test_lines_of_json_are_texts_of_their_own(tmp_path):
    texts = ["one text\nof two lines", "", "naïve 日本", *("more" * 5 for _ in range(20))]
    path = fake_data.json_lines(tmp_path / "a.jsonl", texts, field="content")
    data = corpus(path, tokenizer="bpe", vocab_size=260, text="content", val_split=0.3)
    end = data.tokenizer.eos_id
    found = [*ids(data), *ids(data, "val")]
    assert found.count(end) == 22, "an empty text is none"
    cuts = [i for i, token in enumerate(found) if token == end]
    parts = [data.tokenizer.decode(found[a + 1 : b]) for a, b in zip([-1, *cuts], cuts, strict=False)]
    assert parts == [text for text in texts if text]
    joined = corpus(path, text="content", val_split=0.3)
    both = joined.tokenizer.decode(ids(joined)) + "\n" + joined.tokenizer.decode(ids(joined, "val"))
    assert both == "\n".join(text for text in texts if text)


def test_an_ending_in_capitals_is_one(tmp_path):
    path = fake_data.json_lines(tmp_path / "A.JSONL", ["more" * 5] * 20)
    data = corpus(tmp_path, val_split=0.3)
    assert path.is_file()
    assert set(data.tokenizer.engine.source) == set("more\n")


@pytest.mark.parametrize("level", ["characters", "words", "bpe", "crlf", "gpt2", "llama", "bytes"])
def test_pieces_of_a_text_are_tokenised_as_the_whole(folder, tmp_path, level, monkeypatch):
    text = fake_data.lines_of_text(400, 5) + "x  \n\n  y\n"
    lines = text.splitlines(keepends=True)
    published = {"gpt2": fake_data.gpt2_tokenizer, "llama": fake_data.llama_tokenizer}
    if level in published:
        tokenizer = Tokenizer.load(published[level](tmp_path / level, lines))
    else:
        tokenizer = Tokenizer.train({"crlf": "bpe"}.get(level, level), [text, "\r"], 400)
    if level == "crlf":
        text = text.replace("\n", "\r\n")
    monkeypatch.setattr(corpus_chunks, "CHUNK_BYTES", 1000)
    source = from_memory("a", text)
    n = len(list(chunks([source], token_cache.cuts_at_lines(tokenizer), "")))
    assert n > 3 if level != "llama" else n == 1, "LLaMA's puts a space before each text, so it takes it whole"
    found = token_cache.build_in_memory({"train": [source]}, tokenizer)["train"]
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    assert (found.counts.size, found.counts.texts) == (len(text.encode()), 1)
    if level == "crlf":  # no cut is safe there: the text is the same, if not all of its tokens
        assert tokenizer.decode(found.ids) == text
    else:
        assert found.ids.tolist() == tokenizer.encode(text) + end


def test_a_line_without_an_end_is_cut_between_characters(monkeypatch):
    monkeypatch.setattr(corpus_chunks, "CHUNK_BYTES", 100)
    monkeypatch.setattr(corpus_chunks, "MAX_LINE_BYTES", 300)
    text = "é日🙂" * 200
    found = list(chunks([from_memory("a", text)], True, ""))
    assert len(found) > 3
    assert "".join(part for piece in found for part in piece.texts) == text
    assert [end for piece in found for end in piece.ends] == [False] * (len(found) - 1) + [True]


# Validation -----------------------------------------------------------------------------------------------------------


def test_the_tail_is_whole_texts_where_they_are_many():
    texts = [from_memory(str(i), "x" * 9 + "\n") for i in range(100)]
    train, val = split_tail(texts, 0.1)
    assert [text.name for text in val] == [str(i) for i in range(90, 100)]
    assert len(train) == 90
    uneven = [from_memory(str(i), "x" * n) for i, n in enumerate((900, 40, 70))]
    assert [text.name for text in split_tail(uneven, 0.1)[1]] == ["2"]
    uneven = [from_memory(str(i), "x" * n) for i, n in enumerate((900, 140, 5))]
    assert [text.name for text in split_tail(uneven, 0.1)[1]] == ["1", "2"]


@pytest.mark.parametrize("text", ["line one\n" * 50, "é" * 300, "é" * 300 + "\n", "a\n" + "é" * 300, "ab\n"])
def test_one_text_is_cut_once(text):
    train, val = split_tail([from_memory("a", text)], 0.2)
    parts = ["".join(part for piece in chunks(side, True, "") for part in piece.texts) for side in (train, val)]
    assert parts[0] + parts[1] == text
    assert parts[1]
    if text.count("\n") > 2:
        assert parts[1].startswith("line one\n")
        assert len(parts[1]) == pytest.approx(0.2 * len(text), abs=10)


def test_no_text_of_validation_is_trained_on(folder, tmp_path):
    data = corpus(folder, val_path=str(folder / "1.txt"), test_path=str(folder / "more"))
    first, second, third = contents(folder)
    assert {s: data.tokenizer.decode(ids(data, s)) for s in ("train", "val", "test")} == {
        "train": first, "val": second, "test": third,
    }  # fmt: skip
    (folder / "1.txt").write_text("zyzzyva Ω " * 50)
    data = corpus(folder, val_path=str(folder / "1.txt"), tokenizer="bpe", vocab_size=400)
    assert "zyzzyva" not in "".join(data.tokenizer.names(range(400))), "pieces are learned from training texts alone"
    data = corpus(folder, val_path=str(folder / "1.txt"))
    assert "Ω" in data.tokenizer.engine.source, "but every character has a number"


# Cache ----------------------------------------------------------------------------------------------------------------


def test_tokens_are_made_once_for_each_content_and_tokenizer(folder, tmp_path, monkeypatch):
    cache, options = tmp_path / "cache", {"tokenizer": "bpe", "vocab_size": 400}
    first = on_disk(folder, cache, **options)
    expected = ids(first)
    assert isinstance(first.datasets["train"].ids, np.memmap)
    assert expected == ids(corpus(folder, cache="memory", **options))
    made = []
    real, trains = token_cache.encode_all, Tokenizer.train
    monkeypatch.setattr(token_cache, "encode_all", lambda *a: made.append("tokens") or real(*a))
    monkeypatch.setattr(Tokenizer, "train", lambda **k: made.append("tokenizer") or trains(**k))
    again = on_disk(folder, cache, **options)
    assert ids(again) == expected
    assert again.bytes_per_token == first.bytes_per_token
    assert on_disk(folder, cache, tokenizer=first.tokenizer.plain()).vocab_size == 400
    assert made == []
    other = on_disk(folder, cache, tokenizer="bpe", vocab_size=300)
    assert max(ids(other)) < 300
    assert made == ["tokenizer", "tokens", "tokens"]
    assert ids(on_disk(folder, cache, val_split=0.3, **options)) != expected
    made.clear()
    (folder / "0.txt").write_text("changed " * 100)
    assert "changed" in (data := on_disk(folder, cache, **options)).tokenizer.decode(ids(data))
    assert made == ["tokenizer", "tokens", "tokens"]
    assert not list(cache.glob(".*.new-*"))


@pytest.mark.parametrize("when", ["tokens", "tokenizer"])
def test_an_interrupted_build_leaves_nothing(folder, tmp_path, monkeypatch, when):
    cache = tmp_path / "cache"
    real = corpus_chunks.read_parts

    def interrupted(text, lines):
        if text.name.endswith("1.txt"):
            raise KeyboardInterrupt
        yield from real(text, lines)

    monkeypatch.setattr(corpus_chunks, "read_parts", interrupted)
    data = on_disk(folder, cache, tokenizer="bytes" if when == "tokens" else "characters")
    with pytest.raises(KeyboardInterrupt):
        _ = data.datasets
    assert not [path for path in cache.rglob("*") if path.suffix != ".lock"]
    monkeypatch.undo()
    assert ids(on_disk(folder, cache)) == ids(corpus(folder))
    built = [path for path in cache.iterdir() if path.is_dir()]
    for path in built:
        shutil.rmtree(path)
    left = abandoned(built[0])
    left.mkdir()  # of a process that was killed
    assert ids(on_disk(folder, cache)) == ids(corpus(folder))
    assert not left.exists()


def test_a_full_disk(folder, tmp_path):
    cache = tmp_path / "cache"
    (folder / "0.txt").write_text("word " * 100_000)
    data = on_disk(folder, cache, tokenizer="bytes")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(ValueError, match=rf"the tokens cannot be written to {cache} \(File too large\): --data"):
            _ = data.datasets
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not [path for path in cache.rglob("*") if path.suffix != ".lock"]
    blocked = on_disk(folder, folder / "0.txt" / "x", tokenizer="bytes")
    with pytest.raises(ValueError, match=r"the tokens cannot be written to .*0.txt/x \(Not a directory\)"):
        _ = blocked.datasets


def test_small_texts_are_not_kept(folder, tmp_path):
    data = corpus(folder, cache_dir=str(tmp_path / "cache"))
    assert not isinstance(data.datasets["train"].ids, np.memmap)
    assert not (tmp_path / "cache").exists()


# Checkpoints ----------------------------------------------------------------------------------------------------------


def test_the_tokenizer_is_in_the_checkpoint(folder, tmp_path):
    data = corpus(folder, tokenizer="bpe", vocab_size=300)
    size = data.vocab_size
    data.setup("fit")
    torch.save(dict(data.hparams), tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    (folder / "0.txt").unlink()
    again = TextCorpus(**saved)
    assert again.vocab_size == size
    assert again.tokenizer.plain() == data.tokenizer.plain()


# What Python brings ---------------------------------------------------------------------------------------------------


def test_documentation_of_python():
    data = PythonDocs(block_size=64, batch_size=12)
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == y.shape == (12, 64)
    assert 90 < data.vocab_size < 200
    assert len(ids(data)) + len(ids(data, "val")) > 400_000
    assert len(ids(data, "val")) / len(ids(data)) == pytest.approx(1 / 9, rel=0.3)
    assert ids(data) == ids(PythonDocs(block_size=64))


def test_source_of_python(tmp_path, monkeypatch):
    root = tmp_path / "lib"
    for name in ("os.py", "json/decoder.py", "json/tests/a.py", "site-packages/torch/a.py", "test/bad.py", "zip.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n" * 40)
    monkeypatch.setattr("zoo.data.text.corpus.sysconfig.get_path", lambda name: str(root))
    data = PythonSource(block_size=8, cache_dir=str(tmp_path))
    text = data.tokenizer.decode([*ids(data), *ids(data, "val")])
    assert {line for line in text.split("\n") if line} == {"# os.py", "# json/decoder.py", "# zip.py"}
    monkeypatch.undo()
    real = PythonSource().texts()["train"]
    assert sum(map(len, real)) > 5e6
    assert not [text.name for text in real if "/site-packages/" in text.name or "/test/" in text.name]


# Mistakes -------------------------------------------------------------------------------------------------------------


def test_which_files_are_found(folder):
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.txt").write_text("x")

    def names(paths):
        return [Path(text.name).relative_to(folder).as_posix() for text in find_texts(paths, "text")]

    assert names(str(folder)) == ["0.txt", "1.txt", "more/last.md"]
    assert names([str(folder / "more"), str(folder / "0.txt"), str(folder)]) == ["more/last.md", "0.txt", "1.txt"]
    assert names(str(folder / "**/*.md")) == ["more/last.md"]
    assert names(str(folder / "[01].txt")) == ["0.txt", "1.txt"]


BAD = {
    "zero.txt": b"text" * 20 + b"\0more",
    "latin.txt": "caf\xe9 au lait".encode("latin-1") * 9,
    "empty.txt": b"",
    "short.txt": b"ab",
    "field.jsonl": b'{"text": "a"}\n\n{"txt": "b", "id": 1}\n',
    "json.jsonl": b'{"text": "a"}\n{"text": \n',
    "list.jsonl": b'["a"]\n' * 9,
    "number.jsonl": b'{"text": 5}\n' * 9,
    "half.jsonl": b'{"text": "\\ud800"}\n' * 9,
    "one.jsonl": b'{"text": "only this line"}\n',
    "nothing.jsonl": b'{"text": ""}\n' * 20,
}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "none.txt"}, "no file or folder .*none.txt"),
        ({"path": "*.rst"}, r"no file matches .*\*.rst"),
        ({"path": "folder"}, r"folder holds no .txt, .*; a pattern such as .*folder/\*\*/\*.py names others"),
        ({"path": []}, "no file is named: path takes files, folders or patterns"),
        ({"path": "zero.txt"}, "zero.txt is binary, not text: byte 80 is zero"),
        ({"path": "latin.txt"}, r"latin.txt is not text in UTF-8 \(line 1, byte 3: 0xe9\); --data.encoding names"),
        ({"path": "empty.txt"}, "the corpus is empty: .*empty.txt has no text"),
        ({"path": "short.txt"}, r"the training text has 2 tokens, .* a block of 8 .*: --data.block_size is too large"),
        ({"path": "good.txt", "val_path": "short.txt"}, "the validation text has 2 tokens"),
        ({"path": "good.txt", "val_path": "empty.txt"}, "the validation text is empty"),
        ({"path": "nothing.jsonl"}, "the training text is empty"),
        ({"path": "good.txt", "val_path": "good.txt"}, "all files of path=.* are those of val_path or test_path"),
        ({"path": "field.jsonl"}, "field.jsonl, line 3 has no field 'text'; it has txt, id"),
        ({"path": "json.jsonl"}, "json.jsonl, line 2 is not JSON: Expecting value"),
        ({"path": "list.jsonl"}, r"list.jsonl, line \d: an object {...} needed, got \[\"a\"\]"),
        ({"path": "number.jsonl"}, r"number.jsonl, line \d: 'text' is 5, not a text"),
        ({"path": "half.jsonl"}, r"half.jsonl, line \d: 'text' holds half of a surrogate pair"),
        ({"path": "one.jsonl"}, "one.jsonl has one line alone: nothing is left for validation"),
        (
            {"path": "good.txt", "tokenizer": "letters"},
            "tokenizer is characters, bytes, .* or the path of .*, got 'letters'",
        ),
        ({"path": "good.txt", "tokenizer": {"level": "bpe"}}, "a tokenizer in a checkpoint is a dict with 'packed'"),
        ({"path": "good.txt", "tokenizer": "bpe", "vocab_size": 9}, "bpe needs 257 tokens or more"),
        ({"path": "good.txt", "block_size": 0}, "block_size must be 1 or more, got 0"),
        ({"path": "good.txt", "val_split": 1.0}, "val_split must be a fraction of the text between 0 and 1, got 1.0"),
        ({"path": "good.txt", "cache": "tape"}, "cache must be auto, memory, disk, got 'tape'"),
    ],
    ids=str,
)
def test_mistakes(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    for name, content in {**BAD, "good.txt": b"some text\n" * 40}.items():
        Path(name).write_bytes(content)
    Path("folder").mkdir()
    with pytest.raises(ValueError, match=words) as caught:
        _ = TextCorpus(**{"block_size": 8, **options}).datasets
    assert "\n" not in str(caught.value)


def test_a_character_that_a_checkpoints_tokenizer_lacks_is_named(folder):
    plain = Tokenizer.train("characters", ["the cat"]).plain()
    with pytest.raises(ValueError, match="is none of the 6 characters of the training texts"):
        _ = corpus(folder, tokenizer=plain).datasets


def test_an_epoch_of_too_few_blocks_for_the_processes():
    with pytest.raises(ValueError, match="1 samples cannot be shared among 2 processes"):
        ShiftedBlockSampler(8, 1, 4, rank=0, world=2)


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("line\n" * 100)
    (text,) = find_texts(str(path), "text")
    path.write_text("line\n" * 50)
    with pytest.raises(ValueError, match=r"a.txt became shorter while it was read"):
        list(chunks([text], True, ""))
    rows = fake_data.json_lines(tmp_path / "a.jsonl", ["a"] * 9)
    (text,) = find_texts(str(rows), "text")
    rows.write_text(json.dumps({"text": "a"}) + "\n")
    with pytest.raises(ValueError, match=r"a.jsonl became shorter while it was read"):
        list(chunks([text], True, ""))


# Through the command line ---------------------------------------------------------------------------------------------


def test_show_data_says_what_the_corpus_is(zoo, folder):
    given = ["--data", "TextCorpus", "--data.path", folder, "--data.tokenizer", "bytes", "--data.block_size", 16]
    code, out, err = zoo("show-data", "--model", "GPTLanguageModel", *given)
    assert (code, err) == (0, "")
    data = corpus(folder, tokenizer="bytes", block_size=16)
    train = data.datasets["train"]
    size = len(train.ids)
    assert f"train: 3 texts of {size:,} bytes, {size:,} tokens, {len(train):,} blocks of 16" in out.replace(
        "2 texts", "3 texts"
    )
    assert "bytes: a vocabulary of 256; 1 bytes each in the validation text; kept as uint8 in memory" in out
    assert f"it begins with {data.tokenizer.decode(train.ids[:40])!r}" in out


def test_a_model_learns_and_its_checkpoint_knows_the_text(zoo, folder):
    shape = ["--model.dim", 16, "--model.depth", 1, "--model.heads", 2]
    given = ["--data", "TextCorpus", "--data.path", folder, "--data.batch_size", 8, "--trainer.max_steps", 3]
    code, _, err = zoo("fit", "--model", "GPTLanguageModel", *shape, "--model.block_size", 16, *given, "--run_dir", "r")
    assert (code, err) == (0, "")
    saved = torch.load("r/checkpoints/last.ckpt", weights_only=True)
    tokenizer = Tokenizer.from_plain(saved["tokenizer"])
    assert saved["datamodule_hyper_parameters"]["tokenizer"] == saved["tokenizer"]
    assert tokenizer.plain() == corpus(folder).tokenizer.plain()
    assert saved["hyper_parameters"]["vocab_size"] == len(tokenizer)
    code, out, err = zoo("test", "--ckpt_path", "r/checkpoints/last.ckpt")
    assert (code, err) == (0, "")
    assert "test/bits_per_byte" in out
    code, _, err = zoo("fit", "--model", "GPTLanguageModel", *shape, *given, "--data.path", "none.txt")
    assert (code, err) == (2, "zoo: error: no file or folder none.txt\n")


@pytest.mark.slow
def test_resume_is_exact(zoo, folder):
    config = {
        "model": {"class_path": "GPTLanguageModel", "init_args": {"dim": 16, "depth": 1, "heads": 2, "dropout": 0.1}},
        "data": {"class_path": "TextCorpus", "init_args": {"path": str(folder), "block_size": 16, "batch_size": 16}},
        "trainer": {"max_epochs": 3},
    }
    Path("own.yaml").write_text(yaml.safe_dump(config))
    code, out, err = zoo("verify", "resume", "-c", "own.yaml")
    assert code == 0, out + err
