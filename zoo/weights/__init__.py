"""Reading and writing published weights: torchvision's, timm's and Hugging Face's."""

from zoo.weights.fetch import fetch
from zoo.weights.files import Weights, read, write
from zoo.weights.preprocessing import transform
from zoo.weights.pretrained import PretrainedNet
from zoo.weights.published import preprocessing_of

__all__ = ["PretrainedNet", "Weights", "fetch", "preprocessing_of", "read", "transform", "write"]
