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
from zoo.errors import UserError
from zoo.files import one_line_for_disk_errors, open_without_links

try:
    import fcntl
except ImportError:  # Windows: two processes that fetch the same file at once are not kept apart there
    fcntl = None

TRIES = 3
TIMEOUT = 30.0  # seconds without a byte


def cache_path(url: str) -> Path:
    """Return where a published file is cached: ``checkpoints`` in torch.hub's folder, as for torchvision."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def hash_prefix(url: str) -> str:
    """Return the beginning of the SHA-256 in torch's file names (``resnet18-f37072fd.pth``), or an empty text."""
    match = re.search(r"-([0-9a-f]{8,})\.", Path(urlparse(url).path).name)
    if match is None:
        return ""
    return match[1]


def fetch(url: str) -> Path:
    """Return the file of a URL from the cache, downloading it first if it is not there.

    Args:
        url: its address; the file name may contain the beginning of its SHA-256, which is checked at every call.

    Raises:
        UserError: there is no network, or the file is not the published one; the message says what to do.
    """
    place = cache_path(url)
    if not place.exists():
        _download(url, place)
    elif not _has_hash(place, hash_prefix(url)):
        raise UserError(f"{place} is not the published file, whose SHA-256 begins with {hash_prefix(url)}: delete it")
    return place


def _download(url: str, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    # A name that does not change, as the next process continues the download; never opened through a link.
    partial = place.with_name(place.name + ".partial")
    with one_line_for_disk_errors(partial), _one_process(partial):
        if place.exists():  # another process downloaded it meanwhile
            partial.unlink(missing_ok=True)
            return
        with open_without_links(partial, "ab") as file:
            start = file.tell()
            position = f", from byte {start:,}" if start else ""
            say(f"fetching {url} to {place}{position}")
            try:
                _receive(url, file)
            except (OSError, http.client.HTTPException) as error:
                raise UserError(_manual_download_hint(url, place, error)) from error
        if not _has_hash(partial, hash_prefix(url)):
            partial.unlink()
            raise UserError(f"{url} gave a file whose SHA-256 does not begin with {hash_prefix(url)}; nothing was kept")
        os.replace(partial, place)


@contextmanager
def _one_process(partial: Path) -> Iterator[None]:
    """Let one of several processes download a file, while the others wait."""
    if fcntl is None:
        yield
        return
    with open_without_links(partial, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _receive(url: str, file: IO[bytes]) -> None:
    """Append what is missing of a file, with several attempts if the connection breaks."""
    for attempt in range(TRIES):
        start = file.tell()
        headers = {"User-Agent": "zoo"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as response:
                if start and response.status != 206:  # the server cannot continue, and sends the whole file
                    file.truncate(0)
                    start = 0
                length = response.headers["Content-Length"]
                shutil.copyfileobj(response, file, 1 << 20)
            file.flush()
            if length is None:
                return
            expected = start + int(length)
            if file.tell() >= expected:
                return
            raise ConnectionError(f"the connection broke off after {file.tell():,} of {expected:,} bytes")
        except HTTPError as error:
            if error.code == 416 and start:  # nothing is missing; the hash shows whether it is right
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
    prefix = hash_prefix(url)
    digest = f" (its SHA-256 begins with {prefix})" if prefix else ""
    command = f"curl -L -C - -o {shlex.quote(str(place))} {shlex.quote(url)}"
    return f"cannot fetch {place.name}: {reason}; where there is a network, put it at {place}{digest} by: {command}"
