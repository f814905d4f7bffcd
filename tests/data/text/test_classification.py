"""Texts: files and folders, the vocabulary, padding and buckets, random changes, and what a checkpoint remembers."""

import csv
import json

import pytest
import torch

from zoo.data import TextClassification
from zoo.data.text.python_docs import GROUPS, documentation, sentences
from zoo.data.text.text_files import read_splits, read_texts
from zoo.data.text.token_augmentation import augment_tokens
from zoo.text import Vocabulary
from zoo.text.vocabulary import tokenize

WORDS = {"fruit": ["apple", "pear", "plum", "cherry", "fig"], "tool": ["hammer", "saw", "drill", "wrench", "file"]}


def rows(n: int = 60, seed: int = 0) -> list[tuple[str, str]]:
    """Texts of 2 to 12 words of a class, no two of them equal."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, str] = {}
    while len(found) < n:
        label = ("fruit", "tool")[len(found) % 2]
        picks = torch.randint(0, 5, (int(torch.randint(2, 13, (), generator=generator)),), generator=generator)
        found.setdefault(" ".join(WORDS[label][p] for p in picks.tolist()), label)
    return list(found.items())


def write(folder, kind: str, texts=None):
    texts = texts or rows()
    path = folder / f"texts.{kind}"
    if kind == "csv":
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *texts])
    elif kind == "tsv":
        path.write_text("\n".join("\t".join(r) for r in [("text", "label"), *texts]) + "\n")
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps({"text": t, "label": c}) for t, c in texts) + "\n")
    else:
        path = folder / "folders"
        for i, (text, label) in enumerate(texts):
            (path / label).mkdir(parents=True, exist_ok=True)
            (path / label / f"{i:03}.txt").write_text(text)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "folders"])
def test_every_format_gives_the_same_texts(tmp_path, kind):
    texts, labels = read_texts(write(tmp_path, kind), "text", "label")
    assert sorted(zip(texts, labels, strict=True)) == sorted(rows())
    data = TextClassification(str(tmp_path / ("folders" if kind == "folders" else f"texts.{kind}")))
    assert data.class_names == ["fruit", "tool"]
    assert {k: len(v) for k, v in data.datasets.items()} == {"train": 48, "val": 6, "test": 6}


def test_splits_of_the_folder_are_kept(tmp_path):
    for name, n in (("train", 40), ("valid", 6), ("test", 8)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, "csv", rows(n)).rename(tmp_path / f"{name}.csv")
        (tmp_path / name).rmdir()
    data = TextClassification(str(tmp_path))
    assert {k: len(v) for k, v in data.datasets.items()} == {"train": 40, "val": 6, "test": 8}
    (tmp_path / "valid.csv").unlink()
    data = TextClassification(str(tmp_path))
    assert {k: len(v) for k, v in data.datasets.items()} == {"train": 36, "val": 4, "test": 8}
    write(tmp_path, "folders").rename(tmp_path / "train")
    (tmp_path / "train.csv").unlink()
    found = read_splits(tmp_path, "text", "label")
    assert {split: len(texts) for split, (texts, _) in found.items()} == {"train": 60, "test": 8}


def test_vocabulary():
    vocabulary = Vocabulary.build([["b", "a", "b"], ["c", "b", "a"]])
    assert vocabulary.tokens == ["<pad>", "<unk>", "b", "a", "c"]
    assert vocabulary.encode(["c", "x", "b"]) == [4, 1, 2]
    assert vocabulary.decode([4, 1, 2, 0, 0]) == ["c", "<unk>", "b"]
    assert Vocabulary.build([["b", "a", "b"]], min_freq=2).tokens[2:] == ["b"]
    assert Vocabulary.build([["b", "a", "b"]], max_size=3).tokens[2:] == ["b"]
    with pytest.raises(ValueError, match="begins with <pad>, <unk>, got a"):
        Vocabulary(["a"])
    with pytest.raises(ValueError, match="'a' is in the vocabulary twice"):
        Vocabulary(["<pad>", "<unk>", "a", "a"])
    with pytest.raises(ValueError, match="max_size from 3, got min_freq=1, max_size=2"):
        Vocabulary.build([], max_size=2)


def test_tokens():
    assert tokenize("Don't stop: x.y is 3!") == ["don't", "stop", ":", "x", ".", "y", "is", "3", "!"]
    assert tokenize("Aé 😀", "characters") == ["A", "é", " ", "😀"]


def test_the_vocabulary_is_that_of_training_alone(tmp_path):
    extra = [*rows(), *[(f"word{i} word{i}", "tool") for i in range(40)]]
    data = TextClassification(str(write(tmp_path, "csv", extra)), min_freq=1)
    assert (data.datasets["train"].values > 1).all(), "all of training is known"
    train = {data.vocabulary.tokens[i] for i in data.datasets["train"].values.tolist()}
    assert set(data.vocabulary.tokens[2:]) == train
    held_out = {f"word{i}" for i in range(40)} - train
    assert 0 < len(held_out) < 40
    unknown = sum(int((data.datasets[split].values == 1).sum()) for split in ("val", "test"))
    assert unknown == 2 * len(held_out)


def test_batches_are_padded_to_their_longest_and_hold_similar_lengths(tmp_path):
    texts = rows(400)
    widths = {}
    for buckets in (True, False):
        data = TextClassification(str(write(tmp_path, "csv", texts)), batch_size=16, bucket_by_length=buckets)
        seen, widths[buckets] = 0, 0
        for (x, lengths), y in data.train_dataloader():
            assert x.shape == (len(y), int(lengths.max()))
            real = torch.arange(x.shape[1]) < lengths.unsqueeze(1)
            assert torch.equal(x != 0, real)
            seen += len(y)
            widths[buckets] += x.numel()
        assert seen == 320
    assert widths[True] < 0.75 * widths[False]


def test_long_texts_are_cut_and_it_is_said_once(tmp_path, capsys):
    long = [("apple " * 50, "fruit"), *rows()]
    data = TextClassification(str(write(tmp_path, "csv", long)), max_length=12)
    assert max(int(part.lengths.max()) for part in data.datasets.values()) == 12
    data.setup("fit")
    said = capsys.readouterr().err
    assert said.count("max_length") == 1
    assert "1 of 61 texts are longer than max_length=12 tokens (the longest has 50): their ends are left out" in said


def test_empty_texts(tmp_path, capsys):
    data = TextClassification(str(write(tmp_path, "jsonl", [("  ", "fruit"), ("", "tool"), *rows()])))
    assert sum(len(part) for part in data.datasets.values()) == 60
    assert "2 of 62 texts are empty and are left out" in capsys.readouterr().err
    data = TextClassification(str(write(tmp_path, "csv")))
    ((x, lengths),) = data.read_samples(["apple pear", "", "zzz"]).dataset.batch(torch.arange(3))
    assert lengths.tolist() == [2, 1, 1]
    assert x[1].tolist() == x[2].tolist() == [1, 0]
    new = tmp_path / "new.txt"
    new.write_bytes(b"apple pear\r\n\r\nzzz\r\n")
    samples = data.read_samples(new)
    assert samples.columns == {"row": [1, 3], "text": ["apple pear", "zzz"]}
    assert "1 of 3 lines are empty and left out" in capsys.readouterr().err


def test_a_checkpoint_keeps_vocabulary_and_classes(tmp_path):
    path = write(tmp_path, "csv")
    data = TextClassification(str(path))
    assert (data.vocab_size, data.num_classes) == (12, 2)
    data.setup("fit")
    saved = dict(data.hparams)
    assert saved["vocabulary"] == data.vocabulary.tokens
    assert saved["classes"] == ["fruit", "tool"]
    path.unlink()
    (tmp_path / "new.csv").write_text("text\nsaw drill\n")
    again = TextClassification(**(saved | {"predict_file": str(tmp_path / "new.csv")}))
    assert again.vocab_size == 12
    assert again.class_names == ["fruit", "tool"]
    again.setup("predict")
    ((x, _),) = again.dataset("predict").batch(torch.tensor([0]))
    assert data.vocabulary.decode(x[0].tolist()) == ["saw", "drill"]
    with pytest.raises(ValueError, match="no file or folder"):
        again.setup("fit")


def test_train_test_and_predict_on_new_texts(zoo, here):
    write(here, "csv", rows(120))
    shape = ["--model.dim", 16, "--model.embed_dim", 16, "--model.pooling", "mean", "--model.lr", 0.02]
    data = ["--data", "TextClassification", "--data.path", "texts.csv", "--data.batch_size", 16]
    code, _, err = zoo("fit", "--model", "LSTMClassifier", *shape, *data, "--trainer.max_epochs", 4)
    assert (code, err) == (0, "")
    checkpoint = next((here / "runs").rglob("best.ckpt"))
    assert torch.load(checkpoint, weights_only=True)["datamodule_hyper_parameters"]["vocabulary"][:2] == [
        "<pad>", "<unk>",
    ]  # fmt: skip
    code, out, err = zoo("test", "--ckpt_path", checkpoint)
    assert (code, err) == (0, "")
    assert "test/accuracy" in out
    (here / "texts.csv").unlink()
    (here / "new.csv").write_text('text\nhammer and saw\nPlum pear!\n""\n')
    code, _, err = zoo("predict", "--ckpt_path", checkpoint, "--data.predict_file", "new.csv", "--out", "out.csv")
    assert (code, err) == (0, "zoo: new.csv: 1 empty rows are left out (the first is row 4)\n")
    with open("out.csv", newline="") as file:
        predicted = list(csv.DictReader(file))
    assert [row["label"] for row in predicted] == ["tool", "fruit"]
    assert [(row["row"], row["text"]) for row in predicted] == [("2", "hammer and saw"), ("3", "Plum pear!")]


# Random changes ------------------------------------------------------------------------------------------------------


def padded(b: int = 400, t: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, t + 1, (b,), generator=generator)
    lengths[0] = t
    x = torch.arange(2, 2 + t).repeat(b, 1)
    x[torch.arange(t) >= lengths.unsqueeze(1)] = 0
    return x, lengths


def test_masked_tokens_become_unknown():
    torch.manual_seed(0)
    x, lengths = padded()
    before = x.clone()
    y, n = augment_tokens(x, lengths, mask=0.2)
    assert torch.equal(x, before), "the texts themselves stay"
    assert torch.equal(n, lengths)
    assert torch.equal(y == 0, x == 0)
    assert ((y == x) | (y == 1)).all()
    assert abs((y == 1).sum() / lengths.sum() - 0.2) < 0.02


def test_deleted_tokens_leave_the_others_in_order():
    torch.manual_seed(0)
    x, lengths = padded()
    y, n = augment_tokens(x, lengths, delete=0.3)
    assert y.shape[1] == n.max()
    assert torch.equal(y != 0, torch.arange(y.shape[1]) < n.unsqueeze(1))
    assert n.min() >= 1
    assert abs(n.sum() / lengths.sum() - 0.7) < 0.03
    for row, before in zip(y, x, strict=True):
        kept = row[row != 0].tolist()
        assert kept == sorted(kept)
        assert set(kept) <= set(before.tolist())
    y, n = augment_tokens(x, lengths, delete=0.999)
    assert n.min() == 1, "one is left"


def test_swapped_tokens_are_neighbours():
    torch.manual_seed(0)
    x, lengths = padded()
    y, n = augment_tokens(x, lengths, swap=0.2)
    assert torch.equal(n, lengths)
    assert torch.equal(y.sort(1).values, x.sort(1).values)
    assert (y - x).abs().max() == 1
    assert torch.equal(y == 0, x == 0)
    assert abs((y != x).sum() / lengths.sum() - 0.2) < 0.03


def test_changes_are_seeded_by_the_batch_and_stay_in_training(tmp_path):
    def epoch(number: int, **kwargs) -> list:
        data = TextClassification(str(path), batch_size=16, augment={"mask": 0.2, "delete": 0.2, "swap": 0.2}, **kwargs)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)
        return [x for (x, _), _ in loader]

    path = write(tmp_path, "csv", rows(120))
    one, two, other = epoch(0), epoch(0, num_workers=1), epoch(1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(one, other, strict=True))
    data = TextClassification(str(path), augment={"mask": 0.5})
    assert data.datasets["val"].change is None
    assert data.datasets["test"].change is None
    assert data.datasets["train"].change is not None


# The default ---------------------------------------------------------------------------------------------------------


def test_sentences_of_the_documentation():
    texts, labels = documentation()
    assert len(texts) == len(set(texts)) > 1500
    counts = {group: labels.count(group) for group in GROUPS}
    assert min(counts.values()) > 100
    assert set(labels) == set(GROUPS)
    assert all(len(tokenize(text)) >= 5 for text in texts)
    assert sentences(
        "Heading\n*******\n\nIt does one thing and ends.  Then\nit does the other thing.\n\n   >>> code\n"
    ) == [
        "It does one thing and ends.",
        "Then it does the other thing.",
    ]


def test_the_default_needs_no_file():
    data = TextClassification()
    assert data.class_names == sorted(GROUPS)
    assert 1000 < data.vocab_size < 5000
    assert sum(len(part) for part in data.datasets.values()) > 1500


# Mistakes ------------------------------------------------------------------------------------------------------------

FILES = {
    "columns.csv": ("a,b\nx,y\n", "columns.csv has no column 'text'; it has a, b"),
    "label.csv": ("text,b\nx,y\n", "label.csv has no column 'label'; it has text, b"),
    "one.csv": (
        "text,label\n" + "".join(f"a b{i},c\n" for i in range(20)),
        "one.csv: all texts are of one class, 'c'; two are needed",
    ),
    "missing.csv": ("text,label\na,b\nc,\n", "missing.csv, row 3 has no 'label'"),
    "few.csv": ("text,label\na,b\nc,d\n", "2 texts are too few: nothing is left for val"),
    "blank.csv": ("text,label\n,b\n,c\n", "blank.csv: all texts are empty"),
    "empty.tsv": ("text\tlabel\n", "empty.tsv has no rows below its header"),
    "ragged.tsv": ("text\tlabel\na\tb\nc\n", "ragged.tsv, line 3: 1 values for 2 columns"),
    "bad.jsonl": ('{"text": "a", "label": "b"}\n{"text": \n', "bad.jsonl, line 2 is not JSON"),
    "list.jsonl": ("[1, 2]\n", r"list.jsonl, line 1: an object \{...\} needed, got \[1, 2\]"),
    "texts.docx": ("a", "texts are read from .csv, .tsv, .jsonl, or folders by class; got .*texts.docx"),
}


@pytest.mark.parametrize("name", FILES)
def test_wrong_files(tmp_path, name):
    text, message = FILES[name]
    (tmp_path / name).write_text(text)
    data = TextClassification(str(tmp_path / name))
    with pytest.raises(ValueError, match=message):
        data.setup("fit")


def test_other_mistakes(tmp_path):
    with pytest.raises(ValueError, match=r"no file or folder .*absent\.csv"):
        TextClassification(str(tmp_path / "absent.csv")).setup("fit")
    with pytest.raises(ValueError, match=r"holds no folders of \.txt files, one folder for each class"):
        TextClassification(str(tmp_path)).setup("fit")
    (tmp_path / "latin.csv").write_bytes("text,label\ncaf\xe9,b\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.csv is not text in UTF-8"):
        TextClassification(str(tmp_path / "latin.csv")).setup("fit")
    with pytest.raises(ValueError, match="level must be words or characters, got 'bytes'"):
        TextClassification(level="bytes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"fractions below 1 of mask, delete, swap, got cut: 0\.1"):
        TextClassification(augment={"cut": 0.1})
    with pytest.raises(ValueError, match=r"got mask: 1\.5"):
        TextClassification(augment={"mask": 1.5})
    with pytest.raises(ValueError, match="max_length must be 1 or more, got 0"):
        TextClassification(max_length=0)


def test_a_class_that_training_has_not(tmp_path):
    write(tmp_path, "csv").rename(tmp_path / "train.csv")
    write(tmp_path, "csv", [*rows(10), ("a b", "animal")]).rename(tmp_path / "test.csv")
    with pytest.raises(ValueError, match="test has the class 'animal'; training has fruit, tool"):
        TextClassification(str(tmp_path)).setup("fit")


def test_a_binary_file_is_named(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes(b"some text\0 and more\n")
    with pytest.raises(ValueError, match=r"texts.txt is binary, not text: byte 9 is zero"):
        read_texts(path, "text", None)


def test_half_of_a_surrogate_pair_is_named(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00"}\n{"text": "cut \\uD83D"}\n')
    with pytest.raises(ValueError, match=r"texts.jsonl, line 2: 'text' holds half of a surrogate pair"):
        read_texts(path, "text", None)
    path.write_text('{"text": "\\ud83d\\ude00"}\n')
    assert read_texts(path, "text", None) == (["\U0001f600"], [])


def test_many_labels_take_no_longer_each():
    """The set of all of them is made once."""

    class Label(str):
        __slots__ = ()
        hashed = 0

        def __hash__(self):
            Label.hashed += 1
            return super().__hash__()

    class Own(TextClassification):
        def default_texts(self):
            return [text for text, _ in rows(200)], [Label(label) for _, label in rows(200)]

    assert Own().num_classes == 2
    assert 0 < Label.hashed < 200 * 20


def test_an_empty_text_without_special_tokens_around_it(tmp_path):
    data = TextClassification(path=str(write(tmp_path, "csv")), tokenizer="bpe", max_size=300)
    (x, lengths), *_ = data.read_samples(["apple", "", "pear saw"]).dataset.batch(torch.arange(3))
    assert lengths.tolist()[1] == 1
    assert x[1, 0] == data.pad_id
