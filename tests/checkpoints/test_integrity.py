"""No bit of a file that zoo writes changes unnoticed."""

from __future__ import annotations

import os
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zoo.checkpoints import Checkpoint, integrity
from zoo.checkpoints.integrity import BLOCK, CHUNK, digest, seal, seal_folder, verify, verify_folder
from zoo.errors import UserError
from zoo.weights import files as weights

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = ("mlp", "gpt", "vit", "diffusion", "lstm")
FLIPS = 60  # in each file


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file, which becomes another file of that name."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.unlink()
    path.write_bytes(content)


@pytest.fixture
def sealed(tmp_path):
    """A checkpoint of an older zoo, saved as today's is."""

    def save(name: str) -> Path:
        path = tmp_path / f"{name}.ckpt"
        torch.save(torch.load(GOLDEN / f"{name}.ckpt", weights_only=True), path)
        seal(path)
        return path

    return save


def flipped_copies(path: Path, count: int, first: int = 0, last: int | None = None):
    """Copies of a file with a flipped bit each, in a place of its own, those in the last kB among them."""
    generator = random.Random(0)
    end = 8 * path.stat().st_size if last is None else 8 * last
    places = [generator.randrange(8 * first, end) for _ in range(count)]
    if last is None:
        places += [generator.randrange(end - 8000, end) for _ in range(count // 4)]
    for number, bit in enumerate(places):
        copy = path.with_name(f"{number}-{path.name}")
        shutil.copy(path, copy)
        flip(copy, bit)
        yield bit, copy
        copy.unlink()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_flipped_bit_in_a_checkpoint_is_noticed(name, sealed):
    path = sealed(name)
    Checkpoint(path)
    for bit, copy in flipped_copies(path, FLIPS):
        with pytest.raises(UserError, match=r"is damaged: its digest|is not a whole checkpoint"):
            pytest.fail(f"bit {bit} flipped: {Checkpoint(copy)}")


def test_a_flipped_bit_in_a_file_of_weights_is_noticed(tmp_path):
    state = {"a": torch.randn(300, 70), "b": torch.arange(5)}
    for suffix in (".safetensors", ".pt"):
        path = tmp_path / f"x{suffix}"
        weights.write(path, state, arguments={"width": 3})
        assert torch.equal(weights.read(path).state["a"], state["a"])
        for bit, copy in flipped_copies(path, 2 * FLIPS):
            with pytest.raises(ValueError, match=r"is damaged: its digest|is no whole file of weights"):
                pytest.fail(f"bit {bit} flipped: {weights.read(copy).source}")


def test_every_bit_of_the_digest_counts(sealed, tmp_path):
    path = sealed("mlp")
    size = path.stat().st_size
    for bit in range(8 * (size - integrity.TRAILER_SIZE - 2), 8 * size, 5):
        copy = Path(shutil.copy(path, tmp_path / f"copy{bit}.ckpt"))
        flip(copy, bit)
        with pytest.raises(UserError, match="is damaged: its digest"):
            verify(copy)


def test_a_file_without_a_digest_has_its_checksums(tmp_path):
    """Checkpoints of older versions and of Lightning: the archive holds a checksum of each record."""
    path = Path(shutil.copy(GOLDEN / "gpt.ckpt", tmp_path))
    verify(path)
    with zipfile.ZipFile(path) as archive:
        records = [info for info in archive.infolist() if info.file_size > 100]
        for info in (records[0], max(records, key=lambda record: record.file_size)):
            first = info.header_offset + 130 + len(info.filename)
            for bit, copy in flipped_copies(path, 20, first, info.header_offset + info.file_size):
                with pytest.raises(UserError, match=r"is damaged: the checksum of \S+ is of other content"):
                    pytest.fail(f"bit {bit} flipped: {verify(copy)}")


def test_every_golden_file_is_whole():
    for path in GOLDEN.rglob("*.ckpt"):
        verify(path)


def test_torch_and_lightning_read_a_sealed_file_as_before(sealed):
    path = sealed("mlp")
    old, new = (torch.load(file, weights_only=True) for file in (GOLDEN / "mlp.ckpt", path))
    assert all(torch.equal(new["state_dict"][name], tensor) for name, tensor in old["state_dict"].items())
    mapped = torch.load(path, weights_only=True, mmap=True)
    assert all(torch.equal(mapped["state_dict"][name], tensor) for name, tensor in old["state_dict"].items())
    with zipfile.ZipFile(path) as archive:
        assert archive.comment.startswith(b"zoo-digest-1:")
        assert archive.testzip() is None


def test_sealing_twice_and_other_files(sealed, tmp_path):
    path = sealed("mlp")
    before = path.read_bytes()
    seal(path)
    assert path.read_bytes() == before
    (tmp_path / "text.ckpt").write_text("neither archive nor weights")
    seal(tmp_path / "text.ckpt")
    verify(tmp_path / "text.ckpt")
    save_file({"a": torch.zeros(3)}, tmp_path / "theirs.safetensors")
    verify(tmp_path / "theirs.safetensors")
    verify(tmp_path / "absent.ckpt")


def test_the_switch_for_trusted_storage(sealed, monkeypatch):
    path = sealed("mlp")
    flip(path, 8 * 5000)
    monkeypatch.setenv("ZOO_VERIFY_FILES", "0")
    verify(path)
    monkeypatch.delenv("ZOO_VERIFY_FILES")
    with pytest.raises(UserError, match="is damaged"):
        verify(path)


@pytest.mark.parametrize("size", [0, 1, 4097, BLOCK - 1, BLOCK, 3 * BLOCK + 5, CHUNK + BLOCK + 8, 5 * CHUNK])
def test_the_digest_by_its_definition(size):
    """Each block of 1 MiB is folded to 8 KiB by XOR, and SHA-256 taken of this, the rest, and the length."""
    import hashlib

    content = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    expected = hashlib.sha256()
    whole = size // 2**20 * 2**20
    for block in content[:whole].reshape(-1, 128, 8192):
        folded = block[0].copy()
        for row in block[1:]:
            folded ^= row
        expected.update(folded.tobytes())
    expected.update(content[whole:].tobytes())
    expected.update(size.to_bytes(8, "little"))
    assert digest(content.tobytes(), 0, size) == expected.hexdigest()[:32]


def test_a_file_is_read_once_unless_it_changes(sealed, monkeypatch):
    path = sealed("mlp")
    verify(path)
    monkeypatch.setattr(integrity, "_verify_archive", lambda *_: pytest.fail("read again"))
    verify(path)
    monkeypatch.undo()
    flip(path, 8 * 5000)
    os.utime(path, ns=(0, 0))
    with pytest.raises(UserError, match="is damaged"):
        verify(path)


def test_a_flipped_bit_in_a_sharded_checkpoint_is_noticed(tmp_path):
    folder = tmp_path / "last.ckpt"
    folder.mkdir()
    for name in (".metadata", "meta.pt", "__0_0.distcp"):
        (folder / name).write_bytes(random.Random(name).randbytes(3000))
    (folder / "empty").touch()
    verify_folder(folder)
    seal_folder(folder)
    verify_folder(folder)
    generator = random.Random(0)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for _ in range(20 if whole else 0):
            flip(path, generator.randrange(8 * len(whole)))
            with pytest.raises(UserError, match="is damaged"):
                verify_folder(folder)
            path.write_bytes(whole)
    verify_folder(folder)
    (folder / "__0_0.distcp").unlink()
    with pytest.raises(UserError, match=r"there is no file __0_0\.distcp"):
        verify_folder(folder)
