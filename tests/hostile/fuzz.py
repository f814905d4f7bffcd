"""Fuzzing of all readers: valid files of each kind, changed at random; only clear errors may come of it.

``python tests/hostile/fuzz.py 100000`` runs that many inputs, ``... 100000 7`` with another seed, and prints for each
reader how many inputs it read and how many it refused. A failure names the reader, the seed and the number of the
input, which make the same input again; ``... 1 0 4711`` runs that one alone.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.hostile.readers import READERS, Reader
from zoo.cli.error_messages import explain
from zoo.terminal import error_line

MAX_SECONDS = 10
MAX_MEMORY = 1_500  # MB beyond what the process had


class Fault(AssertionError):
    """An input that gave another error than a clear one, took too long, or too much memory."""


def fuzz(count: int, seed: int = 0, first: int = 0, keep_going: bool = False) -> dict[str, Counter[str]]:
    """Give inputs to the readers in turn; return how many each of them read and refused.

    Args:
        count: number of inputs.
        seed: of the changes.
        first: number of the first input.
        keep_going: print faults and count them, rather than raise the first.

    Raises:
        Fault: see there.
    """
    counts: dict[str, Counter[str]] = {name: Counter() for name in READERS}
    turns = [name for name, reader in READERS.items() for _ in range(reader.turns)]
    before = peak_memory()
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for i in range(first, first + count):
                # In an order of their own, so that any number of inputs in a row has all readers.
                name = turns[i * 7919 % len(turns)]
                begin = time.monotonic()
                try:
                    outcome = run_one(READERS[name], random.Random(f"{seed} {i}"), Path(folder, str(i)))
                    if peak_memory() - before > MAX_MEMORY:
                        before = peak_memory()
                        raise Fault(f"the process has grown to {before} MB")
                except Fault as fault:
                    if not keep_going:
                        raise Fault(f"{name}, seed {seed}, input {i}: {fault}") from fault
                    print(f"{name}, seed {seed}, input {i}: {fault}", flush=True)
                    outcome = "fault"
                counts[name][outcome] += 1
                counts[name]["ms"] += round(1000 * (time.monotonic() - begin))
        finally:
            os.chdir(here)
    return counts


def run_one(reader: Reader, rng: random.Random, place: Path) -> str:
    """Write a changed file and read it; return whether it was ``read`` or ``refused``."""
    place.mkdir()
    reader.prepare(place)
    path = place / reader.file
    path.write_bytes(rng.choice(reader.changes)(reader.sample(), rng))
    outcome = "read"
    begin = time.monotonic()
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), alarm():
            reader.read(path)
    except BaseException as error:
        check_clear(error)
        outcome = "refused"
    seconds = time.monotonic() - begin
    remove(place)
    if seconds > MAX_SECONDS:
        raise Fault(f"{seconds:.0f} s")
    return outcome


class TooSlow(BaseException):
    """Raised in a reader that takes too long; no Exception, as readers of files of others catch all of those."""


@contextlib.contextmanager
def alarm() -> Iterator[None]:
    """Interrupt what takes too long."""

    def interrupt(*_: object) -> None:
        raise TooSlow(f"more than {MAX_SECONDS} s")

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def check_clear(error: BaseException) -> None:
    """Raise Fault unless the command line prints an error as one line."""
    text = explain(error)
    if not text or not error_line(text).isprintable():
        last = traceback.extract_tb(error.__traceback__)[-3:]
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(last))
        raise Fault(f"{type(error).__name__}: {str(error)[:300]!r} at {where}") from error


def remove(folder: Path) -> None:
    """Remove a folder of an input, as deep as readers have made it."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
    folder.rmdir()


def peak_memory() -> int:
    """Return the most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def table(counts: dict[str, Counter[str]]) -> str:
    """Return the counts of all readers as lines."""
    total: Counter[str] = Counter()
    for outcomes in counts.values():
        total.update(outcomes)
    return "\n".join(line(name, outcomes) for name, outcomes in {**counts, "all": total}.items())


def line(name: str, outcomes: Counter[str]) -> str:
    """Return the counts of a reader."""
    numbers = f"{outcomes['read']:7} read {outcomes['refused']:7} refused {outcomes['fault']:5} faults"
    return f"{name:32} {numbers} {outcomes['ms'] / 1000:7.0f} s"


def main(arguments: list[str]) -> int:
    """Fuzz as the command line says, print the counts, and return 1 after faults."""
    torch.set_num_threads(1)
    count, seed, first = (int(text) for text in (*arguments, *("100000", "0", "0")[len(arguments) :]))
    counts = fuzz(count, seed, first, keep_going=True)
    print(table(counts))
    return int(any(outcomes["fault"] for outcomes in counts.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
