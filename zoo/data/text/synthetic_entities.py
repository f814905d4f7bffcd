"""Generated sentences with names of people, places, organisations and dates."""

from __future__ import annotations

import random

from zoo.data.text.conll import Sentence

FIRST = "Ada Boris Carla Dario Elena Farid Greta Hugo Ines Jonas Kira Lars Mina Noel Olga Pavel Rosa Sami Tara Yusuf"
LAST = (
    "Adler Brandt Costa Diaz Egger Fischer Grant Hansen Ivanov Jordan Keller Lopez Marsh Novak Okafor Perez Quinn"
    " Rossi Stein Turner Washington York Zimmer"
)
PLACES = (
    "Aachen Bergen Cadiz Dakar Espoo Florence Geneva Havana Izmir Jordan Kyoto Lima Madison Nantes Oslo Porto Quito"
    " Riga Sofia Turin Utrecht Vienna Washington York Zagreb"
)
TWO_WORDS = ["New York", "San Marino", "Cape Town", "Saint Pierre", "Buenos Aires", "Los Altos", "Port Adler"]
KINDS = ["Bank", "Motors", "Airlines", "Foods", "Museum", "University", "Institute", "Press", "Energy", "Steel"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
# An entity is in braces. Templates with the same words around different types make it necessary to read the entity.
TEMPLATES = """
{PER} moved from {LOC} to {LOC} in {DATE} .
{PER} works for {ORG} in {LOC} .
On {DATE} , {ORG} opened an office in {LOC} .
{ORG} hired {PER} on {DATE} .
{PER} and {PER} met in {LOC} .
The mayor of {LOC} , {PER} , spoke on {DATE} .
{ORG} was founded by {PER} in {DATE} .
It rained in {LOC} and {LOC} on {DATE} .
Shares of {ORG} fell on {DATE} .
{PER} said that {ORG} would leave {LOC} .
Nobody at {ORG} knew {PER} .
The train from {LOC} was late again .
{PER} was born on {DATE} in {LOC} .
Since {DATE} nothing has changed .
We asked {PER} about {PER} .
We asked {ORG} about {LOC} .
He may march on , may he not ?
The bank is closed , the museum is not .
{PER} , who may come in {DATE} , lives near the university .
From {DATE} to {DATE} the {ORG} stays closed .
According to {ORG} , prices in {LOC} rose .
{LOC} , {DATE} - {ORG} is for sale .
""".strip().splitlines()


def generate_sentences(count: int, seed: int) -> list[Sentence]:
    """Return sentences of words and IOB2 tags of ``PER``, ``LOC``, ``ORG`` and ``DATE``, no two of them equal."""
    rng = random.Random(seed)
    found: dict[tuple[str, ...], list[str]] = {}
    while len(found) < count:
        words: list[str] = []
        tags: list[str] = []
        for part in rng.choice(TEMPLATES).split():
            if part[0] != "{":
                words.append(part)
                tags.append("O")
                continue
            kind = part[1:-1]
            name = GENERATORS[kind](rng).split()
            words += name
            tags.append(f"B-{kind}")
            tags += [f"I-{kind}"] * (len(name) - 1)
        found.setdefault(tuple(words), tags)
    return [(list(words), tags) for words, tags in found.items()]


def _person(rng: random.Random) -> str:
    first = rng.choice(FIRST.split())
    last = rng.choice(LAST.split())
    forms = [f"{first} {last}", f"{first} {last}", last, first, f"{first[0]}. {last}", f"{first} van {last}"]
    return rng.choice(forms)


def _place(rng: random.Random) -> str:
    if rng.random() < 0.25:
        return rng.choice(TWO_WORDS)
    return rng.choice(PLACES.split())


def _organisation(rng: random.Random) -> str:
    kind = rng.choice(KINDS)
    place = _place(rng)
    last = rng.choice(LAST.split())
    other = rng.choice(LAST.split())
    return rng.choice([f"{place} {kind}", f"{last} {kind}", f"{last} and {other}", f"{kind} of {place}"])


def _date(rng: random.Random) -> str:
    day = rng.randint(1, 28)
    month = rng.choice(MONTHS)
    year = rng.randint(1950, 2030)
    weekday = rng.choice(DAYS)
    forms = [f"{day} {month} {year}", f"{month} {year}", f"{month} {day} , {year}", weekday, str(year), month]
    return rng.choice(forms)


GENERATORS = {"PER": _person, "LOC": _place, "ORG": _organisation, "DATE": _date}
