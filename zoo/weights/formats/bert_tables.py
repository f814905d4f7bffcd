"""Parameter names and config keys of BERT and DistilBERT in transformers."""

from __future__ import annotations

EMBEDDINGS = {
    "embeddings.token": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
}
# From zoo's names to the file's, by ``model_type``; a file with a head has them under ``bert.`` or ``distilbert.``.
ENCODER = {
    "bert": {
        **EMBEDDINGS,
        "blocks.{}.attention.proj": "encoder.layer.{}.attention.output.dense",
        "blocks.{}.attention": "encoder.layer.{}.attention.self",  # and query, key, value under it
        "blocks.{}.ln_1": "encoder.layer.{}.attention.output.LayerNorm",
        "blocks.{}.fc": "encoder.layer.{}.intermediate.dense",
        "blocks.{}.proj": "encoder.layer.{}.output.dense",
        "blocks.{}.ln_2": "encoder.layer.{}.output.LayerNorm",
        "pooler": "pooler",
    },
    "distilbert": {
        **EMBEDDINGS,
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
        "pooler.dense": "pre_classifier",  # BERT's pooler, but only in front of a classifier
    },
}
# Heads that a file may hold beside the encoder; those that a network lacks are left out.
HEAD_KEYS = r"^(head\.|cls\.|vocab_|pre_classifier\.|classifier\.|qa_outputs\.)|(^|\.)pooler\."
DECODERS = ("cls.predictions.decoder.weight", "vocab_projector.weight")
# Keys of ``config.json``, by ``model_type`` and argument.
CONFIG = {
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
# What transformers takes for granted where a file does not state it.
DEFAULTS = {
    "bert": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "pad_token_id": 0,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    },
    "distilbert": {
        "dim": 768,
        "n_layers": 6,
        "n_heads": 12,
        "hidden_dim": 3072,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "activation": "gelu",
        "seq_classif_dropout": 0.2,
    },
}
# What a config.json may ask for, and how zoo's BERT computes.
FIXED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "feed_forward_type": "original",
}
# From transformers' names; the first of several for one function is written.
ACTIVATIONS = {
    "gelu": "gelu",
    "relu": "relu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
CLASS_NAMES = {"bert": "Bert", "distilbert": "DistilBert"}
POOLERS = {"bert": "tanh", "distilbert": "relu"}  # activation
QKV = ("query", "key", "value")
