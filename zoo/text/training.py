"""Subword tokenizers trained on texts, by the tokenizers library."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from zoo.text.library_engines import load_tokenizers

NUM_CODE_POINTS = 0x110000  # of Unicode


def train_bpe(texts: Iterable[str], vocab_size: int, min_freq: int, specials: Sequence[str]) -> str:
    """Train byte-level BPE as in GPT-2 (Radford 2019): no text is unknown, and a space belongs to the word behind it.

    Args:
        texts: training texts.
        vocab_size: vocabulary size, special tokens included.
        min_freq: minimum number of occurrences of a pair that becomes a token.
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
    trainer = tokenizers.trainers.BpeTrainer(
        special_tokens=list(specials),
        initial_alphabet=alphabet,
        vocab_size=vocab_size,
        min_frequency=min_freq,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def train_wordpiece(
    texts: Iterable[str],
    vocab_size: int,
    min_freq: int,
    specials: Mapping[str, str],
    lowercase: bool,
) -> str:
    """Train WordPiece as in BERT (Wu 2016): texts are cut at spaces and punctuation, ``##`` marks further subwords.

    Args:
        texts: training texts.
        vocab_size: vocabulary size, special tokens included.
        min_freq: minimum number of occurrences of a pair that becomes a token.
        specials: special tokens by their roles; ``unknown`` is needed.
        lowercase: whether texts are put into lower case and lose their accents.

    Returns:
        The JSON of the tokenizer.
    """
    if "unknown" not in specials:
        raise ValueError("wordpiece needs an unknown token: it does not know every character")
    if iter(texts) is texts:
        texts = list(texts)  # an iterator could be read once only, and they are read twice
    tokenizer = _untrained_wordpiece(specials["unknown"], lowercase)
    characters = "".join(sorted(count_characters(texts)))
    alphabet = sorted(set(tokenizer.normalizer.normalize_str(characters)) - {" "})
    names = list(dict.fromkeys(specials.values()))
    least = len(names) + 2 * len(alphabet)
    if vocab_size < least:
        raise ValueError(f"wordpiece needs {least} tokens or more, two for each character: got {vocab_size}")
    # The trainer numbers characters within words in the order of a hash table, which differs from run to run: as
    # special tokens they have their ids already.
    inner = [f"##{character}" for character in alphabet]
    tokenizers = load_tokenizers()
    trainer = tokenizers.trainers.WordPieceTrainer(
        special_tokens=names + inner,
        initial_alphabet=alphabet,
        vocab_size=vocab_size,
        min_frequency=min_freq,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in names]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    if "cls" in specials and "sep" in specials:
        sep = (specials["sep"], tokenizer.token_to_id(specials["sep"]))
        cls = (specials["cls"], tokenizer.token_to_id(specials["cls"]))
        tokenizer.post_processor = tokenizers.processors.BertProcessing(sep, cls)
    return tokenizer.to_str()


def _untrained_wordpiece(unknown: str, lowercase: bool) -> Any:
    tokenizers = load_tokenizers()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece({unknown: 0}, unk_token=unknown))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    return tokenizer


def count_characters(texts: Iterable[str]) -> Counter[str]:
    """Return how often each character occurs, without a loop over them."""
    counts = np.zeros(NUM_CODE_POINTS, np.int64)
    for text in texts:
        code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        found = np.bincount(code_points)
        counts[: len(found)] += found
    return Counter({chr(i): int(counts[i]) for i in counts.nonzero()[0].tolist()})
