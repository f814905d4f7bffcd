"""Does the net keep apart what must not mix: samples, and the two modes?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from zoo._torch import BATCH_NORM, DROPOUT, INSTANCE_NORM
from zoo.diagnosis.probe import Probe
from zoo.diagnosis.recorder import NORMAL, UNIFORM, Recorder, map_tensors, named_tensors
from zoo.diagnosis.report import Finding, Skip, error, ok, warning
from zoo.diagnosis.tensor_diff import first_differing_module, values_differ

SWITCHED = (DROPOUT, BATCH_NORM, nn.RReLU, INSTANCE_NORM)


def sample_mixing(probe: Probe) -> Finding:
    probe.first_step()
    size, batch = probe.batch_size, probe.batches[0]
    if size < 2:
        raise Skip("the batch has one sample only")

    def turn(_: str, t: Tensor) -> Tensor:
        return t.flip(0) if t.ndim and len(t) == size else t

    before = _traced(probe, batch, train=False)
    x = probe.outputs(before)
    for kept, others in ((slice(0, size // 2), slice(size // 2, size)), (slice(size // 2, size), slice(0, size // 2))):

        def disturb(_: str, t: Tensor, kept: slice = kept, others: slice = others) -> Tensor:
            if t.ndim and len(t) == size:
                t = t.clone()
                t[others] = t[kept][:1].clone()
            return t

        after = _traced(probe, map_tensors(batch, disturb), train=False)
        y = probe.outputs(after)
        if x is None or y is None:
            raise Skip("the outputs have no dimension of the batch's size")
        if x.shape == (size, size):
            raise Skip("outputs compare all samples with each other on purpose")
        if values_differ(x[kept], y[kept]):
            where = first_differing_module(before, after, lambda t, kept=kept: t[kept] if len(t) == size else None)
            return error(
                f"the outputs of samples {kept.start} to {kept.stop - 1} change with the others in the batch, in eval"
                f" mode too; it begins in {where}",
                "look there for a mean, softmax or norm over dimension 0, a view or reshape where transpose is meant,"
                " or batch_first",
            )
    if not before.random:  # noise is drawn by place
        turned = probe.outputs(_traced(probe, map_tensors(batch, turn), train=False))
        if turned is not None and x is not None and values_differ(x, turned.flip(0), 1e-3):
            return error(
                "a sample's outputs depend on its place in the batch, in eval mode too",
                "look for an index or embedding taken along dimension 0",
            )
    return ok("each sample's outputs depend on that sample alone (in eval mode)")


def training_mode(probe: Probe) -> Finding:
    calls = probe.first_step().calls
    parents = {path: m for path, m in probe.module.named_modules()}

    def frozen(path: str) -> bool:
        while True:
            params = list(parents[path].parameters())
            if params or not path:
                return bool(params) and not any(p.requires_grad for p in params)
            path = path.rpartition(".")[0]

    stuck = [c for c in calls if not c.training and not frozen(c.path)]
    stuck = [c for c in stuck if any(True for _ in c.module.parameters()) or isinstance(c.module, SWITCHED)]
    if not stuck:
        return ok("everything that learns is in training mode during a training step")
    matter = [c for c in stuck if isinstance(c.module, SWITCHED)]
    top = min(stuck, key=lambda c: (c.depth, c.path))
    affected = f"; {len({c.path for c in matter})} Dropout or BatchNorm layers do not train" if matter else ""
    return (error if matter else warning)(
        f"{top.name} is in eval mode during training_step{affected}: eval() was called and never undone",
        "call train() after building or loading the net; Lightning leaves the modes as it finds them",
    )


def eval_mode(probe: Probe) -> Finding:
    call = probe.network_call()
    probe.perturb_weights()
    (a, one), (b, two) = probe.replay(call), probe.replay(call, seed=1)
    stray = [path for path, training in one.dropouts if not training]
    if stray:
        return error(
            f"dropout is active in eval mode, in {stray[0] or 'the net'}: F.dropout without training=self.training",
            "use nn.Dropout, or pass training=self.training",
        )
    if values_differ(a, b) and (one.random & UNIFORM or not one.random & NORMAL):  # a VAE may draw from its normal
        where = first_differing_module(one, two, lambda t: t)
        text = "are random" if one.random else "differ from call to call"
        return warning(
            f"outputs {text} in eval mode; it begins in {where}", "draw, or change state, only if self.training"
        )
    trained, three = probe.replay(call, train=True, still=SWITCHED)
    again, _ = probe.replay(call, train=True, still=SWITCHED, seed=1)
    if trained.shape == a.shape and values_differ(trained, a) and not values_differ(trained, again):
        where = first_differing_module(one, three, lambda t: t)
        return warning(
            f"train and eval mode differ though Dropout and BatchNorm do not explain it; it begins in {where}",
            "look there for self.training",
        )
    noise = "; it draws Gaussian noise in eval mode too" if values_differ(a, b) else ""
    return ok(f"eval mode differs from training in Dropout, BatchNorm and noise only{noise}")


def influence(probe: Probe) -> Finding:
    """Each input and target must change the loss."""
    batch, size = probe.batches[0], probe.batch_size
    probe.first_step()
    if size < 2:
        raise Skip("the batch has one sample only")
    base = _loss_value(probe, batch)
    if not math.isfinite(base):
        raise Skip("the loss is not finite")
    without, idle = [], []
    for name, tensor in named_tensors(batch).items():
        if not tensor.ndim or len(tensor) != size or bool((tensor == tensor[:1]).all()):
            continue
        changed = _loss_value(
            probe, map_tensors(batch, lambda n, t, name=name: t[:1].expand_as(t).clone() if n == name else t)
        )
        if changed == base:
            (without if name in probe.targets or name == next(iter(named_tensors(batch))) else idle).append(name)
    if without:
        what = "target" if without[0] in probe.targets else "input"
        return error(
            f"the loss ignores {without[0]}, the {what}: it stays {base:.4g} whatever stands there",
            "check that training_step compares the outputs with the targets, and that no layer swallows the input",
        )
    more = f"; {', '.join(idle)} is not used" if idle else ""
    return ok(f"the loss changes with inputs and targets{more}")


BEHAVIOUR: dict[str, Callable[[Probe], Finding | list[Finding]]] = {
    "influence": influence,
    "sample mixing": sample_mixing,
    "training mode": training_mode,
    "eval mode": eval_mode,
}


def _traced(probe: Probe, batch: Any, train: bool) -> Recorder:
    probe.perturb_weights()  # each time: a module that optimises by itself has moved
    trace = probe.trace(batch, train=train)
    if trace.error is not None:
        raise Skip(f"training_step fails {'' if train else 'in eval mode '}on a changed batch: {trace.error}")
    return trace


def _loss_value(probe: Probe, batch: Any) -> float:
    # in training mode, seeded: untrained BatchNorm lets deep nets vanish in eval mode
    loss = _traced(probe, batch, train=True).loss
    if loss is None:
        raise Skip("the training step shows no loss")
    return float(loss.detach().float().sum())
