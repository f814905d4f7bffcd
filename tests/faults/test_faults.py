"""Every planted bug is named rightly, and nothing sound raises an alarm."""

import inspect
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser

import zoo.callbacks
import zoo.data
import zoo.layers
import zoo.losses
import zoo.models
import zoo.optim
import zoo.tasks
from tests.conftest import CONFIGS
from tests.faults import faults_in_data, faults_in_networks, faults_in_training, sound_oddities, sound_tasks  # noqa: F401
from tests.faults.corpus import FAULTS, SOUND, Fault
from tests.test_configs import fake_writer, of_ones_own
from zoo.data.base import spec_of
from zoo.diagnosis import Finding, Report, diagnose, run
from zoo.diagnosis.runner import CHECKS


def alarms(report: Report) -> list[Finding]:
    return report.of("warning") + report.of("error")


def crashed(report: Report) -> list[Finding]:
    return [f for f in report.findings if "the check failed" in f.message]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_planted_bug_is_named(fault: Fault):
    torch.manual_seed(0)
    report = diagnose(*fault.build(), overfit_steps=60)
    verdicts = [f.message for f in alarms(report) if f.name == fault.check]
    named = any(word in verdict for verdict in verdicts for word in fault.words)
    assert named, str(report)
    assert not crashed(report), str(report)
    assert all(f.advice for f in alarms(report))


@pytest.mark.parametrize("build", SOUND, ids=lambda build: build.__name__)
def test_sound_module_raises_no_alarm(build):
    torch.manual_seed(0)
    report = diagnose(*build(), overfit_steps=100)
    assert not alarms(report), str(report)
    assert not crashed(report), str(report)
    assert report.ok


def built(key: str, base: type, config: dict[str, Any]) -> Any:
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(base, key, subclass_mode=True)  # type: ignore[arg-type]
    return parser.instantiate(parser.parse_object({key: config}))[key]


def from_config(path: Path) -> tuple[L.Trainer, L.LightningModule, L.LightningDataModule]:
    """Build what a config says, the model given the data spec."""
    config = yaml.safe_load(path.read_text())
    model, data = ({"class_path": p} if isinstance(p, str) else p for p in (config["model"], config["data"]))
    datamodule = built("data", L.LightningDataModule, data)
    cls = getattr(zoo.models, model["class_path"], None) or getattr(zoo.tasks, model["class_path"])
    takes = {name for c in cls.__mro__ for name in inspect.signature(c.__init__).parameters}
    facts = {name: value for name, value in spec_of(datamodule).known().items() if name in takes}
    module = built("model", L.LightningModule, model | {"init_args": facts | model.get("init_args", {})})
    options = {k: v for k, v in config.get("trainer", {}).items() if k != "callbacks"}
    options |= {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return L.Trainer(**options, enable_model_summary=False), module, datamodule


# One shows how a vanilla RNN fails, at the rate of the LSTM that does not; the others need data to be fetched first,
# pictures of one's own, or weights of another config's run: what is frozen at random is not sound.
ELSEWHERE = (
    "latent_diffusion_digits",
    "transfer_plain_head_digits",
    "transfer_rates_digits",
    "transfer_unfreeze_digits",
)
HEALTHY = [p for p in CONFIGS if p.stem not in ("vanilla_rnn_adding", *ELSEWHERE) and not fake_writer(p)
           and not of_ones_own(p)]  # fmt: skip


# Their diagnosis takes five seconds to a minute.
LONG = (
    "autoencoder_digits",
    "bert_masked_docs",
    "bert_ner",
    "bert_sentiment_huggingface",
    "bert_text",
    "convnext_digits",
    "diffusion_digits",
    "distill_cnn_to_mlp_digits",
    "efficientnet_digits",
    "gpt_docs",
    "gpt_docs_fast",
    "gpt_source",
    "gru_characters",
    "gru_forecast_quantiles",
    "gru_sequences",
    "llama_docs",
    "lstm_adding",
    "lstm_sequences",
    "resnet_digits",
    "resnet_letters",
    "seq2seq_dates",
    "small_cnn_augmented_digits",
    "transfer_head_digits",
    "vgg_digits",
    "vit_digits",
)


def slow_if_long(config: Path) -> Any:
    return pytest.param(config, id=config.stem, marks=[pytest.mark.slow] if config.stem in LONG else [])


@pytest.mark.parametrize("config", [slow_if_long(config) for config in HEALTHY])
def test_healthy_config_raises_no_alarm(config, here):
    torch.manual_seed(0)
    report = run(*from_config(here / "configs" / config.name), overfit_steps=100)
    assert not alarms(report), str(report)
    assert not crashed(report), str(report)


@pytest.mark.parametrize(
    ("factor", "status", "words"),
    [(0.01, "warning", "too low"), (100, "warning", "too high"), (10_000, "error", "too high")],
)
@pytest.mark.parametrize("name", ["small_cnn_digits", "mlp_digits", "mlp_quadrants", "mlp_diabetes"])
def test_rate_far_off_is_named(name, factor, status, words, here, monkeypatch):
    torch.manual_seed(0)
    trainer, module, data = from_config(here / "configs" / f"{name}.yaml")
    module.lr *= factor  # pyright: ignore
    monkeypatch.setattr("zoo.diagnosis.runner.CHECKS", {"learning rate": CHECKS["learning rate"]})
    (finding,) = run(trainer, module, data).findings
    assert finding.status == status
    assert words in finding.message


def test_every_long_config_is_there():
    assert {config.stem for config in HEALTHY} >= set(LONG)


def test_the_corpus_covers_every_check():
    assert {fault.check for fault in FAULTS} == CHECKS.keys()
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 24


def test_the_checks_know_nothing_of_the_corpus():
    source = "".join(p.read_text() for p in Path(inspect.getfile(diagnose)).parent.glob("*.py"))
    assert not [fault.name for fault in FAULTS if fault.name in source]
