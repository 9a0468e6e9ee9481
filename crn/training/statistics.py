"""Running statistics of norms, as if every published pass had been made.

For the units (g, d), and then for (d, g), the published step makes these passes in training mode:

    G(x)    D(G(x)) for the generator's loss    D(x) for the log    D(G(x)) for the discriminator's loss

DAGAN's makes G(x), D(G(x)), D(G(x)), D(x). Ours makes each pass once, since its output is the same each time (D(x) is
G(x) of the other order): `captured` keeps what a pass would add to the running statistics, `apply_statistics` adds it
as often, and in the order, as the published passes would.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common import distributed

Statistics = list[Tensor]  # of one pass: mean and variance of each norm


@contextmanager
def captured(network: nn.Module) -> Iterator[Statistics]:
    """Within the block, a pass through `network` leaves its running statistics as they are; the list holds the batch's
    when the block ends."""
    kept = [(norm, norm.running_mean, norm.running_var, norm.momentum) for norm in _norms(network)]
    for norm, mean, variance, _ in kept:  # others in their place, since the backward pass needs the tensors of the pass
        norm.running_mean, norm.running_var, norm.momentum = torch.zeros_like(mean), torch.zeros_like(variance), 1.0
    statistics: Statistics = []
    yield statistics
    for norm, mean, variance, momentum in kept:
        statistics += [norm.running_mean, norm.running_var]
        norm.running_mean, norm.running_var, norm.momentum = mean, variance, momentum
        if not isinstance(norm, nn.InstanceNorm2d):  # which do not count
            norm.num_batches_tracked -= 1


@torch.no_grad()
def apply_statistics(network: nn.Module, *passes: Statistics) -> None:
    """Update the running statistics as these passes, captured before, would have done one after the other."""
    for statistics in passes:
        values = iter(statistics)
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
