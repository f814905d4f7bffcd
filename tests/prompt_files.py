"""A small tokenizer in the form of CLIP's: ``vocab.json`` and ``merges.txt``."""

import json
from pathlib import Path

MERGES = ["a t</w>", "c at</w>", "p h", "ph o", "o f</w>"]


def save_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> int:
    """Write it; return the number of tokens."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(f"{c}</w>" for c in letters), *(m.replace(" ", "") for m in MERGES)]
    vocab = {name: i for i, name in enumerate([*names, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad}
    ends = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **ends}), encoding="utf-8")
    return len(vocab)
