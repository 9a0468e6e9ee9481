"""What a run computes with: device, precision, memory layout, random numbers, memory."""

import ctypes
import os
import random
import re

import numpy as np
import torch

from common.cli import note, say
from common.files import UserError

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # PRECISIONS


def pick_device(
    name: str = "auto", gpu_ids: str | None = None, cpu: bool = False, deterministic: bool = False
) -> torch.device:
    """The device for this process to compute on, announced in one line wherever it is not the one asked for.

    name: "auto" (CUDA, else Apple's MPS, else CPU) or a torch device such as "cuda:1"; gpu_ids: "0" or "0,1". Of
    several GPUs the first one computes, under torchrun one for each process. deterministic: use only algorithms that
    repeat their numbers on a GPU, where PyTorch has them; it warns where not. float32 is IEEE's until `autocast` says
    otherwise. Raises UserError for what is no device, or contradicts itself or torchrun.
    """
    if deterministic != torch.are_deterministic_algorithms_enabled():  # to set it takes seconds of imports
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a search for bugs, which costs time
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS is not deterministic
    _multiply_float32("ieee")
    if cpu:
        other = f"--gpu_ids {gpu_ids}" if gpu_ids is not None else f"--device {name}"
        if other not in ("--device auto", "--device cpu"):
            raise UserError(f"--cpu and {other} contradict one another: give one of them")
        return torch.device("cpu")
    ids, gpus = [], torch.cuda.device_count()
    if gpu_ids is not None:
        try:
            ids = [int(part) for part in str(gpu_ids).split(",")]
        except ValueError:
            raise UserError(f"--gpu_ids {gpu_ids}: expected numbers such as 0 or 0,1") from None
        if min(ids) < 0:
            raise UserError(f"--gpu_ids {gpu_ids}: GPUs are numbered from 0; --cpu means the CPU")
        if name not in ("auto", "cuda", f"cuda:{ids[0]}"):
            raise UserError(f"--gpu_ids {gpu_ids} and --device {name} contradict one another: give one of them")
        name = f"cuda:{ids[0]}"
    elif name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"(cpu|cuda|mps)(:(0|[1-9]\d?))?", name):
        raise UserError(f"device {name!r} is not supported: use auto, cpu, cuda, cuda:1 or mps")
    device = torch.device(name)
    if device.type == "cuda" and gpus:
        return _gpu(ids or ([] if device.index is None else [device.index]), gpus)
    if device.type == "cuda":
        fallback = torch.device("mps" if gpu_ids is not None and torch.backends.mps.is_available() else "cpu")
        say(f"no CUDA GPU here: running on {'the CPU' if fallback.type == 'cpu' else 'Apple MPS'} instead of {name}")
        return fallback
    if device.type == "mps" and not torch.backends.mps.is_available():
        say("no Apple MPS here: running on the CPU")
        return torch.device("cpu")
    return device


def _gpu(ids: list[int], gpus: int) -> torch.device:
    """This process's GPU of the `ids` that were asked for (none: any) and the `gpus` that are here."""
    launched = torch.distributed.is_torchelastic_launched()
    local, count = (int(os.environ[f"LOCAL_{name}"]) for name in ("RANK", "WORLD_SIZE")) if launched else (0, 1)
    if launched and ids in ([], [0]):  # 0 is a default
        ids = list(range(gpus))
    if launched and count > len(ids):
        raise UserError(f"torchrun started {count} processes here, for GPU {', '.join(map(str, ids))} only: name more")
    if missing := [number for number in ids[:count] if number >= gpus]:
        raise UserError(f"there is no GPU {missing[0]}: this machine has {gpus}")
    if count > 1:
        say(f"{count} processes here, on GPU {', '.join(map(str, ids[:count]))}")
    if len(ids) > 1 and not launched and gpus > 1:
        say(f"using GPU {ids[0]} only ({len(ids)} requested): torchrun --nproc_per_node={len(ids)} uses all")
    return torch.device("cuda", ids[local]) if ids else torch.device("cuda")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Within this context, convolutions and matrix products compute in `precision`, one of `common.cli.PRECISIONS`.

    From the call on, backward passes included, they round float32 on an NVIDIA GPU to 11 bits for "tf32" alone.
    Raises UserError for fp16 without a GPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU: use bf16 or fp32 on the CPU")
    if precision == "tf32" and device.type != "cuda":
        note(f"--precision tf32 is of NVIDIA GPUs: on {device.type} it means fp32")
    _multiply_float32("tf32" if precision == "tf32" else "ieee")
    dtype = DTYPES[precision]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def _multiply_float32(how: str) -> None:
    """how: "ieee", or "tf32", which PyTorch takes for convolutions unless told otherwise."""
    for backend in (torch.backends.cudnn, torch.backends.cuda.matmul):
        backend.allow_tf32 = how == "tf32"  # the older flag: torch.export fails where both disagree
    for operations in (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul):
        operations.fp32_precision = how


_multiply_float32("ieee")  # for whoever imports us without calling `pick_device`


def channels_last(device: torch.device, dimensions: int = 4) -> torch.memory_format:
    """The layout for images (4 dimensions) or videos (5): channels last, but contiguous on Apple's MPS, where PyTorch's
    batch norms and convolutions have been wrong otherwise."""
    if device.type == "mps":
        return torch.contiguous_format
    return torch.channels_last if dimensions == 4 else torch.channels_last_3d


def seed_all(seed: int) -> None:
    """Seed every random generator in use: Python's, NumPy's legacy one and torch's on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        torch.manual_seed(seed)
    else:  # torch.manual_seed would also note down a call stack for GPUs, half a millisecond in every step
        torch.default_generator.manual_seed(seed)


# mallopt's parameters (glibc, malloc.h)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def reuse_memory() -> bool:
    """Let the C library keep freed memory instead of giving it back to the system; returns whether it can (glibc).

    By default every tensor beyond 32 MB is mapped anew, and the first touch of each of its pages costs more than what
    is computed on it: a batch norm of 50 MB took 65 ms instead of 7, a training step of MemAE 1.4 times as long. The
    process keeps its peak of memory until it ends. On a GPU, PyTorch does the same by itself.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # Windows, macOS, musl
        return False
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_TOP_PAD, 2**28)])
