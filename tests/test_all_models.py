"""One sweep over every exported LightningModule: it learns, reloads, keeps samples apart, keeps its keys."""

import inspect
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

import zoo.models
from zoo.data.spec import DataSpec
from zoo.tasks import (
    Autoencoder,
    Classifier,
    Diffusion,
    Forecaster,
    LanguageModel,
    MaskedLanguageModel,
    Regressor,
    Tagger,
    Translator,
)
from zoo.tasks.base import inputs_of

FACTS = {
    "num_classes": 3, "input_dim": 12, "in_channels": 1, "image_size": 8, "output_dim": 2, "src_vocab_size": 9,
    "tgt_vocab_size": 9, "horizon": 2,
}  # fmt: skip
OF_TEXT = {"vocab_size": 11, "block_size": 12}
TINY_BERT = {"dim": 32, "depth": 2, "heads": 2, "max_length": 12, "dropout": 0.0, "vocab_size": 11, "pad_id": 0}
# Arguments that make a large network small, and facts that it needs otherwise.
TINY = {
    "AirbenchClassifier": {"channels": [8, 16, 16]},
    "AutoencoderKLModule": {"channels": [16, 32], "groups": 8, "latent_channels": 8},
    "BERTClassifier": TINY_BERT,
    "BERTMaskedLM": TINY_BERT,
    "BERTTokenClassifier": TINY_BERT,
    "EfficientNetClassifier": {"width_mult": 0.25, "depth_mult": 0.3, "dropout": 0.0, "stochastic_depth": 0.0},
    "Seq2SeqTranslator": {"dim": 32, "embed_dim": 16, "pad_id": 0, "bos_id": 2, "eos_id": 3, "max_new_tokens": 7},
    "GPTLanguageModel": {"dim": 32, "depth": 2, "heads": 2},
    "LLaMALanguageModel": {"dim": 32, "depth": 2, "heads": 4, "kv_heads": 2, "hidden_dim": 64},
    "LatentDiffusion": {"preset": "pixels-8", "channels": [16, 32], "head_dim": 16},
    "ResNetClassifier": {"stem": "cifar", "width": 8},
    "VGGClassifier": {"depth": 11, "width": 16, "pool": 1, "hidden": 64, "dropout": 0.0, "image_size": 64},
    "ViTClassifier": {"patch_size": 4, "dim": 32, "depth": 2, "heads": 2},
}
PIXELS = {"AirbenchClassifier": 16, "EfficientNetClassifier": 64, "VGGClassifier": 64}  # which halve images more often
# Facts that some networks need and others do not: most convolutional ones take any size, texts may have no padding.
OPTIONAL = ("image_size", "pad_id")
LR = {"AirbenchClassifier": 0.1, "ScratchMLPClassifier": 0.1, "VGGClassifier": 3e-3}
MODULES = [
    c
    for c in (getattr(zoo.models, n) for n in zoo.models.__all__)
    if inspect.isclass(c) and issubclass(c, L.LightningModule)
]
pytestmark = pytest.mark.parametrize("cls", MODULES, ids=lambda c: c.__name__)


def known(cls) -> dict[str, int]:
    facts = OF_TEXT if issubclass(cls, (LanguageModel, MaskedLanguageModel)) else FACTS
    return {k: v for k, v in facts.items() if k in inspect.signature(cls).parameters}


def make(cls, **kwargs) -> L.LightningModule:
    torch.manual_seed(0)
    return cls(**{**known(cls), **TINY.get(cls.__name__, {}), **kwargs})


def batch(cls, n: int = 8) -> tuple[Any, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if issubclass(cls, Translator):
        src, tgt = torch.randint(4, FACTS["src_vocab_size"], (2, n, 6), generator=generator)
        ends = [torch.full((n, 1), token) for token in (2, 3)]
        return (src, torch.cat([ends[0], tgt], 1)), torch.cat([tgt, ends[1]], 1)
    if issubclass(cls, LanguageModel):
        x = torch.randint(1, OF_TEXT["vocab_size"], (n, OF_TEXT["block_size"]), generator=generator)
        return x, x * 3 % OF_TEXT["vocab_size"]
    if cls.__name__.startswith("BERT"):
        x, lengths = torch.randint(1, OF_TEXT["vocab_size"], (n, 12), generator=generator), torch.arange(n) % 7 + 6
        padding = torch.arange(12) >= lengths.view(-1, 1)
        if issubclass(cls, MaskedLanguageModel):
            y = (x * 3 % OF_TEXT["vocab_size"]).masked_fill(padding | (torch.arange(12) % 3 > 0), -100)
        else:
            y = (x % 3).masked_fill(padding, -100) if issubclass(cls, Tagger) else torch.arange(n) % 3
        return (x.masked_fill(padding, 0), lengths), y
    pixels = PIXELS.get(cls.__name__, FACTS["image_size"])
    images = "in_channels" in inspect.signature(cls).parameters
    steps = [5] if {"embed_dim", "horizon"} & inspect.signature(cls).parameters.keys() else []
    x = torch.randn(n, *([1, pixels, pixels] if images else [*steps, 12]), generator=generator)
    y = torch.randint(0, 3, (n, *steps) if issubclass(cls, Tagger) else (n,), generator=generator)
    if issubclass(cls, Diffusion):  # a shade for each class: all of what it can learn of new noise in so few steps
        return (0.8 * (y.view(-1, 1, 1, 1) - 1)).expand_as(x).contiguous(), y
    return x, (y if issubclass(cls, Classifier) else torch.randn(n, 2, generator=generator))


def fit(module: L.LightningModule, data, folder, epochs: int = 60, **kwargs) -> L.Trainer:
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **kwargs,
    )  # fmt: skip
    trainer.fit(module, DataLoader([data], batch_size=None))
    return trainer


def test_loss_falls_on_one_batch(cls, tmp_path):
    module, data = make(cls, lr=LR.get(cls.__name__, 1e-2)), batch(cls)

    def loss() -> float:
        with torch.no_grad():
            return float(module.eval().step(data, "val"))

    before = loss()
    fit(module.train(), data, tmp_path)
    assert loss() < before / 3


def test_state_reloads_with_weights_only(cls, tmp_path):
    module, data = make(cls), batch(cls)
    trainer = fit(module, data, tmp_path, epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    facts = {**known(cls), **TINY.get(cls.__name__, {})}
    assert facts.items() >= {k: v for k, v in saved["hyper_parameters"].items() if k in known(cls)}.items()
    again = cls.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    module.eval(), again.eval()
    assert torch.equal(module(*inputs_of(data)), again(*inputs_of(data)))


def test_samples_of_a_batch_do_not_mix(cls):
    module, (x, _) = make(cls).eval(), batch(cls)
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():  # tokens have no gradient
        x = inputs_of((x, None))
        changed = [torch.cat([part[:1], part[1:].roll(1, 0)]) for part in x]
        same = (module(*x) == module(*changed)).flatten(1).all(1)
        assert same[0]
        assert not same[1:].any()
        return
    x.requires_grad_()
    module(x)[0].sum().backward()
    moved = x.grad.flatten(1).abs().sum(1)
    assert moved[0] > 0
    assert moved[1:].max() == 0


def test_compile_keeps_the_keys(cls):
    module = make(cls)
    keys, x = list(module.state_dict()), inputs_of(batch(cls))
    expected = module.eval()(*x)
    module.net.compile(backend="aot_eager")
    assert list(module.state_dict()) == keys
    assert torch.allclose(module(*x), expected, atol=1e-6)


def test_network_knows_nothing_of_lightning(cls):
    assert not isinstance(make(cls).net, L.LightningModule)
    assert issubclass(
        cls, (Autoencoder, Classifier, Diffusion, Forecaster, LanguageModel, MaskedLanguageModel, Regressor, Translator)
    )


def refusal(cls, **arguments) -> str | None:
    """The message of the ValueError that these arguments raise, if they do."""
    try:
        cls(**arguments)
    except ValueError as error:
        return str(error)
    return None


def test_each_missing_fact_of_the_data_is_named(cls):
    given = {**known(cls), **TINY.get(cls.__name__, {})}
    for fact in given.keys() & set(DataSpec.names()):
        needs = f"{cls.__name__} needs {fact}: give it, or data that knows it"
        if fact == "input_dim" and "vocab_size" in inspect.signature(cls).parameters:
            needs = "needs input_dim (for vectors) or vocab_size (for tokens), or data that defines one"
        message = refusal(cls, **{name: value for name, value in given.items() if name != fact})
        if fact not in OPTIONAL or message is not None:
            assert message is not None, f"{cls.__name__} is built without {fact}"
            assert message.startswith(needs)
