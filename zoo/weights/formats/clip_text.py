"""CLIP's text encoder in files of transformers: ``config.json`` and parameter names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.errors import UserError
from zoo.weights.files import Weights
from zoo.weights.formats.diffusers import DiffusersFormat, parameters_of
from zoo.weights.formats.huggingface import known_config
from zoo.weights.pretrained import PretrainedNet, refuse_config
from zoo.weights.tensors import RenamedTensors

MODEL_TYPES = ("clip_text_model", "clip")  # of the encoder alone, and of a whole CLIP
CONFIG = {
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "activation": "hidden_act",
}
# What transformers takes for granted where a file does not state it.
DEFAULTS = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "hidden_act": "quick_gelu",
}
# What a config.json may ask for, and how zoo's encoder computes.
FIXED = {"layer_norm_eps": 1e-5}
ACTIVATIONS = ("gelu", "quick_gelu")
PREFIX = "text_model."  # of published files
# Parts of a whole CLIP that the encoder does not have, and buffers of old files.
IGNORED = ("position_ids", "text_projection.weight")


class CLIPTextFormat(DiffusersFormat):
    """Adapter for CLIP's text encoder."""

    part = "text_encoder"

    def infer_config(self, weights: Weights) -> dict[str, Any]:
        source = weights.source
        model_type = weights.config.get("model_type", MODEL_TYPES[0])
        if model_type not in MODEL_TYPES:
            raise UserError(f"{source} holds a text encoder of type {model_type!r}; zoo's is CLIP's")
        config = weights.config.get("text_config") or weights.config
        refuse_config(source, config, FIXED, "CLIPTextEncoder")
        arguments = known_config(config, CONFIG, DEFAULTS)
        if arguments["activation"] not in ACTIVATIONS:
            known = " and ".join(ACTIVATIONS)
            raise UserError(f"{source} has hidden_act={arguments['activation']}; zoo's CLIPTextEncoder has {known}")
        return arguments

    def config_json(self, net: PretrainedNet) -> dict[str, Any]:
        return {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "bos_token_id": 0,
            "eos_token_id": 2,  # makes transformers take the highest id for the end of a text, as OpenAI does
            "pad_token_id": 1,
            "layer_norm_eps": FIXED["layer_norm_eps"],
            **{theirs: net.arguments[ours] for ours, theirs in CONFIG.items()},
        }

    def convert(self, weights: Weights) -> Mapping[str, Tensor]:
        prefix = ""
        if any(name.startswith(PREFIX) for name in weights.state):
            prefix = PREFIX
        # Those of a whole CLIP hold the image encoder too.
        starts = (prefix, "embeddings.", "encoder.", "final_layer_norm.")
        names = {}
        for name in weights.state:
            if name.startswith(starts) and not name.endswith(IGNORED):
                names[name.removeprefix(prefix)] = name
        return RenamedTensors(weights.state, names)

    def export(self, net: PretrainedNet) -> dict[str, Tensor]:
        return {f"{PREFIX}{name}": tensor for name, tensor in parameters_of(net).items()}
