"""diffusers' schedulers with their tables in float64: they round them to float32, whatever they are asked for."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import diffusers.schedulers.scheduling_ddim as ddim
import diffusers.schedulers.scheduling_ddpm as ddpm
import diffusers.schedulers.scheduling_dpmsolver_multistep as dpmsolver
import diffusers.schedulers.scheduling_euler_discrete as euler
import diffusers.schedulers.scheduling_flow_match_euler_discrete as flow
import diffusers.schedulers.scheduling_heun_discrete as heun
import numpy as np
import pytest
import torch


class Wider(ModuleType):
    """A module in which float32 is float64."""

    def __init__(self, module: ModuleType, float64: Any) -> None:
        super().__init__(module.__name__)
        vars(self).update(module=module, float32=float64)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["module"], name)


@pytest.fixture
def in_float64(monkeypatch):
    for module in (ddim, ddpm, dpmsolver, euler, flow, heun):
        monkeypatch.setattr(module, "torch", Wider(torch, torch.float64))
        monkeypatch.setattr(module, "np", Wider(np, np.float64))
