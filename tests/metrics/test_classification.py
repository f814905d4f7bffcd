"""F1 and AUROC of the classes that have them, compared with scikit-learn."""

import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch import nn

from zoo.metrics.accumulation import defined
from zoo.metrics.classification import MacroAUROC, MacroF1, auroc
from zoo.tasks import Classifier


def computed(metric, probabilities, target) -> float:
    for rows in torch.arange(len(target)).split(7):
        metric.update(probabilities[rows], target[rows])
    return float(metric.compute())


@pytest.fixture
def sample() -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of 4 classes with ties, and labels of three of them: class 2 does not occur."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 4, generator=generator).mul(2).round()
    labels = torch.randint(0, 3, (60,), generator=generator)
    labels[labels == 2] = 3
    return logits.softmax(1), labels


def test_auroc_leaves_out_a_class_that_does_not_occur(sample):
    probabilities, labels = sample
    areas = [roc_auc_score(labels == i, probabilities[:, i]) for i in (0, 1, 3)]
    assert computed(MacroAUROC(), probabilities, labels) == pytest.approx(sum(areas) / 3, abs=1e-6)
    perfect = torch.eye(4)[labels]
    assert computed(MacroAUROC(), perfect, labels) == 1.0


def test_auroc_of_two_classes_is_that_of_either(sample):
    probabilities, labels = sample
    second = probabilities[:, 1].mul(64).round() / 64  # so that 1 - p is exact
    both = torch.stack([1 - second, second], 1)
    target = (labels > 0).long()
    expected = pytest.approx(roc_auc_score(target, both[:, 1]), abs=1e-6)
    assert computed(MacroAUROC(), both[:, 1], target) == expected
    assert computed(MacroAUROC(), both, target) == expected


def test_auroc_that_nothing_defines():
    one_class = torch.zeros(5, dtype=torch.long)
    for probabilities in (torch.rand(5), torch.rand(5, 3)):
        metric = MacroAUROC()
        metric.update(probabilities, one_class)
        assert metric.compute().isnan()
        assert defined({"auroc": metric.compute()}) == {}
    assert auroc(torch.tensor([0.1, torch.nan]), torch.tensor([True, False])).isnan()


def test_f1_is_macro_for_two_classes_as_for_three(sample):
    probabilities, labels = sample
    expected = f1_score(labels, probabilities.argmax(1), average="macro")
    assert computed(MacroF1(4), probabilities, labels) == pytest.approx(expected, abs=1e-6)
    target = (labels > 0).long()
    chosen = (probabilities[:, 1] > 0.5).long()
    expected = pytest.approx(f1_score(target, chosen, average="macro"), abs=1e-6)
    assert computed(MacroF1(2), probabilities[:, 1], target) == expected
    two_columns = torch.stack([1 - probabilities[:, 1], probabilities[:, 1]], 1)
    assert computed(MacroF1(2), two_columns, target) == expected
    padded = torch.cat([two_columns, torch.zeros(60, 1)], 1)
    assert computed(MacroF1(3), padded, target) == expected, "a class that does not occur changes nothing"


def test_labels_without_a_positive_are_left_out():
    probabilities = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1], [0.3, 0.2, 0.4]])
    target = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 0]])
    # The third label neither occurs nor is predicted; the first has F1 2/3, the second 1.
    assert computed(MacroF1(3), probabilities, target) == pytest.approx(5 / 6)
    assert computed(MacroAUROC(), probabilities, target) == 1.0
    assert torch.isnan(torch.tensor(computed(MacroF1(1), torch.zeros(3, 1), torch.zeros(3, 1))))


def logged(module: Classifier, batches) -> dict[str, float]:
    """Metrics of a validation over batches, without a trainer."""
    for batch in batches:
        module.log_mean("val", module.num_items(batch), loss=module.step(batch, "val"))
    means = module._running_means["val"]
    values = {name: float(means.sums[name] / means.counts[name]) for name in means.sums}
    return values | {name: float(value) for name, value in module.compute_metrics("val").items()}


def test_top5_is_not_the_accuracy_after_a_perfect_batch():
    """torchmetrics merges metrics whose states are equal in the first batch, for good."""
    logits = torch.eye(6) * 3
    labels = torch.arange(6)
    values = logged(Classifier(nn.Identity(), num_classes=6), [(logits, labels), (logits, labels.roll(1))])
    assert values["accuracy"] == 0.5
    assert values["top5"] > 0.9


def test_samples_without_a_label_count_for_nothing():
    logits = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 6
    some = labels.clone()
    some[::3] = -100
    kept = some >= 0
    batches = [(logits[:9], some[:9]), (logits[9:], some[9:]), (logits[:1], some[:1])]
    expected = logged(Classifier(nn.Identity(), num_classes=6), [(logits[kept], labels[kept])])
    assert logged(Classifier(nn.Identity(), num_classes=6), batches) == pytest.approx(expected, abs=1e-6)
