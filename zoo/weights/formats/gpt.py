"""GPT-2's published weights: names, transposed matrices and ``config.json`` of transformers."""

from __future__ import annotations

from typing import Any

from zoo.errors import UserError
from zoo.weights.files import Weights
from zoo.weights.formats.huggingface import Entry, HuggingFaceFormat
from zoo.weights.pretrained import PretrainedNet, refuse_config
from zoo.weights.tensors import RenamedTensors

# Arguments of zoo's GPT that GPT-2 has, too; the others have to be as in PLAIN.
SHARED = ("vocab_size", "block_size", "dim", "depth", "heads", "dropout", "tied")
PLAIN = {
    "positions": "learned",
    "norm": "layernorm",
    "activation": "gelu_tanh",
    "qk_norm": False,
    "logit_softcap": None,
    "token_shift": 0,
}
LAYERS = {
    "ln_1": "ln_1",
    "attn.qkv": "attn.c_attn",
    "attn.proj": "attn.c_proj",
    "ln_2": "ln_2",
    "mlp.fc": "mlp.c_fc",
    "mlp.proj": "mlp.c_proj",
}
# What a config.json may ask for, and how zoo's GPT computes.
FIXED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),  # one function in three spellings
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "add_cross_attention": False,
    "layer_norm_epsilon": 1e-5,
}
DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
DEFAULT_HEADS = 12  # of transformers
HEAD_DIM = 64  # of all published sizes


class GPTFormat(HuggingFaceFormat):
    """Adapter for GPT-2."""

    ignored_keys = r"\.attn\.(masked_)?bias$"  # the causal mask, in the oldest files

    def standardize(self, weights: Weights) -> Weights:
        # The oldest files, and those without a head, have names without transformer.
        if "h.0.attn.c_attn.weight" in weights.state:
            names = {f"transformer.{name}": name for name in weights.state}
            weights.state = RenamedTensors(weights.state, names)
        return weights

    def infer_config(self, weights: Weights) -> dict[str, Any]:
        config = weights.config
        state = weights.state
        model_type = config.get("model_type", "gpt2")
        if model_type != "gpt2":
            raise UserError(f"{weights.source} is no GPT-2, but {model_type}")
        for name in ("transformer.wte.weight", "transformer.wpe.weight"):
            if name not in state or state[name].ndim != 2:
                raise UserError(f"{weights.source} is no GPT-2: it has no matrix {name}")
        vocab_size, dim = state["transformer.wte.weight"].shape
        refuse_config(weights.source, config, {**FIXED, "n_inner": (4 * dim, None)}, "GPT")
        heads = max(1, dim // HEAD_DIM)  # no tensor shows them
        if "model_type" in config:
            heads = DEFAULT_HEADS
        return {
            "vocab_size": vocab_size,
            "block_size": len(state["transformer.wpe.weight"]),
            "dim": dim,
            "depth": len({name.split(".")[2] for name in state if name.startswith("transformer.h.")}),
            "heads": config.get("n_head") or heads,
            "dropout": config.get("resid_pdrop", 0.0),
            "tied": config.get("tie_word_embeddings", True),
            **PLAIN,
        }

    def entries(self, net: PretrainedNet) -> list[Entry]:
        # in the order of transformers, by which its shards are filled
        entries = [Entry(f"{name}.weight", (f"transformer.{name}.weight",)) for name in ("wte", "wpe")]
        for i in range(net.arguments["depth"]):
            for own, name in LAYERS.items():
                is_matrix = "ln" not in own
                file = f"transformer.h.{i}.{name}"
                entries.append(Entry(f"blocks.{i}.{own}.weight", (f"{file}.weight",), transpose=is_matrix))
                entries.append(Entry(f"blocks.{i}.{own}.bias", (f"{file}.bias",)))
        for kind in ("weight", "bias"):
            entries.append(Entry(f"ln_f.{kind}", (f"transformer.ln_f.{kind}",)))
        if not net.arguments["tied"]:
            entries.append(Entry("lm_head.weight", ("lm_head.weight",)))
        return entries

    def config_json(self, net: PretrainedNet) -> dict[str, Any]:
        arguments = net.arguments
        unlike = []
        for name, value in arguments.items():
            if name not in SHARED and value != PLAIN.get(name, False):
                unlike.append(f"{name}={value}")
        if unlike:
            raise UserError(f"Hugging Face's GPT-2 has no {', '.join(unlike)}: write this GPT with format zoo")
        content: dict[str, Any] = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **net.config}
        if not net.config:
            content |= {"activation_function": "gelu_new", "bos_token_id": None, "eos_token_id": None}
        if net.config.get("resid_pdrop") != arguments["dropout"]:
            content |= dict.fromkeys(DROPOUTS, arguments["dropout"])
        return {
            **content,
            "n_positions": arguments["block_size"],
            "n_embd": arguments["dim"],
            "n_layer": arguments["depth"],
            "n_head": arguments["heads"],
            "vocab_size": arguments["vocab_size"],
            "tie_word_embeddings": arguments["tied"],
        }
