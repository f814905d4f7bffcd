"""Text as numbers and back. Data and tasks both import this; it imports none of zoo's other rooms."""

from zoo.text.codec import Codec
from zoo.text.vocabulary import Vocabulary

__all__ = ["Codec", "Vocabulary"]
