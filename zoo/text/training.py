"""Pieces of words learned from texts, by the tokenizers library."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from zoo.text.engines import load_tokenizers


def train_bpe(texts: Iterable[str], vocab_size: int, min_freq: int, specials: Sequence[str]) -> str:
    """Byte-level pairs as GPT-2 has them (Radford 2019): no text is unknown, and spaces belong to what follows them.

    Args:
        texts: of training.
        vocab_size: number of tokens, special ones included.
        min_freq: how often a pair must occur to become a token.
        specials: special tokens, which come first.

    Returns:
        The JSON of the tokenizer.
    """
    tokenizers = load_tokenizers()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    least = len(alphabet) + len(specials)
    if vocab_size < least:
        raise ValueError(f"bpe needs {least} tokens or more, one for each byte: got {vocab_size}")
    options = {"vocab_size": vocab_size, "min_frequency": min_freq, "show_progress": False}
    trainer = tokenizers.trainers.BpeTrainer(special_tokens=list(specials), initial_alphabet=alphabet, **options)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def train_wordpiece(
    texts: Iterable[str], vocab_size: int, min_freq: int, specials: Mapping[str, str], lowercase: bool
) -> str:
    """Pieces as BERT has them (Wu 2016): words are cut at spaces and signs, ``##`` marks what goes on within a word.

    Args:
        texts: of training.
        vocab_size: number of tokens, special ones included.
        min_freq: how often a pair must occur to become a token.
        specials: special tokens by their roles; ``unknown`` is needed.
        lowercase: whether texts are put into lower case, and accents left out.

    Returns:
        The JSON of the tokenizer.
    """
    if "unknown" not in specials:
        raise ValueError("wordpiece needs an unknown token: it does not know every character")
    tokenizers = load_tokenizers()
    texts = list(texts) if iter(texts) is texts else texts  # they are read twice
    names, unknown = list(dict.fromkeys(specials.values())), specials["unknown"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece({unknown: 0}, unk_token=unknown))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    known = tokenizer.normalizer.normalize_str("".join(sorted(count_characters(texts))))
    alphabet = sorted(set(known) - set(" "))
    least = len(names) + 2 * len(alphabet)
    if vocab_size < least:
        raise ValueError(f"wordpiece needs {least} tokens or more, two for each character: got {vocab_size}")
    # The trainer numbers characters within words in the order of a hash table, which is another one each time: given
    # as special tokens they have their numbers already.
    inner = [f"##{character}" for character in alphabet]
    options: dict[str, Any] = {"vocab_size": vocab_size, "min_frequency": min_freq, "show_progress": False}
    trainer = tokenizers.trainers.WordPieceTrainer(special_tokens=names + inner, initial_alphabet=alphabet, **options)
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in names]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    if "cls" in specials and "sep" in specials:
        ends = [(specials[role], tokenizer.token_to_id(specials[role])) for role in ("sep", "cls")]
        tokenizer.post_processor = tokenizers.processors.BertProcessing(*ends)
    return tokenizer.to_str()


def count_characters(texts: Iterable[str]) -> Counter[str]:
    """How often each character occurs, without a loop over them."""
    counts = np.zeros(0x110000, np.int64)
    for text in texts:
        found = np.bincount(np.frombuffer(text.encode("utf-32-le"), np.uint32))
        counts[: len(found)] += found
    return Counter({chr(i): int(counts[i]) for i in counts.nonzero()[0].tolist()})
