"""BERT's weights in Hugging Face's files: BERT's names and DistilBERT's, with and without a head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.weights.files import Weights
from zoo.weights.formats.huggingface import Entry
from zoo.weights.renaming import rename_keys

_EMBEDDINGS = {
    "embeddings.token": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
}
# From names used here to those of the file, by ``model_type``; a file with a head has them under ``bert.``, say.
ENCODER = {
    "bert": {
        **_EMBEDDINGS,
        "blocks.{}.attention.proj": "encoder.layer.{}.attention.output.dense",
        "blocks.{}.attention": "encoder.layer.{}.attention.self",  # and query, key, value under it
        "blocks.{}.ln_1": "encoder.layer.{}.attention.output.LayerNorm",
        "blocks.{}.fc": "encoder.layer.{}.intermediate.dense",
        "blocks.{}.proj": "encoder.layer.{}.output.dense",
        "blocks.{}.ln_2": "encoder.layer.{}.output.LayerNorm",
        "pooler": "pooler",
    },
    "distilbert": {
        **_EMBEDDINGS,
        "blocks.{}.attention.query": "transformer.layer.{}.attention.q_lin",
        "blocks.{}.attention.key": "transformer.layer.{}.attention.k_lin",
        "blocks.{}.attention.value": "transformer.layer.{}.attention.v_lin",
        "blocks.{}.attention.proj": "transformer.layer.{}.attention.out_lin",
        "blocks.{}.ln_1": "transformer.layer.{}.sa_layer_norm",
        "blocks.{}.fc": "transformer.layer.{}.ffn.lin1",
        "blocks.{}.proj": "transformer.layer.{}.ffn.lin2",
        "blocks.{}.ln_2": "transformer.layer.{}.output_layer_norm",
    },
}
HEADS = {
    "bert": {
        "head.dense": "cls.predictions.transform.dense",
        "head.norm": "cls.predictions.transform.LayerNorm",
        "head.decoder.bias": "cls.predictions.bias",
        "head.linear": "classifier",
    },
    "distilbert": {
        "head.dense": "vocab_transform",
        "head.norm": "vocab_layer_norm",
        "head.decoder": "vocab_projector",
        "head.linear": "classifier",
        "pooler.dense": "pre_classifier",  # what BERT calls its pooler, but in front of classes only
    },
}
# What any of these files may hold beside the encoder; a network takes what it has a place for.
HEAD_KEYS = r"^(head\.|cls\.|vocab_|pre_classifier\.|classifier\.|qa_outputs\.)|(^|\.)pooler\."
_DECODERS = ("cls.predictions.decoder.weight", "vocab_projector.weight")
_CONFIG = {  # of the constructor's arguments, by ``model_type``
    "bert": {
        "vocab_size": "vocab_size",
        "dim": "hidden_size",
        "depth": "num_hidden_layers",
        "heads": "num_attention_heads",
        "hidden": "intermediate_size",
        "max_length": "max_position_embeddings",
        "token_types": "type_vocab_size",
        "pad_id": "pad_token_id",
        "dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
        "activation": "hidden_act",
        "norm_eps": "layer_norm_eps",
        "head_dropout": "classifier_dropout",
    },
    "distilbert": {
        "vocab_size": "vocab_size",
        "dim": "dim",
        "depth": "n_layers",
        "heads": "n_heads",
        "hidden": "hidden_dim",
        "max_length": "max_position_embeddings",
        "pad_id": "pad_token_id",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "activation": "activation",
        "head_dropout": "seq_classif_dropout",
    },
}
_ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_QKV = ("query", "key", "value")


def model_type_of(arguments: Mapping[str, Any]) -> str:
    """BERT or DistilBERT, which has no token types."""
    return "bert" if arguments["token_types"] else "distilbert"


def infer_config(weights: Weights) -> dict[str, Any]:
    """Arguments of ``zoo.models.BERT`` and ``head_dropout`` from a ``config.json``, and whether there is a pooler."""
    config, where = weights.config, weights.source
    if not config:
        raise ValueError(f"{where}: there is no config.json beside it, which says how large a BERT is")
    kind = _kind(config, where)
    pooler = any(name.endswith(("pooler.dense.weight", "pre_classifier.weight")) for name in weights.state)
    found = {ours: config[theirs] for ours, theirs in _CONFIG[kind].items() if config.get(theirs) is not None}
    found.setdefault("pad_id", config.get("pad_token_id"))
    if (activation := found.get("activation", "gelu")) not in _ACTIVATIONS:
        raise ValueError(f"{where}: its activation is {activation!r}, zoo's BERT has {', '.join(_ACTIVATIONS)}")
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        raise ValueError(f"{where}: a BERT with relative positions, or one that is a decoder, is not zoo's")
    found["activation"] = _ACTIVATIONS[activation]
    found = {"token_types": 2, **found}
    kinds = {"bert": {"pooler": "tanh"}, "distilbert": {"token_types": 0, "pooler": "relu"}}
    return {**found, **kinds[kind], **({} if pooler else {"pooler": None})}


def to_config_json(arguments: Mapping[str, Any], head: str, class_names: list[str] | None) -> dict[str, Any]:
    """What ``config.json`` says of a network.

    Args:
        arguments: of its constructor.
        head: how transformers calls its class, behind ``Bert``: ``Model``, ``ForMaskedLM``, ...
        class_names: of its classes, by number; null for none of their own.
    """
    kind = model_type_of(arguments)
    theirs = {v: k for k, v in reversed(_ACTIVATIONS.items())}
    known = {**arguments, "activation": theirs[arguments["activation"]]}
    config = {name: known[ours] for ours, name in _CONFIG[kind].items() if ours in known and ours != "head_dropout"}
    if known.get("head_dropout") is not None:
        config[_CONFIG[kind]["head_dropout"]] = known["head_dropout"]
    if class_names is not None and class_names != ["LABEL_0", "LABEL_1"]:  # which transformers takes for granted
        config["id2label"] = {str(i): name for i, name in enumerate(class_names)}
        config["label2id"] = {name: i for i, name in enumerate(class_names)}
    name = {"bert": "Bert", "distilbert": "DistilBert"}[kind] + head
    return {"architectures": [name], "model_type": kind, **config}


def tensor_entries(own: Iterable[str], arguments: Mapping[str, Any], head: bool) -> list[Entry]:
    """Where each parameter of a network is in a file.

    Args:
        own: names of its parameters.
        arguments: of its constructor.
        head: whether the network has one, so that the encoder stands under a name of its own.
    """
    kind = model_type_of(arguments)
    prefix = f"{kind}." if head else ""
    table = {**HEADS[kind], **{ours: prefix + theirs for ours, theirs in ENCODER[kind].items()}}
    entries = []
    for name in own:
        if ".attention.qkv." in name:
            parts = [name.replace(".qkv.", f".{part}.") for part in _QKV]
            entries.append(Entry(name, tuple(_rename_key(part, table) for part in parts), (arguments["dim"],) * 3))
        else:
            entries.append(Entry(name, (_rename_key(name, table),)))
    return entries


def standardize_keys(weights: Weights, head: bool) -> Weights:
    """The same weights by the names that transformers writes today, the encoder under its own name where asked for."""
    if "embeddings.token.weight" in weights.state:  # zoo's own file
        return weights
    kind = _kind(weights.config, weights.source)
    state = {_modern_key(name): name for name in weights.state if not name.endswith("position_ids")}
    bare = not any(name.startswith(f"{kind}.") for name in state)
    if f"{'' if bare else kind + '.'}embeddings.word_embeddings.weight" not in state:
        some = ", ".join(sorted(weights.state)[:2])
        raise ValueError(f"{weights.source} does not hold the weights of a BERT, but {some}, ...")
    named: dict[str, Tensor] = {}
    for name, old in state.items():
        inner = bare or name.startswith(f"{kind}.")
        plain = name.removeprefix(f"{kind}.")
        named[f"{kind}.{plain}" if inner and head else plain] = weights.state[old]
    token = named[f"{kind + '.' if head else ''}embeddings.word_embeddings.weight"]
    for name in _DECODERS:
        decoder = named.pop(name, None)
        if decoder is not None and not torch.equal(decoder, token):
            raise ValueError(f"{weights.source}: {name} is not the embedding; zoo's BERT has one matrix for both")
    return Weights(weights.source, named, weights.arguments, weights.config)


def _modern_key(name: str) -> str:
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _rename_key(name: str, table: Mapping[str, str]) -> str:
    return next(iter(rename_keys({name: torch.empty(0)}, table)))


def _kind(config: Mapping[str, Any], where: str) -> str:
    kind = config.get("model_type", "bert")
    if kind not in _CONFIG:
        raise ValueError(f"{where} holds a model of type {kind!r}; zoo's BERT reads {' and '.join(_CONFIG)}")
    return kind
