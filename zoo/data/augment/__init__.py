"""Augmentation of whole batches on their device, named as in torchvision.transforms.v2."""

from zoo.data.augment.affine import RandomAffine, RandomRotation
from zoo.data.augment.base import Augmentation, LabelMixing
from zoo.data.augment.colour import ColorJitter, Normalize, RandomGrayscale
from zoo.data.augment.crops import (
    AlternatingFlip,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomVerticalFlip,
)
from zoo.data.augment.erase import Cutout, RandomErasing
from zoo.data.augment.mix import CutMix, MixUp
from zoo.data.augment.policies import RandAugment, TrivialAugmentWide

__all__ = [
    "AlternatingFlip",
    "Augmentation",
    "ColorJitter",
    "CutMix",
    "Cutout",
    "LabelMixing",
    "MixUp",
    "Normalize",
    "RandAugment",
    "RandomAffine",
    "RandomCrop",
    "RandomErasing",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomRotation",
    "RandomVerticalFlip",
    "TrivialAugmentWide",
]
