"""Sentences with positive or negative sentiment: a file of one's own, or sentences generated from a seed."""

from __future__ import annotations

import random
from typing import Any

from zoo.data.text.classification import TextClassification
from zoo.data.text.text_files import Texts

THINGS = "film book meal hotel phone concert lecture game story album dinner flight museum coat camera soup play garden"
GOOD = (
    "excellent wonderful delightful superb charming brilliant great lovely fine enjoyable splendid perfect pleasant"
    " marvellous impressive amazing fantastic admirable touching clever refreshing outstanding elegant satisfying"
)
BAD = (
    "terrible awful dreadful boring disappointing poor horrible dull bad annoying clumsy tedious weak unpleasant lousy"
    " miserable painful pathetic mediocre shabby tiresome worthless irritating sloppy"
)
# {a} is a word of the sentence's class, {b} of the other one, so that single words do not give the class away.
TEMPLATES = """
The {thing} was {a} .
I found this {thing} {a} , and so did everybody else .
We expected a {b} {thing} , but it was {a} .
Nobody can call this {thing} {b} : it is {a} .
The {thing} was not {b} at all .
It is hard to find a {thing} that is less {b} .
What a {a} {thing} !
Far from {b} , the {thing} was {a} from beginning to end .
My sister said the {thing} was {b} , but she was wrong .
After a {b} start , the {thing} became {a} .
They promised a {b} {thing} and gave us a {a} one .
I have never seen a {thing} that was more {a} .
There was nothing {b} about the {thing} .
Of all the {b} things on that day , the {thing} was the {a} exception .
""".strip().splitlines()


class Sentiment(TextClassification):
    """Texts that are ``positive`` or ``negative``: a file of one's own, or sentences generated from the seed.

    All else is as in ``TextClassification``, classes of other names included. In generated sentences positive and
    negative words often occur together, so that which words occur is not enough.

    Args:
        samples: number of generated sentences, without ``path``.
    """

    def __init__(self, samples: int = 3000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 20 <= samples <= 20000:
            raise ValueError(f"samples must be from 20 to 20,000, got {samples}")
        self.samples = samples

    def default_texts(self) -> Texts:
        rng = random.Random(self.seed)
        found: dict[str, str] = {}
        while len(found) < self.samples:
            label = rng.choice(["negative", "positive"])
            own = GOOD
            other = BAD
            if label == "negative":
                own = BAD
                other = GOOD
            words = {
                "a": rng.choice(own.split()),
                "b": rng.choice(other.split()),
                "thing": rng.choice(THINGS.split()),
            }
            sentence = rng.choice(TEMPLATES).format(**words)
            found[sentence] = label
        return list(found), list(found.values())
