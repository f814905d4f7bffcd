"""`zoo show-data`, and augmentation through the command line: in YAML, after a resume, in a diagnosis."""

from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from tests import fake_data
from zoo.cli.data_report import data_report, titles

AUGMENT = [
    "AlternatingFlip",
    {"class_path": "RandomCrop", "init_args": {"size": 8, "padding": 1}},
    {"class_path": "ColorJitter", "init_args": {"brightness": 0.3}},
    "RandAugment",
    {"class_path": "torchvision.transforms.v2.RandomVerticalFlip", "init_args": {"p": 0.1}},
    "RandomErasing",
    "MixUp",
]


def write(path: str, augment: list, **data) -> str:
    config = {
        "model": {"class_path": "SmallCNNClassifier", "init_args": {"stages": [[4]], "lr": 1e-3}},
        "data": {"class_path": "Digits", "init_args": {"augment": augment, **data}},
        "trainer": {"max_epochs": -1},
    }
    Path(path).write_text(yaml.safe_dump(config))
    return path


def test_classes_statistics_and_a_picture(zoo, tmp_path):
    root = fake_data.image_folder(tmp_path / "photos", ("ant", "bee"), n=20)
    Path("own.yaml").write_text(
        "model: SmallCNNClassifier\ndata:\n  class_path: ImageFolder\n"
        f"  init_args: {{root: {root}, augment: [RandomHorizontalFlip, CutMix], val_split: 0.2, test_split: 0.2}}\n"
    )
    code, out, err = zoo("show-data", "-c", "own.yaml")
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines() if line]
    assert lines[0] == "ImageFolder: 24 train, 8 val, 8 test, 2 classes"
    assert lines[1:4] == ["class train val test % of train", "ant 12 4 4 50.0%", "bee 12 4 4 50.0%"]
    assert lines[4].startswith("inputs: 3 x 24 x 24, uint8, from ")
    assert lines[5].startswith("mean of each channel 0.")
    assert lines[6:] == [
        "augmentation: RandomHorizontalFlip(), CutMix()",
        "the network gets 3 x 24 x 24",
        "plot: runs/own/data.png",
    ]
    assert Image.open("runs/own/data.png").size[0] > 500
    code, out, _ = zoo("show-data", "-c", "own.yaml", "--out", "mine.png")
    assert code == 0
    assert Path("mine.png").is_file()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-c", "configs/mlp_iris.yaml", "--out", "a.txt"], "the plot is a .png file, got --out a.txt"),
        (["-c", "configs/small_cnn_digits.yaml", "--out", "file/x.png"], "cannot write file/x.png: "),
        (["--model", "MLPClassifier", "--model.input_dim", "2", "--model.num_classes", "2"], "show-data needs data"),
    ],
)
def test_mistakes(zoo, args, message):
    Path("file").write_text("")
    code, out, err = zoo("show-data", *args)
    assert (code, out) == (2, "")
    assert err.startswith(f"zoo: error: {message}")
    assert err.count("\n") == 1


def test_tables_have_no_picture(zoo):
    code, out, err = zoo("show-data", "-c", "configs/mlp_iris.yaml")
    assert (code, err) == (0, "")
    assert "no plot: the inputs are not images" in out
    assert "setosa" in out
    assert not list(Path("runs").rglob("*.png"))
    code, out, _ = zoo("show-data", "-c", "configs/mlp_diabetes.yaml")
    assert code == 0
    assert "mean " in out


def test_data_of_others(tmp_path):
    class Other(L.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(TensorDataset(torch.randn(20, 3, 8, 8), torch.arange(20) % 2), 10)

    text = data_report(Other(), tmp_path / "a.png")
    assert text.startswith("Other: 20 train")
    assert (tmp_path / "a.png").is_file()


def test_titles_of_mixed_labels():
    names = ["ant", "bee", "cat"]
    assert titles(torch.tensor([2, 0]), names) == ["cat", "ant"]
    mixed = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0]])
    assert titles(mixed, names) == ["70% ant\n30% bee", "bee"]


@pytest.mark.slow
def test_augmentation_in_yaml_goes_on_after_a_resume_as_if_nothing_had_happened(zoo, here):
    from zoo.cli.resume_check import difference

    config = write("augmented.yaml", AUGMENT)
    # an epoch has 20 batches: the resume is in the midst of the second
    assert zoo("fit", "-c", config, "--trainer.max_steps", 26, "--run_dir", "a")[0] == 0
    assert zoo("fit", "--resume", "a", "--trainer.max_steps", 44)[0] == 0
    assert zoo("fit", "-c", config, "--trainer.max_steps", 44, "--run_dir", "b", "--data.num_workers", 1)[0] == 0
    weights = [torch.load(here / run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in "ab"]
    assert difference(*weights) is None
    assert zoo("fit", "-c", config, "--trainer.max_steps", 44, "--run_dir", "c", "--seed_everything", 1)[0] == 0
    other = torch.load(here / "c" / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert difference(weights[0], other) is not None
    code, _, err = zoo("test", "--ckpt_path", "b/checkpoints/last.ckpt", "--plots", "false")
    assert (code, err) == (0, ""), "the data, with its augmentation, is found in the checkpoint"


@pytest.mark.slow
def test_diagnose_on_augmented_data(zoo):
    config = write("augmented.yaml", AUGMENT[:3], batch_size=32)
    code, out, err = zoo("diagnose", "-c", config, "--trainer.max_epochs", 2)
    assert err == ""
    assert "the check failed" not in out
    assert code == 0, out


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (["RandomFlip"], "data.augment: unknown class 'RandomFlip'; did you mean RandomVerticalFlip"),
        ([{"class_path": "RandomCrop", "init_args": {"sise": 8}}], "did you mean size?"),
        ([{"class_path": "RandomCrop", "init_args": {"size": 30}}], "images of 8x8 with padding=0 are below size=30"),
        (["MixUp", {"class_path": "ColorJitter", "init_args": {"hue": 2}}], "ColorJitter: hue is 2.0, but must be"),
    ],
)
def test_mistakes_in_augmentation(zoo, augment, message):
    code, _, err = zoo("fit", "-c", write("wrong.yaml", augment), "--trainer.max_steps", 1)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_mixing_labels_for_a_loss_that_takes_none(zoo):
    config = write("mixed.yaml", ["MixUp"])
    code, _, err = zoo("fit", "-c", config, "--model.loss", "FocalLoss", "--trainer.max_steps", 1)
    assert code == 2
    assert err.startswith("zoo: error: FocalLoss takes no probabilities as targets, such as those of MixUp")
    assert not Path("runs").exists()
