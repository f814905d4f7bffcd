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
from zoo.tasks.base import Task, inputs_of

# The data spec of the sweep's batches; a module's ``tiny`` may give other values.
DATA_SPEC = {
    "num_classes": 3,
    "input_dim": 12,
    "in_channels": 1,
    "image_size": 8,
    "output_dim": 2,
    "src_vocab_size": 9,
    "tgt_vocab_size": 9,
    "horizon": 2,
}
TEXT_SPEC = {"vocab_size": 11, "block_size": 12}
STEPS = 5  # in a sequence of vectors
TOKENS = 12  # in a text, with padding
# Fields that some modules need and others do not: most CNNs take images of any size, texts may have no padding.
OPTIONAL = ("image_size", "pad_id")


def exported_modules() -> list[type[L.LightningModule]]:
    exported = [getattr(zoo.models, name) for name in zoo.models.__all__]
    return [cls for cls in exported if inspect.isclass(cls) and issubclass(cls, L.LightningModule)]


pytestmark = pytest.mark.parametrize("cls", exported_modules(), ids=lambda cls: cls.__name__)


def accepted(cls) -> set[str]:
    """Names of all arguments of the constructor, those that it passes on with ``**kwargs`` too."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        names |= {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
        if base is Task or all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return names - {"self", "net"}


def takes_text(cls) -> bool:
    """Whether inputs are tokens; a recurrent network that takes vectors too is tested with these."""
    return "vocab_size" in accepted(cls) and "input_dim" not in accepted(cls)


def data_spec(cls) -> dict[str, int]:
    """What the data is like: the sweep's values, unless the module's ``tiny`` states others."""
    spec = {**DATA_SPEC, **TEXT_SPEC}
    return spec | {name: value for name, value in cls.tiny.items() if name in DataSpec.names()}


def spec_arguments(cls) -> dict[str, int]:
    """The data spec fields that the module asks for."""
    fields = DATA_SPEC.keys() | cls.tiny.keys()
    if takes_text(cls):
        fields |= TEXT_SPEC.keys()
    return {k: v for k, v in data_spec(cls).items() if k in fields and k in accepted(cls)}


def tiny_arguments(cls) -> dict[str, Any]:
    """The module's preset for tests, without the fields that describe only the data, and the data spec."""
    preset = {name: value for name, value in cls.tiny.items() if name in accepted(cls)}
    assert cls.tiny.keys() - preset.keys() <= set(DataSpec.names()), f"{cls.__name__}.tiny has unknown arguments"
    return spec_arguments(cls) | preset


def make(cls, **kwargs) -> L.LightningModule:
    torch.manual_seed(0)
    return cls(**{**tiny_arguments(cls), **kwargs})


def translation_batch(cls, n: int, generator: torch.Generator) -> tuple[Any, torch.Tensor]:
    spec = data_spec(cls)
    src, tgt = torch.randint(4, spec["src_vocab_size"], (2, n, 6), generator=generator)
    bos = torch.full((n, 1), spec["bos_id"])
    eos = torch.full((n, 1), spec["eos_id"])
    return (src, torch.cat([bos, tgt], 1)), torch.cat([tgt, eos], 1)


def padded_text_batch(cls, n: int, generator: torch.Generator) -> tuple[Any, torch.Tensor]:
    vocab_size = data_spec(cls)["vocab_size"]
    x = torch.randint(1, vocab_size, (n, TOKENS), generator=generator)
    lengths = torch.arange(n) % 7 + 6
    padding = torch.arange(TOKENS) >= lengths.view(-1, 1)
    if issubclass(cls, MaskedLanguageModel):
        y = (x * 3 % vocab_size).masked_fill(padding | (torch.arange(TOKENS) % 3 > 0), -100)
    elif issubclass(cls, Tagger):
        y = (x % 3).masked_fill(padding, -100)
    else:
        y = torch.arange(n) % 3
    return (x.masked_fill(padding, 0), lengths), y


def batch(cls, n: int = 8) -> tuple[Any, torch.Tensor]:
    """A batch of what the module's task learns from, by the arguments that the module takes."""
    generator = torch.Generator().manual_seed(1)
    spec = data_spec(cls)
    if issubclass(cls, Translator):
        return translation_batch(cls, n, generator)
    if issubclass(cls, LanguageModel):
        x = torch.randint(1, spec["vocab_size"], (n, spec["block_size"]), generator=generator)
        return x, x * 3 % spec["vocab_size"]
    if takes_text(cls):
        return padded_text_batch(cls, n, generator)
    if "in_channels" in accepted(cls):
        shape = (spec["in_channels"], spec["image_size"], spec["image_size"])
    elif {"embed_dim", "horizon"} & accepted(cls):
        shape = (STEPS, spec["input_dim"])
    else:
        shape = (spec["input_dim"],)
    x = torch.randn(n, *shape, generator=generator)
    labels = (n, STEPS) if issubclass(cls, Tagger) else (n,)
    y = torch.randint(0, 3, labels, generator=generator)
    if issubclass(cls, Diffusion):  # a shade for each class: all of what it can learn of new noise in so few steps
        return (0.8 * (y.view(-1, 1, 1, 1) - 1)).expand_as(x).contiguous(), y
    if issubclass(cls, Classifier):
        return x, y
    return x, torch.randn(n, 2, generator=generator)


def fit(module: L.LightningModule, data, folder, epochs: int = 60, **kwargs) -> L.Trainer:
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **kwargs,
    )  # fmt: skip
    trainer.fit(module, DataLoader([data], batch_size=None))
    return trainer


def test_loss_falls_on_one_batch(cls, tmp_path):
    module, data = make(cls, lr=cls.tiny.get("lr", 1e-2)), batch(cls)

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
    spec = spec_arguments(cls)
    assert spec.items() == {k: v for k, v in saved["hyper_parameters"].items() if k in spec}.items()
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


def test_each_missing_field_of_the_data_spec_is_named(cls):
    arguments = tiny_arguments(cls)
    for field in arguments.keys() & set(DataSpec.names()):
        needs = f"{cls.__name__} needs {field}: give it, or data that knows it"
        if field == "input_dim" and "vocab_size" in accepted(cls):
            needs = "needs input_dim (for vectors) or vocab_size (for tokens), or data that defines one"
        message = refusal(cls, **{name: value for name, value in arguments.items() if name != field})
        if field not in OPTIONAL or message is not None:
            assert message is not None, f"{cls.__name__} is built without {field}"
            assert needs in message
