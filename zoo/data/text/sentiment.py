"""Sentences that praise or blame: a file of one's own, or sentences drawn from a seed."""

from __future__ import annotations

import random
from typing import Any

from zoo.data.text.classification import TextClassification
from zoo.data.text.text_files import Texts

THINGS = "film book meal hotel phone concert lecture game story album dinner flight museum coat camera soup play garden"
GOOD = "excellent wonderful delightful superb charming brilliant great lovely fine enjoyable splendid perfect pleasant"
GOOD += " marvellous impressive amazing fantastic admirable touching clever refreshing outstanding elegant satisfying"
BAD = (
    "terrible awful dreadful boring disappointing poor horrible dull bad annoying clumsy tedious weak unpleasant lousy"
)
BAD += " miserable painful pathetic mediocre shabby tiresome worthless irritating sloppy"
# What is said of a thing: {a} is of the class, {b} of the other one, so that single words do not tell.
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
    """Texts that are ``positive`` or ``negative``: a file of one's own, or sentences drawn from the seed.

    All else is as in ``TextClassification``, classes of other names included. In the sentences drawn, words of praise
    and of blame often stand beside each other, so that which words occur does not tell.

    Args:
        samples: number of sentences drawn, without ``path``.
    """

    def __init__(self, samples: int = 3000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 20 <= samples <= 20000:
            raise ValueError(f"samples must be from 20 to 20,000, got {samples}")
        self.samples = samples

    def default_texts(self) -> Texts:
        rng, found = random.Random(self.seed), dict[str, str]()
        while len(found) < self.samples:
            label = rng.choice(["negative", "positive"])
            ours, others = (GOOD, BAD) if label == "positive" else (BAD, GOOD)
            words = {
                "a": rng.choice(ours.split()),
                "b": rng.choice(others.split()),
                "thing": rng.choice(THINGS.split()),
            }
            found[rng.choice(TEMPLATES).format(**words)] = label
        return list(found), list(found.values())
