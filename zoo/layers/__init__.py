"""Layers and blocks that several architectures share."""

from zoo.layers.build import Stack, activation, build, norm
from zoo.layers.init import InitRule, initialize

__all__ = [
    "InitRule",
    "Stack",
    "activation",
    "build",
    "initialize",
    "norm",
]
