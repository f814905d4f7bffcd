"""Pairs of texts with a class: read, cut and truncated as transformers does, learned from both, and predicted."""

from __future__ import annotations

import csv
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf

from tests import fake_data
from zoo.data import TextClassification
from zoo.data.base import split_indices
from zoo.models import BERTClassifier, BERTForSequenceClassification
from zoo.text.save import save_tokenizer
from zoo.weights.packages import model_folder

WEATHER = [("icy", "frosty", "freezing"), ("mild", "fresh", "temperate"), ("hot", "scorching", "sweltering")]
SAID = ["it was {} .", "a {} day", "we had {} weather"]
COLUMNS = ("yesterday", "today", "label")


def days(n: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """What is said of two days, and how the second compares: who knows one of them is right 5 times in 9."""
    draw, found = random.Random(seed), []
    for _ in range(n):
        first, second = draw.randrange(3), draw.randrange(3)
        texts = [draw.choice(SAID).format(draw.choice(WEATHER[level])) for level in (first, second)]
        found.append((*texts, "same" if first == second else "warmer" if second > first else "cooler"))
    return found


def write(path: Path, rows: list[tuple[str, str, str]], columns: tuple[str, ...] = COLUMNS) -> Path:
    path.parent.mkdir(exist_ok=True)
    rows = [row[: len(columns)] for row in rows]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    elif path.suffix == ".tsv":
        path.write_text("\n".join("\t".join(row) for row in [columns, *rows]) + "\n")
    else:
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
    return path


def pairs(path: Path, **kwargs) -> TextClassification:
    given = {"text": "yesterday", "text_pair": "today", "tokenizer": "wordpiece", "max_length": 32}
    return TextClassification(str(path), **(given | kwargs))


def all_of(data: TextClassification, split: str = "train") -> tuple:
    return data.datasets[split].batch(torch.arange(len(data.datasets[split])))  # type: ignore[attr-defined,arg-type]


# As transformers ------------------------------------------------------------------------------------------------------


def uneven(n: int = 60) -> list[tuple[str, str, str]]:
    """Pairs of 1 to 30 words, so that the first text is too long, the second, both, or none."""
    draw = random.Random(1)
    words = ["the", "Quick", "foxes", "jumped,", "over", "unaffable", "naïve", "dogs!", "And", "42", "(it's", "日本)"]
    texts = [" ".join(draw.choices(words, k=draw.choice([1, 3, 8, 12, 30]))) for _ in range(2 * n)]
    return [(a, b, draw.choice(["no", "yes"])) for a, b in zip(texts[::2], texts[1::2], strict=True)]


@pytest.mark.parametrize("kind", ["published", "learned"])
@pytest.mark.parametrize("max_length", [5, 16, 23, 128])
def test_tokens_and_types_are_those_of_transformers(tmp_path, kind, max_length):
    for split in ("train", "dev", "test"):
        write(tmp_path / "pairs" / f"{split}.jsonl", uneven())
    texts, labels = [(a, b) for a, b, _ in uneven()], [label for *_, label in uneven()]
    path = tmp_path / "pairs"
    folder = model_folder("all-MiniLM-L6-v2")
    data = pairs(path, tokenizer=folder if kind == "published" else "wordpiece", max_size=300, max_length=max_length)
    (x, lengths, types), y = all_of(data)
    if kind == "learned":
        save_tokenizer(tmp_path, data.tokenizer, 512, inputs=["input_ids", "token_type_ids", "attention_mask"])
        folder = str(tmp_path)
    theirs = hf.AutoTokenizer.from_pretrained(folder)(
        [a for a, _ in texts], [b for _, b in texts], truncation=True, max_length=max_length, padding=True,
        return_tensors="pt",
    )  # fmt: skip
    assert torch.equal(x, theirs["input_ids"])
    assert torch.equal(types, theirs["token_type_ids"])
    assert torch.equal(torch.arange(x.shape[1]) < lengths.unsqueeze(1), theirs["attention_mask"].bool())
    assert [data.class_names[i] for i in y.tolist()] == labels
    cut = sum(len(a.split()) + len(b.split()) + 3 > max_length for a, b in texts)
    assert (cut > 0) == (max_length < 128)
    (one, length, kinds), label = data.datasets["train"][7]
    assert torch.equal(one[:length], x[7, : lengths[7]])
    assert torch.equal(kinds[:length], types[7, : lengths[7]])
    assert label == y[7]


def test_logits_are_those_of_transformers(tmp_path):
    path = write(tmp_path / "pairs.csv", uneven())
    folder = fake_data.bert_folder(tmp_path / "hub", [a for a, _, _ in uneven()], "Bert", "ForSequenceClassification")
    data = pairs(path, tokenizer=str(folder), max_length=20)
    (x, lengths, types), _ = all_of(data)
    ours, theirs = (
        BERTForSequenceClassification.from_pretrained(folder).eval(),
        hf.AutoModelForSequenceClassification.from_pretrained(folder),
    )
    mask = torch.arange(x.shape[1]) < lengths.unsqueeze(1)
    with torch.no_grad():
        expected = theirs.eval()(input_ids=x, attention_mask=mask.long(), token_type_ids=types).logits
        assert torch.allclose(ours(x, lengths, types), expected, atol=1e-5)
        assert not torch.allclose(ours(x, lengths), expected, atol=1e-5), "which text a token is in matters"


def test_how_often_pairs_are_cut_is_said(tmp_path, capsys):
    rows = [("a b c d e f g h", "x", "no"), ("a", "b", "yes"), ("", "b", "no"), ("c", "", "yes"), *days(30)]
    data = pairs(write(tmp_path / "p.csv", rows), max_length=8, val_split=0.2, test_split=0.2)
    assert sum(len(part) for part in data.datasets.values()) == 32
    said = capsys.readouterr().err
    assert "2 of 34 pairs lack a text and are left out" in said
    assert "are longer than max_length=8 tokens (the longest has" in said
    assert max(int(part.lengths.max()) for part in data.datasets.values()) == 8


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["p.csv", "p.tsv", "p.jsonl"])
def test_every_format_gives_the_same_pairs(tmp_path, name):
    rows = days(80)
    data = pairs(write(tmp_path / name, rows))
    assert data.class_names == ["cooler", "same", "warmer"]
    found = []
    for split in data.datasets:
        (x, lengths, types), y = all_of(data, split)
        for row, length, kinds, label in zip(x, lengths, types, y, strict=True):
            second = kinds[:length].bool()
            texts = [data.tokenizer.decode(row[:length][part]) for part in (~second, second)]
            found.append((*texts, data.class_names[label]))
    assert sorted(found) == sorted((a.replace(" .", "."), b.replace(" .", "."), label) for a, b, label in rows)
    words = {word for row in rows for text in row[:2] for word in text.split()}
    assert words <= set(data.tokenizer.names(range(len(data.tokenizer)))), "learned from both texts"


def test_folders_as_glue_has_them(tmp_path):
    columns = ("sentence1", "sentence2", "label")
    for split, n in (("train", 40), ("dev", 9), ("test", 7)):
        write(tmp_path / f"{split}.tsv", days(n, n), columns)
    data = pairs(tmp_path, text="sentence1", text_pair="sentence2", batch_size=16)
    assert {split: len(part) for split, part in data.datasets.items()} == {"train": 40, "val": 9, "test": 7}
    rows = 0
    for (x, lengths, types), y in data.train_dataloader():
        assert x.shape == types.shape == (len(y), int(lengths.max()))
        rows += len(y)
        second = types.sum(1)
        for row, kinds, length, n in zip(x, types, lengths, second, strict=True):
            assert kinds.tolist() == [0] * int(length - n) + [1] * int(n) + [0] * (x.shape[1] - int(length))
            assert row[length - 1] == row[length - n - 1] == data.tokenizer.sep_id
    assert rows == 40


# Learning -------------------------------------------------------------------------------------------------------------

SMALL = ["--model", "BERTClassifier", "--model.dim", 32, "--model.depth", 2, "--model.heads", 2,
         "--model.max_length", 32, "--model.dropout", 0, "--model.lr", 3e-3, "--model.lr_scheduler", "WarmupLinear",
         "--data", "TextClassification", "--data.path", "days", "--data.text", "yesterday",
         "--data.tokenizer", "wordpiece", "--data.max_length", 32, "--data.batch_size", 32,
         "--trainer.max_epochs", 6]  # fmt: skip


def accuracy(folder: Path) -> float:
    with open(folder / "metrics.csv", newline="") as file:
        return max(float(row["val/accuracy"]) for row in csv.DictReader(file) if row.get("val/accuracy"))


@pytest.mark.slow
def test_bert_learns_what_neither_text_tells_and_predicts_from_a_file(zoo, here):
    rows = days(1500)
    labels = torch.tensor([["cooler", "same", "warmer"].index(label) for *_, label in rows])
    # In files of their own, as a text that occurs twice is in one split: there are 27 different ones.
    for split, part in zip(("train", "dev", "test"), split_indices(1500, [0.8, 0.1, 0.1], 0, labels), strict=True):
        write(here / "days" / f"{split}.jsonl", [rows[i] for i in part.tolist()])
    code, _, err = zoo("fit", *SMALL, "--data.text_pair", "today", "--run_dir", "both")
    assert (code, err) == (0, "")
    code, _, err = zoo("fit", *SMALL, "--run_dir", "one", "--trainer.max_epochs", 3)
    assert (code, err) == (0, "")
    assert accuracy(here / "one") < 0.65, "5 in 9 by the first text alone"
    assert accuracy(here / "both") > 0.95
    shutil.rmtree(here / "days")
    new = write(here / "new.tsv", days(50, seed=7), COLUMNS[:2])
    checkpoint = here / "both/checkpoints/best.ckpt"
    code, _, err = zoo("predict", "--ckpt_path", checkpoint, "--data.predict_file", new, "--out", "out.csv")
    assert (code, err) == (0, "")
    with open("out.csv", newline="") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert sum(name == label for name, (*_, label) in zip(names, days(50, seed=7), strict=True)) >= 45
    module = BERTClassifier.load_from_checkpoint(checkpoint, weights_only=True).eval()
    module.save_pretrained("tuned")
    theirs = hf.pipeline("text-classification", model="tuned", device="cpu")
    answers = theirs([{"text": a, "text_pair": b} for a, b, _ in days(50, seed=7)])
    assert [answer["label"] for answer in answers] == names, "transformers answers alike"


# Mistakes -------------------------------------------------------------------------------------------------------------


def read(**kwargs) -> None:
    """Read everything that training and prediction need."""
    data = TextClassification(**kwargs)
    data.setup("fit")
    data.predict_dataloader()


def test_mistakes(tmp_path):
    path = write(tmp_path / "p.csv", days(30))
    (tmp_path / "new.txt").write_text("a\nb\n")
    (tmp_path / "classes/no").mkdir(parents=True)
    (tmp_path / "classes/no/1.txt").write_text("a")
    for kwargs, said in (
        ({"tokenizer": None}, "needs path and tokenizer"),
        ({"text_pair": "tomorrow"}, "p.csv has no column 'tomorrow'; it has yesterday, today, label"),
        (
            {"predict_file": str(tmp_path / "new.txt")},
            r"pairs of texts are read from .csv, .tsv, .jsonl or .parquet; got .*new.txt",
        ),
        ({"path": str(tmp_path / "classes")}, r"pairs of texts are read from .csv, .tsv, .jsonl; got .*classes"),
        ({"path": str(tmp_path / "absent.csv")}, "no file or folder"),
        ({"max_length": 4}, "a pair has 3 special tokens: max_length starts at 5, got 4"),
        ({"tokenizer": "bpe", "max_size": 300}, "marks where the second text begins"),
        ({"tokenizer": "words"}, "a subword tokenizer is needed"),
    ):
        with pytest.raises(ValueError, match=said):
            read(**{"path": str(path), "text": "yesterday", "text_pair": "today", "tokenizer": "wordpiece", **kwargs})
    with pytest.raises(ValueError, match="needs path and tokenizer"):
        TextClassification(text_pair="today", tokenizer="wordpiece")


def test_networks_that_read_one_text_say_so(zoo, here):
    write(here / "p.csv", days(60))
    code, _, err = zoo(
        "fit", "--model", "GRUClassifier", "--data", "TextClassification", "--data.path", "p.csv", "--data.text",
        "yesterday", "--data.text_pair", "today", "--data.tokenizer", "wordpiece",
    )  # fmt: skip
    assert (code, err.splitlines()) == (2, [
        "zoo: 58 of 60 pairs are different: equal ones are in the same split",
        "zoo: error: GRU takes no pairs of texts (text_pair): BERTClassifier does",
    ])  # fmt: skip
