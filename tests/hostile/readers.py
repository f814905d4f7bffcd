"""The readers of zoo as fuzzing calls them: for each a valid file, how to change it, and what reads it."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from tests.hostile.mutations import (
    Change,
    changed_bytes,
    changed_content,
    changed_encoding,
    changed_header,
    changed_json,
    changed_lines,
    changed_png,
    changed_yaml,
)
from zoo.checkpoints import Checkpoint
from zoo.cli.argv import expand_resume
from zoo.cli.file_report import describe
from zoo.cli.main import run_command
from zoo.data import NER, ImageFolder, ParallelText, Tabular, TextClassification, TextCorpus, TimeSeries
from zoo.data.images.cifar import read_pickle
from zoo.data.images.mnist import read_idx
from zoo.data.images.svhn import read_mat
from zoo.models import BERT, GPT, AutoencoderKL, CLIPTextEncoder, LLaMA, ResNet, UNet, ViT
from zoo.runs import run_folder
from zoo.runs.loggers import MetricsCSV
from zoo.text.tokenizer import Tokenizer
from zoo.trust.reading import read_safetensors_header, read_yaml
from zoo.weights.files import read

GOLDEN = Path(__file__).parent.parent / "golden"
TEXT = (changed_bytes, changed_lines, changed_lines, changed_encoding)
JSON = (changed_bytes, changed_json, changed_json, changed_json)
YAML = (changed_bytes, changed_yaml, changed_yaml)


@dataclass
class Reader:
    """A reader.

    Args:
        file: name of the file that it reads.
        sample: returns a valid file.
        changes: one of them changes the file.
        read: reads the changed file.
        prepare: puts what belongs to the file into its folder before.
        turns: how often it is its turn; slow readers have one, others several.
    """

    file: str
    sample: Callable[[], bytes]
    changes: tuple[Change, ...]
    read: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda folder: None
    turns: int = 4


# Samples --------------------------------------------------------------------------------------------------------------

CONFIG = b"""
model: {class_path: zoo.models.MLPClassifier, init_args: {hidden: [4, 8], lr: 0.1, optimizer: {class_path: SGD}}}
data: {class_path: zoo.data.Quadrants, init_args: {samples: 40, batch_size: 8, seed: 1}}
trainer: {max_steps: 1, limit_val_batches: 1, gradient_clip_val: 1.0, callbacks: [{class_path: LearningRateMonitor}]}
ema: {class_path: EMA, init_args: {decay: 0.9}}
"""
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [{"id": 0, "content": "[UNK]", "special": True, "single_word": False, "lstrip": False,
                      "rstrip": False, "normalized": False}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]},
    "pre_tokenizer": {"type": "Whitespace"},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1, "b": 2}, "unk_token": "[UNK]"},
}  # fmt: skip
BPE = {**TOKENIZER, "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "[UNK]": 3}, "merges": [["a", "b"]]}}
ENVIRONMENT = {
    "command": "zoo fit", "directory": "/tmp", "slurm_job": None, "seed": 0, "versions": {"zoo": "1"},
    "git_commit": None, "resumed": [{"seed": 1}],
}  # fmt: skip
PROCESSOR = {"size": {"height": 8, "width": 8}, "image_mean": [0.5], "image_std": [0.5], "resample": 2,
             "do_center_crop": True, "crop_size": {"height": 8, "width": 8}}  # fmt: skip
CAPTIONS = b'{"file_name": "0.png", "text": "a cat"}\n{"file_name": "1.png", "text": ["a dog", "two"]}\n'


def rows(header: str, row: str, count: int = 30) -> bytes:
    """Return a CSV file; ``{i}`` stands for the number of a row, ``{c}`` for one of three letters."""
    return "\n".join([header, *(row.format(i=i, c="abc"[i % 3]) for i in range(count))]).encode() + b"\n"


TABLE = rows("number,date,word,target", "{i}.5,2026-01-{i:02},{c},{c}", 28).replace(b"-00,", b"-28,")
SERIES = rows("time,value,covariate", "2026-01-01T{i:02}:00:00,{i}.5,{i}", 24)
TEXTS = rows("text,label", "a text of {c} {i},{c}")
LINES = "\n".join(json.dumps({"text": f"a text {i}", "label": "ab"[i % 2]}) for i in range(30)).encode() + b"\n"
PAIRS = rows("source\ttarget", "a {c} {i}\tb {c}")
TAGS = b"EU B-ORG\nrejects O\n\nPeter B-PER\nB. I-PER\n\n" * 12
PROSE = b"Ein Satz, and another one.\n\n" * 40


@cache
def image(format: str = "PNG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (9, 7), 1 if mode in ("L", "P", "I;16") else (200, 30, 60)).save(buffer, format)
    return buffer.getvalue()


@cache
def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


@cache
def contents() -> list[dict[str, Any]]:
    """Return the contents of checkpoints of several kinds."""
    names = ("mlp", "gpt", "forecaster", "bert_ner", "diffusion")
    return [torch.load(GOLDEN / f"{name}.ckpt", weights_only=True) for name in names]


def changed_checkpoint(sample: bytes, rng: random.Random) -> bytes:
    content = rng.choice(contents())
    for _ in range(rng.randint(1, 3)):
        content = changed_content(content, rng)
    return saved(content)


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def weights() -> bytes:
    header = json.dumps({"arguments": {"dim": 4}, "preprocessing": {"image_size": 4, "mean": [0.5]}})
    return save({"w": torch.ones(2), "b": torch.zeros(1)}, {"zoo": header, "format": "pt"})


@cache
def tiny_net(name: str) -> Any:
    """Return a small network with published weights."""
    torch.manual_seed(0)
    nets: dict[str, Callable[[], Any]] = {
        "GPT": lambda: GPT(vocab_size=7, block_size=4, dim=8, depth=1, heads=2),
        "LLaMA": lambda: LLaMA(vocab_size=7, block_size=4, dim=8, depth=1, heads=2),
        "BERT": lambda: BERT(vocab_size=7, dim=8, depth=1, heads=2, max_length=8),
        "ViT": lambda: ViT(3, 5, 8, patch_size=4, dim=8, depth=1, heads=2),
        "ResNet": lambda: ResNet(3, 5, depth=18, width=4),
        "AutoencoderKL": lambda: AutoencoderKL(3, (4, 8), groups=4),
        "CLIPTextEncoder": lambda: CLIPTextEncoder(7, 4, 8, 1, 2, 16),
        "UNet": lambda: UNet(3, (4, 8), attention=(False, True), groups=4, head_dim=4),
    }
    return nets[name]()


NETS = {"GPT": GPT, "LLaMA": LLaMA, "BERT": BERT, "ViT": ViT, "AutoencoderKL": AutoencoderKL,
        "CLIPTextEncoder": CLIPTextEncoder, "UNet": UNet}  # fmt: skip
FOLDER_FORMATS = {"AutoencoderKL": "diffusers", "CLIPTextEncoder": "diffusers", "UNet": "diffusers"}


def write_net(folder: Path, name: str) -> None:
    for path in _net_folder(name).iterdir():
        shutil.copyfile(path, folder / path.name)


@cache
def _net_folder(name: str) -> Path:
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="zoo-fuzz-")) / name
    tiny_net(name).save_pretrained(folder, FOLDER_FORMATS.get(name, "huggingface"))
    return folder


def config_of(name: str) -> bytes:
    return (_net_folder(name) / "config.json").read_bytes()


def index_of_shards() -> bytes:
    return json.dumps(
        {"metadata": {"total_size": 12}, "weight_map": {"w": "a.safetensors", "b": "a.safetensors"}}
    ).encode()


def idx() -> bytes:
    return b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (2, 3, 3)) + bytes(18)


@cache
def batch_of_cifar() -> bytes:
    import pickle

    return pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}, protocol=2)


@cache
def mat() -> bytes:
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.ones((2, 1), np.uint8)})
    return buffer.getvalue()


# Readers --------------------------------------------------------------------------------------------------------------


def batch_of(data: Any) -> None:
    """Read the data of a datamodule, and take a batch."""
    data.setup("fit")
    next(iter(data.train_dataloader()))


def read_images(path: Path) -> None:
    batch_of(ImageFolder(str(path.parent), drop_labels=True, image_size=8, cache="memory", unreadable="refuse"))


def write_images(folder: Path) -> None:
    for i in range(2):
        (folder / f"{i}.png").write_bytes(image())


def read_captions(path: Path) -> None:
    batch_of(
        ImageFolder(str(path.parent), captions=path.name, image_size=8, cache="memory", val_split=0.5, test_split=0)
    )


def run_config(path: Path) -> None:
    """Train one batch by a config, as the command line does."""
    argv = ["fit", "-c", str(path), "--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"]
    run_whole(argv)


def run_whole(argv: list[str]) -> None:
    try:
        run_command(argv, ())
    except SystemExit as stop:
        if stop.code not in (0, 2):
            raise


def resume(path: Path) -> None:
    expand_resume(["--resume", str(path.parent)])


def resume_whole(path: Path) -> None:
    argv = ["fit", "--resume", str(path.parent.parent), "--trainer.max_steps", "4"]
    run_whole([*argv, "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"])


def open_checkpoint(path: Path) -> None:
    checkpoint = Checkpoint(path)
    _ = (checkpoint.hyperparameters, checkpoint.steps_done, checkpoint.has_ema)
    checkpoint.build()
    if "data" in checkpoint.hyperparameters:
        checkpoint.build_data()


def read_environment(path: Path) -> None:
    run_folder.read_environment(path.parent)
    describe(path)
    run_folder.write_environment(path.parent, {"seed": 2})


def encode(path: Path) -> None:
    tokenizer = Tokenizer.load(path)
    tokenizer.decode(tokenizer.encode("a b c"))
    assert Tokenizer.from_plain(tokenizer.plain()) == tokenizer


def with_config(folder: Path) -> None:
    (folder / "config.yaml").write_bytes(golden("run/config.yaml"))


READERS = {
    "config": Reader("c.yaml", lambda: CONFIG, YAML, read_yaml),
    "config, inspected": Reader("c.yaml", lambda: CONFIG, YAML, describe),
    "config, trained by": Reader("c.yaml", lambda: CONFIG, YAML, run_config, turns=1),
    "config of a run": Reader("config.yaml", lambda: golden("run/config.yaml"), YAML, resume, turns=2),
    "environment.json": Reader("environment.json", lambda: json.dumps(ENVIRONMENT).encode(), JSON, read_environment,
                               with_config),
    "metrics.csv": Reader("metrics.csv", lambda: golden("run/metrics.csv"), TEXT,
                          lambda path: MetricsCSV(path.parent, upto=3)),
    "table": Reader("a.csv", lambda: TABLE, TEXT, lambda path: batch_of(Tabular(file=str(path), target="target"))),
    "time series": Reader("a.csv", lambda: SERIES, TEXT,
                          lambda path: batch_of(TimeSeries(file=str(path), time="time", target="value", context=3,
                                                           horizon=1, past=["covariate"]))),
    "CSV of texts": Reader("a.csv", lambda: TEXTS, TEXT, lambda path: batch_of(TextClassification(str(path)))),
    "TSV of texts": Reader("a.tsv", lambda: TEXTS.replace(b",", b"\t"), TEXT,
                           lambda path: batch_of(TextClassification(str(path)))),
    "JSON lines": Reader("a.jsonl", lambda: LINES, (*TEXT, *JSON),
                         lambda path: batch_of(TextClassification(str(path)))),
    "pairs of texts": Reader("a.tsv", lambda: PAIRS, TEXT, lambda path: batch_of(ParallelText(str(path)))),
    "CoNLL": Reader("a.conll", lambda: TAGS, TEXT,
                    lambda path: batch_of(NER(str(path), tokenizer="wordpiece", vocab_size=60)), turns=2),
    "corpus": Reader("a.txt", lambda: PROSE, TEXT, lambda path: batch_of(TextCorpus(str(path), block_size=8))),
    "corpus of JSON lines": Reader("a.jsonl", lambda: LINES, (*TEXT, *JSON),
                                   lambda path: batch_of(TextCorpus(str(path), block_size=8))),
    "captions": Reader("metadata.jsonl", lambda: CAPTIONS, (*TEXT, *JSON), read_captions, write_images),
    "image": Reader("a.png", image, (changed_bytes, changed_png, changed_png), read_images, write_images),
    "MNIST": Reader("train-images-idx3-ubyte", idx, (changed_bytes,), read_idx),
    "CIFAR": Reader("data_batch_1", batch_of_cifar, (changed_bytes,), read_pickle),
    "SVHN": Reader("train_32x32.mat", mat, (changed_bytes,), read_mat),
    "tokenizer": Reader("tokenizer.json", lambda: json.dumps(TOKENIZER).encode(), JSON, encode),
    "tokenizer, BPE": Reader("tokenizer.json", lambda: json.dumps(BPE).encode(), JSON, encode),
    "tokenizer, inspected": Reader("tokenizer.json", lambda: json.dumps(BPE).encode(), JSON, describe),
    "special tokens": Reader("tokenizer_config.json", lambda: b'{"unk_token": {"content": "[UNK]"}, "pad_token": null}',
                             JSON, lambda path: encode(path.parent),
                             lambda folder: (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))),
    "safetensors header": Reader("a.safetensors", weights, (changed_bytes, changed_header), read_safetensors_header),
    "safetensors": Reader("a.safetensors", weights, (changed_bytes, changed_header), read),
    "safetensors, inspected": Reader("a.safetensors", weights, (changed_bytes, changed_header), describe),
    "index of shards": Reader("model.safetensors.index.json", index_of_shards, JSON, lambda path: read(path.parent),
                              lambda folder: (folder / "a.safetensors").write_bytes(weights())),
    "preprocessor_config.json": Reader("preprocessor_config.json", lambda: json.dumps(PROCESSOR).encode(), JSON,
                                       lambda path: read(path.parent),
                                       lambda folder: (folder / "model.safetensors").write_bytes(weights())),
    "checkpoint, damaged": Reader("a.ckpt", lambda: golden("mlp.ckpt"), (changed_bytes,), Checkpoint),
    "checkpoint, inspected": Reader("a.ckpt", lambda: golden("mlp.ckpt"), (changed_bytes, changed_checkpoint),
                                    describe),
    "checkpoint, odd inside": Reader("a.ckpt", lambda: b"", (changed_checkpoint,), open_checkpoint, turns=2),
    "weights of torch, odd inside": Reader("a.pt", lambda: b"", (changed_checkpoint,), read),
}  # fmt: skip
for _name, _net in NETS.items():
    READERS[f"config.json of {_name}"] = Reader(
        "config.json",
        partial(config_of, _name),
        JSON,
        lambda path, net=_net: net.from_pretrained(path.parent),
        partial(write_net, name=_name),
        turns=2,
    )
for _format in ("JPEG", "GIF", "BMP", "TIFF", "WEBP", "ICO", "PPM"):
    READERS[f"image, {_format}"] = Reader("a.png", partial(image, _format), (changed_bytes,), read_images, write_images)
