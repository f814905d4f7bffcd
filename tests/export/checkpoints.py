"""Checkpoints of small modules with random weights, as ``zoo fit`` writes them, without training."""

import inspect
from pathlib import Path

import torch

import zoo.data as data
import zoo.models as models
from zoo.tasks.base import Task

TABLE = "number,when,kind,y\n" + "".join(
    f"{'' if i % 7 == 0 else 1000 + 1.5 * i},2020-{i % 12 + 1:02d}-{i % 28 + 1:02d} {i % 24:02d}:30:00,{'xyz'[i % 3]},"
    f"{['no', 'yes', 'may be'][i * i % 3]}\n"
    for i in range(60)
)
PRICES = TABLE.replace("no", "1e5").replace("yes", "2.5e5").replace("may be", "-3e5")
SERIES = "t,v,s,p,f\n" + "".join(
    f"2021-{1 + i // 28:02d}-{1 + i % 28:02d},{base + i * 7 % 13},{name},{i * 3 % 5},{i * 5 % 11}\n"
    for name, base in (("A", 100), ("B", -5))
    for i in range(120)
)
COLUMNS = {"time": "t", "target": "v", "series": "s", "context": 12, "horizon": 3}
DIGITS_32 = {"image_size": 32, "channels": 3}


def arguments_of(cls) -> set[str]:
    """Names of all arguments of a constructor, those that it passes on with ``**kwargs`` too."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        names |= {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
        if base is Task or all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return names - {"net"}


def write(path: Path, cls: type, source, **arguments) -> Path:
    """Write a checkpoint of a module with random weights and of its data."""
    torch.manual_seed(0)
    source.setup("fit")
    accepted = arguments_of(cls)
    known = {name: value for name, value in source.spec().known().items() if name in accepted}
    module = cls(**{**known, **arguments})
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    if hasattr(module, "set_tokenizer") and getattr(source, "tokenizer", None) is not None:
        module.set_tokenizer(source.tokenizer)
    kept = {name: value for name, value in module.hparams.items() if name in accepted}
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": {"_class_path": f"{cls.__module__}.{cls.__name__}", **kept},
        "datamodule_hyper_parameters": {
            "_class_path": f"{type(source).__module__}.{type(source).__name__}",
            **source.hparams,
            **source.fitted_hparams(),
        },
        type(source).__qualname__: source.state_dict(),
    }
    module.on_save_checkpoint(content)
    torch.save(content, path)
    return path


def table(folder: Path, text: str = TABLE, **arguments) -> data.Tabular:
    path = folder / "table.csv"
    path.write_text(text)
    return data.Tabular(file=str(path), target="y", **arguments)


def series(folder: Path, **arguments) -> data.TimeSeries:
    path = folder / "series.csv"
    path.write_text(SERIES)
    return data.TimeSeries(file=str(path), **COLUMNS, **arguments)


def images(folder: Path, **arguments) -> data.Digits:
    return data.Digits(**arguments)


def sequences(folder: Path, **arguments) -> data.SyntheticSequences:
    return data.SyntheticSequences(samples=60, **arguments)


def adding(folder: Path) -> data.AddingProblem:
    return data.AddingProblem(samples=60, steps=12)


def copying(folder: Path) -> data.CopyTask:
    return data.CopyTask(samples=60)


def sentiment(folder: Path, **arguments) -> data.Sentiment:
    return data.Sentiment(samples=100, **arguments)


BERT = {"dim": 16, "depth": 1, "heads": 2}

# name: (module, data, arguments of the data, arguments of the module)
CASES = {
    "Airbench": (models.AirbenchClassifier, images, DIGITS_32, {}),
    "BERT": (models.BERTClassifier, sentiment, {"tokenizer": "wordpiece"}, {**BERT, "max_length": 64}),
    "BERT tagger": (models.BERTTokenClassifier, lambda _: data.NER(samples=60), {}, {**BERT, "max_length": 64}),
    "ConvNeXt": (models.ConvNeXtClassifier, images, DIGITS_32, {"dims": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}),
    "EfficientNet": (models.EfficientNetClassifier, images, DIGITS_32, {}),
    "GRU": (models.GRUClassifier, sequences, {}, {"dim": 8, "bidirectional": True, "pooling": "attention"}),
    "GRU regression": (models.GRURegressor, adding, {}, {"dim": 8}),
    "GRU tagger": (models.GRUTagger, copying, {}, {"dim": 8, "bidirectional": True}),
    "GRU forecaster": (
        models.GRUForecaster,
        series,
        {"past": ["p"], "future": ["f"], "calendar": ["day_of_week", "day_of_month", "day_of_year"]},
        {"dim": 8, "quantiles": [0.1, 0.5, 0.9], "decoding": "autoregressive"},
    ),
    "LSTM": (models.LSTMClassifier, sequences, {"min_steps": 20}, {"dim": 8, "depth": 2, "bidirectional": True}),
    "LSTM of words": (models.LSTMClassifier, sentiment, {}, {"dim": 8}),
    "LSTM regression": (models.LSTMRegressor, adding, {}, {"dim": 8}),
    "LSTM tagger": (models.LSTMTagger, copying, {}, {"dim": 8}),
    "LSTM forecaster": (models.LSTMForecaster, series, {}, {"dim": 8, "revin": True}),
    "LSTM forecaster by hour": (
        models.LSTMForecaster,
        lambda _: data.TimeSeries(context=24, horizon=6, calendar=["hour_of_day"]),
        {},
        {"dim": 8},
    ),
    "LSTM forecaster, known future": (models.LSTMForecaster, series, {"future": ["f"]}, {"dim": 8}),
    "MLP of images": (models.MLPClassifier, images, {"flat": True}, {"hidden": [8]}),
    "MLP of sequences": (models.MLPClassifier, sequences, {}, {"hidden": [8], "input_dim": 800}),
    "MLP of a table": (models.MLPClassifier, table, {}, {"hidden": [8]}),
    "MLP, two classes": (models.MLPClassifier, lambda _: data.SignOfSum(samples=60), {}, {"hidden": [8]}),
    "MLP regression": (models.MLPRegressor, table, {"text": PRICES, "kind": "regression"}, {"hidden": [8]}),
    "ResNet": (models.ResNetClassifier, images, {}, {"size": "resnet18"}),
    "ScratchMLP": (models.ScratchMLPClassifier, lambda _: data.Quadrants(samples=60), {}, {}),
    "SmallCNN": (models.SmallCNNClassifier, images, {}, {"stages": [[4], [4]], "hidden": 8}),
    "VanillaRNN": (models.VanillaRNNClassifier, sequences, {"min_steps": 20}, {"dim": 8}),
    "VanillaRNN regression": (models.VanillaRNNRegressor, adding, {}, {"dim": 8}),
    "VanillaRNN tagger": (models.VanillaRNNTagger, copying, {}, {"dim": 8}),
    "VGG": (models.VGGClassifier, images, DIGITS_32, {}),
    "ViT": (models.ViTClassifier, images, DIGITS_32, {"patch_size": 8, "dim": 16, "depth": 1, "heads": 2}),
}


def checkpoint(name: str, folder: Path) -> Path:
    """Write the checkpoint of a case."""
    cls, source, of_data, of_module = CASES[name]
    return write(folder / "a.ckpt", cls, source(folder, **of_data), **of_module)
