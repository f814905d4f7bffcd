"""Sentences with names of people, places, organisations and dates, drawn from a seed."""

from __future__ import annotations

import random

from zoo.data.text.conll import Sentence

FIRST = "Ada Boris Carla Dario Elena Farid Greta Hugo Ines Jonas Kira Lars Mina Noel Olga Pavel Rosa Sami Tara Yusuf"
LAST = "Adler Brandt Costa Diaz Egger Fischer Grant Hansen Ivanov Jordan Keller Lopez Marsh Novak Okafor Perez Quinn"
LAST += " Rossi Stein Turner Washington York Zimmer"
PLACES = (
    "Aachen Bergen Cadiz Dakar Espoo Florence Geneva Havana Izmir Jordan Kyoto Lima Madison Nantes Oslo Porto Quito"
)
PLACES += " Riga Sofia Turin Utrecht Vienna Washington York Zagreb"
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
# In braces stands an entity; two templates with the same words around different types make reading necessary.
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
    """Sentences of words and IOB2 tags of ``PER``, ``LOC``, ``ORG`` and ``DATE``, no two of them the same."""
    rng, found = random.Random(seed), dict[tuple[str, ...], list[str]]()
    while len(found) < count:
        words: list[str] = []
        tags: list[str] = []
        for part in rng.choice(TEMPLATES).split():
            name = DRAW[part[1:-1]](rng).split() if part[0] == "{" else [part]
            words += name
            tags += [f"{'I' if i else 'B'}-{part[1:-1]}" for i in range(len(name))] if part[0] == "{" else ["O"]
        found.setdefault(tuple(words), tags)
    return [(list(words), tags) for words, tags in found.items()]


def _person(rng: random.Random) -> str:
    first, last = rng.choice(FIRST.split()), rng.choice(LAST.split())
    return rng.choice([f"{first} {last}", f"{first} {last}", last, first, f"{first[0]}. {last}", f"{first} van {last}"])


def _place(rng: random.Random) -> str:
    return rng.choice(TWO_WORDS) if rng.random() < 0.25 else rng.choice(PLACES.split())


def _organisation(rng: random.Random) -> str:
    kind, place, last = rng.choice(KINDS), _place(rng), rng.choice(LAST.split())
    return rng.choice(
        [f"{place} {kind}", f"{last} {kind}", f"{last} and {rng.choice(LAST.split())}", f"{kind} of {place}"]
    )


def _date(rng: random.Random) -> str:
    day, month, year = rng.randint(1, 28), rng.choice(MONTHS), rng.randint(1950, 2030)
    return rng.choice(
        [f"{day} {month} {year}", f"{month} {year}", f"{month} {day} , {year}", rng.choice(DAYS), str(year), month]
    )


DRAW = {"PER": _person, "LOC": _place, "ORG": _organisation, "DATE": _date}
