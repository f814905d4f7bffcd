"""BERT's published weights: names and ``config.json`` of BERT and DistilBERT in transformers."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.distributed import say
from zoo.errors import UserError
from zoo.weights.files import Weights
from zoo.weights.formats.bert_tables import (
    ACTIVATIONS,
    CLASS_NAMES,
    CONFIG,
    DECODERS,
    DEFAULTS,
    ENCODER,
    FIXED,
    HEAD_KEYS,
    HEADS,
    POOLERS,
    QKV,
)
from zoo.weights.formats.huggingface import Entry, HuggingFaceFormat, constructor_arguments, known_config
from zoo.weights.pretrained import PretrainedNet, differences_in_words, refuse_config
from zoo.weights.renaming import rename_keys
from zoo.weights.tensors import RenamedTensors

# Arguments in which a network has to agree with its weights.
COMPARED = ("vocab_size", "dim", "depth", "heads", "hidden", "max_length", "token_types", "activation", "norm_eps")


class BERTFormat(HuggingFaceFormat):
    """Adapter for BERT, with or without a head.

    Args:
        architecture: name of the class in transformers, after Bert: ``Model``, ``ForMaskedLM``, ...
        has_classes: whether the head classifies.
        pooled: whether the head comes after the pooler.
    """

    ignored_keys = HEAD_KEYS

    def __init__(self, architecture: str = "Model", has_classes: bool = False, pooled: bool = False) -> None:
        self.architecture = architecture
        self.has_classes = has_classes
        self.pooled = pooled

    @property
    def has_head(self) -> bool:
        return self.architecture != "Model"

    # Reading ----------------------------------------------------------------------------------------------------------

    def infer_arguments(self, weights: Weights, cls: type[PretrainedNet]) -> dict[str, Any]:
        # a module's checkpoint holds the network's arguments under one name
        saved = weights.arguments.get("architecture") or weights.arguments
        known = constructor_arguments(cls)
        arguments = {name: value for name, value in saved.items() if name in known}
        return arguments or self.infer_config(weights)

    def infer_config(self, weights: Weights) -> dict[str, Any]:
        config = weights.config
        source = weights.source
        if not config:
            raise UserError(f"{source}: there is no config.json beside it, which states the size of a BERT")
        kind = model_type(config, source)
        refuse_config(source, config, FIXED, "BERT")
        arguments = known_config(config, CONFIG[kind], DEFAULTS[kind])
        head_dropout = arguments.pop("head_dropout", None)
        activation = arguments["activation"]
        if activation not in ACTIVATIONS:
            raise UserError(f"{source}: its activation is {activation!r}, zoo's BERT has {', '.join(ACTIVATIONS)}")
        arguments["activation"] = ACTIVATIONS[activation]
        if "vocab_size" not in arguments:
            arguments["vocab_size"] = len(weights.state[token_embedding(kind, self.has_head)])
        if "pad_token_id" in config:
            arguments["pad_id"] = config["pad_token_id"]  # which may be null
        if kind == "distilbert":
            arguments["token_types"] = 0
        has_pooler = any(name.endswith(("pooler.dense.weight", "pre_classifier.weight")) for name in weights.state)
        arguments["pooler"] = POOLERS[kind] if has_pooler or self.pooled else None
        if self.has_classes:
            if "classifier.weight" in weights.state:
                arguments["num_classes"] = len(weights.state["classifier.weight"])
            if kind == "bert" or self.pooled:  # DistilBERT's token classifier has no dropout of its own
                arguments["head_dropout"] = head_dropout
        return arguments

    def entries_in_file(self, net: PretrainedNet, weights: Weights) -> list[Entry]:
        if _is_from_zoo(weights):  # which may lack the head or the pooler of this network
            return [Entry(name, (name,)) for name, _ in net.named_parameters()]
        return self.entries(net)

    def standardize(self, weights: Weights) -> Weights:
        """Return the weights by the names that transformers writes today, the encoder under a prefix with a head."""
        if _is_from_zoo(weights):
            return weights
        kind = model_type(weights.config, weights.source)
        prefix = f"{kind}."
        present = {_present_key(name): name for name in weights.state if not name.endswith("position_ids")}
        is_bare = not any(name.startswith(prefix) for name in present)
        if token_embedding(kind, not is_bare) not in present:
            some = ", ".join(sorted(weights.state)[:2])
            raise UserError(f"{weights.source} does not hold the weights of a BERT, but {some}, ...")
        names = {}
        for name, in_file in present.items():
            is_encoder = is_bare or name.startswith(prefix)
            plain = name.removeprefix(prefix)
            names[prefix + plain if is_encoder and self.has_head else plain] = in_file
        state = RenamedTensors(weights.state, names)
        token = state[token_embedding(kind, self.has_head)]
        for name in DECODERS:
            if name not in names:
                continue
            if not torch.equal(state[name], token):
                raise UserError(f"{weights.source}: {name} is not the embedding; zoo's BERT has one matrix for both")
            del names[name]
        return Weights(weights.source, state, weights.arguments, weights.config)

    def check(self, net: PretrainedNet, weights: Weights) -> None:
        theirs = self.infer_arguments(weights, type(net))
        words = bert_differences(theirs, net.arguments)
        if words:
            raise UserError(f"{weights.source} does not fit this {type(net).__name__}: it has {words}")

    # Loading ----------------------------------------------------------------------------------------------------------

    def load(self, net: Any, weights: Weights) -> None:
        """Load weights; a pooler or head that the file lacks, or has for other classes, is initialized instead."""
        entries = self.entries_in_file(net, weights)
        own = dict(net.named_parameters())
        missing = set()
        for entry in entries:
            part = entry.param.partition(".")[0]
            name = entry.names[0]
            fits = name in weights.state and weights.state[name].shape == own[entry.param].shape
            if part in ("pooler", "head") and not fits:
                missing.add(part)
        fresh: dict[str, Tensor] = {}
        for part in sorted(missing):
            self._initialize_part(net, part, entries, weights, fresh)
        if fresh:
            state = ChainMap(fresh, weights.state)  # type: ignore[arg-type]
            weights = Weights(weights.source, state, weights.arguments, weights.config)
        super().load(net, weights)
        if self.has_classes:
            adopt_class_names(net)

    def _initialize_part(
        self, net: Any, part: str, entries: list[Entry], weights: Weights, fresh: dict[str, Tensor]
    ) -> None:
        """Initialize a pooler or head, and put its parameters into ``fresh`` by the names of the file."""
        net.initialize_part(part)
        own = dict(net.named_parameters())
        sizes = []
        for entry in entries:
            if not entry.param.startswith(f"{part}."):
                continue
            name = entry.names[0]
            fresh[name] = own[entry.param].detach()
            if name in weights.state and weights.state[name].ndim == 2:
                sizes.append((len(weights.state[name]), len(own[entry.param])))
        if sizes:
            theirs, ours = sizes[0]
            say(f"{weights.source}: its head of {theirs} classes is replaced by a fresh one of {ours}")
        else:
            say(f"{weights.source}: it has no {part}, so one starts fresh")

    def entries(self, net: PretrainedNet) -> list[Entry]:
        arguments = net.arguments
        kind = model_type_of(arguments)
        prefix = f"{kind}." if self.has_head else ""
        table = {**HEADS[kind], **{ours: prefix + theirs for ours, theirs in ENCODER[kind].items()}}
        entries = []
        for name, _ in net.named_parameters():
            if ".attention.qkv." in name:
                parts = [name.replace(".qkv.", f".{part}.") for part in QKV]
                files = tuple(_rename_key(part, table) for part in parts)
                entries.append(Entry(name, files, (arguments["dim"],) * 3))
            else:
                entries.append(Entry(name, (_rename_key(name, table),)))
        return entries

    # Writing ----------------------------------------------------------------------------------------------------------

    def config_json(self, net: Any) -> dict[str, Any]:
        kind = model_type_of(net.arguments)
        theirs = {ours: name for name, ours in reversed(ACTIVATIONS.items())}
        known = {**net.arguments, "activation": theirs[net.arguments["activation"]]}
        config = {}
        for ours, name in CONFIG[kind].items():
            if ours == "head_dropout":
                if known.get(ours) is not None:
                    config[name] = known[ours]
            elif ours in known:
                config[name] = known[ours]
        class_names = net.class_names
        if class_names is not None and class_names != ["LABEL_0", "LABEL_1"]:  # the default of transformers
            config["id2label"] = {str(i): name for i, name in enumerate(class_names)}
            config["label2id"] = {name: i for i, name in enumerate(class_names)}
        architecture = CLASS_NAMES[kind] + self.architecture
        return {**net.config, "architectures": [architecture], "model_type": kind, **config}


def model_type_of(arguments: Mapping[str, Any]) -> str:
    """Return ``bert``, or ``distilbert``, which has no token types."""
    return "bert" if arguments["token_types"] else "distilbert"


def model_type(config: Mapping[str, Any], source: str) -> str:
    """Return the ``model_type`` of a ``config.json``.

    Raises:
        UserError: it is another than BERT's and DistilBERT's.
    """
    kind = config.get("model_type", "bert")
    if kind not in CONFIG:
        raise UserError(f"{source} holds a model of type {kind!r}; zoo's BERT reads {' and '.join(CONFIG)}")
    return kind


def token_embedding(kind: str, has_prefix: bool) -> str:
    """Return the name of the token embedding in a file."""
    prefix = f"{kind}." if has_prefix else ""
    return f"{prefix}embeddings.word_embeddings.weight"


def _is_from_zoo(weights: Weights) -> bool:
    return "embeddings.token.weight" in weights.state


def bert_differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Return where arguments of weights differ from a network's, such as ``dim=64 instead of 32``."""
    compared = {name: theirs[name] for name in COMPARED if name in theirs}
    if theirs.get("pooler") and ours.get("pooler"):
        compared["pooler"] = theirs["pooler"]
    return differences_in_words(compared, ours, most=len(compared))


def adopt_class_names(net: Any) -> None:
    """Take the class names of the weights, or drop those of a head that was replaced."""
    names = net.config.get("id2label") or {}
    num_classes = net.arguments["num_classes"]
    if len(names) == num_classes:
        net.class_names = [names[str(i)] for i in range(num_classes)]
    else:
        net.config = {key: value for key, value in net.config.items() if key not in ("id2label", "label2id")}


def _present_key(name: str) -> str:
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _rename_key(name: str, table: Mapping[str, str]) -> str:
    return next(iter(rename_keys({name: torch.empty(0)}, table)))
