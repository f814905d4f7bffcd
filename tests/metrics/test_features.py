"""Features of images by a classifier of zoo's, or by Inception; what is wrong with files and images."""

import importlib.util
import sys

import pytest
import torch
from torch import nn

from tests.conftest import ROOT
from zoo.checkpoints import Checkpoint
from zoo.cli import main
from zoo.data import Digits
from zoo.metrics import ClassifierFeatures, InceptionFeatures

SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "6", "--trainer.limit_val_batches", "1"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Checkpoints of a classifier of digits with averaged weights, and of a regression."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    more = ["--model.stages", "[[8],[16]]", "--ema.decay", "0.5"]
    for name, options in (("small_cnn_digits", more), ("mlp_diabetes", [])):
        run = str(folder / name)
        assert main(["fit", "-c", str(ROOT / f"configs/{name}.yaml"), "--run_dir", run, *SHORT, *options]) == 0
        found[name] = f"{run}/checkpoints/last.ckpt"
    return found


def test_classifier_features_normalize_images_as_in_training(checkpoints):
    data = Digits()
    pixels = data._parts["val"][0] / 16
    before = torch.get_rng_state()
    features = ClassifierFeatures.load(checkpoints["small_cnn_digits"])
    assert torch.equal(torch.get_rng_state(), before)
    found, logits = features.train()(pixels)
    model = Checkpoint(checkpoints["small_cnn_digits"]).build()
    x, _ = data.datasets["val"].batch(torch.arange(len(pixels)))
    with torch.no_grad():
        assert torch.allclose(logits, model(x), atol=1e-4), "averages, in eval mode"
        hidden = model.net.classifier[:-1](model.net.features(x))
    assert torch.allclose(found, hidden, atol=1e-4)
    assert features.class_names == data.class_names
    assert not any(p.requires_grad for p in features.parameters())


def test_normalization_given_by_the_user(tmp_path):
    config = str(ROOT / "configs/small_cnn_digits.yaml")
    given = ["--data.mean", "[0.25]", "--data.std", "[0.75]", "--model.stages", "[[8],[16]]"]
    assert main(["fit", "-c", config, "--run_dir", str(tmp_path / "run"), *SHORT, *given]) == 0
    features = ClassifierFeatures.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert (features.mean.item(), features.std.item()) == (0.25, 0.75)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((2, 1, 16, 16), "takes images of 8 x 8 pixels and 1 channel, got 16 x 16 pixels and 1 channel"),
        ((2, 3, 8, 8), "takes images of 8 x 8 pixels and 1 channel, got 8 x 8 pixels and 3 channels"),
    ],
)
def test_images_of_another_shape_raise_an_error(images, message, checkpoints):
    with pytest.raises(ValueError, match=message):
        ClassifierFeatures.load(checkpoints["small_cnn_digits"])(torch.rand(images))


def test_files_without_a_classifier_raise_an_error(checkpoints, tmp_path):
    with pytest.raises(ValueError, match="it holds a MLPRegressor, which is not a multi-class classifier"):
        ClassifierFeatures.load(checkpoints["mlp_diabetes"])
    with pytest.raises(ValueError, match=r"no classifier nowhere.ckpt: a checkpoint"):
        ClassifierFeatures.load("nowhere.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"x.ckpt is not a checkpoint of a zoo classifier") as error:
        ClassifierFeatures.load(tmp_path / "x.ckpt")
    assert len(str(error.value).splitlines()) == 1


def test_a_classifier_without_a_linear_layer():
    net = nn.Sequential(nn.Conv2d(1, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="has no linear layer at its end"):
        ClassifierFeatures(net, [0.5], [0.5])(torch.rand(2, 1, 8, 8))


def test_missing_or_wrong_inception_weights_raise_an_error(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no weights of Inception nowhere.pth: FID needs pt_inception"):
        InceptionFeatures("nowhere.pth")
    path = tmp_path / "x.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ValueError, match="torch-fidelity, which is missing: pip install torch-fidelity"):
            InceptionFeatures(path)
    path.write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: sys)
    with pytest.raises(ValueError, match=r"x.pth does not hold the weights of FID's Inception"):
        InceptionFeatures(path)


if importlib.util.find_spec("torch_fidelity"):

    @pytest.mark.slow
    def test_fid_is_that_of_torchmetrics(tmp_path, monkeypatch):
        """With Inception's own file this is the FID; here its weights are drawn."""
        from torch_fidelity import feature_extractor_inceptionv3 as source
        from torchmetrics.image.fid import FrechetInceptionDistance

        from zoo.metrics import FrechetDistance

        torch.manual_seed(0)
        with monkeypatch.context() as patch:
            patch.setattr(source, "load_state_dict_from_url", lambda *_, **__: {})
            patch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
            net = source.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        torch.save(net.state_dict(), tmp_path / "inception.pth")
        g = torch.Generator().manual_seed(1)
        real, generated = (torch.rand(6, 1, 8, 8, generator=g) ** power for power in (1, 2))
        features, ours = InceptionFeatures(tmp_path / "inception.pth"), FrechetDistance(2048)
        theirs = FrechetInceptionDistance(feature_extractor_weights_path=str(tmp_path / "inception.pth"))
        for images, is_real in ((real, True), (generated, False)):
            found, logits = features(images)
            assert logits is None
            ours.update(found, is_real)
            theirs.update((images * 255).round().byte().expand(-1, 3, -1, -1), is_real)
        assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-4)
        assert float(ours.compute()) > 0
        with pytest.raises(ValueError, match="FID is for images of 1 or 3 channels, and these have 2"):
            features(torch.rand(1, 2, 8, 8))
