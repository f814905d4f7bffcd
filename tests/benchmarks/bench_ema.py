"""One EMA update of ResNet-50 against timm's `ModelEmaV3` and Lightning's `EMAWeightAveraging`.

The sides take turns in one run, and a ratio is the median over turns of ours / theirs, so a busy machine slows all.
"""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from timm.utils import ModelEmaV3
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torchvision.models import resnet50

from zoo.callbacks.ema import EMA, ema_update

TARGET = 0.8  # of the fastest peer


def run(turns: int = 30) -> list[dict]:
    model = resnet50()
    ema = EMA(decay=0.999)
    ema._collect_params(model)
    averages = [ema._ema_copy(weight) for weight in ema._weights()]
    timm = ModelEmaV3(model, decay=0.999)
    lightning = AveragedModel(model, avg_fn=get_ema_avg_fn(0.999), use_buffers=True)  # as the callback builds it

    @torch.no_grad()
    def zoo() -> None:
        ema_update(averages, ema._weights(), 0.999)  # as the callback does after a step

    sides: dict[str, Callable[[], None]] = {
        "zoo": zoo,
        "timm ModelEmaV3": lambda: timm.update(model),
        "Lightning EMAWeightAveraging": lambda: lightning.update_parameters(model),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 2):
        order = list(sides) if turn % 2 else list(reversed(sides))
        for name in order:
            start = perf_counter()
            sides[name]()
            if turn >= 2:  # Lightning's first update is a copy
                times[name].append(1000 * (perf_counter() - start))
    ours = times.pop("zoo")
    return [
        {
            "name": "EMA update, ResNet-50",
            "ours_ms": median(ours),
            "peer": peer,
            "peer_ms": median(theirs),
            "ratio": median(a / b for a, b in zip(ours, theirs, strict=True)),
            "target": TARGET,
        }
        for peer, theirs in times.items()
    ]


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads")
    for row in run():
        print("{name}: {ours_ms:.1f} ms; {peer} {peer_ms:.1f} ms; ratio {ratio:.2f}, target {target}".format(**row))
