"""Samples where they are expected, and a training that does not notice them."""

import os
import socket
from datetime import timedelta
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from zoo.callbacks import EMA, TextSamples
from zoo.data import PythonDocs
from zoo.models import GPT, GPTLanguageModel
from zoo.tasks import Classifier, LanguageModel

PROMPTS = ["The statement ", "A class"]


def fit(folder, *callbacks, logger=False, dropout=0.2, steps=6):
    torch.manual_seed(0)
    data = PythonDocs(block_size=16, batch_size=8)
    size = data.vocab_size
    net = GPT(size, 16, dim=16, depth=1, heads=2, dropout=dropout)
    module = LanguageModel(net, vocab_size=size, block_size=16, lr=1e-2)
    trainer = L.Trainer(
        max_steps=steps, val_check_interval=3, limit_val_batches=2, logger=logger, callbacks=list(callbacks),
        default_root_dir=folder, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module, trainer


def test_every_validation_is_written_and_logged(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    module, _ = fit(tmp_path, TextSamples(PROMPTS, max_new_tokens=30), logger=logger)
    files = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert files == ["000003.txt", "000006.txt"], "none of the sanity check"
    text = (tmp_path / "samples" / "000006.txt").read_text()
    rows = [module.tokenizer.encode(prompt) for prompt in PROMPTS]
    new = [module.tokenizer.decode(row) for row in module.generate(rows, 30, temperature=0.8)]
    assert text == f"--- 1\n{PROMPTS[0]}|{new[0]}\n\n--- 2\n{PROMPTS[1]}|{new[1]}\n"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Tensors("samples/text_summary")] == [3, 6]
    assert PROMPTS[0].encode() in events.Tensors("samples/text_summary")[1].tensor_proto.string_val[0]


def test_without_prompts_the_validation_text_begins_them(tmp_path):
    module, trainer = fit(tmp_path, TextSamples(num_samples=2, prompt_tokens=9, max_new_tokens=5))
    x, _ = trainer.datamodule.datasets["val"].batch(torch.arange(2))
    text = (tmp_path / "samples" / "000006.txt").read_text()
    for row in x[:, :9].tolist():
        assert f"{module.tokenizer.decode(row)}|" in text


def test_training_is_unchanged(tmp_path):
    """Dropout would differ if a draw of the samples moved torch's random state."""
    plain, _ = fit(tmp_path / "a")
    sampled, _ = fit(tmp_path / "b", TextSamples(PROMPTS, max_new_tokens=20))
    for one, other in zip(plain.parameters(), sampled.parameters(), strict=True):
        assert torch.equal(one, other)


def test_ema_weights_generate_the_samples(tmp_path):
    fit(tmp_path / "raw", TextSamples(PROMPTS))
    fit(tmp_path / "ema", TextSamples(PROMPTS), EMA(decay=0.5))
    raw, ema = ((tmp_path / kind / "samples" / "000006.txt").read_text() for kind in ("raw", "ema"))
    assert raw != ema


class Wandb(Logger):
    """What the callback uses of Weights & Biases' logger."""

    name, version = "wandb", 0

    def __init__(self):
        super().__init__()
        self.tables = []

    def log_metrics(self, metrics, step=None):
        assert metrics

    def log_hyperparams(self, *args, **kwargs):
        assert args or kwargs

    def log_text(self, key, columns, data, step):
        self.tables.append((key, columns, data, step))


def test_a_logger_of_tables_gets_a_table(tmp_path):
    logger = Wandb()
    fit(tmp_path, TextSamples(PROMPTS, max_new_tokens=4, dirpath=str(tmp_path)), logger=logger)
    assert [(key, columns, step) for key, columns, _, step in logger.tables] == [
        ("samples", ["prompt", "text"], step) for step in (3, 6)
    ]
    prompts, texts = zip(*logger.tables[0][2], strict=True)
    assert list(prompts) == PROMPTS
    assert all(texts)


@pytest.mark.parametrize("wrong", [{"num_samples": 0}, {"max_new_tokens": 0}, {"prompts": []}, {"prompts": ["a", ""]}])
def test_wrong_options_raise_an_error(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TextSamples(**wrong)


class Begun(L.Callback):
    def on_train_start(self, trainer, pl_module):
        raise AssertionError("training has begun")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"prompts": ["\u20ac"]}, "none of the"), ({"temperature": -1.0}, "temperature"), ({"top_k": 0}, "top_k")],
)
def test_unsupported_options_fail_before_training(tmp_path, wrong, words):
    with pytest.raises(ValueError, match=words):
        fit(tmp_path, TextSamples(**wrong), Begun())
    assert not (tmp_path / "samples").exists()


def one_of_two(rank: int, folder: Path, port: int) -> None:
    places = dict(RANK=rank, LOCAL_RANK=rank, GROUP_RANK=0, WORLD_SIZE=2, LOCAL_WORLD_SIZE=2, TORCHELASTIC_RUN_ID=1)
    address = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    os.environ.update({key: str(value) for key, value in (places | address).items()})
    data = PythonDocs(block_size=16, batch_size=2, eval_batch_size=4)
    module = GPTLanguageModel(dim=16, depth=1, heads=2, vocab_size=data.vocab_size, block_size=16)
    strategy = ModelParallelStrategy(2, 1, process_group_backend="gloo", timeout=timedelta(seconds=60))
    trainer = L.Trainer(
        max_steps=2, val_check_interval=1, limit_val_batches=1, logger=False, default_root_dir=folder, devices=2,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        strategy=strategy, callbacks=[TextSamples(num_samples=2, prompt_tokens=5, max_new_tokens=3)],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)


def test_processes_with_sharded_weights_generate_together(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(one_of_two, (tmp_path, port), nprocs=2, start_method="fork")
    data = PythonDocs(block_size=16)
    begin = [data.tokenizer.decode(row) for row in data.datasets["val"].batch(torch.tensor([0, 2]))[0][:, :5]]
    for step in (1, 2):
        text = (tmp_path / "samples" / f"{step:06d}.txt").read_text()
        assert all(f"\n{prompt}|" in text for prompt in begin), "those of the first process"


def test_models_that_generate_no_text_raise_an_error():
    with pytest.raises(ValueError, match="TextSamples needs a language model, and Classifier is none"):
        TextSamples().setup(L.Trainer(logger=False), Classifier(nn.Linear(2, 2), num_classes=2), "fit")
