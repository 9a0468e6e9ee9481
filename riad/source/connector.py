"""Which network and which optimizer the options name."""

from collections.abc import Iterable, Sequence

from torch import nn
from torch.optim import SGD, Adam, Optimizer, RMSprop

from riad.neuralnet import ae_l2, aesc_l2, unet


def connect(number: int | None, channels: int, filters: Sequence[int], ksize: int | None) -> nn.Module:
    """A new network for images (B, channels, H, W); number: --nn, 2000 or 1000, None: the paper's."""
    if number is None:
        return unet.NeuralNet(channels, filters)
    return {1000: ae_l2, 2000: aesc_l2}[number].NeuralNet(channels, filters, ksize)


def make_optimizer(name: str, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> Optimizer:
    """The one that --mode_optim names."""
    if name == "adam":
        return Adam(parameters, lr, weight_decay=weight_decay, fused=True)  # one pass over them
    if name == "sgd":
        return SGD(parameters, lr, momentum=0.1, weight_decay=weight_decay, fused=True)
    return RMSprop(parameters, lr, weight_decay=weight_decay)
