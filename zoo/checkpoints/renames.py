"""Names that have changed since the first checkpoints: one table, applied to whatever was written before the change.

A checkpoint carries its format as an integer under ``zoo_format``; one without it has format 1. To rename a class or an
argument, add it here and raise ``FORMAT``. An old name must never become the name of something else.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from zoo.errors import UserError

FORMAT_KEY = "zoo_format"
FORMAT = 2

# The table --------------------------------------------------------------------------------------------------------

# Modules that were moved, by their path in format 1. Class paths in hyperparameters and configs name them.
MODULES = {
    "zoo.callbacks.attention_picture": "zoo.callbacks.plots.attention_maps",
    "zoo.callbacks.checkpoints": "zoo.callbacks.best_and_last",
    "zoo.callbacks.embedding_picture": "zoo.callbacks.plots.embedding_plot",
    "zoo.callbacks.gradients": "zoo.callbacks.gradients.diagnostics",
    "zoo.callbacks.memory": "zoo.callbacks.state_snapshot",
    "zoo.callbacks.mistake_pictures": "zoo.callbacks.plots.misclassified_images",
    "zoo.callbacks.nan_guard": "zoo.callbacks.nan.guard",
    "zoo.callbacks.predictions": "zoo.callbacks.prediction_writer",
    "zoo.callbacks.rates": "zoo.callbacks.learning_rates",
    "zoo.callbacks.sample_grid": "zoo.callbacks.plots.image_samples",
    "zoo.callbacks.sample_measures": "zoo.callbacks.generation_metrics",
    "zoo.callbacks.step_seed": "zoo.callbacks.deterministic_steps",
    "zoo.data.captions": "zoo.data.images.captions",
    "zoo.data.cifar": "zoo.data.images.cifar",
    "zoo.data.corpus": "zoo.data.text.corpus",
    "zoo.data.digits": "zoo.data.images.digits",
    "zoo.data.image_folder": "zoo.data.images.image_folder",
    "zoo.data.images": "zoo.data.images.base",
    "zoo.data.latents": "zoo.data.images.latents",
    "zoo.data.letters": "zoo.data.images.letters",
    "zoo.data.masked_text": "zoo.data.text.masked_text",
    "zoo.data.mnist": "zoo.data.images.mnist",
    "zoo.data.ner": "zoo.data.text.ner",
    "zoo.data.pieces": "zoo.data.text.subword",
    "zoo.data.sentiment": "zoo.data.text.sentiment",
    "zoo.data.text": "zoo.data.text.classification",
    "zoo.data.timeseries": "zoo.data.series.timeseries",
    "zoo.data.tokens": "zoo.data.text.tokenized",
    "zoo.data.translation": "zoo.data.text.translation",
    "zoo.losses.fitting": "zoo.losses.adapt",
    "zoo.models.unet_text": "zoo.models.spatial_transformer",
    "zoo.optim.combined": "zoo.optim.multi_optimizer",
    "zoo.optim.groups": "zoo.optim.param_groups",
    "zoo.run_start": "zoo.runs.record",
    "zoo.loggers": "zoo.runs.loggers",
}

# Classes of zoo that were renamed.
CLASSES = {
    "AllTriplets": "AllTripletsMarginLoss",
    "AttentionPicture": "AttentionMaps",
    "AutoencoderTrainer": "AutoencoderKLModule",
    "ClassHead": "ClassificationHead",
    "Combined": "MultiOptimizer",
    "EmbeddingPicture": "EmbeddingPlot",
    "FromDistributions": "KLDivFromLogits",
    "MaskedBERT": "BERTForMaskedLM",
    "MaskedHead": "MLMHead",
    "MistakePictures": "MisclassifiedImages",
    "NormSiLU": "GroupNormSiLU",
    "OfTwo": "BinaryFromMulticlass",
    "PerClass": "OneVsRest",
    "PixelAttention": "SpatialSelfAttention",
    "PredictionsFile": "PredictionWriter",
    "Rotary": "RotaryEmbedding",
    "Rule": "ParamGroupRule",
    "RunCheckpoints": "BestAndLast",
    "SampleGrid": "ImageSamples",
    "SampleMeasures": "GenerationMetrics",
    "SequenceBERT": "BERTForSequenceClassification",
    "StepSeed": "DeterministicSteps",
    "TextAttention": "SpatialTransformer",
    "TextBlock": "SpatialTransformerBlock",
    "TextEncoder": "CLIPTextEncoder",
    "Tokenized": "TextTask",
    "TokenBERT": "BERTForTokenClassification",
}

_VAL = {"val_share": "val_split"}
_SPLITS = {**_VAL, "test_share": "test_split"}
_TEXTS = {**_SPLITS, "buckets": "bucket_by_length"}
_CHANNELS = {"widths": "channels"}
_DIFFUSION = {
    "target": "prediction_type",
    "drop_condition": "cond_drop_prob",
    "min_snr": "min_snr_gamma",
}
_MULTIPLIERS = {"width": "width_mult", "depth": "depth_mult"}
_NUM_SAMPLES = {"samples": "num_samples"}

# Arguments that were renamed, by the class that has them (its new name).
ARGUMENTS: dict[str, dict[str, str]] = {
    # data
    **dict.fromkeys(("CIFAR10", "CIFAR100", "FashionMNIST", "MNIST", "PythonDocs", "PythonSource", "TextCorpus"), _VAL),
    **dict.fromkeys(("AddingProblem", "CopyTask", "SignOfSum", "SyntheticSequences", "Quadrants", "Tabular"), _SPLITS),
    **dict.fromkeys(("Digits", "ImageFolder", "Letters"), _SPLITS),
    **dict.fromkeys(("DateTranslation", "NER", "ParallelText", "Sentiment", "TextClassification"), _TEXTS),
    "MaskedText": {**_TEXTS, "mask_share": "mlm_probability", "whole_words": "whole_word_mask"},
    "TimeSeries": {**_SPLITS, "time_style": "time_format"},
    # tasks and models
    "Task": {"rules": "param_groups"},
    "Diffusion": _DIFFUSION,
    "LatentDiffusion": {**_DIFFUSION, **_CHANNELS},
    **dict.fromkeys(("Airbench", "AirbenchClassifier", "AutoencoderKL", "AutoencoderKLModule", "UNet"), _CHANNELS),
    **dict.fromkeys(("EfficientNet", "EfficientNetClassifier"), _MULTIPLIERS),
    "AutoregressiveDecoder": {"fed": "feedback_index"},
    "CLIPTextEncoder": {"skip": "clip_skip"},
    # callbacks
    **dict.fromkeys(("AttentionMaps", "EmbeddingPlot", "TextSamples"), _NUM_SAMPLES),
    "EMA": {"every": "every_n_steps"},
    "GenerationMetrics": {"every": "every_n_validations", "guidance": "guidance_scale"},
    "GradientDiagnostics": {"every": "every_n_steps", "blocks": "max_blocks"},
    "ImageSamples": {"every": "every_n_validations", "guidance": "guidance_scale"},
    "LRFinder": {"diverge": "early_stop_threshold"},
    "MisclassifiedImages": {"worst": "num_images"},
    "NaNGuard": {"every": "every_n_batches"},
}

# Values that were renamed, by the new name of their argument.
_PREDICTION_TYPES = {"v": "v_prediction", "flow": "flow_prediction"}
VALUES: dict[str, dict[str, dict[str, str]]] = {
    "Diffusion": {"prediction_type": _PREDICTION_TYPES},
    "LatentDiffusion": {"prediction_type": _PREDICTION_TYPES},
}

# Arguments that hold the arguments of another class, without its class path.
NESTED = {"LatentDiffusion": {"autoencoder": "AutoencoderKL", "text_encoder": "CLIPTextEncoder"}}

# Keys of a checkpoint, of a callback's state and of a run's config.
CHECKPOINT_KEYS = {"train_meter": "train_running_mean"}
STATE_KEYS = {
    "GenerationMetrics": {"seen": "validations"},
    "GradientDiagnostics": {"awake": "with_gradient", "said": "warned"},
    "ImageSamples": {"seen": "validations"},
}
CONFIG_KEYS = {"pictures": "plots", "sample_measures": "generation_metrics"}


# Applying it ------------------------------------------------------------------------------------------------------


def mark_format(checkpoint: dict[str, Any]) -> None:
    """Write the present format into a checkpoint that is being saved."""
    checkpoint[FORMAT_KEY] = FORMAT


def upgrade(checkpoint: dict[str, Any], model: type | str | None = None, data: type | str | None = None) -> None:
    """Bring a checkpoint to the present format, in place; nothing where it has that already.

    Args:
        checkpoint: content of a file, or the metadata of a sharded one.
        model: class of the model, for a checkpoint without its class path (saved outside of ``zoo fit``).
        data: class of the data, likewise.

    Raises:
        UserError: a newer version of zoo wrote it.
    """
    format = checkpoint.get(FORMAT_KEY, 1)
    if format > FORMAT:
        raise UserError(f"the checkpoint has format {format}, of a newer zoo; this one reads formats up to {FORMAT}")
    if format == FORMAT:
        return
    for key, owner in (("hyper_parameters", model), ("datamodule_hyper_parameters", data)):
        if checkpoint.get(key):
            checkpoint[key] = upgrade_arguments(checkpoint[key], owner)
    for old, new in CHECKPOINT_KEYS.items():
        if old in checkpoint:
            checkpoint[new] = checkpoint.pop(old)
    if checkpoint.get("callbacks"):
        checkpoint["callbacks"] = _upgrade_states(checkpoint["callbacks"])
    mark_format(checkpoint)


def upgrade_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a run with present names; equal to ``config`` where it has them already."""
    renamed = _rename_keys(config, CONFIG_KEYS)
    return {key: _upgrade_value(value) for key, value in renamed.items()}


def upgrade_arguments(arguments: Mapping[str, Any], owner: type | str | None = None) -> dict[str, Any]:
    """Return arguments of a class with present names.

    Args:
        arguments: by name; hyperparameters may hold the class path among them, as ``_class_path``.
        owner: the class, or its name, where there is no class path.
    """
    arguments = dict(arguments)
    if "_class_path" in arguments:
        owner = arguments["_class_path"] = upgrade_class_path(arguments["_class_path"])
    owners = _class_names(owner)
    if {"rules", "layer_decay"} <= arguments.keys():
        owners.append("Task")  # a subclass in the user's own code, which need not be imported yet
    for name in owners:
        arguments = _rename_keys(arguments, ARGUMENTS.get(name, {}))
    values: dict[str, dict[str, str]] = {}
    nested: dict[str, str] = {}
    for name in owners:
        values |= VALUES.get(name, {})
        nested |= NESTED.get(name, {})
    upgraded = {}
    for key, value in arguments.items():
        if isinstance(value, str):
            upgraded[key] = values.get(key, {}).get(value, value)
        elif isinstance(value, Mapping) and key in nested:
            upgraded[key] = upgrade_arguments(value, nested[key])
        else:
            upgraded[key] = _upgrade_value(value)
    return upgraded


def upgrade_header(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments in a weights file with present names; such files do not name the class."""
    for name in ("AutoencoderKL", "CLIPTextEncoder", "LatentDiffusion"):
        arguments = upgrade_arguments(arguments, name)
    if {"variant", "stochastic_depth"} <= arguments.keys():  # only EfficientNet has both; ResNet has a width, too
        arguments = upgrade_arguments(arguments, "EfficientNet")
    return dict(arguments)


def upgrade_class_path(path: str) -> str:
    """Return the present class path of what had this one."""
    module, _, name = path.rpartition(".")
    if module.partition(".")[0] != "zoo":
        return path
    return f"{MODULES.get(module, module)}.{CLASSES.get(name, name)}"


def _upgrade_value(value: Any) -> Any:
    """Return a value with class paths and arguments renamed at any depth."""
    if isinstance(value, (list, tuple)):
        return type(value)(_upgrade_value(item) for item in value)
    if not isinstance(value, Mapping):
        return value
    if not isinstance(value.get("class_path"), str):
        return {key: _upgrade_value(item) for key, item in value.items()}
    upgraded = dict(value)
    upgraded["class_path"] = upgrade_class_path(value["class_path"])
    for key in ("init_args", "dict_kwargs"):
        if value.get(key):
            upgraded[key] = upgrade_arguments(value[key], upgraded["class_path"])
    return upgraded


def _upgrade_states(states: Mapping[str, Any]) -> dict[str, Any]:
    upgraded = {}
    for key, state in states.items():
        name = CLASSES.get(key, key)
        upgraded[name] = _rename_keys(state, STATE_KEYS[name]) if name in STATE_KEYS else state
    return upgraded


def _class_names(owner: type | str | None) -> list[str]:
    """Return the name of a class and those of its bases; of a class path only where it is imported already."""
    if owner is None:
        return []
    if isinstance(owner, str):
        module, _, name = owner.rpartition(".")
        found = getattr(sys.modules.get(module), name, None)
        if not isinstance(found, type):
            return [name]
        owner = found
    return [base.__name__ for base in owner.__mro__]


def _rename_keys(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in values.items()}
