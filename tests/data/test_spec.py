"""What datasets tell models, and new samples for prediction."""

import lightning as L
import pytest
import torch

from tests import fake_data
from zoo.data import BatchTensorDataset, DataModule, Digits, ImageFolder, Latents, Quadrants, Tabular
from zoo.data.base import spec_of, split_indices
from zoo.data.spec import DataSpec


class Own(L.LightningDataModule):
    """A user's data, which knows nothing of zoo."""

    num_classes = 10

    @property
    def class_names(self):
        raise RuntimeError("call setup first")

    @property
    def input_dim(self):
        return 7


def test_attributes_of_any_datamodule_are_its_spec():
    spec = spec_of(Own(), ["num_classes", "input_dim", "vocab_size"])
    assert spec == DataSpec(num_classes=10, input_dim=7), "what is not asked for is not read"
    assert spec.known() == {"num_classes": 10, "input_dim": 7}
    assert spec_of(None) == DataSpec()
    with pytest.raises(RuntimeError, match="call setup first"):
        spec_of(Own())


def test_specs_are_complete():
    assert Quadrants().spec().known().keys() == {"num_classes", "input_dim", "class_names"}
    digits = DataSpec(num_classes=10, class_names=list("0123456789"), input_dim=64, in_channels=1, image_size=8)
    assert spec_of(Digits()) == digits
    assert spec_of(Latents(Digits())) == digits, "that of its images"
    iris = Tabular(name="iris").spec()
    assert iris.known().keys() == {"num_classes", "class_names", "task", "input_dim"}
    with pytest.raises(AttributeError):
        iris.num_classes = 4


def test_the_model_is_told_what_a_users_data_know(zoo, here):
    (here / "own.py").write_text(
        "import lightning as L, torch\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "class Points(L.LightningDataModule):\n"
        "    num_classes, input_dim = 3, 2\n"
        "    def train_dataloader(self):\n"
        "        return DataLoader(TensorDataset(torch.randn(32, 2), torch.arange(32) % 3), 8)\n"
    )
    fit = ["fit", "--allow-import", "own", "--data", "own.Points", "--model", "MLPClassifier", "--trainer.max_steps", 1]
    code, _, err = zoo(*fit, "--run_dir", "r")
    assert code == 0, err
    saved = torch.load("r/checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]
    assert (saved["num_classes"], saved["input_dim"]) == (3, 2)
    code, _, err = zoo(*fit, "--model.num_classes", 4)
    assert (code, err) == (2, "zoo: error: --model.num_classes is 4, but Points has num_classes 3\n")


class Numbers(DataModule):
    """Numbers, and new ones where there are any."""

    def __init__(self, new: int = 0) -> None:
        super().__init__()
        self.new = new
        self.read: list[str] = []

    def splits(self):
        self.read.append("splits")
        return {split: BatchTensorDataset(torch.arange(8)) for split in ("train", "val", "test")}

    def predict_dataset(self):
        if self.new == 0:
            return None
        self.read.append("new")
        return BatchTensorDataset(torch.arange(100, 100 + self.new))

    def fitted_hparams(self):
        return {"largest": 7}


def test_new_samples_are_predicted_without_the_training_data():
    data = Numbers(new=3)
    data.setup("predict")
    assert [batch[0].tolist() for batch in data.predict_dataloader()] == [[100, 101, 102]]
    assert (data.read, data.predict_split) == (["new"], "predict")
    data.setup("fit")
    assert data.read == ["new", "splits"]
    assert data.hparams["largest"] == 7
    assert list(data.datasets) == ["train", "val", "test", "predict"]
    plain = Numbers()
    plain.setup("predict")
    assert (plain.read, plain.predict_split) == (["splits"], "test")
    assert [batch[0].tolist() for batch in plain.predict_dataloader()] == [list(range(8))]


def test_splits_of_nothing_are_empty(tmp_path):
    assert [len(part) for part in split_indices(0, [0.5, 0.5], 0, torch.empty(0, dtype=torch.long))] == [0, 0]
    for label in ("ant", "bee"):
        fake_data.corrupt_images(tmp_path / label)
    with pytest.raises(ValueError, match="no image of class 'ant' can be read or is left for training"):
        _ = ImageFolder(str(tmp_path), image_size=8).datasets
