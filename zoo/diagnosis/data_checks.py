"""Are inputs and labels what a network can learn from?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo._torch import BATCH_NORM, INSTANCE_NORM
from zoo.diagnosis.probe import Probe
from zoo.diagnosis.recorder import Loss
from zoo.diagnosis.report import Finding, Skip, error, ok, warning

NORMALISING = (
    BATCH_NORM,
    nn.LayerNorm,
    nn.GroupNorm,
    INSTANCE_NORM,
    nn.RMSNorm,
)


def finite_data(probe: Probe) -> Finding:
    for name, split in probe.splits.items():
        for tensor, count in split.bad.items():
            if count:
                return error(
                    f"{tensor} holds NaN or infinity in {count} of {split.samples} samples of {name}",
                    "remove or fill them: one such sample makes all weights NaN",
                )
    return ok(f"all numbers are finite in {sum(s.samples for s in probe.splits.values())} samples")


def input_scale(probe: Probe) -> Finding:
    """What reaches the first layer with weights should have mean near 0 and deviation near 1."""
    call = next((c for c in probe.first_trace.calls if any(True for _ in c.module.parameters(recurse=False))), None)
    x = next((a for a in call.args if isinstance(a, Tensor)), None) if call else None
    if call is None or x is None:
        raise Skip("no layer with weights is called with a tensor")
    if not x.is_floating_point():
        raise Skip(f"the first layer, {call.name}, takes whole numbers")
    if isinstance(call.module, NORMALISING):
        return ok(f"the first layer, {call.name}, normalises")
    x = x.detach().float()
    channel = 1 if x.ndim > 3 else x.ndim - 1
    features = x.movedim(channel, 0).flatten(1)
    features = features[:, torch.isfinite(features).all(0)]
    if features.numel() < 2:
        raise Skip("too few finite numbers")
    mean, std = features.mean(1), features.std(1)
    size = (mean.square() + std.square()).sqrt()
    seen = f"what enters {call.name} lies between {float(features.min()):.3g} and {float(features.max()):.3g}"
    advice = "standardise by the training set's mean and deviation, for each channel or feature"
    low, high = float(features.min()), float(features.max())
    if low >= 0 and 50 < high <= 255 and bool((features == features.round()).all()):
        return warning(f"{seen}, whole numbers: raw pixels, not scaled", "divide by 255 and " + advice)
    worst = int(size.argmax())
    spread = f"feature {worst} has mean {float(mean[worst]):.3g} and deviation {float(std[worst]):.3g}"
    if float(size.max()) > 10:
        return warning(f"{seen}: not normalised, {spread}", advice)
    offset = mean.abs() > 5 * std
    if bool(((size > 1) & offset & (std > 0)).any()):
        worst = int((size * offset * (std > 0)).argmax())
        return warning(
            f"{seen}: feature {worst} is far from 0 (mean {float(mean[worst]):.3g}, deviation {float(std[worst]):.3g})",
            advice,
        )
    if float(size.max()) < 0.01:
        return warning(f"{seen}: tiny, the first layer hardly sees it", advice)
    return ok(f"{seen}: mean {float(features.mean()):.2g}, deviation {float(features.std()):.2g}")


def constant_features(probe: Probe) -> Finding:
    train = probe.splits.get("train")
    if train is None or train.low is None or train.high is None or train.samples < 10:
        raise Skip("the inputs are no table of features (b, f)")
    constant = (train.low == train.high).nonzero().flatten()
    # in a flattened image some pixels are always background: the least value, which most other features reach too
    floor = train.low.min()
    if float((train.low == floor).float().mean()) > 0.5:
        constant = constant[train.low[constant] != floor]
    if not len(constant):
        return ok(f"all {len(train.low)} features vary")
    which = ", ".join(str(int(i)) for i in constant[:6]) + (", ..." if len(constant) > 6 else "")
    return warning(
        f"{len(constant)} of {len(train.low)} input features never change in {train.samples} training samples: {which}",
        "a constant column carries nothing: was it read, filled or scaled wrongly? drop it if not",
    )


def labels(probe: Probe) -> Finding:
    losses = [loss for loss in probe.first_trace.losses if loss.target.numel()]
    if not losses:
        raise Skip("no loss function of torch was seen")
    loss = max(losses, key=lambda x: x.input.numel())
    if loss.is_classes:
        return _class_numbers(probe, loss)
    if loss.kind.startswith("binary"):
        low, high = float(loss.target.min()), float(loss.target.max())
        counts = probe.splits["train"].labels if "train" in probe.splits else {}
        low, high = min(counts, default=low), max(counts, default=high)
        if low < 0 or high > 1:
            hint = (
                "they are 1 and 2: subtract 1"
                if (low, high) == (1, 2)
                else "map -1 to 0"
                if low == -1
                else "map them to 0 and 1"
            )
            return error(f"yes-or-no targets run from {low:g} to {high:g} instead of 0 to 1", hint)
        if low == high and len(losses) == 1:
            return warning(f"all targets are {low:g}", "there is nothing to learn: was the label column read rightly?")
        return ok("yes-or-no targets are 0 and 1")
    raise Skip("the targets are no classes")


def _class_numbers(probe: Probe, loss: Loss) -> Finding:
    ignored = loss.options.get("ignore_index", -100)
    counts = {c: n for c, n in probe.splits["train"].labels.items() if c != ignored} if "train" in probe.splits else {}
    seen = [*counts, *loss.valid.unique().tolist()]
    if not seen:
        return error("no target counts: all are ignored", f"the loss ignores {ignored}: look at how targets are built")
    low, high, n = int(min(seen)), int(max(seen)), loss.classes
    if low < 0 or high >= n:
        hint = (
            "they start at 1: subtract 1" if (low, high) == (1, n) else f"give the net {high + 1} outputs, or renumber"
        )
        return error(f"labels run from {low} to {high}, but {n} outputs allow 0 to {n - 1}: out of range", hint)
    samples = sum(counts.values())
    absent = sorted(set(range(n)) - {int(c) for c in counts})
    if counts and absent and samples >= 20 * n:
        which = ", ".join(map(str, absent[:6])) + (", ..." if len(absent) > 6 else "")
        if absent == [0]:
            return warning(f"class 0 never occurs in {samples} samples: the labels seem to be shifted by one",
                           f"subtract 1, and give the net {n - 1} outputs")  # fmt: skip
        return warning(
            f"classes {which} never occur in {samples} training samples",
            "are the labels complete, and the data shuffled?",
        )
    return ok(f"class numbers {low} to {high} for {n} outputs")


def class_balance(probe: Probe) -> Finding:
    loss = probe.main_loss()
    train = probe.splits.get("train")
    single = loss.is_classes or (loss.kind.startswith("binary") and loss.target.numel() == probe.batch_size)
    if not single or train is None or len(train.labels) < 2 or train.samples < 50:
        raise Skip("the targets are not one class a sample, or too few")
    counts = train.labels.most_common()
    (most, many), (least, few) = counts[0], counts[-1]
    seen = f"class {most:g} has {many / train.samples:.1%} of the samples, class {least:g} {few / train.samples:.1%}"
    if many > 20 * few and loss.options.get("weight") is None and loss.options.get("pos_weight") is None:
        return warning(
            f"extreme imbalance: {seen}",
            "weigh the classes in the loss, or sample them evenly; accuracy says little here, watch f1",
        )
    return ok(seen)


def leaks(probe: Probe) -> Finding:
    """Samples of validation or test that are, to the last bit, in another split too."""
    splits = probe.splits
    if "train" not in splits or len(splits) < 2:
        raise Skip("there is no validation or test split")
    train = splits["train"]
    repeated = sum(n for n in train.hashes.values() if n > 1) / train.samples
    notes = []
    for name, against in (("val", "train"), ("test", "train"), ("test", "val")):
        if name not in splits or against not in splits:
            continue
        if against == "val" and splits["test"].hashes == splits["val"].hashes:
            notes.append("test is val, all of it")  # where data has no split of its own for it
            continue
        twice = sum(n for h, n in splits[name].hashes.items() if h in splits[against].hashes)
        share = twice / splits[name].samples
        if twice > 1 and share > max(0.01, 3 * repeated):  # tables of few values repeat by chance
            return (error if share > 0.05 else warning)(
                f"{twice} of {splits[name].samples} {name} samples ({share:.0%}) are in {against} too: a leak",
                "split before augmenting or oversampling, and by sample; remove exact duplicates first",
            )
        notes += [f"{twice} of {name} in {against}"] * bool(twice)
    counts = ", ".join(f"{s.samples} {n}" for n, s in splits.items())
    return ok(f"compared {counts} samples: " + ("; ".join(notes) if notes else "none in two splits"))


def relation(probe: Probe) -> Finding:
    """Can anything simple tell the labels from the inputs better than chance? If not, they may be shuffled."""
    train = probe.splits.get("train")
    loss = probe.main_loss()
    if train is None or not train.inputs or not train.inputs[0].is_floating_point():
        raise Skip("the inputs are not numbers with one target each")
    if len({x.shape[1:] for x in train.inputs}) > 1:
        raise Skip("the inputs differ in shape")
    x, y = torch.cat(train.inputs).flatten(1).double(), torch.cat(train.targets).double()
    if len(y) < 100 or not bool(x.isfinite().all() and y.isfinite().all()):
        raise Skip("fewer than 100 samples, or some not finite")
    classes = loss.is_classes or loss.kind.startswith("binary")
    targets = nn.functional.one_hot(y.long() - int(y.min())).double() if classes else y.unsqueeze(1)
    if not classes and float(y.std()) == 0:
        raise Skip("the targets are constant")
    order, half = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)), len(y) // 2
    x, targets = x[order], targets[order]
    probes = [_ridge(x[:half], targets[:half], x[half:]), _nearest(x[:half], targets[:half], x[half:])]
    truth = targets[half:]
    if classes:
        chance = float(truth.mean(0).max())
        best = max(float((p.argmax(1) == truth.argmax(1)).double().mean()) for p in probes)
        margin = 2.5 * (chance * (1 - chance) / len(truth)) ** 0.5
        seen = f"the better of two probes is right in {best:.0%} of {len(truth)} held-out samples, chance {chance:.0%}"
        # explained variance too: an imbalanced set may be learnable though the majority wins everywhere
        related = best > chance + margin or max(_explained(p, truth) for p in probes) > 0.05
    else:
        best = max(_explained(p, truth) for p in probes)
        seen, related = f"the better of two probes explains {best:.0%} of the targets' variance", best > 0.02
    if related:
        return ok(seen)
    if train.inputs[0].ndim == 3:
        raise Skip("the inputs are sequences, where what counts may stand anywhere: simple probes cannot tell")
    return warning(
        f"{seen}: labels seem unrelated to inputs, shuffled or shifted by a sample",
        "print a few samples with their labels; for problems that are truly hard this means nothing",
    )


DATA: dict[str, Callable[[Probe], Finding | list[Finding]]] = {
    "finite data": finite_data,
    "input scale": input_scale,
    "constant features": constant_features,
    "labels": labels,
    "class balance": class_balance,
    "leaks": leaks,
    "relation": relation,
}


def _ridge(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
    """Ridge regression, penalty a tenth of the samples, in the dual where features are many."""
    mean, scale, centre = x.mean(0), _spread(x), y.mean(0)
    a, b = (x - mean) / scale / x.shape[1] ** 0.5, (new - mean) / scale / x.shape[1] ** 0.5
    kernel = a @ a.T + 0.1 * torch.eye(len(a), dtype=a.dtype)
    return b @ a.T @ torch.linalg.solve(kernel, y - centre) + centre


def _nearest(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
    """The mean target of the three nearest neighbours."""
    scale = _spread(x)
    near = torch.cdist(new / scale, x / scale).topk(3, largest=False).indices
    return y[near].mean(1)


def _explained(guess: Tensor, truth: Tensor) -> float:
    total = (truth - truth.mean(0)).square().sum()
    return float(1 - (guess - truth).square().sum() / total) if float(total) else 0.0


def _spread(x: Tensor) -> Tensor:
    """Standard deviation of each feature, 1 where it hardly varies."""
    std = x.std(0)
    return torch.where(std > 1e-6, std, 1.0)
