"""Opening images of any format, and their pixels as 8-bit grey or colour, upright."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

GREY_MODES = ("1", "L", "LA", "I", "F")
ORIENTATION = 0x0112  # the EXIF tag
ROTATED_ORIENTATIONS = (5, 6, 7, 8)  # its values that swap width and height
# Formats that Pillow names without reading them, or only with another program, which would run what a file says.
UNREAD_FORMATS = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")


@cache
def readable_formats() -> tuple[str, ...]:
    """Return the names of the formats that this Pillow reads."""
    from PIL import Image

    Image.init()
    return tuple(name for name in Image.OPEN if name not in UNREAD_FORMATS)


@cache
def readable_suffixes() -> tuple[str, ...]:
    """Return the suffixes of these formats, such as ``.jpg`` and ``.jfif``."""
    from PIL import Image

    formats = readable_formats()
    return tuple(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def open_image(file: Path | bytes) -> Any:
    """Open an image, by its path or the bytes of its file, by its content, whatever its suffix."""
    from PIL import Image

    if isinstance(file, bytes):
        return Image.open(BytesIO(file), formats=readable_formats())
    return Image.open(file, formats=readable_formats())


def orientation_of(image: Any) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 where there is none or the EXIF data is damaged."""
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:  # damaged EXIF data says nothing about the pixels
        return 1
    return value if value in range(1, 9) else 1


def upright(image: Any, orientation: int) -> Any:
    """Return an image turned as its EXIF orientation asks for."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    if orientation not in turns:
        return image
    return image.transpose(turns[orientation])


def to_mode(image: Any, channels: int) -> Any:
    """Return an image of any mode as 8-bit grey or colour.

    Values of 16 bits are divided by 257, whatever the values are: how bright a pixel is depends on the depth of the
    file, not on the brightest pixel beside it.

    Args:
        image: as Pillow opened it.
        channels: 1 for grey, 3 for colour; transparency is dropped.
    """
    if image.mode.startswith("I"):
        image = _from_16_bits(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if image.mode in ("P", "PA", "LA") and channels == 3:
        image = image.convert("RGBA")
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode:
        return image
    return image.convert(mode)


def _from_16_bits(image: Any) -> Any:
    from PIL import Image

    # Pillow scales PGM files to 16 bits by their largest value, and older versions read 16-bit PNG files as mode I.
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise ValueError("its pixels are signed or 32-bit integers of unknown range; convert them to 8 or 16 bits")
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
