"""Small datasets in the true file formats, so that what reads the real ones reads these.

A dataset that has to be downloaded, such as ``zoo.data.CIFAR10``, is written by the function here with its name in
lower case; tests find it by that.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def pictures(n: int, classes: int, side: int, channels: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Bytes ``(n, side, side, channels)`` that tell their class by where they are bright, and the classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    at = 0.5 + 0.35 * np.stack([np.cos(2 * np.pi * labels / classes), np.sin(2 * np.pi * labels / classes)], 1)
    grid = (np.arange(side) + 0.5) / side
    blob = np.exp(-12 * ((grid - at[:, :1])[:, None] ** 2 + (grid - at[:, 1:])[:, :, None] ** 2))
    images = 200 * blob[..., None] * rng.uniform(0.7, 1, (n, 1, 1, channels)) + rng.uniform(
        0, 50, (n, side, side, channels)
    )
    return images.astype(np.uint8), labels


def write_idx(path: Path, array: np.ndarray, packed: bool) -> None:
    """Write bytes as MNIST's files hold them."""
    data = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(data, 1))
    else:
        path.write_bytes(data)


def mnist(root: Path, name: str = "MNIST", train: int = 200, test: int = 50, packed: bool = True) -> Path:
    """MNIST or FashionMNIST below a folder, packed as they are published."""
    folder = root / name / "raw"
    for part, n in (("train", train), ("t10k", test)):
        images, labels = pictures(n, 10, 28, 1, seed=n)
        write_idx(folder / f"{part}-images-idx3-ubyte", images[..., 0], packed)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels.astype(np.uint8), packed)
    return folder


def fashionmnist(root: Path, train: int = 200, test: int = 50) -> Path:
    """FashionMNIST below a folder, packed as it is published."""
    return mnist(root, "FashionMNIST", train, test)


def cifar10(root: Path, train: int = 200, test: int = 50) -> Path:
    """CIFAR-10 below a folder: five pickles to train, one to test, one with the names."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = pictures(train, 10, 32)
    parts = {f"data_batch_{i + 1}": (images[i::5], labels[i::5]) for i in range(5)}
    for name, (x, y) in {**parts, "test_batch": pictures(test, 10, 32, seed=1)}.items():
        rows = np.ascontiguousarray(x.transpose(0, 3, 1, 2)).reshape(len(x), -1)
        files = [f"{CIFAR10[c]}_{i:06}.png" for i, c in enumerate(y)]
        content = {"batch_label": name, "labels": [int(c) for c in y], "data": rows, "filenames": files}
        (folder / name).write_bytes(_python2_pickle(content))
    (folder / "batches.meta").write_bytes(_python2_pickle({"label_names": CIFAR10, "num_vis": 3072}))
    return folder


def cifar100(root: Path, train: int = 400, test: int = 100) -> Path:
    """CIFAR-100 below a folder: fine and coarse labels."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True, exist_ok=True)
    for name, n in (("train", train), ("test", test)):
        x, y = pictures(n, 100, 32, seed=n)
        rows = np.ascontiguousarray(x.transpose(0, 3, 1, 2)).reshape(n, -1)
        fine = [int(c) for c in y]
        content = {"data": rows, "fine_labels": fine, "coarse_labels": [c // 5 for c in fine], "batch_label": name}
        (folder / name).write_bytes(_python2_pickle(content))
    names = {"fine_label_names": [f"kind {i:02}" for i in range(100)], "coarse_label_names": list(map(str, range(20)))}
    (folder / "meta").write_bytes(_python2_pickle(names))
    return folder


def svhn(root: Path, train: int = 200, test: int = 50) -> Path:
    """SVHN in a folder: two files of MATLAB, in which the digit 0 has label 10."""
    root.mkdir(parents=True, exist_ok=True)
    for part, n in (("train", train), ("test", test)):
        images, labels = pictures(n, 10, 32, seed=n)
        labels[labels == 0] = 10
        content = {"X": images.transpose(1, 2, 3, 0), "y": labels.astype(np.uint8)[:, None]}
        savemat(root / f"{part}_32x32.mat", content, do_compression=True)
    return root


def archive(folder: Path, path: Path) -> Path:
    """Pack a folder as the published archives are packed."""
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    return path


def image_folder(
    root: Path,
    classes: Sequence[str] = ("ant", "bee", "cat"),
    n: int = 12,
    side: int = 24,
    splits: Sequence[str] = (),
    suffix: str = ".jpg",
) -> Path:
    """Photographs in a folder for each class, with folders for splits above if any are named."""
    for s, split in enumerate(splits or [""]):
        images, labels = pictures(n * len(classes), len(classes), side, seed=s)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = root / split / classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i:04}{suffix}", quality=90)
    return root


def odd_images(folder: Path, side: int = 24) -> dict[str, np.ndarray]:
    """Images of every kind that is met with, and the bytes ``(h, w, 3)`` each should be read as, but for JPEG's loss.

    Args:
        folder: of a class, where they go.
        side: width; the height is half as much again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = pictures(1, 1, side * 2, seed=3)[0][0][: side + side // 2, :side]
    grey = base.mean(2).astype(np.uint8)
    both = np.repeat(grey[..., None], 3, 2)
    clear = np.dstack([base, np.linspace(0, 255, base[..., 0].size).reshape(grey.shape).astype(np.uint8)])
    quantised = Image.fromarray(base).quantize(64)
    indexed, bilevel = np.asarray(quantised.convert("RGB")), np.where(grey > 90, 255, 0).astype(np.uint8)
    Image.fromarray(base).save(folder / "colour.png")
    Image.fromarray(base).save(folder / "UPPER.PNG")
    Image.fromarray(base).save(folder / "photo.jpg", quality=100, subsampling=0)
    Image.fromarray(base).convert("CMYK").save(folder / "cmyk.tif")
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(clear).save(folder / "clear.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.png")
    Image.merge("LA", [Image.fromarray(grey), Image.fromarray(clear[..., 3])]).save(folder / "grey_clear.png")
    Image.fromarray(bilevel).convert("1", dither=Image.Dither.NONE).save(folder / "bilevel.png")
    quantised.save(folder / "palette.png", transparency=0)
    quantised.save(folder / "moving.gif", save_all=True, append_images=[quantised.rotate(180)])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise when shown
    Image.fromarray(np.ascontiguousarray(np.rot90(base))).save(
        folder / "turned.jpg", exif=exif, quality=100, subsampling=0
    )
    colours = ("colour.png", "clear.png", "turned.jpg", "cmyk.tif", "photo.jpg", "UPPER.PNG")
    expected = {**dict.fromkeys(colours, base), **dict.fromkeys(("grey.png", "deep.png", "grey_clear.png"), both)}
    expected |= {"palette.png": indexed, "moving.gif": indexed, "bilevel.png": np.repeat(bilevel[..., None], 3, 2)}
    return expected


def corrupt_images(folder: Path) -> list[str]:
    """Files that no decoder reads: one cut off, one of noise, one empty, one that is text."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = io.BytesIO()
    Image.fromarray(pictures(1, 1, 24)[0][0]).save(whole, "JPEG")
    noise = np.random.default_rng(0).integers(0, 256, 500, np.uint8).tobytes()
    contents = {
        "z_cut.jpg": whole.getvalue()[:400],
        "z_noise.png": noise,
        "z_empty.jpg": b"",
        "z_text.jpg": b"not found",
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return sorted(contents)


def _python2_pickle(content: dict) -> bytes:
    """Pickle as Python 2 did: protocol 2, which names numpy's old modules."""
    return pickle.dumps(content, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def lines_of_text(n: int, seed: int = 0) -> str:
    """Lines of made-up words, some of them not in ASCII."""
    rng = np.random.default_rng(seed)
    words = ["the", "cat", "saw", "don't", "naïve", "Größe", "3", "1999", "日本", "🙂", "(so)", "a_b", "=="]
    words += ["".join(rng.choice([*"bdfgklmn"], 3)) + "aeiou"[i % 5] + "st"[i % 2] for i in range(150)]
    usual = 1 / (1 + np.arange(len(words)))  # a few words are frequent, most are rare
    drawn = (rng.choice(words, rng.integers(1, 9), p=usual / usual.sum()) for _ in range(n))
    return "".join(" ".join(line) + "\n" for line in drawn)


def text_files(root: Path, n: int = 3, lines: int = 60) -> Path:
    """A folder of plain texts, one of them in a folder of its own, beside a file that is no text."""
    (root / "more").mkdir(parents=True, exist_ok=True)
    for i in range(n):
        path = root / ("more/last.md" if i == n - 1 else f"{i}.txt")
        path.write_text(lines_of_text(lines, i), encoding="utf-8", newline="")
    (root / "picture.png").write_bytes(b"\x89PNG\0")
    return root


def json_lines(path: Path, texts: Sequence[str], field: str = "text") -> Path:
    """A text a line, in an object with other fields."""
    rows = [json.dumps({"id": i, field: text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(texts)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def gpt2_tokenizer(folder: Path, texts: Sequence[str], vocab_size: int = 400) -> Path:
    """A folder with a byte-level ``tokenizer.json`` and what says which of its tokens is special, as GPT-2 comes."""
    from tokenizers import ByteLevelBPETokenizer

    own = ByteLevelBPETokenizer()
    own.train_from_iterator(texts, vocab_size, show_progress=False)
    own.add_special_tokens(["<|endoftext|>"])
    folder.mkdir(parents=True, exist_ok=True)
    own.enable_truncation(16)  # as some published files have it
    own.save(str(folder / "tokenizer.json"))
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1024, **names}))
    return folder


def llama_tokenizer(folder: Path, texts: Sequence[str], vocab_size: int = 400) -> Path:
    """A folder with a ``tokenizer.model`` of sentencepiece: pairs, bytes for what is unknown, as LLaMA 2 comes."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=vocab_size,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    return folder


def conll(folder: Path, sentences: Sequence[tuple[Sequence[str], Sequence[str]]], name: str = "train.txt") -> Path:
    """A file as CoNLL-2003 comes: word, part of speech, chunk, tag; a line that begins a document; empty lines."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["-DOCSTART- -X- O O", ""]
    for words, tags in sentences:
        rows += [f"{word} NN B-NP {tag}" for word, tag in zip(words, tags, strict=True)] + [""]
    (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / name


def reviews(path: Path, texts: Sequence[str], labels: Sequence[str]) -> Path:
    """A CSV of two columns, texts in quotes."""
    rows = [f'"{text}",{label}' for text, label in zip(texts, labels, strict=True)]
    path.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return path


def bert_folder(
    folder: Path, texts: Sequence[str], family: str = "Bert", head: str = "Model", **config: object
) -> Path:
    """A model directory as transformers writes it, tiny and with random weights, and its tokenizer."""
    import torch
    import transformers
    from tokenizers import BertWordPieceTokenizer
    from tokenizers.processors import BertProcessing

    words = BertWordPieceTokenizer()
    words.train_from_iterator(texts, vocab_size=400, show_progress=False)
    words.post_processor = BertProcessing(*((name, words.token_to_id(name)) for name in ("[SEP]", "[CLS]")))
    words.save(str(folder.parent / "words.json"))
    names = {
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder.parent / "words.json"), **names)
    (folder.parent / "words.json").unlink()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if family == "DistilBert":
        sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    torch.manual_seed(0)
    given = {
        "vocab_size": len(fast),
        "max_position_embeddings": 64,
        "pad_token_id": fast.pad_token_id,
        **sizes,
        **config,
    }
    model = getattr(transformers, family + head)(getattr(transformers, f"{family}Config")(**given))
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
