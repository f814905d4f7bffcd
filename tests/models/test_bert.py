"""BERT's modules: weights in and out, heads that fit or not, the tokenizer that belongs to them, embeddings."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import lightning as L
import pytest
import torch
import transformers as hf
from torch import nn

from tests import fake_data
from zoo.data import Sentiment
from zoo.models import (
    BERT,
    BERTClassifier,
    BERTEmbedder,
    BERTForMaskedLM,
    BERTForSequenceClassification,
    BERTForTokenClassification,
    BERTMaskedLM,
    BERTTokenClassifier,
)
from zoo.text import Tokenizer
from zoo.weights.packages import model_folder

TEXTS = ["the film was good", "a bad , bad meal", "not a good book at all", "what a wonderful garden"] * 3
TINY = {"dim": 16, "depth": 1, "heads": 2, "max_length": 32, "vocab_size": 50, "pad_id": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fake_data.bert_folder(tmp_path / "hub", TEXTS)


# Files ----------------------------------------------------------------------------------------------------------------


def test_embeddings_of_minilm_are_those_of_sentence_transformers():
    from sentence_transformers import SentenceTransformer

    path = model_folder("all-MiniLM-L6-v2")
    texts = [
        "A cat sits on the mat.",
        "A feline rests on a rug.",
        "Stocks fell sharply.",
        "",
        "word " * 300,
        "Ünïcode 日本 🙂",
    ]
    ours = BERTEmbedder.from_pretrained("all-MiniLM-L6-v2")
    found = ours.encode(texts, batch_size=4)
    expected = SentenceTransformer(path, device="cpu").encode(texts, convert_to_tensor=True)
    assert (found - expected).abs().max() < 1e-5
    assert torch.allclose(found.norm(dim=1), torch.ones(6), atol=1e-5)
    assert found[0] @ found[1] > 0.5 > found[0] @ found[2]


def test_real_files_come_out_as_they_went_in(tmp_path):
    """All tensors but position_ids, which are no parameters."""
    from safetensors.torch import load_file

    BERT.from_pretrained(model_folder("all-MiniLM-L6-v2")).save_pretrained(tmp_path)
    theirs, ours = (
        load_file(Path(model_folder("all-MiniLM-L6-v2")) / "model.safetensors"),
        load_file(tmp_path / "model.safetensors"),
    )
    assert set(theirs) - set(ours) == {"embeddings.position_ids"}
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_embedder_reads_how_the_folder_pools(folder):
    plain = BERTEmbedder.from_pretrained(folder)
    assert (plain.pooling, plain.normalize, plain.max_length) == ("mean", True, 64)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    (folder / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Transformer"}]))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 6}))
    first = BERTEmbedder.from_pretrained(folder)
    assert (first.pooling, first.normalize, first.max_length) == ("cls", False, 6)
    ids = first.tokenizer.encode("the film was good", add_special_tokens=True)
    expected = first.bert(torch.tensor([[*ids[:5], ids[-1]]]))[:, 0]
    assert torch.allclose(first.encode(["the film was good"]), expected, atol=1e-6)


def test_embedder_refuses_a_step_that_it_does_not_know(folder):
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")  # as LaBSE has them
    (folder / "modules.json").write_text(json.dumps([{"type": f"sentence_transformers.models.{k}"} for k in kinds]))
    with pytest.raises(ValueError, match=r"does not support: sentence_transformers\.models\.Dense"):
        BERTEmbedder.from_pretrained(folder)


def test_fine_tuned_sentiment_goes_back_to_transformers(zoo, here):
    """The whole way of the config, with a tiny model directory and a CSV: train, save, and load with transformers."""
    sentences = Sentiment(samples=60).default_texts()
    fake_data.bert_folder(here / "hub", sentences[0])
    fake_data.reviews(here / "reviews.csv", *sentences)
    config = ["-c", "configs/bert_sentiment_huggingface.yaml", "--run_dir", "run", "--model.lr", "1e-3"]
    given = ["--model.weights", "hub", "--data.tokenizer", "hub", "--data.path", "reviews.csv"]
    code, _, err = zoo("fit", *config, *given)
    assert code == 0, err
    assert "its head" not in err
    assert "no head, so one starts fresh" in err
    (here / "hub").rename(here / "elsewhere")  # a checkpoint needs the folder no more
    checkpoint = here / "run/checkpoints/last.ckpt"
    code, _, err = zoo("predict", "--ckpt_path", checkpoint, "--out", "out.csv")
    assert (code, err) == (0, "")
    module = BERTClassifier.load_from_checkpoint(checkpoint, weights_only=True).eval()
    module.save_pretrained("tuned")
    theirs = hf.AutoModelForSequenceClassification.from_pretrained("tuned").eval()
    assert theirs.config.id2label == {0: "negative", 1: "positive"}
    texts = list(csv.DictReader(Path("reviews.csv").read_text().splitlines()))[:7]
    inputs = hf.AutoTokenizer.from_pretrained("tuned")(
        [row["text"] for row in texts], padding=True, return_tensors="pt"
    )
    own = Tokenizer.load("tuned")
    rows = [own.encode(row["text"], add_special_tokens=True) for row in texts]
    assert [
        ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ] == rows
    x = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    with torch.no_grad():
        expected = theirs(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        assert torch.allclose(module(x, torch.tensor([len(row) for row in rows])), expected, atol=1e-5)


def test_head_of_other_classes_is_replaced_and_that_is_said(tmp_path, capsys):
    folder = fake_data.bert_folder(tmp_path / "hub", TEXTS, "DistilBert", "ForSequenceClassification", num_labels=5)
    size = len(Tokenizer.load(folder))
    module = BERTClassifier(weights=str(folder), num_classes=3, vocab_size=size)
    assert "its head of 5 classes is replaced by a fresh one of 3" in capsys.readouterr().err
    theirs = hf.DistilBertForSequenceClassification.from_pretrained(folder)
    assert torch.equal(module.net.pooler.dense.weight, theirs.pre_classifier.weight)
    assert module.net.head.linear.weight.std().item() == pytest.approx(0.02, rel=0.4)
    capsys.readouterr()
    BERTClassifier(weights=str(folder), num_classes=5, vocab_size=size)
    assert capsys.readouterr().err == ""


def test_classes_on_a_file_that_learned_hidden_tokens(tmp_path, capsys):
    folder = fake_data.bert_folder(tmp_path / "hub", TEXTS, "Bert", "ForMaskedLM")
    net = BERTForSequenceClassification.from_pretrained(folder, num_classes=4)
    said = capsys.readouterr().err
    assert "it has no head, so one starts fresh" in said
    assert "it has no pooler, so one starts fresh" in said
    assert all(
        0 < p.std() < 0.1 for name, p in net.named_parameters() if name.endswith(("linear.weight", "dense.weight"))
    )


def test_checkpoint_holds_architecture_and_tokenizer(folder, tmp_path):
    module = BERTMaskedLM(weights=str(folder), dropout=0.25)
    module.tokenizer = Tokenizer.load(folder)
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = BERTMaskedLM.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert again.net.arguments == module.net.arguments
    assert again.net.arguments["attention_dropout"] == 0.25
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in module.state_dict().items())
    assert again.tokenizer.plain() == module.tokenizer.plain()


@pytest.mark.slow
def test_what_learned_hidden_words_goes_on_to_classes(zoo, here):
    """From a checkpoint of zoo, with its tokenizer saved beside it."""
    code, _, err = zoo("fit", "-c", "configs/bert_masked_docs.yaml", "--trainer.max_steps", 2, "--run_dir", "first")
    assert code == 0, err
    checkpoint = "first/checkpoints/last.ckpt"
    masked = BERTMaskedLM.load_from_checkpoint(checkpoint, weights_only=True)
    masked.save_pretrained("hub")
    given = [
        "--model.weights",
        checkpoint,
        "--data.tokenizer",
        "hub",
        "--data.max_length",
        128,
        "--trainer.max_steps",
        1,
    ]
    config = ["--model", "BERTClassifier", "--data", "TextClassification", "--run_dir", "second"]
    code, _, err = zoo("fit", *config, *given, "--model.lr", 1e-9)
    assert code == 0, err
    assert "it has no head, so one starts fresh" in err
    tuned = BERTClassifier.load_from_checkpoint("second/checkpoints/last.ckpt", weights_only=True)
    same = [(v, tuned.net.state_dict()[k]) for k, v in masked.net.state_dict().items() if not k.startswith("head.")]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in same)
    assert tuned.net.arguments["dim"] == 128


def test_hidden_words_are_filled_in(folder):
    module = BERTMaskedLM(weights=str(folder))
    with pytest.raises(ValueError, match="has no tokenizer yet"):
        module.fill_mask("the [MASK]")
    module.tokenizer = Tokenizer.load(folder)
    found = module.fill_mask("the [MASK] was [MASK]", top_k=3)
    assert [len(row) for row in found] == [3, 3]
    theirs = hf.BertForMaskedLM.from_pretrained(folder).eval()
    words = hf.AutoTokenizer.from_pretrained(folder)
    theirs.cls.predictions.transform.load_state_dict({
        "dense.weight": module.net.head.dense.weight, "dense.bias": module.net.head.dense.bias,
        "LayerNorm.weight": module.net.head.norm.weight, "LayerNorm.bias": module.net.head.norm.bias,
    })  # fmt: skip
    inputs = words("the [MASK] was [MASK]", return_tensors="pt")
    with torch.no_grad():
        logits = theirs(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[0]
    expected = logits[inputs["input_ids"][0] == words.mask_token_id].softmax(1).topk(3)
    assert [[p for _, p in row] for row in found] == [pytest.approx(row, rel=1e-4) for row in expected.values.tolist()]
    assert [[name for name, _ in row] for row in found] == [
        words.convert_ids_to_tokens(row) for row in expected.indices.tolist()
    ]


# What users get wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kwargs", "said"), [
    ({"vocab_size": 7}, r"the data has 7 tokens, the weights of .*hub are for \d+: take --data.tokenizer .*hub"),
    ({"dim": 32, "depth": 9}, r"hub has dim=16 instead of 32, depth=2 instead of 9: leave out what the weights say"),
    ({"weights": "nowhere"}, "nowhere"),
    ({"weights": None}, "BERTClassifier needs vocab_size"),
])  # fmt: skip
def test_weights_that_do_not_fit(folder, kwargs, said):
    with pytest.raises(ValueError, match=said):
        BERTClassifier(**{"weights": str(folder), "num_classes": 2, **kwargs})


def test_other_folders_are_no_bert(folder):
    content = json.loads((folder / "config.json").read_text())
    for change, said in (
        ({"model_type": "roberta"}, "'roberta'; zoo's BERT reads bert and distilbert"),
        ({"hidden_act": "silu"}, "its activation is 'silu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type=relative_key"),
    ):
        (folder / "config.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match=said):
            BERTForMaskedLM.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json"):
        BERTForMaskedLM.from_pretrained(folder)


def test_heads_have_to_divide_the_width_and_texts_to_fit_the_positions():
    with pytest.raises(ValueError, match="dim=16 is not divisible by heads=3"):
        BERTClassifier(**{**TINY, "heads": 3}, num_classes=2)
    with pytest.raises(ValueError, match="33 tokens exceed the 32 positions"):
        BERTClassifier(**TINY, num_classes=2)(torch.ones(1, 33, dtype=torch.long))


@pytest.mark.parametrize(("args", "said"), [
    (["--data.max_length", 99], "texts of up to 99 tokens, this BERT 64 positions: take --data.max_length 64"),
    (["--data.tokenizer", "wordpiece"], "take --data.tokenizer"),
    (["--data.tokenizer", "nowhere"], "no tokenizer nowhere"),
    (["--model.weights", "nowhere"], "nowhere"),
    (["--data.path", "nowhere.csv"], "no file or folder nowhere.csv"),
])  # fmt: skip
def test_one_line_for_each_mistake(zoo, here, args, said):
    fake_data.bert_folder(here / "hub", Sentiment(samples=60).default_texts()[0])
    common = [
        "fit",
        "-c",
        "configs/bert_sentiment_huggingface.yaml",
        "--model.weights",
        "hub",
        "--data.tokenizer",
        "hub",
    ]
    code, _, err = zoo(*common, *args, "--run_dir", "run")
    assert code == 2
    assert said in err
    assert err.strip().splitlines()[-1].startswith("zoo: error: ")
    assert not (here / "run").exists()


def test_truncation_is_said(zoo, here):
    common = [
        "fit",
        "-c",
        "configs/bert_sentiment_huggingface.yaml",
        "--model.weights",
        "hub",
        "--data.tokenizer",
        "hub",
    ]
    fake_data.bert_folder(here / "hub", Sentiment(samples=60).default_texts()[0])
    code, _, err = zoo(*common, "--data.max_length", 8, "--data.samples", 60, "--trainer.max_steps", 1)
    assert code == 0, err
    assert "texts of train are longer than max_length=8 tokens" in err


def test_classes_that_weights_number_otherwise_get_the_numbers_of_the_data(tmp_path):
    module = BERTTokenClassifier(**TINY, num_classes=3, class_names=["O", "B-PER", "I-PER"]).eval()
    module.save_pretrained(tmp_path / "ner")
    names = ["B-PER", "I-PER", "O"]
    facts = {"weights": str(tmp_path / "ner"), "vocab_size": TINY["vocab_size"], "num_classes": 3}
    again = BERTTokenClassifier(**facts, class_names=names).eval()
    x = torch.randint(1, 50, (2, 7))
    assert torch.equal(again(x), module(x)[:, :, [1, 2, 0]])
    again.save_pretrained(tmp_path / "again")
    assert BERTForTokenClassification.from_pretrained(tmp_path / "again").class_names == names


def test_token_classes_are_kept_in_the_files(tmp_path):
    names = ["O", "B-PER", "I-PER"]
    module = BERTTokenClassifier(**TINY, num_classes=3, class_names=names)
    module.save_pretrained(tmp_path / "ner")
    theirs = hf.BertForTokenClassification.from_pretrained(tmp_path / "ner")
    assert theirs.config.id2label == dict(enumerate(names))
    again = BERTForTokenClassification.from_pretrained(tmp_path / "ner")
    assert again.class_names == names
    again.save_pretrained(tmp_path / "again")
    other = BERTForTokenClassification.from_pretrained(tmp_path / "ner", num_classes=2)
    other.save_pretrained(tmp_path / "other")
    assert (tmp_path / "ner/config.json").read_bytes() == (tmp_path / "again/config.json").read_bytes()
    assert hf.BertForTokenClassification.from_pretrained(tmp_path / "other").config.num_labels == 2
