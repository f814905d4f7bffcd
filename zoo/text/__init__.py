"""Tokenizers: texts as token ids and back."""

from zoo.text.tokenizer import Tokenizer
from zoo.text.vocabulary import Vocabulary

__all__ = ["Tokenizer", "Vocabulary"]
