"""Classifier on labels that MixUp and CutMix have mixed, and its average over an image and its mirror image."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoo.losses import FocalLoss
from zoo.models import MLP
from zoo.tasks import Classifier, Distiller

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3
SOFT = torch.rand(16, 3, generator=torch.Generator().manual_seed(1)).softmax(1)


def classifier(classes: int = 3, **kwargs) -> Classifier:
    torch.manual_seed(0)
    return Classifier(MLP(6, [8], classes), num_classes=classes, **kwargs)


def reported(module) -> dict[str, torch.Tensor]:
    seen = {}
    module.log_mean = lambda stage, n, **values: seen.update(values)
    return seen


def test_rows_of_0_and_1_are_the_classes():
    module = classifier(loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    hard = module.step((X, Y), "train")
    soft = module.step((X, F.one_hot(Y, 3).float()), "train")
    assert torch.allclose(hard, soft)


def test_loss_and_accuracy_of_mixed_labels():
    module = classifier(loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    seen = reported(module)
    loss = module.step((X, SOFT), "train")
    expected = -((0.9 * SOFT + 0.1 / 3) * module(X).log_softmax(1)).sum(1).mean()
    assert torch.allclose(loss, expected)
    right = (module(X).argmax(1) == SOFT.argmax(1)).float().mean()
    assert seen["accuracy"] == right
    assert 0 < right < 1


def test_mixed_labels_of_two_classes():
    module, soft = classifier(2, task="binary"), torch.stack([1 - SOFT[:, 0], SOFT[:, 0]], 1)
    seen = reported(module)
    loss = module.step((X, soft), "train")
    logits = module(X)
    assert torch.allclose(loss, F.binary_cross_entropy_with_logits(logits[:, 1] - logits[:, 0], soft[:, 1]))
    assert seen["accuracy"] == (logits.argmax(1) == soft.argmax(1)).float().mean()


def test_mixed_sets_of_labels():
    module, soft = classifier(task="multilabel"), torch.rand(16, 3)
    seen = reported(module)
    loss = module.step((X, soft), "train")
    assert torch.allclose(loss, F.binary_cross_entropy_with_logits(module(X), soft))
    assert seen["accuracy"] == ((module(X) > 0) == (soft > 0.5)).float().mean()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: classifier(loss=FocalLoss()), "FocalLoss"),
        (lambda: classifier(loss=nn.MultiMarginLoss()), "MultiMarginLoss"),
        (lambda: Distiller(MLP(6, [8], 3), MLP(6, [4], 3), num_classes=3), "DistillationLoss"),
    ],
)
def test_losses_that_take_no_probabilities_say_so(make, name):
    module = make()
    assert module.step((X, Y), "train").isfinite()
    with pytest.raises(ValueError, match=f"^{name} takes no probabilities as targets, such as those of MixUp") as error:
        module.step((X, SOFT), "train")
    assert "or set the loss to CrossEntropyLoss" in str(error.value)


def test_cross_entropy_of_a_binary_task_says_what_to_take():
    module = classifier(2, task="binary", loss=nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match=r"^CrossEntropyLoss takes no .* or set the loss to BCEWithLogitsLoss$"):
        module.step((X, SOFT[:, :2]), "train")


def test_an_image_and_its_mirror_image_count_alike_outside_of_training():
    x = torch.randn(5, 1, 4, 4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    module = Classifier(net, num_classes=3, test_time_flip=True).eval()
    assert torch.equal(module(x), (net(x) + net(x.flip(-1))) / 2)
    assert torch.allclose(module(x), module(x.flip(-1)), atol=1e-6)
    assert torch.equal(module.train()(x), net(x))
    assert not torch.equal(module(x), module.eval()(x))
    with pytest.raises(ValueError, match=r"test_time_flip is for images \(b, c, h, w\), got inputs \(16, 6\)"):
        classifier(test_time_flip=True).eval()(X)
