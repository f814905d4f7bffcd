"""Images with texts: of class names, of files as Hugging Face's imagefolder has them; images alone; new images."""

import csv
import json
import shutil
from pathlib import Path

import lightning as L
import pytest
import torch
from PIL import Image
from torch import nn

from tests import fake_data
from zoo.data import Digits, ImageFolder, Latents, Letters
from zoo.data.augment import MixUp
from zoo.data.images import image_files


def captioned(root: Path, n: int = 12, splits=("",), side: int = 16, name: str = "metadata.jsonl") -> Path:
    """Pictures of no class with a text each, which tells the number of the file."""
    for split in splits:
        images, _ = fake_data.pictures(n, 3, side, seed=len(split))
        folder = root / split
        (folder / "more").mkdir(parents=True)
        files = [f"more/{i:04}.png" if i % 4 == 3 else f"{i:04}.png" for i in range(n)]
        for image, file in zip(images, files, strict=True):
            Image.fromarray(image).save(folder / file)
        rows = [{"file_name": f, "text": f"picture {split}{i}, {'bright' * (i % 2)}."} for i, f in enumerate(files)]
        write(folder / name, rows[::-1])
    return root


def write(path: Path, rows: list[dict]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)


def told(data, split: str = "train") -> dict[bytes, str]:
    """Texts by the bytes of their images, from whole batches."""
    part = data.datasets[split]
    images, texts = part.batch(torch.arange(len(part)))
    assert isinstance(texts, list)
    singles = [part[i] for i in range(len(part))]
    assert [text for _, text in singles] == texts
    assert all(torch.equal(single[0], image) for single, image in zip(singles, images, strict=True))
    return {image.numpy().tobytes(): text for image, text in zip(images, texts, strict=True)}


def expected(root: Path, texts: dict[str, str]) -> dict[bytes, str]:
    return {image_files.decode(root / file, 3).tobytes(): text for file, text in texts.items()}


# A file of texts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["memory", "disk", "stream"])
@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_each_image_has_its_own_text(tmp_path, cache, name):
    root = captioned(tmp_path / "p", name=name)
    fake_data.corrupt_images(tmp_path / "bad")
    shutil.copy(tmp_path / "bad" / "z_text.jpg", root / "0004x.jpg")  # between the others: rows are not file numbers
    rows = [json.loads(line) for line in lines(captioned(tmp_path / "q") / "metadata.jsonl")]
    texts = {row["file_name"]: row["text"] for row in rows}
    write(root / name, [{"file_name": f, "text": t, "id": 1} for f, t in {**texts, "0004x.jpg": "none"}.items()])
    data = ImageFolder(str(root), captions=name, cache=cache, cache_dir=str(tmp_path / "c"), eval_batch_size=100)
    assert (data.class_names, data.num_classes, data.image_size) == (None, None, 16)
    if cache == "stream":  # where one is left out while it is read
        x, said = data.datasets["train"].batch(torch.arange(len(data.datasets["train"])))
        found = {image.numpy().tobytes(): text for image, text in zip(x, said, strict=True)}
        for split in ("val", "test"):
            found |= {x.numpy().tobytes(): text for x, text in filter(None, data.datasets[split])}
    else:
        found = told(data) | told(data, "val") | told(data, "test")
    assert found == expected(root, texts)
    sizes = [10, 2, 1] if cache == "stream" else [10, 1, 1]
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == sizes


def test_folders_of_splits_each_with_their_file_or_one_for_all(tmp_path):
    root = captioned(tmp_path / "p", splits=("train", "val"))
    own = ImageFolder(str(root), captions="metadata.jsonl")
    assert {text.split(",")[0] for text in told(own, "val").values()} == {f"picture val{i}" for i in range(12)}
    rows = []
    for split in ("train", "val"):
        place = root / split / "metadata.jsonl"
        lines = [json.loads(line) for line in place.read_text().splitlines()]
        rows += [{"file_name": f"{split}/{row['file_name']}", "text": row["text"]} for row in lines]
        place.unlink()
    write(root / "all.csv", rows)
    one = ImageFolder(str(root), captions="all.csv")
    assert all(told(own, split) == told(one, split) for split in ("train", "val"))


def test_batches_of_workers_and_augmentation_keep_texts_beside_their_images(tmp_path):
    root = captioned(tmp_path / "p", n=40)
    data = ImageFolder(str(root), captions="metadata.jsonl", num_workers=2, batch_size=7, cache="stream",
                       val_split=0, test_split=0, mean=[0.5], std=[0.5], channels=1)  # fmt: skip
    bright = {text: image.float().mean() for image, text in iter_of(data.datasets["train"])}
    seen = [(x, text) for batch in data.train_dataloader() for x, text in zip(*batch, strict=True)]
    assert sorted(text for _, text in seen) == sorted(bright)
    assert all(x.float().mean() == bright[text] for x, text in seen)
    flipped = ImageFolder(str(root), captions="metadata.jsonl", augment=["x"][:0], val_split=0, test_split=0)
    x, y = flipped.on_after_batch_transfer(flipped.datasets["train"].batch(torch.arange(4)), 0)
    assert (x.dtype, y) == (torch.float32, [t for _, t in iter_of(flipped.datasets["train"])][:4])


def iter_of(part):
    return [part[i] for i in range(len(part))]


# Texts of class names -------------------------------------------------------------------------------------------------


def test_class_names_become_texts(tmp_path):
    root = fake_data.image_folder(tmp_path / "p", ("golden_retriever", "cat"), suffix=".png")
    data, plain = ImageFolder(str(root), captions="a photo of a {}"), ImageFolder(str(root))
    assert (data.num_classes, data.class_names) == (2, ["cat", "golden_retriever"])
    x, y = plain.datasets["val"].batch(torch.arange(2))
    same, texts = data.datasets["val"].batch(torch.arange(2))
    assert torch.equal(x, same)
    assert texts == [["a photo of a cat", "a photo of a golden retriever"][i] for i in y.tolist()]
    assert torch.equal(data.datasets["train"].labels, plain.datasets["train"].labels)


@pytest.mark.parametrize("make", [Digits, lambda **k: Letters(n=370, **k)], ids=["Digits", "Letters"])
def test_any_images_with_class_names(make):
    data, plain = make(captions="the sign {}"), make()
    batch, (_, y) = next(iter(data.val_dataloader())), next(iter(plain.val_dataloader()))
    assert batch[1] == [f"the sign {plain.class_names[i]}" for i in y.tolist()]
    assert data.statistics == plain.statistics


# Images alone, and new ones -------------------------------------------------------------------------------------------


def test_images_alone(tmp_path):
    root = captioned(tmp_path / "p")
    data = ImageFolder(str(root), drop_labels=True, eval_batch_size=3)
    batch = next(iter(data.train_dataloader()))
    assert (batch.shape, batch.dtype) == ((10, 3, 16, 16), torch.uint8)
    assert (data.num_classes, data.class_names, data.texts) == (None, None, None)
    assert data.on_after_batch_transfer(batch, 0).dtype == torch.float32


class Brightness(L.LightningModule):
    """Says how bright each image is."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Identity()

    def predict_step(self, batch, batch_idx):
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        return {"bright": x.mean((1, 2, 3)).tolist()}


def predictions(zoo, *args) -> dict[str, float]:
    code, _, err = zoo("predict", "--out", "p.csv", *args)
    assert code == 0, err
    with open("p.csv", newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def test_predictions_of_new_images_name_their_files(zoo, here):
    """Also where the images that a model was trained on are gone: their scale is in the checkpoint."""
    fake_data.image_folder(here / "photos", n=20)
    new = captioned(here / "new", side=24)
    fit = ["fit", "--model", "ResNetClassifier", "--model.width", 8, "--data", "ImageFolder", "--data.root", "photos",
           "--trainer.max_steps", 2, "--trainer.limit_val_batches", 1, "--run_dir", "r"]  # fmt: skip
    assert zoo(*fit)[0] == 0
    trained = ["--ckpt_path", "r/checkpoints/last.ckpt"]
    tested = predictions(zoo, *trained)
    assert len(tested) == 6
    assert all(Path("photos", file).is_file() for file in tested)
    first = predictions(zoo, *trained, "--data.predict_folder", new)
    assert list(first) == sorted(f"more/{i:04}.png" if i % 4 == 3 else f"{i:04}.png" for i in range(12))
    assert len({row["probability"] for row in first.values()}) > 6
    (here / "photos").rename("elsewhere")
    assert predictions(zoo, *trained, "--data.predict_folder", new) == first
    forks = ["--trainer.strategy", "ddp_fork", "--trainer.devices", 2, "--trainer.accelerator", "cpu"]
    assert predictions(zoo, *trained, "--data.predict_folder", new, *forks).keys() == first.keys()
    code, _, err = zoo("fit", *fit[1:-2], "--data.predict_folder", new)
    assert (code, err) == (2, "zoo: error: ResNetClassifier needs num_classes: give it, or data that knows it\n")
    code, _, err = zoo("test", *trained)
    assert (code, err.startswith("zoo: error: photos does not exist: --data.root names a folder")) == (2, True)


def test_names_are_those_of_the_images_that_can_be_read(tmp_path, monkeypatch):
    root, trained = captioned(tmp_path / "p"), fake_data.image_folder(tmp_path / "t")
    (root / "0005.png").write_text("none")
    run = L.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    data = ImageFolder(str(trained), predict_folder=str(root), image_size=16, mean=[0.0], std=[1.0])
    monkeypatch.setattr(ImageFolder, "splits", lambda self: pytest.fail("the training images are not needed"))
    bright = [b for part in run.predict(Brightness(), data) or [] for b in part["bright"]]
    monkeypatch.undo()
    assert len(bright) == len(data.predict_names or []) == 11
    for value, name in zip(bright, data.predict_names or [], strict=True):
        pixels = torch.tensor(list(Image.open(root / name).getdata())).float().mean() / 255
        assert value == pytest.approx(float(pixels), abs=1e-5)
    stream = ImageFolder(str(trained), predict_folder=str(root), cache="stream", image_size=16)
    assert stream.predict_names is None, "one may be left out while it is read"
    data.trainer = None
    data.setup("fit")
    assert set(data.datasets) == {"train", "val", "test", "predict"}


# Mistakes -------------------------------------------------------------------------------------------------------------


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p: p.unlink(), "has no metadata.jsonl to read captions from"),
        (lambda p: p.write_text("\n".join([*lines(p)[:4], '{"file_name": 3'])), "metadata.jsonl, line 5 is not JSON"),
        (lambda p: p.write_text("\n".join([*lines(p)[:4], "[3]"])), r"line 5: an object \{...\} needed, got \[3\]"),
        (lambda p: p.write_text("\n".join(lines(p)[:9])), r"3 of 12 images have no caption, the first is 0000.png"),
        (lambda p: (p.parent / "0002.png").unlink(), "1 of 12 captions have no image, the first is for 0002.png"),
        (lambda p: p.write_text(p.read_text().replace('"text"', '"caption"')), "no field .text.; it has file_name, c"),
        (lambda p: p.write_text(p.read_text().replace("file_name", "image")), "no field 'file_name'; it has image, "),
        (lambda p: write(p, [{"file_name": "0000.png", "text": 3}]), "line 1: 'text' is 3, not a text"),
        (lambda p: write(p, [{"file_name": "0000.png", "text": ["a", 1]}]), "line 1: 'text' is 1, not a text"),
        (lambda p: write(p, [{"file_name": "0000.png", "text": []}]), "line 1: 'text' is an empty list, not a text"),
        (lambda p: p.write_bytes(b"\xff\xfe\x00"), "is not text in UTF-16"),
        (lambda p: p.write_text(""), "metadata.jsonl has no rows|is not JSON"),
        (lambda p: [q.unlink() for q in p.parent.rglob("*.png")], "holds no image"),
    ],
)  # fmt: skip
def test_mistakes_in_files_of_captions(tmp_path, spoil, said):
    root = captioned(tmp_path / "p")
    spoil(root / "metadata.jsonl")
    with pytest.raises(ValueError, match=said) as error:
        _ = ImageFolder(str(root), captions="metadata.jsonl").datasets
    assert "\n" not in str(error.value)
    assert str(root) in str(error.value)


def drawn(data: ImageFolder) -> list[list[str]]:
    """The texts of the training images in five epochs."""
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(5):
        loader.sampler.set_epoch(epoch)
        epochs.append(sorted(text for _, texts in loader for text in texts))
    return epochs


@pytest.mark.parametrize("kind", ["a list", "several lines", "metadata.csv"])
def test_one_of_several_texts_is_drawn_anew_in_each_epoch(tmp_path, kind):
    name = kind if kind.endswith(".csv") else "metadata.jsonl"
    root = captioned(tmp_path / "p", name=name)
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*.png"))
    rows = [{"file_name": file, "text": [f"{file} a", f"{file} b"]} for file in files]
    if kind != "a list":
        rows = [{"file_name": row["file_name"], "text": text} for row in rows for text in row["text"]]
    write(root / name, rows)
    data = ImageFolder(str(root), captions=name)
    epochs = drawn(data)
    assert all([text[:-2] for text in epoch] == [text[:-2] for text in epochs[0]] for epoch in epochs)
    assert {text[-1] for epoch in epochs for text in epoch} == {"a", "b"}
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert drawn(ImageFolder(str(root), captions=name)) == epochs, "the same for the same seed"
    for split in ("val", "test"):
        assert {text[-1] for text in told(data, split).values()} == {"a"}
    latents = Latents(ImageFolder(str(root), captions=name))
    _ = latents.datasets
    assert {text[-1] for text in told(latents.data).values()} == {"a"}, "which are stored"


def test_names_as_other_systems_write_them(tmp_path):
    """Backslashes of Windows, and letters with accents in two parts, as macOS names files."""
    root = captioned(tmp_path / "p")
    (root / "0000.png").rename(root / "caf\u00e9.png")
    rows = [json.loads(line) for line in lines(root / "metadata.jsonl")]
    for row in rows:
        row["file_name"] = row["file_name"].replace("0000", "cafe\u0301").replace("/", "\\")
    write(root / "metadata.jsonl", rows)
    data = ImageFolder(str(root), captions="metadata.jsonl", val_split=0, test_split=0)
    assert len(told(data)) == 12


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_captions_in_another_encoding(tmp_path, name):
    root = captioned(tmp_path / "p", name=name)
    text = (root / name).read_text().replace("picture", "caf\u00e9")
    (root / name).write_bytes(text.encode("cp1252"))
    with pytest.raises(ValueError, match=f"{name} is not text in UTF-8"):
        _ = ImageFolder(str(root), captions=name).texts
    texts = ImageFolder(str(root), captions=name, encoding="cp1252").texts
    assert all(text.startswith("caf\u00e9") for text in texts)


def test_an_empty_caption_is_allowed_and_other_columns_can_be_named(tmp_path):
    root = captioned(tmp_path / "p")
    place = root / "metadata.jsonl"
    rows = [json.loads(line) | {"text": None, "prompt": ""} for line in lines(place)]
    write(place, rows)
    data = ImageFolder(str(root), captions="metadata.jsonl", caption_column="prompt")
    assert set(told(data).values()) == {""}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Digits(captions="metadata.jsonl"), "must be a text with {} for the class name, such as"),
        (lambda: ImageFolder("x", captions="a cat"), "or the name of a file beside the images .*.jsonl"),
        (lambda: Digits(captions="{}", augment=[MixUp()]), "MixUp mixes labels, which captions replace by texts"),
        (lambda: ImageFolder("x", captions="{}", drop_labels=True), "give one of the two"),
        (lambda: ImageFolder("x", drop_labels=True).datasets, "x does not exist: --data.root names a folder of images"),
        (lambda: ImageFolder("x", predict_folder="y").datasets, "x does not exist: --data.root names a folder"),
    ],
)
def test_mistakes_in_options(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_classifier_is_told_that_it_needs_classes(zoo, here):
    code, _, err = zoo("fit", "-c", "configs/mlp_digits.yaml", "--data.captions", "a {}")
    assert code == 2
    assert err == "zoo: error: captions replace the class labels that MLPClassifier needs: drop captions\n"


def test_cached_latents_keep_the_texts(tmp_path):
    """And pictures of the data show them."""
    from zoo.cli.data_report import data_report

    data = ImageFolder(str(captioned(tmp_path / "p")), captions="metadata.jsonl")
    assert Latents(data).spec().image_size == 16
    assert data_report(data, tmp_path / "a.png").startswith("ImageFolder: 10 train, 1 val, 1 test\n")
    alone = ImageFolder(str(tmp_path / "p"), drop_labels=True)
    assert "plot: " in data_report(alone, tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > (tmp_path / "b.png").stat().st_size
