"""Several processes, one training: torchrun --nproc_per_node=N script.py ...

Every process computes its share of the very same batches and the gradients are averaged, so that N processes take the
steps that one would take (batch norms, which normalise each share on its own, apart). The first process logs and saves.
Without torchrun, all of this does nothing.
"""

import atexit
import gc
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from common.files import UserError


def join(device: torch.device) -> torch.device:
    """Meet the other processes of torchrun, by NCCL on GPUs and gloo on CPUs; returns the device.

    device: of `common.runtime.pick_device`, which gives each process its own. UserError for other than CUDA and CPU.
    """
    if not dist.is_torchelastic_launched():
        return device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise UserError(f"torchrun works on CUDA GPUs and CPUs, not on {device.type}: add the option for the CPU")
    # Long, since the others wait while the first process makes data or extracts features.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))
    atexit.register(_leave)
    return device


def _leave() -> None:
    # The group's threads end with the last object that holds it. Where that is a model caught in a cycle, they would
    # outlive the interpreter, which kills the process when one of them then frees a tensor.
    gc.collect()
    dist.destroy_process_group()


def end_at_once(status: int) -> None:
    """End this process, where it is one of several, after an error of its own: the others, waiting for it, end then
    too, where an orderly leave (of NCCL) would wait for them."""
    if dist.is_initialized():
        if isinstance(sys.exception(), Exception):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process goes through the block before the others do: it makes what they then find."""
    if rank():
        dist.barrier()
    yield
    if size() > 1 and not rank():
        dist.barrier()


def share(items: Sequence) -> Sequence:
    """Every size-th item, from this process's number on; empty where there are more processes than items."""
    return items[rank() :: size()]


def weighted_share(batch: Sequence) -> tuple[Sequence, float]:
    """This process's `share` of a batch to train on, and the weight of its mean loss.

    The mean over all processes of weight * mean loss is the batch's mean loss, however the batch divides. A process
    for which nothing is left gets the first entry with the weight 0.
    """
    rank_items = share(batch)
    return (rank_items, len(rank_items) * size() / len(batch)) if len(rank_items) else (batch[:1], 0.0)


def parallel(model: nn.Module, unused: bool = False, sync_bn: bool = False) -> nn.Module:
    """What to call in training in place of `model`: it averages the gradients of all processes in the backward pass.

    unused: some parameters take no part in some steps; sync_bn: batch norms over all processes (GPUs only).
    """
    if sync_bn:
        if next(model.parameters()).device.type != "cuda":
            raise UserError("--sync_bn needs GPUs: on a CPU, batch norms are of each process's share")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if size() == 1:
        return model
    return DistributedDataParallel(model, find_unused_parameters=unused)


def means_of(values: Sequence[float], device: torch.device) -> list[float]:
    """The mean of each of several numbers over all processes, in one exchange."""
    if size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
    dist.all_reduce(tensor)
    return [total / size() for total in tensor.tolist()]


def mean_of(value: float, device: torch.device) -> float:
    """The mean of a number over all processes."""
    return means_of([value], device)[0]


def anywhere(flag: bool, device: torch.device) -> bool:
    """Whether the flag is raised in any process: all must leave a loop at the same step."""
    return flag if size() == 1 else mean_of(float(flag), device) > 0


def gathered(values: np.ndarray) -> np.ndarray:
    """The rows of all processes, each of which has those of its `share`, in the order of the items; none twice."""
    if size() == 1:
        return values
    parts: list[Any] = [None] * size()
    dist.all_gather_object(parts, values)
    rows = np.empty((sum(map(len, parts)), *values.shape[1:]), values.dtype)
    for number, rank_rows in enumerate(parts):
        rows[number :: size()] = rank_rows
    return rows
