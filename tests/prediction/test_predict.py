"""``zoo predict SOURCE`` and ``module.predict`` for every task, without the data of training."""

import json
import shutil
from pathlib import Path

import fake_data
import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.cli.main import main
from zoo.data.base import DataModule

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
        "--model.net.output_dim 2 --model.loss zoo.losses.ContrastiveLoss --data Digits --data.flat true", None, images, "file e0 e1",
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
