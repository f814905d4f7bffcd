"""Fetch a published file once, into torch.hub's cache: checked by its hash, continued where a download broke off."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch

from zoo.distributed import say

try:
    import fcntl
except ImportError:  # Windows: two processes that fetch the same file at once are not kept apart there
    fcntl = None

TRIES = 3
TIMEOUT = 30.0  # seconds without a byte


def cache_path(url: str) -> Path:
    """Where a published file lies: ``checkpoints`` in torch.hub's folder, as torchvision has it."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def hash_prefix(url: str) -> str:
    """The beginning of the SHA-256 that torch's file names carry (``resnet18-f37072fd.pth``), or nothing."""
    found = re.search(r"-([0-9a-f]{8,})\.", Path(urlparse(url).path).name)
    return found[1] if found else ""


def fetch(url: str) -> Path:
    """Return the file of a URL from the cache, downloading it first where it is not there.

    Args:
        url: its address; the file name may carry the beginning of its SHA-256, which is checked at every call.

    Raises:
        ValueError: there is no network, or the file is not the published one; the one line says what to do.
    """
    place = cache_path(url)
    if not place.exists():
        _download(url, place)
    elif not _has_hash(place, hash_prefix(url)):
        raise ValueError(f"{place} is not the published file, whose SHA-256 begins with {hash_prefix(url)}: delete it")
    return place


def _download(url: str, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(place.name + ".partial")
    with _one_process(partial):
        if place.exists():  # another did it while we waited
            partial.unlink(missing_ok=True)
            return
        with open(partial, "ab") as file:
            say(f"fetching {url} to {place}" + (f", from byte {file.tell():,}" if file.tell() else ""))
            try:
                _receive(url, file)
            except (OSError, http.client.HTTPException) as error:
                raise ValueError(_manual_download_hint(url, place, error)) from error
        if not _has_hash(partial, hash_prefix(url)):
            partial.unlink()
            raise ValueError(
                f"{url} gave a file whose SHA-256 does not begin with {hash_prefix(url)}; nothing was kept"
            )
        os.replace(partial, place)


@contextmanager
def _one_process(partial: Path) -> Iterator[None]:
    """Of several processes that train together, one fetches and the others wait."""
    if fcntl is None:
        yield
        return
    with open(partial, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _receive(url: str, file: IO[bytes]) -> None:
    """Append what is missing, a few times over if the connection breaks."""
    for attempt in range(TRIES):
        have = file.tell()
        request = Request(url, headers={"User-Agent": "zoo", **({"Range": f"bytes={have}-"} if have else {})})
        try:
            with urlopen(request, timeout=TIMEOUT) as answer:
                if have and answer.status != 206:  # the server cannot continue: from the start, then
                    file.truncate(0)
                    have = 0
                length = answer.headers["Content-Length"]
                shutil.copyfileobj(answer, file, 1 << 20)
            file.flush()
            if length is None or file.tell() >= have + int(length):
                return
            raise ConnectionError(f"the connection broke off after {file.tell():,} of {have + int(length):,} bytes")
        except HTTPError as error:
            if error.code == 416 and have:  # nothing is missing; the hash tells whether it is right
                return
            raise
        except (ConnectionError, TimeoutError, http.client.HTTPException):
            file.flush()
            if attempt == TRIES - 1:
                raise


def _has_hash(path: Path, prefix: str) -> bool:
    if not prefix:
        return True
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(prefix)


def _manual_download_hint(url: str, place: Path, error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    known = f" (its SHA-256 begins with {hash_prefix(url)})" if hash_prefix(url) else ""
    command = f"curl -L -C - -o {shlex.quote(str(place))} {shlex.quote(url)}"
    return f"cannot fetch {place.name}: {reason}; where there is a network, put it at {place}{known} by: {command}"
