"""What torch.optim lacks: Lion, several optimizers as one, rules for parameter groups, schedules by step."""

from zoo.optim.adamw_8bit import AdamW8bit
from zoo.optim.lion import Lion
from zoo.optim.multi_optimizer import MultiOptimizer
from zoo.optim.muon import BatchedMuon
from zoo.optim.param_groups import OptimizerFactory, ParamGroupRule, build_optimizer, describe_groups, fused_by_default
from zoo.optim.plateau import Plateau
from zoo.optim.schedules import Constant, OneCycle, Schedule, StepDecay, WarmupCosine, WarmupLinear, WarmupStableDecay

__all__ = [
    "AdamW8bit",
    "BatchedMuon",
    "MultiOptimizer",
    "Constant",
    "Lion",
    "OneCycle",
    "OptimizerFactory",
    "Plateau",
    "ParamGroupRule",
    "Schedule",
    "StepDecay",
    "WarmupCosine",
    "WarmupLinear",
    "WarmupStableDecay",
    "build_optimizer",
    "describe_groups",
    "fused_by_default",
]
