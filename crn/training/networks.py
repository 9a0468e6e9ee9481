"""DAGAN's discriminator, initial weights, optimizers, schedulers, and running statistics of passes not repeated."""

import math
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common import distributed
from common.files import UserError

OPTIMIZERS = ("adam", "adamw", "radam", "nadam", "rmsprop", "sgd")
SCHEDULERS = ("step", "exponential", "cosine")


class RoadImageDiscriminator(nn.Module):
    """Autoencoder of DAGAN: images (B, image_channels, H, W) -> (image of the same shape in [-1, 1], latent
    (B, 64 * 2^levels, H / 2^levels, W / 2^levels))."""

    def __init__(self, levels: int = 2, image_channels: int = 3):
        super().__init__()
        encoder: list[nn.Module] = [nn.Conv2d(image_channels, 64, 3, padding=1)]
        decoder: list[nn.Module] = []
        for level in range(levels):
            narrow, wide = 64 * 2**level, 128 * 2**level
            encoder += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.LeakyReLU(), nn.BatchNorm2d(wide)]
            decoder = [nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1), nn.ReLU(), *decoder]
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(64, image_channels, 3, padding=1), nn.Tanh())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        latent = self.encoder(x)
        return self.decoder(latent), latent


def init_weights(network: nn.Module) -> None:
    """Initial weights of a competitive unit: Kaiming normal (fan_out, a = 0), biases 0, batch norm weights
    N(1, 0.02)."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(module.weight, a=0, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.02)
            nn.init.zeros_(module.bias)


def create_optimizer(opt: Namespace, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer `opt.optimizer` with learning rate `opt.lr`; `opt.momentum` is that of rmsprop and sgd."""
    name, lr = opt.optimizer, opt.lr
    if name == "adam":  # fused: the same update in one pass over the parameters
        return torch.optim.Adam(parameters, lr, fused=True)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr, fused=True)
    if name == "radam":
        return torch.optim.RAdam(parameters, lr)
    if name == "nadam":
        return torch.optim.NAdam(parameters, lr)
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr, momentum=opt.momentum)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=opt.momentum, fused=True)
    raise UserError(f"--optimizer {name}: expected {', '.join(OPTIMIZERS)}")


def create_scheduler(opt: Namespace, epochs: int) -> Callable[[int], float]:
    """The learning rate of each epoch (from 0) by `opt.lr_scheduler`: divided at `opt.lr_steps` ("step") or after every
    epoch ("exponential") by 1 / `opt.lr_factor`, half a cosine over `epochs` ("cosine"), or constant ("")."""
    if opt.lr_scheduler == "step":
        return lambda epoch: opt.lr * opt.lr_factor ** sum(step <= epoch for step in opt.lr_steps)
    if opt.lr_scheduler == "exponential":
        return lambda epoch: opt.lr * opt.lr_factor**epoch
    if opt.lr_scheduler == "cosine":
        return lambda epoch: opt.lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
    if opt.lr_scheduler == "":
        return lambda epoch: opt.lr
    raise UserError(f"--lr-scheduler {opt.lr_scheduler}: expected {', '.join(SCHEDULERS)}, or nothing")


Statistics = list[Tensor]  # of one pass: mean and variance of each norm


def observe(network: nn.Module, x: Tensor) -> tuple[Any, Statistics]:
    """network(x), and the batch statistics that this pass would have entered into the running ones, which stay."""
    kept = [(norm, norm.running_mean, norm.running_var, norm.momentum) for norm in _norms(network)]
    for norm, mean, variance, _ in kept:  # others in their place, since the backward pass needs the tensors of the pass
        norm.running_mean, norm.running_var, norm.momentum = torch.zeros_like(mean), torch.zeros_like(variance), 1.0
    output = network(x)
    seen = []
    for norm, mean, variance, momentum in kept:
        seen += [norm.running_mean, norm.running_var]
        norm.running_mean, norm.running_var, norm.momentum = mean, variance, momentum
        if not isinstance(norm, nn.InstanceNorm2d):  # which do not count
            norm.num_batches_tracked -= 1
    return output, seen


@torch.no_grad()
def replay(network: nn.Module, passes: Sequence[Statistics]) -> None:
    """Update the running statistics as the passes that `observe` saw would have, one after the other."""
    for seen in passes:
        values = iter(seen)
        for norm in _norms(network):
            for running in (norm.running_mean, norm.running_var):
                running.mul_(1 - norm.momentum).add_(next(values), alpha=norm.momentum)
            if not isinstance(norm, nn.InstanceNorm2d):
                norm.num_batches_tracked += 1


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Under torchrun, give all processes the mean of their gradients, after a step with several forward passes through
    one network, which DistributedDataParallel cannot follow. The same parameters must have one in all processes."""
    _average([p.grad for p in parameters if p.grad is not None])


def average_statistics(networks: Iterable[nn.Module]) -> None:
    """Under torchrun, give all processes the mean of their running statistics, so that they score alike."""
    _average([x for network in networks for norm in _norms(network) for x in (norm.running_mean, norm.running_var)])


def _average(tensors: Sequence[Tensor]) -> None:
    """Put the mean over all processes into each of the tensors, in one exchange."""
    if distributed.size() == 1 or not tensors:
        return
    flat = torch.cat([x.flatten() for x in tensors])
    dist.all_reduce(flat)
    for x, mean in zip(tensors, (flat / distributed.size()).split([x.numel() for x in tensors])):
        x.copy_(mean.view_as(x))


def _norms(network: nn.Module) -> list[nn.Module]:
    """Those with running statistics."""
    kinds = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d)
    return [module for module in network.modules() if isinstance(module, kinds) and module.track_running_stats]
