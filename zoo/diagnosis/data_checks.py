"""Checks of the data: finite values, scale of inputs, labels, class balance, relation of inputs and labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from zoo._torch import BATCH_NORM, INSTANCE_NORM
from zoo.data.statistics import is_constant
from zoo.diagnosis.leak_checks import leaks
from zoo.diagnosis.probe import Probe
from zoo.diagnosis.recorder import Call, Loss
from zoo.diagnosis.report import Finding, Skip, error, ok, warning

NORMALISING = (
    BATCH_NORM,
    nn.LayerNorm,
    nn.GroupNorm,
    INSTANCE_NORM,
    nn.RMSNorm,
)
MAX_LISTED = 6  # features or classes in a finding
LARGE_INPUT = 10.0  # root mean square of a feature
SMALL_INPUT = 0.01
MAX_OFFSET = 5.0  # mean of a feature, in standard deviations
STANDARDISE = "standardise each channel or feature by mean and standard deviation of the training set"
MAX_IMBALANCE = 20  # samples of the most frequent class for each one of the rarest
NEIGHBOURS = 3


def finite_data(probe: Probe) -> Finding:
    """All floating-point numbers are finite."""
    for name, split in probe.splits.items():
        for tensor, count in split.bad.items():
            if count:
                return error(
                    f"{tensor} contains NaN or infinity in {count} of {split.samples} samples of {name}",
                    "remove these samples or fill the values: one of them makes all weights NaN",
                )
    samples = sum(split.samples for split in probe.splits.values())
    return ok(f"all values of {samples} samples are finite")


# Inputs ---------------------------------------------------------------------------------------------------------------


def input_scale(probe: Probe) -> Finding:
    """The input of the first layer with weights has a mean near 0 and a standard deviation near 1."""
    call, x = _first_input(probe)
    if not x.is_floating_point():
        raise Skip(f"the first layer, {call.name}, takes integers")
    if isinstance(call.module, NORMALISING):
        return ok(f"the first layer, {call.name}, normalises its input")
    x = x.detach().float()
    channel = 1 if x.ndim > 3 else x.ndim - 1
    features = x.movedim(channel, 0).flatten(1)  # (f, n)
    features = features[:, torch.isfinite(features).all(0)]
    if features.numel() < 2:
        raise Skip("too few finite values")
    low = float(features.min())
    high = float(features.max())
    seen = f"the input of {call.name} lies between {low:.3g} and {high:.3g}"
    whole = bool((features == features.round()).all())
    if low >= 0 and 50 < high <= 255 and whole:
        return warning(
            f"{seen}, in whole numbers: raw pixels, not scaled",
            f"divide by 255 and {STANDARDISE}",
        )
    return _scale_of_features(seen, features)


def _first_input(probe: Probe) -> tuple[Call, Tensor]:
    """Return the first call of a module with parameters of its own, and its first tensor."""
    for call in probe.first_trace.calls:
        if not any(True for _ in call.module.parameters(recurse=False)):
            continue
        for argument in call.args:
            if isinstance(argument, Tensor):
                return call, argument
        break
    raise Skip("no layer with weights is called with a tensor")


def _scale_of_features(seen: str, features: Tensor) -> Finding:
    """Return the finding on means and standard deviations of features ``(f, n)``."""
    mean = features.mean(1)
    std = features.std(1)
    rms = (mean.square() + std.square()).sqrt()
    if float(rms.max()) > LARGE_INPUT:
        worst = int(rms.argmax())
        return warning(f"{seen}: not normalised, {_describe_feature(worst, mean, std)}", STANDARDISE)
    offset = (rms > 1) & (mean.abs() > MAX_OFFSET * std) & (std > 0)
    if bool(offset.any()):
        worst = int((rms * offset).argmax())
        return warning(f"{seen}: far from 0, {_describe_feature(worst, mean, std)}", STANDARDISE)
    if float(rms.max()) < SMALL_INPUT:
        return warning(f"{seen}: so small that the first layer hardly reacts to it", STANDARDISE)
    return ok(f"{seen}: mean {float(features.mean()):.2g}, standard deviation {float(features.std()):.2g}")


def _describe_feature(index: int, mean: Tensor, std: Tensor) -> str:
    return f"feature {index} has mean {float(mean[index]):.3g} and standard deviation {float(std[index]):.3g}"


def constant_features(probe: Probe) -> Finding:
    """All features of a table vary."""
    train = probe.splits.get("train")
    if train is None or train.low is None or train.high is None or train.samples < 10:
        raise Skip("the inputs are no table of features (b, f)")
    constant = (train.low == train.high).nonzero().flatten()
    # In flattened images some pixels always have the value of the background, which most other pixels have at times.
    floor = train.low.min()
    if float((train.low == floor).float().mean()) > 0.5:
        constant = constant[train.low[constant] != floor]
    if not len(constant):
        return ok(f"all {len(train.low)} features vary")
    listed = _list(constant.tolist())
    return warning(
        f"{len(constant)} of {len(train.low)} input features never change in {train.samples} training samples:"
        f" {listed}",
        "a constant column carries no information: check how it is read, filled and scaled, or drop it",
    )


# Labels ---------------------------------------------------------------------------------------------------------------


def labels(probe: Probe) -> Finding:
    """Class indices fit the number of outputs, binary targets are 0 and 1."""
    losses = [loss for loss in probe.first_trace.losses if loss.target.numel()]
    if not losses:
        raise Skip("no loss function of torch is called")
    loss = max(losses, key=lambda item: item.input.numel())
    if loss.is_classes:
        return _class_indices(probe, loss)
    if loss.kind.startswith("binary"):
        return _binary_targets(probe, loss, only=len(losses) == 1)
    raise Skip("the targets are no classes")


def _binary_targets(probe: Probe, loss: Loss, only: bool) -> Finding:
    """Return the finding on the targets of a binary cross-entropy.

    Args:
        probe: the probe.
        loss: the loss.
        only: whether it is the only loss of the step.
    """
    low = float(loss.target.min())
    high = float(loss.target.max())
    if "train" in probe.splits:
        seen = probe.splits["train"].labels
        low = min(seen, default=low)
        high = max(seen, default=high)
    if low < 0 or high > 1:
        advice = "map them to 0 and 1"
        if (low, high) == (1, 2):
            advice = "they are 1 and 2: subtract 1"
        elif low == -1:
            advice = "map -1 to 0"
        return error(f"binary targets range from {low:g} to {high:g} instead of 0 to 1", advice)
    if low == high and only:
        return warning(f"all targets are {low:g}", "there is nothing to learn: check how the label column is read")
    return ok("binary targets are 0 and 1")


def _class_indices(probe: Probe, loss: Loss) -> Finding:
    """Return the finding on class indices as targets."""
    counts: dict[float, int] = {}
    if "train" in probe.splits:
        counts = {c: n for c, n in probe.splits["train"].labels.items() if c != loss.ignore_index}
    seen = [*counts, *loss.valid.unique().tolist()]
    if not seen:
        return error(
            "all targets are ignored",
            f"the loss has ignore_index={loss.ignore_index}: check how the targets are built",
        )
    low = int(min(seen))
    high = int(max(seen))
    outputs = loss.classes
    if low < 0 or high >= outputs:
        advice = f"give the network {high + 1} outputs, or renumber the classes"
        if (low, high) == (1, outputs):
            advice = "they start at 1: subtract 1"
        return error(
            f"labels run from {low} to {high}, but {outputs} outputs allow 0 to {outputs - 1}: out of range",
            advice,
        )
    samples = sum(counts.values())
    absent = sorted(set(range(outputs)) - {int(c) for c in counts})
    if not counts or not absent or samples < 20 * outputs:
        return ok(f"class indices {low} to {high} for {outputs} outputs")
    if absent == [0]:
        return warning(
            f"class 0 never occurs in {samples} samples: the labels seem to be shifted by one",
            f"subtract 1, and give the network {outputs - 1} outputs",
        )
    return warning(
        f"classes {_list(absent)} never occur in {samples} training samples",
        "check that the labels are complete and that the data is shuffled before it is split",
    )


def class_balance(probe: Probe) -> Finding:
    """No class is much rarer than another, unless the loss is weighted."""
    loss = probe.main_loss()
    train = probe.splits.get("train")
    binary = loss.kind.startswith("binary") and loss.target.numel() == probe.batch_size
    single = loss.is_classes or binary
    if not single or train is None or len(train.labels) < 2 or train.samples < 50:
        raise Skip("the targets are not one class per sample, or there are too few")
    counts = train.labels.most_common()
    most, many = counts[0]
    least, few = counts[-1]
    seen = f"class {most:g} has {many / train.samples:.1%} of the samples, class {least:g} {few / train.samples:.1%}"
    weighted = loss.options.get("weight") is not None or loss.options.get("pos_weight") is not None
    if many > MAX_IMBALANCE * few and not weighted:
        return warning(
            f"extreme imbalance: {seen}",
            "weight the classes in the loss, or sample them evenly; judge by f1 rather than accuracy",
        )
    return ok(seen)


# Relation -------------------------------------------------------------------------------------------------------------


def relation(probe: Probe) -> Finding:
    """A simple model predicts the targets better than chance; if none does, they may be shuffled."""
    loss = probe.main_loss()
    classes = loss.is_classes or loss.kind.startswith("binary")
    x, y = _table(probe)
    targets = y.unsqueeze(1)
    if classes:
        targets = nn.functional.one_hot(y.long() - int(y.min())).double()
    elif is_constant(float(y.mean()), float(y.std()), len(y)):
        raise Skip("the targets are constant")
    half = len(y) // 2
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    x = x[order]
    targets = targets[order]
    truth = targets[half:]
    predictions = [model(x[:half], targets[:half], x[half:]) for model in (_ridge, _nearest)]
    explained = max(_explained(prediction, truth) for prediction in predictions)
    if classes:
        chance = float(truth.mean(0).max())
        best = max(_accuracy(prediction, truth) for prediction in predictions)
        margin = 2.5 * math.sqrt(chance * (1 - chance) / len(truth))
        seen = (
            f"the better of ridge regression and nearest neighbours is right in {best:.0%} of {len(truth)} held-out"
            f" samples, chance {chance:.0%}"
        )
        # With imbalance, the majority class may be the best prediction everywhere although there is a relation.
        related = best > chance + margin or explained > 0.05
    else:
        seen = (
            f"the better of ridge regression and nearest neighbours explains {explained:.0%} of the targets' variance"
        )
        related = explained > 0.02
    if related:
        return ok(seen)
    if probe.splits["train"].inputs[0].ndim == 3:
        raise Skip("the inputs are sequences, in which simple models do not find what matters")
    return warning(
        f"{seen}: labels seem unrelated to the inputs, shuffled or shifted by a sample",
        "print a few samples with their labels; ignore this for problems that are hard for simple models",
    )


def _table(probe: Probe) -> tuple[Tensor, Tensor]:
    """Return flattened inputs ``(n, f)`` and targets ``(n,)`` of training samples, or raise Skip."""
    train = probe.splits.get("train")
    if train is None or not train.inputs or not train.inputs[0].is_floating_point():
        raise Skip("the inputs are not floating-point tensors with one target each")
    if len({x.shape[1:] for x in train.inputs}) > 1:
        raise Skip("the inputs differ in shape")
    x = torch.cat(train.inputs).flatten(1).double()
    y = torch.cat(train.targets).double()
    if len(y) < 100 or not bool(x.isfinite().all() and y.isfinite().all()):
        raise Skip("fewer than 100 samples, or some are not finite")
    return x, y


def _ridge(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
    """Return predictions of ridge regression, by the kernel matrix, which is small also for many features.

    Args:
        x: inputs ``(n, f)``.
        y: targets ``(n, k)``.
        new: inputs ``(m, f)`` to predict for.
    """
    mean = x.mean(0)
    scale = _nonzero_std(x) * math.sqrt(x.shape[1])
    centre = y.mean(0)
    a = (x - mean) / scale
    b = (new - mean) / scale
    kernel = a @ a.T + 0.1 * torch.eye(len(a), dtype=a.dtype)  # (n, n)
    return b @ a.T @ torch.linalg.solve(kernel, y - centre) + centre


def _nearest(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
    """Return the mean target of the three nearest neighbours; arguments as for ``_ridge``."""
    scale = _nonzero_std(x)
    nearest = torch.cdist(new / scale, x / scale).topk(NEIGHBOURS, largest=False).indices  # (m, 3)
    return y[nearest].mean(1)


def _explained(prediction: Tensor, truth: Tensor) -> float:
    """Return the fraction of variance explained (R2)."""
    total = (truth - truth.mean(0)).square().sum()
    if not float(total):
        return 0.0
    return float(1 - (prediction - truth).square().sum() / total)


def _accuracy(prediction: Tensor, truth: Tensor) -> float:
    return float((prediction.argmax(1) == truth.argmax(1)).double().mean())


def _nonzero_std(x: Tensor) -> Tensor:
    """Return the standard deviation of each feature, 1 for constant ones."""
    std = x.std(0)
    return torch.where(is_constant(x.mean(0), std, len(x)), 1.0, std)


def _list(numbers: Sequence[int]) -> str:
    listed = ", ".join(str(number) for number in numbers[:MAX_LISTED])
    if len(numbers) > MAX_LISTED:
        listed += ", ..."
    return listed


DATA: dict[str, Callable[[Probe], Finding | list[Finding]]] = {
    "finite data": finite_data,
    "input scale": input_scale,
    "constant features": constant_features,
    "labels": labels,
    "class balance": class_balance,
    "leaks": leaks,
    "relation": relation,
}
