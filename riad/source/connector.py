"""Which network the options name."""

from argparse import Namespace
from types import ModuleType

from torch import nn

from riad.neuralnet import ae_l2, aesc_l2, unet

NUMBERS = {1000: ae_l2, 2000: aesc_l2}  # --nn


def architecture(settings: Namespace) -> ModuleType:
    """The module with the network's limits: LEVELS (entries of filters) and SMALLEST (pixels)."""
    return unet if settings.algorithm == "paper" else aesc_l2


def connect(settings: Namespace, channels: int) -> nn.Module:
    """A new network for images (B, channels, H, W)."""
    if settings.algorithm == "paper":
        return unet.NeuralNet(channels, settings.filters)
    return NUMBERS[settings.nn].NeuralNet(channels, settings.filters, settings.ksize)
