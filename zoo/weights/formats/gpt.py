"""GPT-2 in files of Hugging Face: names, matrices on their side, and ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.weights.files import Weights
from zoo.weights.folders import RenamedTensors, open_weights
from zoo.weights.formats.huggingface import Entry

SHAPE = ("vocab_size", "block_size", "dim", "depth", "heads", "dropout", "tied")
# Of zoo's GPT, what makes it GPT-2.
PLAIN = {
    "positions": "learned", "norm": "layernorm", "activation": "gelu_tanh", "qk_norm": False, "logit_softcap": None,
    "token_shift": 0,
}  # fmt: skip
LAYERS = {
    "ln_1": "ln_1", "attn.qkv": "attn.c_attn", "attn.proj": "attn.c_proj", "ln_2": "ln_2", "mlp.fc": "mlp.c_fc",
    "mlp.proj": "mlp.c_proj",
}  # fmt: skip
# What else a config.json may ask for, and the only answer that zoo's GPT has.
FIXED = {
    "activation_function": "gelu_new", "scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True,
    "add_cross_attention": False, "layer_norm_epsilon": 1e-5,
}  # fmt: skip
DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")


def open_pretrained(path: str | Path) -> Weights:
    """Open a folder or file; the oldest, and those of the body alone, have names without ``transformer.``."""
    weights = open_weights(path)
    if "h.0.attn.c_attn.weight" in weights.state:
        weights.state = RenamedTensors(weights.state, {f"transformer.{k}": k for k in weights.state})  # type: ignore[assignment]
    return weights


def infer_config(weights: Weights) -> dict[str, Any]:
    """The arguments of GPT, by ``config.json`` and the shapes."""
    config, state = weights.config, weights.state
    if config.get("model_type", "gpt2") != "gpt2" or "transformer.wpe.weight" not in state:
        raise ValueError(f"{weights.source} is no GPT-2, but {config.get('model_type', 'something else')}")
    vocab_size, dim = state["transformer.wte.weight"].shape
    wanted = {k: config.get(k, v) for k, v in FIXED.items()} | {"n_inner": config.get("n_inner") or 4 * dim}
    if unlike := [f"{k}={wanted[k]}" for k, v in {**FIXED, "n_inner": 4 * dim}.items() if wanted[k] != v]:
        raise ValueError(f"{weights.source} is of a kind that zoo's GPT is not: {', '.join(unlike)}")
    return {
        "vocab_size": vocab_size,
        "block_size": len(state["transformer.wpe.weight"]),
        "dim": dim,
        "depth": len({k.split(".")[2] for k in state if k.startswith("transformer.h.")}),
        "heads": config.get("n_head", max(1, dim // 64)),  # without a trace in the weights, but 64 wide in all sizes
        "dropout": config.get("resid_pdrop", 0.0),
        "tied": config.get("tie_word_embeddings", True),
        **PLAIN,
    }


def entries(arguments: Mapping[str, Any]) -> list[Entry]:
    """In the order of transformers, by which its shards are filled."""
    found = [Entry(f"{k}.weight", (f"transformer.{k}.weight",)) for k in ("wte", "wpe")]
    for i in range(arguments["depth"]):
        for own, name in LAYERS.items():
            for kind in ("weight", "bias"):
                on_its_side = kind == "weight" and "ln" not in own
                file = f"transformer.h.{i}.{name}.{kind}"
                found.append(Entry(f"blocks.{i}.{own}.{kind}", (file,), transpose=on_its_side))
    found += [Entry(f"ln_f.{kind}", (f"transformer.ln_f.{kind}",)) for kind in ("weight", "bias")]
    return found + ([] if arguments["tied"] else [Entry("lm_head.weight", ("lm_head.weight",))])


def config_json(arguments: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What ``config.json`` has to say beside what is ``known`` of the file that the weights came from."""
    a = arguments
    others = {k: v for k, v in a.items() if k not in SHAPE}
    if unlike := [f"{k}={v}" for k, v in others.items() if (v != PLAIN[k] if k in PLAIN else v)]:
        raise ValueError(f"Hugging Face's GPT-2 has no {', '.join(unlike)}: write this GPT with format zoo")
    content: dict[str, Any] = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **known}
    if not known:
        content |= {"activation_function": "gelu_new", "bos_token_id": None, "eos_token_id": None}
    if known.get("resid_pdrop") != a["dropout"]:
        content |= dict.fromkeys(DROPOUTS, a["dropout"])
    shape = {"n_positions": a["block_size"], "n_embd": a["dim"], "n_layer": a["depth"], "n_head": a["heads"]}
    return {**content, **shape, "vocab_size": a["vocab_size"], "tie_word_embeddings": a["tied"]}
