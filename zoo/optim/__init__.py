"""What torch.optim lacks: Lion, several optimizers as one, rules for parameter groups, schedules by step."""

from zoo.optim.combined import Combined
from zoo.optim.groups import OptimizerFactory, Rule, build_optimizer, describe_groups, fused_by_default
from zoo.optim.lion import Lion
from zoo.optim.muon import BatchedMuon
from zoo.optim.plateau import Plateau
from zoo.optim.schedules import Constant, OneCycle, Schedule, StepDecay, WarmupCosine, WarmupLinear, WarmupStableDecay

__all__ = [
    "BatchedMuon",
    "Combined",
    "Constant",
    "Lion",
    "OneCycle",
    "OptimizerFactory",
    "Plateau",
    "Rule",
    "Schedule",
    "StepDecay",
    "WarmupCosine",
    "WarmupLinear",
    "WarmupStableDecay",
    "build_optimizer",
    "describe_groups",
    "fused_by_default",
]
