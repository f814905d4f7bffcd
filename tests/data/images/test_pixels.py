"""Pixels of images as people have them: deep, turned, with a palette, damaged, or named after another format."""

import io

import numpy as np
import pytest
from PIL import Image

from zoo.data.images.image_files import decode, inspect_images
from zoo.data.images.pixels import readable_formats, readable_suffixes

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def save(path, image: Image.Image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
@pytest.mark.parametrize("lamp", [0, 40_000])
def test_16_bits_are_divided_by_257_however_dark_the_image(tmp_path, suffix, lamp):
    scene = (np.arange(64) % 200 * 10).reshape(8, 8).astype(np.uint16)
    scene[0, 0] = lamp
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(scene))
    expected = np.rint(scene / 257).astype(np.uint8)
    assert np.array_equal(decode(path, 1)[0], expected)
    assert np.array_equal(decode(path, 3), np.stack([expected] * 3))


def test_a_pgm_is_scaled_by_its_largest_value(tmp_path):
    for maxval, dtype in ((15, "u1"), (4095, ">u2")):
        values = (np.arange(16) * maxval // 15).astype(dtype)
        (tmp_path / "a.pgm").write_bytes(b"P5 4 4 %d\n" % maxval + values.tobytes())
        assert np.array_equal(decode(tmp_path / "a.pgm", 1).ravel(), np.arange(16) * 17)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
def test_numbers_of_unknown_range_are_refused(tmp_path, dtype):
    path = save(tmp_path / "a.tif", Image.fromarray(np.ones((4, 4), dtype)))
    with pytest.raises(ValueError, match="of unknown range"):
        decode(path, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_images_are_turned_upright(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.pad(RAMP, ((0, 4), (0, 0)))).convert("RGB")
    path = save(tmp_path / f"a.{suffix}", image, exif=exif, **({} if suffix == "png" else {"quality": 100}))
    from PIL import ImageOps

    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB")).transpose(2, 0, 1)
    found = decode(path, 3)
    assert np.array_equal(found, expected)
    assert inspect_images(tmp_path, [path.name]).size == found.shape[1:]


def test_a_phones_multi_picture_file_is_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.pad(RAMP, ((0, 4), (0, 0)))).convert("RGB")
    path = save(tmp_path / "a.jpg", image, format="MPO", save_all=True, append_images=[image], exif=exif)
    assert Image.open(path).format == "MPO"
    assert inspect_images(tmp_path, ["a.jpg"]).size == decode(path, 3).shape[1:] == (8, 12)


def test_damaged_exif_data_is_no_damaged_image(tmp_path):
    path = save(tmp_path / "a.jpg", Image.fromarray(RAMP), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f nonsense")
    assert decode(path, 1).shape == (1, 8, 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_is_read_in_grey_and_colour(tmp_path, mode):
    image = Image.fromarray(np.stack([RAMP] * 3, 2))
    if mode in ("1", "L", "LA"):
        image = image.convert("L")
    if mode in ("P", "PA"):
        image = image.quantize(64)
    image = image.convert(mode)
    path = save(tmp_path / "a.tif", image)
    grey, colour = decode(path, 1), decode(path, 3)
    assert (grey.shape, colour.shape) == ((1, 8, 8), (3, 8, 8))
    if mode != "1":
        assert np.abs(grey[0].astype(int) - RAMP).max() <= 8
        assert np.abs(colour.astype(int) - RAMP).max() <= 8


def test_the_first_frame_counts(tmp_path):
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 200)]
    for suffix in ("gif", "webp", "tif"):
        path = save(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])
        assert abs(decode(path, 1).mean() - 10) < 3


def test_the_content_decides_not_the_suffix(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(RAMP).save(buffer, "PNG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    assert np.array_equal(decode(tmp_path / "a.jpg", 1)[0], RAMP)


def test_no_file_runs_another_program(tmp_path):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    assert {"JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"} <= set(readable_formats())
    assert {".jpg", ".jfif", ".jpe", ".png", ".webp"} <= set(readable_suffixes())
    assert not {".eps", ".ps", ".h5", ".mpg", ".wmf", ".pdf"} & set(readable_suffixes())
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(OSError, match="cannot identify"):
        decode(tmp_path / "a.jpg", 1)
