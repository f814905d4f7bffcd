"""Folders of sentence-transformers: what ``modules.json`` and the files of its modules state beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import UserError

STEPS = ("Transformer", "Pooling", "Normalize")  # modules that BERTEmbedder implements
# Before version 5.4 each kind of pooling had a switch of its own.
OLD_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLING = ("mean", "cls")  # kinds that BERTEmbedder implements


def read_sentence_transformer(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the encoder, and the arguments of ``zoo.models.BERTEmbedder`` that the files state.

    Args:
        folder: of sentence-transformers, or of any BERT with its tokenizer, which pools by the mean.

    Raises:
        UserError: it has a module, a pooling or an option that BERTEmbedder does not implement.
    """
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    steps = _read(folder / "modules.json", [])
    for step in steps:
        kind = step["type"].rpartition(".")[2]
        if kind not in STEPS:
            raise UserError(f"{folder} has a module that BERTEmbedder does not support: {step['type']}")
        paths[kind] = step.get("path", paths.get(kind, ""))
    encoder = folder / paths["Transformer"]
    options = _read(encoder / "sentence_bert_config.json", {})
    _check_encoder(folder, options)
    prompt = _default_prompt(folder)
    arguments = {
        "pooling": _pooling(folder, _read(folder / paths["Pooling"] / "config.json", {}), prompt),
        "normalize": not steps or "Normalize" in paths,
        "max_length": _max_length(encoder, options),
        "lowercase": bool(options.get("do_lower_case")),
        "prompt": prompt,
    }
    return encoder, arguments


def _check_encoder(folder: Path, options: Mapping[str, Any]) -> None:
    """Raise UserError where the first module returns something else than BERT's last hidden states."""
    task = options.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise UserError(f"{folder} has transformer_task={task}; BERTEmbedder pools the hidden states of an encoder")
    text = (options.get("modality_config") or {}).get("text") or {}
    method = text.get("method", "forward")
    output = text.get("method_output_name", "last_hidden_state")
    if method != "forward" or output != "last_hidden_state":
        raise UserError(f"{folder} pools the {output} of {method}(); BERTEmbedder pools the last hidden states")


def _pooling(folder: Path, config: Mapping[str, Any], prompt: str) -> str:
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [name for key, name in OLD_POOLING.items() if config.get(key)]
    if isinstance(modes, str):
        modes = [modes]
    modes = modes or ["mean"]  # the default of sentence-transformers
    if len(modes) > 1 or modes[0] not in POOLING:
        known = " or ".join(POOLING)
        raise UserError(
            f"{folder} has the pooling {' and '.join(modes)}, which BERTEmbedder does not support: take {known}"
        )
    if prompt and config.get("include_prompt") is False:
        raise UserError(f"{folder} leaves its prompt out of the pooling (include_prompt=false), which zoo does not")
    return modes[0]


def _max_length(encoder: Path, options: Mapping[str, Any]) -> int | None:
    """Return after how many tokens texts are truncated; since version 5.4 only the tokenizer's config states it."""
    length = options.get("max_seq_length")
    if length is None:
        length = _read(encoder / "tokenizer_config.json", {}).get("model_max_length")
    if length is None:
        return None
    return int(length)  # 1e30 where there is no limit


def _default_prompt(folder: Path) -> str:
    """Return the text before every text, or an empty one."""
    config = _read(folder / "config_sentence_transformers.json", {})
    name = config.get("default_prompt_name")
    if name is None:
        return ""
    return (config.get("prompts") or {}).get(name) or ""


def _read(path: Path, default: Any) -> Any:
    if not path.is_file():
        return default
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not JSON") from None
    if not isinstance(content, type(default)):
        raise UserError(f"{path} holds a {type(content).__name__}, not a {type(default).__name__}")
    return content
