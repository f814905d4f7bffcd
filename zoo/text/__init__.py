"""Text as numbers and back. Data and tasks both import this; it imports none of zoo's other rooms."""

from zoo.text.tokenizer import Tokenizer
from zoo.text.vocabulary import Vocabulary

__all__ = ["Tokenizer", "Vocabulary"]
