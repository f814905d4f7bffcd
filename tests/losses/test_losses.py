"""Losses against straightforward float64 formulas, their gradients, and their edges."""

import copy
import itertools
import math

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoo.cli import main
from zoo.data import Quadrants
from zoo.losses import BatchTripletLoss, ContrastiveLoss, DistillationLoss, FocalLoss, PinballLoss, RankingLoss
from zoo.losses.adapt import adapt_loss, loss_weight_sum
from zoo.models import MLPClassifier


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def check_gradient(loss, x, *rest):
    assert torch.autograd.gradcheck(lambda x: loss(x, *rest), x.clone().requires_grad_())


def gradient(loss, x, *rest):
    x = x.clone().requires_grad_()
    value = loss(x, *rest)
    value.backward()
    return value.item(), x.grad


# Classes


def focal_classes(logits, target, gamma, alpha):
    p = logits.softmax(1)[torch.arange(len(target)), target]
    return -(torch.tensor(alpha, dtype=p.dtype)[target] if alpha else 1.0) * (1 - p) ** gamma * p.log()


def focal_yes_or_no(logits, target, gamma, alpha):
    p = logits.sigmoid()
    miss = p * (1 - target) + (1 - p) * target
    weight = 1.0 if alpha is None else alpha * target + (1 - alpha) * (1 - target)
    return -weight * miss**gamma * (target * p.log() + (1 - target) * (1 - p).log())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("alpha", [None, [0.2, 1.0, 3.0]])
def test_focal_for_classes(gamma, alpha):
    logits, target = randn(8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 2, 2])
    reference = focal_classes(logits, target, gamma, alpha)
    close(FocalLoss(gamma, alpha)(logits, target), reference.mean())
    close(FocalLoss(gamma, alpha, reduction="sum")(logits, target), reference.sum())
    close(FocalLoss(gamma, alpha, reduction="none")(logits, target), reference)
    check_gradient(FocalLoss(gamma, alpha), logits, target)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_for_questions(gamma, alpha):
    logits = randn(4, 3)
    for target in ((logits > 0.3).double(), torch.rand(4, 3, dtype=torch.float64)):
        reference = focal_yes_or_no(logits, target, gamma, alpha)
        close(FocalLoss(gamma, alpha)(logits, target), reference.mean())
        close(FocalLoss(gamma, alpha, reduction="none")(logits[:, 0], target[:, 0]), reference[:, 0])
        check_gradient(FocalLoss(gamma, alpha), logits, target)


def test_focal_with_one_alpha_per_column():
    logits, target = randn(4, 2), torch.tensor([[0.0, 1.0]] * 4, dtype=torch.float64)
    columns = [FocalLoss(2.0, a)(logits[:, i], target[:, i]) for i, a in enumerate([0.1, 0.7])]
    close(FocalLoss(2.0, [0.1, 0.7])(logits, target), torch.stack(columns).mean())


def test_focal_at_gamma_zero_is_cross_entropy_also_for_images():
    logits, target = randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    target[0, 0] = -100
    close(FocalLoss(0.0)(logits, target), F.cross_entropy(logits, target))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("size", [30.0, 1e4])
def test_focal_stays_finite(gamma, size):
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([size, -size, 0.0], dtype=dtype)
        questions, slopes = gradient(FocalLoss(gamma, reduction="sum"), x, torch.tensor([0.0, 0.0, 1.0], dtype=dtype))
        assert questions == pytest.approx(size + 0.5**gamma * math.log(2), rel=1e-5)
        assert slopes[0] == pytest.approx(1, rel=1e-5)
        assert slopes[1] == pytest.approx(0, abs=1e-12)
        logits = torch.stack([x, -x], 1)
        classes, slopes = gradient(FocalLoss(gamma, reduction="sum"), logits, torch.tensor([1, 1, 0]))
        assert classes == pytest.approx(2 * size + 0.5**gamma * math.log(2), rel=1e-5)
        assert slopes.isfinite().all()


def test_focal_ignores():
    logits = randn(4, 3)
    close(FocalLoss()(logits, torch.tensor([0, -100, 2, -100])), FocalLoss()(logits[::2], torch.tensor([0, 2])))
    target = torch.tensor([[1.0, -100.0, 0.0]] * 4, dtype=torch.float64)
    close(FocalLoss(alpha=0.3)(logits, target), FocalLoss(alpha=0.3)(logits[:, ::2], target[:, ::2]))
    value, slopes = gradient(FocalLoss(), logits, torch.full((4,), -100))
    assert value == 0
    assert not slopes.any()


def test_focal_mistakes():
    with pytest.raises(ValueError, match="gamma is -1"):
        FocalLoss(-1)
    with pytest.raises(ValueError, match="reduction is 'max'"):
        FocalLoss(reduction="max")
    with pytest.raises(ValueError, match="binary targets have to be floats"):
        FocalLoss()(randn(4), torch.tensor([0, 1, 1, 0]))
    with pytest.raises(ValueError, match="alpha is 0"):
        FocalLoss(alpha=0.25)(randn(4, 3), torch.tensor([0, 1, 1, 0]))
    with pytest.raises(ValueError, match=r"alpha is \[1.0, 2.0\], but must be one number, or one for each column"):
        FocalLoss(alpha=[1.0, 2.0])(randn(4), torch.ones(4))
    with pytest.raises(ValueError, match=r"targets are \(4, 1\)"):
        FocalLoss()(randn(4), torch.ones(4, 1))


# Embeddings


def distance(a, b):
    return (a - b).square().sum().sqrt()


def contrastive(x, labels, margin):
    losses = []
    for i, j in itertools.combinations(range(len(x)), 2):
        d = distance(x[i], x[j])
        losses.append(0.5 * d**2 if labels[i] == labels[j] else 0.5 * max(0.0, margin - d) ** 2)
    return torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in losses]).mean()


def valid(labels):
    n = range(len(labels))
    return [(a, p, q) for a in n for p in n for q in n if a != p and labels[a] == labels[p] != labels[q]]


def triplet_all(x, labels, margin):
    pairs = [F.triplet_margin_loss(x[a], x[p], x[q], margin, eps=0) for a, p, q in valid(labels)]
    return torch.stack(pairs).mean()


def triplet_hard(x, labels, margin):
    losses = []
    for a in sorted({a for a, _, _ in valid(labels)}):
        far = max(distance(x[a], x[p]) for b, p, _ in valid(labels) if b == a)
        near = min(distance(x[a], x[q]) for b, _, q in valid(labels) if b == a)
        losses.append(F.relu(far - near + margin))
    return torch.stack(losses).mean()


def ranking(x, labels, margin):
    similar = F.cosine_similarity
    return torch.stack([
        F.margin_ranking_loss(similar(x[a], x[p], 0), similar(x[a], x[q], 0), torch.tensor(1.0), margin)
        for a, p, q in valid(labels)
    ]).mean()  # fmt: skip


LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3])  # class 2 and 3 have no second sample
EMBEDDING_LOSSES = {
    "contrastive": (ContrastiveLoss(1.5), lambda x, y: contrastive(x, y, 1.5)),
    "hard": (BatchTripletLoss(0.5), lambda x, y: triplet_hard(x, y, 0.5)),
    "all": (BatchTripletLoss(0.5, "all"), lambda x, y: triplet_all(x, y, 0.5)),
    "ranking": (RankingLoss(0.3), lambda x, y: ranking(x, y, 0.3)),
}


@pytest.mark.parametrize("case", EMBEDDING_LOSSES)
def test_embedding_losses(case):
    loss, reference = EMBEDDING_LOSSES[case]
    x = randn(7, 4)
    assert loss(x, LABELS) > 0
    close(loss(x, LABELS), reference(x, LABELS.tolist()))
    check_gradient(loss, x, LABELS)


@pytest.mark.parametrize("case", EMBEDDING_LOSSES)
@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [0]])
def test_batches_without_both_kinds_of_pairs(case, labels):
    value, slopes = gradient(EMBEDDING_LOSSES[case][0], 3 * randn(len(labels), 4), torch.tensor(labels))
    assert slopes.isfinite().all()
    if case != "contrastive":
        assert value == 0
        assert not slopes.any()


def test_contrastive_with_one_class_or_one_sample():
    x = randn(3, 4)
    close(ContrastiveLoss()(x, torch.zeros(3, dtype=torch.long)), F.pdist(x).square().mean() / 2)
    value, slopes = gradient(ContrastiveLoss(), x[:1], torch.zeros(1, dtype=torch.long))
    assert value == 0
    assert not slopes.any()


@pytest.mark.parametrize("case", EMBEDDING_LOSSES)
@pytest.mark.parametrize("point", [0.0, 1.0])
def test_embeddings_that_coincide_have_a_finite_gradient(case, point):
    value, slopes = gradient(EMBEDDING_LOSSES[case][0], torch.full((7, 4), point), LABELS)
    assert math.isfinite(value)
    assert slopes.isfinite().all()


@pytest.mark.parametrize("case", EMBEDDING_LOSSES)
def test_half_precision_is_computed_in_float32(case):
    x = randn(7, 4).bfloat16()
    loss = EMBEDDING_LOSSES[case][0]
    assert torch.equal(loss(x, LABELS), loss(x.float(), LABELS))


def test_embedding_mistakes():
    with pytest.raises(ValueError, match=r"must be \(b, d\) and \(b\)"):
        ContrastiveLoss()(randn(4, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="mining is 'soft'"):
        BatchTripletLoss(mining="soft")


# A teacher, quantiles


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_distillation(alpha):
    student, teacher, target = randn(5, 4), randn(5, 4, seed=1), torch.tensor([0, 3, 2, 1, 1])
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    kl = (p * (p / q).log()).sum(1).mean()
    reference = alpha * 9 * kl + (1 - alpha) * F.cross_entropy(student, target)
    loss = DistillationLoss(3.0, alpha)
    close(loss(student, teacher, target), reference)
    check_gradient(loss, student, teacher, target)
    if alpha == 1:
        close(loss(student, teacher), reference)


def test_distillation_of_tokens_ignores_padding_and_leaves_the_teacher_alone():
    student, teacher = randn(2, 3, 4), randn(2, 3, 4, seed=1).requires_grad_()
    target = torch.tensor([[0, 1, -100], [2, -100, -100]])
    keep = target >= 0
    loss = DistillationLoss()(student.requires_grad_(), teacher, target)
    close(loss, DistillationLoss()(student[keep], teacher[keep], target[keep]))
    loss.backward()
    assert teacher.grad is None
    assert not student.grad[~keep].any()


def test_distillation_mistakes():
    with pytest.raises(ValueError, match="temperature is 0"):
        DistillationLoss(0)
    with pytest.raises(ValueError, match="alpha is 2"):
        DistillationLoss(alpha=2)
    with pytest.raises(ValueError, match="there are none"):
        DistillationLoss()(randn(2, 3), randn(2, 3))


def test_pinball():
    prediction, target = randn(5, 2, 3), randn(5, 2, seed=1)
    quantiles = [0.1, 0.5, 0.8]
    terms = [
        q * (y - p) if y > p else (1 - q) * (p - y)
        for row, y in zip(prediction.view(-1, 3), target.view(-1), strict=True)
        for q, p in zip(quantiles, row, strict=True)
    ]
    close(PinballLoss(quantiles)(prediction, target), torch.stack(terms).mean())
    check_gradient(PinballLoss(quantiles), prediction, target)
    with pytest.raises(ValueError, match="predictions are"):
        PinballLoss(quantiles)(target, target)
    with pytest.raises(ValueError, match="numbers in"):
        PinballLoss([0.5, 1.0])


def test_pinball_is_least_at_the_quantile():
    sample = randn(2001)
    grid = torch.linspace(-2, 2, 401, dtype=torch.float64)
    losses = [PinballLoss([0.9])(g.expand(2001, 1), sample) for g in grid]
    assert grid[torch.stack(losses).argmin()] == pytest.approx(sample.quantile(0.9).item(), abs=0.01)


@pytest.mark.parametrize("loss", [FocalLoss(), PinballLoss([0.5]), DistillationLoss(), RankingLoss()])
def test_losses_add_nothing_to_a_checkpoint(loss: nn.Module):
    assert loss.state_dict() == {}


# As a task calls them

CLASSES, YES = torch.tensor([0, 2, 1, 1, 0]), torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
ONE_HOT = F.one_hot(CLASSES, 3).double()
WEIGHT = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


def pairs(z):
    return torch.stack([torch.zeros_like(z), z], 1)


def kl(log_p, target):
    return F.kl_div(log_p, target, reduction="batchmean")


# kind of task: loss as named, and the same from torch's functions, of logits
FITTED = {
    "multiclass": [
        (nn.NLLLoss(), lambda x: F.nll_loss(x.log_softmax(1), CLASSES)),
        (nn.NLLLoss(WEIGHT), lambda x: F.nll_loss(x.log_softmax(1), CLASSES, WEIGHT)),
        (nn.NLLLoss(ignore_index=1), lambda x: F.nll_loss(x.log_softmax(1), CLASSES, ignore_index=1)),
        (nn.BCELoss(), lambda x: F.binary_cross_entropy(x.sigmoid(), ONE_HOT)),
        (
            nn.BCEWithLogitsLoss(pos_weight=WEIGHT),
            lambda x: F.binary_cross_entropy_with_logits(x, ONE_HOT, pos_weight=WEIGHT),
        ),
        (nn.KLDivLoss(), lambda x: kl(x.log_softmax(1), ONE_HOT)),
        (nn.KLDivLoss(reduction="batchmean"), lambda x: F.cross_entropy(x, CLASSES)),
        (FocalLoss(), lambda x: FocalLoss()(x, CLASSES)),
    ],
    "binary": [
        (nn.BCELoss(), lambda z: F.binary_cross_entropy(z.sigmoid(), YES)),
        (nn.CrossEntropyLoss(), lambda z: F.binary_cross_entropy_with_logits(z, YES)),
        (
            nn.CrossEntropyLoss(WEIGHT[:2], label_smoothing=0.1),
            lambda z: F.cross_entropy(pairs(z), YES.long(), WEIGHT[:2], label_smoothing=0.1),
        ),
        (nn.NLLLoss(), lambda z: F.nll_loss(pairs(z).log_softmax(1), YES.long())),
        (nn.KLDivLoss(), lambda z: kl(pairs(z).log_softmax(1), F.one_hot(YES.long()).double())),
    ],
    "multilabel": [(nn.BCELoss(), lambda x: F.binary_cross_entropy(x.sigmoid(), ONE_HOT))],
}
TARGETS = {"multiclass": CLASSES, "binary": YES, "multilabel": ONE_HOT}
ROWS = [(kind, *row) for kind, rows in FITTED.items() for row in rows]


@pytest.mark.parametrize(("kind", "loss", "reference"), ROWS, ids=lambda v: v if isinstance(v, str) else None)
def test_losses_of_probabilities_are_computed_from_logits(kind, loss, reference):
    x, target = randn(5) if kind == "binary" else randn(5, 3), TARGETS[kind]
    ours = adapt_loss(loss, kind, 2 if kind == "binary" else 3)
    close(ours(x, target), reference(x))
    check_gradient(ours, x, target)
    assert math.isfinite(ours(1e4 * x, target)), "stable where a probability rounds to 0"


def test_divergence_from_soft_labels():
    x, soft = randn(5, 3), randn(5, 3, seed=1).softmax(1)
    close(adapt_loss(nn.KLDivLoss(), "multiclass", 3)(x, soft), kl(x.log_softmax(1), soft))


@pytest.mark.parametrize("options", [{}, {"margin": 0.3}, {"p": 1.0}, {"swap": True}])
def test_triplet_margin_loss_on_all_triplets(options):
    x, loss = randn(7, 4), nn.TripletMarginLoss(**options)
    anchor, positive, negative = torch.tensor(valid(LABELS.tolist())).T
    close(adapt_loss(loss, "embeddings")(x, LABELS), loss(x[anchor], x[positive], x[negative]))
    check_gradient(adapt_loss(loss, "embeddings"), x, LABELS)
    value, slopes = gradient(adapt_loss(loss, "embeddings"), x[:3], torch.arange(3))
    assert value == 0
    assert not slopes.any()


def test_margin_ranking_loss_on_all_triplets():
    close(adapt_loss(nn.MarginRankingLoss(0.3), "embeddings")(randn(7, 4), LABELS), ranking(randn(7, 4), LABELS, 0.3))


def test_what_a_loss_divides_by():
    assert loss_weight_sum(nn.CrossEntropyLoss(), CLASSES) is None
    assert loss_weight_sum(nn.CrossEntropyLoss(WEIGHT), CLASSES) == 1 + 0.5 + 2 + 2 + 1
    assert loss_weight_sum(nn.CrossEntropyLoss(WEIGHT, ignore_index=1), CLASSES) == 1 + 0.5 + 1
    assert loss_weight_sum(FocalLoss(ignore_index=1), CLASSES) == 3
    assert loss_weight_sum(adapt_loss(nn.NLLLoss(WEIGHT[:2]), "binary", 2), YES) == 1 + 2 + 2 + 1 + 2
    assert loss_weight_sum(nn.CrossEntropyLoss(WEIGHT), ONE_HOT) is None


class Gradients(L.Callback):
    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.steps.append([p.grad.clone() for p in module.parameters()])


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 0.2, 2.0])), nn.NLLLoss(ignore_index=3)])
def test_accumulation_with_class_weights_equals_the_big_batch(tmp_path, loss):
    torch.manual_seed(0)
    first = MLPClassifier(hidden=[16], input_dim=2, num_classes=4, loss=loss)
    found = []
    for batch, windows in ((32, 4), (128, 1)):
        gradients = Gradients()
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=1, precision="64-true", accumulate_grad_batches=windows,
            callbacks=[gradients], default_root_dir=tmp_path, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(copy.deepcopy(first), Quadrants(samples=500, batch_size=batch))
        found.append((gradients.steps, float(trainer.callback_metrics["train/loss"])))
    for small, large in zip(found[0][0], found[1][0], strict=True):
        assert max((a - b).abs().max() for a, b in zip(small, large, strict=True)) < 1e-12
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6)


# By name on the command line

SHORT = ["--trainer.max_epochs", "2", "--trainer.limit_val_batches", "1"]
BINARY = ["-c", "configs/mlp_regularized_breast_cancer.yaml", "--model.lr", "0.01", "--model.dropout", "0", *SHORT]
DIGITS = ["-c", "configs/mlp_digits.yaml", "--model.lr", "0.01", *SHORT, "--trainer.limit_train_batches", "5"]
DIABETES = ["-c", "configs/mlp_diabetes.yaml", "--model.lr", "0.01", *SHORT]
METRIC = ["-c", "configs/metric_mlp_digits.yaml", *SHORT, "--trainer.limit_train_batches", "5",
          "--trainer.callbacks", "null", "--data.batch_size", "32", "--data.eval_batch_size", "32"]  # fmt: skip
TEN = "--model.loss.weight [1,2,1,1,0.5,1,1,1,1,1]"
NAMED = [
    *((DIABETES, loss) for loss in ("MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss --model.loss.delta 0.5")),
    (DIGITS, f"CrossEntropyLoss --model.loss.label_smoothing 0.1 {TEN}"),
    *((DIGITS, loss) for loss in (f"NLLLoss {TEN}", "KLDivLoss", "BCELoss", "BCEWithLogitsLoss")),
    (DIGITS, "FocalLoss --model.loss.gamma 1.5"),
    *((BINARY, loss) for loss in ("BCELoss", "BCEWithLogitsLoss --model.loss.pos_weight 3", "FocalLoss")),
    *((BINARY, loss) for loss in ("CrossEntropyLoss --model.loss.weight [1,2]", "NLLLoss", "KLDivLoss")),
    *((METRIC, loss) for loss in ("TripletMarginLoss --model.loss.margin 0.3", "MarginRankingLoss")),
    *((METRIC, loss) for loss in ("ContrastiveLoss", "BatchTripletLoss --model.loss.mining all", "RankingLoss")),
]


class Losses(L.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.values.append(float(outputs["loss"]))


@pytest.mark.parametrize(("config", "loss"), NAMED, ids=[f"{config[1][8:-5]} {loss}" for config, loss in NAMED])
def test_a_loss_by_its_name_is_learned_from(here, config, loss):
    seen = Losses()
    assert main(["fit", *config, "--model.loss", *loss.split()], [seen]) == 0
    third = len(seen.values) // 3
    assert sum(seen.values[-third:]) < 0.95 * sum(seen.values[:third])


def test_class_weights_are_built_again_from_a_checkpoint(zoo, here):
    code, _, err = zoo("fit", *DIGITS, "--trainer.max_steps", 1, "--model.loss", "CrossEntropyLoss", *TEN.split())
    assert code == 0, err
    saved = here / "runs/mlp_digits/1/checkpoints/last.ckpt"
    loss = torch.load(saved, weights_only=True)["hyper_parameters"]["loss"]
    assert loss["init_args"]["weight"] == [1, 2, 1, 1, 0.5, 1, 1, 1, 1, 1]
    code, out, err = zoo("test", "--ckpt_path", saved)
    assert code == 0, err
    assert "test/loss" in out


REFUSED = [
    (DIGITS, "MSELoss", "MSELoss cannot learn multiclass labels; what can is CrossEntropyLoss"),
    (DIGITS, "ContrastiveLoss", "ContrastiveLoss cannot learn multiclass labels"),
    (DIGITS, "TripletMarginLoss", "TripletMarginLoss cannot learn multiclass labels"),
    (BINARY, "HuberLoss", "HuberLoss cannot learn binary labels; what can is BCEWithLogitsLoss"),
    (DIABETES, "CrossEntropyLoss", "CrossEntropyLoss cannot learn numbers; what can is MSELoss"),
    (METRIC, "CrossEntropyLoss", "CrossEntropyLoss cannot learn embeddings; what can is ContrastiveLoss"),
    (DIGITS, "CrossEntropyLoss --model.loss.reduction sum", "reduction is 'sum', but must be mean"),
    (DIGITS, "CrossEntropyLoss --model.loss.weight [1,2]", "weight has 2 numbers, but there are 10 classes"),
    (DIGITS, "CrossEntropyLoss --model.loss.weight [a,2]", "expected a number or a list of numbers"),
    (DIGITS, "CrossEntropyLoss --model.loss.label_smoothing 2", "label_smoothing is 2.0, but must be in [0, 1]"),
]


@pytest.mark.parametrize(("config", "loss", "words"), REFUSED, ids=[words for *_, words in REFUSED])
def test_a_loss_that_makes_no_sense_is_one_line(zoo, here, config, loss, words):
    code, _, err = zoo("fit", *config, "--model.loss", *loss.split())
    assert (code, len(err.splitlines())) == (2, 1), err
    assert words in err
    assert not (here / "runs").exists()
