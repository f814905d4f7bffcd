"""``zoo predict SOURCE`` and ``module.predict`` for every task, without the data of training."""

import csv
import json
import shutil
from pathlib import Path

import fake_data
import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo.cli.main import main
from zoo.data.base import DataModule
from zoo.errors import UserError

FIT = "--trainer.max_steps 2 --trainer.limit_val_batches 1 --trainer.enable_progress_bar false --data.batch_size 8"
CNN = "--model SmallCNNClassifier"
LSTM = "--model.dim 8"
BERT = "--model.dim 16 --model.depth 1 --model.heads 2"
TEXTS = [
    "The statement is a good one .",
    "Ada Lovelace met Boris in New York on 3 May 1990 .",
    "It was not bad at all !",
]


def images(folder: Path) -> list[str]:
    """Three images of other sizes and modes than those of any training."""
    rng = np.random.default_rng(0)
    for i, (mode, size) in enumerate((("RGB", (40, 30, 3)), ("L", (20, 20)), ("CMYK", (9, 17, 4)))):
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8), mode).save(folder / f"{i}.{suffix}")
    return ["0.png", "1.png", "2.jpg"]


def texts(folder: Path) -> list[str]:
    (folder / "new.txt").write_bytes("\r\n".join(TEXTS).encode() + b"\r\n")
    return ["new.txt"]


def table(folder: Path) -> str:
    rows = [f"{i % 7},{['red', 'green', 'blue'][i % 3]},{i % 5 * 1.5},{['no', 'yes'][i % 2]}" for i in range(60)]
    (folder / "train.csv").write_text("a,colour,size,label\n" + "\n".join(rows) + "\n")
    return "train.csv"


def rows(folder: Path) -> list[str]:
    """Semicolons, a byte order mark, decimal commas, another order of the columns, and one that is not known."""
    (folder / "new.csv").write_bytes("size;note;colour;a\n1,5;x;red;3\n0,25;y;;2\n7,5;z;mauve;1\n".encode("utf-8-sig"))
    return ["new.csv"]


def diabetes(folder: Path) -> list[str]:
    names = ["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"]
    lines = [json.dumps(dict.fromkeys(names, 0.01 * i)) for i in range(3)]
    (folder / "new.jsonl").write_text("\n".join(lines) + "\n")
    return ["new.jsonl"]


def hours(folder: Path) -> list[str]:
    lines = [f"2030-01-{1 + h // 24:02}T{h % 24:02}:00,{h % 24}" for h in range(24)]
    (folder / "new.csv").write_text("time,value\n" + "\n".join(lines) + "\n")
    return ["new.csv"]


def arrays(*shape: int, tokens: bool = False):
    def make(folder: Path) -> list[str]:
        x = np.random.default_rng(0).random(shape, dtype=np.float32)
        np.save(folder / "new.npy", (x * 5).astype(np.int64) if tokens else x)
        return ["new.npy"]

    return make


def folder_of_images(folder: Path) -> None:
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(8):
            pixels = np.random.default_rng(i).integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{i}.png")


# name: options of the fit, what it trains on, new samples, columns of the predictions
CASES = {
    "digits": (f"{CNN} --data Digits", None, images, "file class name probability"),
    "flat digits": ("--model MLPClassifier --data Digits --data.flat true", None, images, "file class name"),
    "digits in colour": (
        "--model ResNetClassifier --model.width 4 --model.in_channels 3 --data Digits", None, images, "file class name",
    ),
    "mnist": (f"{CNN} --data MNIST --data.root data", lambda f: fake_data.mnist(f / "data"), images, "file class name"),
    "cifar": (
        f"{CNN} --data CIFAR10 --data.root data", lambda f: fake_data.cifar10(f / "data"), images, "file class name",
    ),
    "folder": (f"{CNN} --data ImageFolder --data.root photos", folder_of_images, images, "file class name"),
    "embedding": (
        "--model MetricLearner --model.net zoo.models.MLP --model.net.input_dim 64 --model.net.hidden [8] "
        "--model.net.output_dim 2 --model.loss zoo.losses.ContrastiveLoss --data Digits --data.flat true",
        None, images, "file e0 e1",
    ),
    "autoencoder": (
        "--model AutoencoderKLModule --model.channels [8,8] --model.groups 4 --data Digits --data.image_size 16",
        None, images, "file reconstruction",
    ),
    "diffusion": (
        "--model LatentDiffusion --model.preset pixels-8 --model.channels [8,8] --model.head_dim 8 --model.groups 4 "
        "--model.condition class --data Digits", None, images, "file loss",
    ),
    "table": ("--model MLPClassifier --data Tabular --data.file train.csv --data.target label", table, rows,
              "row class label probability"),
    "regression": ("--model MLPRegressor --data Tabular --data.name diabetes", None, diabetes, "row prediction"),
    "series": (
        f"--model LSTMForecaster {LSTM} --model.quantiles [0.1,0.5,0.9] --data TimeSeries --data.context 24 "
        "--data.horizon 3", None, hours, "series time step value q0.1 q0.5 q0.9",
    ),
    "texts": (f"--model LSTMClassifier {LSTM} --data Sentiment --data.samples 60", None, texts, "row text class name"),
    "entities": (f"--model BERTTokenClassifier {BERT} --data NER --data.samples 40 --data.vocab_size 200",
                 None, texts, "row text words class name probability entities"),
    "translation": (f"--model Seq2SeqTranslator {LSTM} --data DateTranslation --data.samples 60",
                    None, texts, "row source translation score"),
    "masked": (f"--model BERTMaskedLM {BERT} --data MaskedText --data.vocab_size 300 --data.path corpus.txt",
               lambda f: (f / "corpus.txt").write_text(fake_data.lines_of_text(60)), texts, "row text hidden guess"),
    "language": (f"--model GPTLanguageModel {BERT} --data TextCorpus --data.path corpus.txt --data.block_size 32 "
                 "--data.tokenizer bytes",
                 lambda f: (f / "corpus.txt").write_text(fake_data.lines_of_text(200)), texts, "row text block loss"),
    "sequences": (f"--model LSTMClassifier {LSTM} --data SyntheticSequences --data.samples 60 --data.min_steps 20",
                  None, arrays(3, 30, 16), "row class name"),
    "sums": (f"--model LSTMRegressor {LSTM} --data AddingProblem --data.samples 60 --data.steps 10",
             None, arrays(3, 10, 2), "row prediction"),
    "tags": (f"--model LSTMTagger {LSTM} --data CopyTask --data.samples 60", None, arrays(3, 51, tokens=True),
             "row class name"),
    "vectors": ("--model MLPClassifier --data Quadrants --data.samples 60", None, arrays(3, 2), "row class name"),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    """Return the checkpoint of a case, trained once."""
    checkpoints = {}

    def of(name: str) -> Path:
        if name not in checkpoints:
            options, prepare, _, _ = CASES[name]
            folder = tmp_path_factory.mktemp("trained")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                patch.setenv("XDG_CACHE_HOME", str(folder))
                if prepare is not None:
                    prepare(folder)
                trainer = FIT.split()
                assert main(["fit", *options.split(), *trainer, "--run_dir", "run"]) == 0
                for path in folder.iterdir():
                    if path.name != "run":
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
            checkpoints[name] = folder / "run" / "checkpoints" / "last.ckpt"
        return checkpoints[name]

    return of


def refuse_training_data(monkeypatch) -> None:
    def absent(self):
        raise AssertionError(f"{type(self).__name__} reads the data of training")

    monkeypatch.setattr(DataModule, "build_datasets", absent)


def predicted(capfd, checkpoint, *options) -> list[dict]:
    capfd.readouterr()
    code = main(["predict", "--ckpt_path", str(checkpoint), *options, "--out", "out.jsonl"])
    assert code == 0, capfd.readouterr().err
    return [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", CASES)
def test_every_task_predicts_new_files(name, trained, here, capfd, monkeypatch):
    _, _, make, columns = CASES[name]
    checkpoint = trained(name)
    refuse_training_data(monkeypatch)
    sources = make(here)
    found = predicted(capfd, checkpoint, *sources)
    assert len(found) >= 3
    assert list(found[0])[: len(columns.split())] == columns.split()
    # The same in Python.
    module = zoo.load(checkpoint)
    again = module.predict([Path(source) for source in sources], batch_size=2)
    for column, values in again.items():
        name = column if column in found[0] else module.datamodule.target_name
        assert same([row[name] for row in found], values), column


def same(a, b) -> bool:
    """Whether values are equal, numbers but for rounding, as batches of another size compute in another order."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, float):
        return a == pytest.approx(b, rel=1e-4, abs=1e-5)
    return a == b


# What is written ------------------------------------------------------------------------------------------------------


def test_the_images_of_the_test_split_are_predicted_as_in_the_test(trained, here, capfd):
    """Digits as PNG files, without their labels: the same pixels but for rounding to bytes."""
    from zoo.data import Digits

    x, y = Digits(mean=[0.0], std=[1.0 / 16]).datasets["test"].batch(torch.arange(12))  # pixels from 0 to 256
    for i, image in enumerate(x[:, 0]):
        Image.fromarray((image / 256 * 255).round().byte().numpy()).save(f"{i:02}.png")
    split = predicted(capfd, trained("digits"), "--probabilities")
    assert list(split[0])[:4] == ["row", "class", "name", "name_true"]
    assert [row["name_true"] for row in split[:12]] == [str(label) for label in y.tolist()]
    for source in (".", "*.png"):
        new = predicted(capfd, trained("digits"), source, "--probabilities")
        assert [row["file"] for row in new] == [f"{i:02}.png" for i in range(12)]
        for ours, theirs in zip(new, split, strict=False):
            for name in range(10):
                assert ours[f"probability_{name}"] == pytest.approx(theirs[f"probability_{name}"], abs=2e-3)


def test_images_in_memory(trained):
    module = zoo.load(trained("digits"))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 8, 8), dtype=np.uint8)
    expected = module.predict(pixels)["probability"]
    assert module.predict([Image.fromarray(image) for image in pixels])["probability"] == pytest.approx(expected)
    assert module.predict(torch.from_numpy(pixels)[:, None])["probability"] == pytest.approx(expected)
    assert module.predict(pixels[..., None] / 255)["probability"] == pytest.approx(expected, abs=1e-5)
    assert module.predict(pixels[0])["probability"] == pytest.approx(expected[:1])
    with pytest.raises(UserError, match="bytes, or floats from 0 to 1: got -1 to 3"):
        module.predict(torch.tensor([[-1.0, 3.0]]))
    assert not module.training
    module.train()
    module.predict(pixels)
    assert all(part.training for part in module.modules())


def test_unreadable_images_among_others(trained, here, capfd):
    (here / "new").mkdir()
    images(here / "new")
    (here / "new" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    (here / "new" / "notes.txt").write_text("x")
    code = main(["predict", "--ckpt_path", str(trained("digits")), "new", "--out", "out.csv"])
    _, err = capfd.readouterr()
    assert code == 1
    assert "1 of 5 files are no images and are left out (1 .txt)" in err
    assert "zoo: new/bad.png cannot be read: cannot identify image file" in err
    with open("out.csv", newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["new/0.png", "new/1.png", "new/2.jpg"]
    found = zoo.load(trained("digits")).predict(["new/0.png", "new/bad.png", "new/1.png"])
    assert [name is None for name in found["name"]] == [False, True, False]
    assert main(["predict", "--ckpt_path", str(trained("digits")), "new/bad.png"]) == 2
    assert "none of the 1 samples can be read" in capfd.readouterr().err


def test_entities_have_the_positions_of_their_characters():
    from zoo.data.text.entity_spans import spans_of_words, with_entities

    text = "Ada Lovelace met New York"
    row = {"name": ["B-PER", "I-PER", "O", "B-LOC"], "probability": [0.9, 0.8, 1.0, 0.7]}
    found = with_entities(row, text, spans_of_words(text.split()), [0, 1, 2, 3])
    assert found["name"] == ["B-PER", "I-PER", "O", "B-LOC", None], "the last word was truncated"
    assert found["entities"] == [
        {"start": 0, "end": 12, "type": "PER", "text": "Ada Lovelace", "probability": 0.8},
        {"start": 17, "end": 20, "type": "LOC", "text": "New", "probability": 0.7},
    ]


def test_masks_of_the_user_are_filled(trained):
    module = zoo.load(trained("masked"))
    texts = ["The [MASK] statement", "Not [MASK] and [MASK]"]
    found = module.predict(texts)
    assert [len(guess) for guess in found["guess"]] == [1, 2]
    expected = [[best[0][0] for best in module.fill_mask(text)] for text in texts]
    assert found["guess"] == expected


def test_test_writes_metrics_and_predictions(trained, here, capfd):
    checkpoint = trained("vectors")
    assert main(["test", "--ckpt_path", str(checkpoint), "--out", "out.csv"]) == 0
    with open("out.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["row", "class", "name", "name_true", "probability"]
    content = json.loads((checkpoint.parent.parent / "test.json").read_text())
    correct = sum(row["name"] == row["name_true"] for row in found)
    assert content["metrics"]["test/accuracy"] == pytest.approx(correct / len(found))
    assert content["checkpoint"] == str(checkpoint)


def test_a_table_on_the_terminal(trained, here, capfd):
    rows(here)
    assert main(["predict", "--ckpt_path", str(trained("table")), "new.csv"]) == 0
    out, err = capfd.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["row", "2", "3", "4"]
    assert "new.csv: columns that the model does not use: note" in err
    assert "mauve not seen in training" in err


def test_load_from_checkpoint_brings_what_prediction_needs(trained, here, monkeypatch):
    from zoo.models import MLPClassifier

    checkpoint = trained("table")
    refuse_training_data(monkeypatch)
    rows(here)
    module = MLPClassifier.load_from_checkpoint(checkpoint)
    assert module.predict(Path("new.csv")) == zoo.load(checkpoint).predict("new.csv")


def test_a_module_of_a_trainer_in_python(tmp_path):
    from zoo.data import Quadrants
    from zoo.models import MLPClassifier

    x = torch.randn(5, 2)
    alone = MLPClassifier(input_dim=2, num_classes=4)
    assert len(alone.predict(x)["name"]) == 5, "a tensor needs no data"
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = L.Trainer(max_steps=1, accelerator="cpu", **quiet)
    trainer.fit(alone, Quadrants(samples=60))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = MLPClassifier.load_from_checkpoint(tmp_path / "x.ckpt")
    assert again.predict(x) == alone.predict(x)
    assert type(again.datamodule).__name__ == "Quadrants"


def test_dataframes_keep_their_index(trained):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"size": [1.5, None, 3.0], "colour": ["red", None, "blue"], "a": [1, 2, 3]}, index=["x", "y", "z"]
    )
    found = zoo.load(trained("table")).predict(frame)
    assert list(found.index) == ["x", "y", "z"]
    assert list(found.columns) == ["class", "name", "probability"]
    texts_frame = pandas.DataFrame({"text": TEXTS}, index=[7, 8, 9])
    assert list(zoo.load(trained("texts")).predict(texts_frame).index) == [7, 8, 9]


def test_parquet(trained, here, capfd):
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"size": [1.5, None, 3.0], "colour": ["red", None, "blue"], "a": [1, 2, 3]}
    parquet.write_table(pytest.importorskip("pyarrow").table(columns), "new.parquet")
    code = main(["predict", "--ckpt_path", str(trained("table")), "new.parquet", "--out", "out.parquet"])
    assert code == 0
    found = parquet.read_table("out.parquet").to_pydict()
    assert found["row"] == [1, 2, 3]
    assert found["label"] == zoo.load(trained("table")).predict(columns)["name"]


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sources", "message"),
    [
        ("digits", ["notes.txt"], "notes.txt cannot be read by this model, which takes images"),
        ("digits", ["0.png", "notes.txt"], "the sources are of several kinds, as 0.png is one of these"),
        ("digits", ["https://example.org/a.png"], "https://example.org/a.png is a URL: download the file"),
        ("digits", ["absent"], "no file or folder absent"),
        ("digits", ["*.gif"], "no file fits the pattern *.gif"),
        ("digits", ["empty"], "empty holds no image"),
        ("table", ["0.png"], "0.png cannot be read by this model, which takes tables"),
        ("table", ["other.csv"], "other.csv has no columns 'a', 'size'; it has colour, b"),
        ("table", ["header.csv"], "header.csv has no rows below its header"),
        ("table", ["nothing.csv"], "nothing.csv has no rows"),
        ("series", ["short.csv"], "a forecast needs the last 24 steps (--data.context), and series 'value' has 3"),
        ("texts", ["0.png"], "0.png cannot be read by this model, which takes texts"),
        ("texts", ["nothing.txt"], "nothing.txt has no text"),
        ("vectors", ["wide.csv"], "inputs (n, ..., 2) of Quadrants are needed, got (1, 3)"),
        ("vectors", ["words.csv"], "words.csv, row 2: all cells must be numbers"),
    ],
)
def test_mistakes(name, sources, message, trained, here, capfd):
    images(here)
    files = {
        "notes.txt": "x", "nothing.txt": "\n\n", "other.csv": "colour,b\nred,2\n", "header.csv": "a,colour,size\n",
        "nothing.csv": "", "short.csv": "time,value\n2030-01-01T00,1\n2030-01-01T01,2\n2030-01-01T02,3\n",
        "wide.csv": "a,b,c\n1,2,3\n", "words.csv": "a,b\n1,x\n",
    }  # fmt: skip
    for file, text in files.items():
        (here / file).write_text(text)
    (here / "empty").mkdir()
    assert main(["predict", "--ckpt_path", str(trained(name)), *sources, "--out", "out.csv"]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("zoo: error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (here / "out.csv").exists()
