"""Sequences of boards and what happens to them: drawn, corrupted, reconstructed, judged, coloured; and the device."""

import os

import numpy as np
import torch
from matplotlib import colormaps
from torch import Tensor, nn

from common import distributed
from common.cli import note
from common.runtime import autocast, pick_device

KINDS = {"excessive": 1, "insufficient": -1}  # of anomalies, with the sign of their error
RATES = (0.1, 0.2, 0.3, 0.4, 0.5)  # share of anomalous pads
SHIFTS = (-5, -4, -3, -2, 2, 3, 4, 5)  # of the anomalies, in standard deviations of a pad's volume
THRESHOLDS = torch.linspace(0, 5, 51)
P_NOISE, P_KEEP = 0.1, 0.9  # of the corruption


def place(values: Tensor, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Pads' values (..., P) -> images (..., 1, height, width), zero off the pads; rows, columns: (..., P) or (P,)."""
    images = values.new_zeros(*values.shape[:-1], height * width)
    where = (rows * width + columns).expand_as(values)
    return images.scatter_(-1, where, values).unflatten(-1, (1, height, width))


def at_pads(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The values of pixels (rows, columns), (P,) each: images (..., 1, H, W) -> (..., P)."""
    return images[..., 0, rows, columns]


def draw_sequences(
    count: int, pads: int, mean: list[float], std: list[float], generator: torch.Generator | None = None
) -> Tensor:
    """Clean sequences of the age model, N(mean[age], std[age]) for each pad: (count, cycle, pads), float32."""
    noise = torch.randn(count, len(mean), pads, generator=generator)
    return noise * torch.tensor(std)[:, None] + torch.tensor(mean)[:, None]


def corrupt(clean: Tensor, mask: Tensor) -> Tensor:
    """The network's input: (clean + n b) d, of the shape (B, T, 1, H, W) of `clean`; mask: (H, W) bool, the pads.

    n ~ N(0, 1) and b ~ Bernoulli(0.1) for each pad and frame, d ~ Bernoulli(0.9) / 0.9 for each pixel of a sample, the
    same in all its frames.
    """
    noise = torch.randn_like(clean) * torch.empty_like(clean).bernoulli_(P_NOISE) * mask
    dropped = torch.empty_like(clean[:, :1]).bernoulli_(P_KEEP) / P_KEEP
    return (clean + noise) * dropped


def inject(clean: Tensor, rate: float, shift: float, generator: torch.Generator) -> Tensor:
    """What to add to pads' values (N, T, P): N(shift, 0.1) with probability `rate` for each, else 0."""
    size = clean.shape
    chosen = torch.rand(size, generator=generator) < rate
    return chosen * (shift + 0.1 * torch.randn(size, generator=generator))


@torch.no_grad()
def reconstruct(
    model: nn.Module, sequences: Tensor, batch_size: int, device: torch.device, precision: str = "fp32"
) -> Tensor:
    """The network's reconstruction of `sequences` (N, T, 1, H, W): the same shape and dtype, on the CPU.

    Of several processes, each reconstructs its part; all get the whole.
    """
    model.eval()
    outputs = []
    rank_items = distributed.share(sequences)
    # A process for which nothing is left takes the first one, to be left out: networks take no empty batch.
    for batch in (rank_items if len(rank_items) else sequences[:1]).split(batch_size):
        with autocast(device, precision):
            outputs.append(model(batch.to(device)).to("cpu", batch.dtype))
    return torch.from_numpy(distributed.gathered(torch.cat(outputs)[: len(rank_items)].numpy()))


class Counts:
    """True positives, false positives and false negatives of one kind of anomaly at each threshold t.

    sign 1: excessive, found where the signed error > t; sign -1: insufficient, found where it is < -t.
    """

    def __init__(self, sign: int):
        self.sign = sign
        self.tp, self.fp, self.fn = (torch.zeros(len(THRESHOLDS), dtype=torch.int64) for _ in range(3))

    def update(self, error: Tensor, shift: Tensor) -> None:
        """error, shift: of the same shape; shift: the anomaly that was added."""
        for k, threshold in enumerate(THRESHOLDS):
            found, true = self.sign * error > threshold, self.sign * shift > 0
            self.tp[k] += (found & true).sum()
            self.fp[k] += (found & ~true).sum()
            self.fn[k] += (~found & true).sum()

    def curve(self) -> dict[str, list[float]]:
        """P = tp / (tp + fp + 1e-7), R = tp / (tp + fn + 1e-7), F1 = 2 / (1/P + 1/R), at the thresholds where neither
        P nor R is 0; "Threshold" says which ones."""
        precision, recall = self.tp / (self.tp + self.fp + 1e-7), self.tp / (self.tp + self.fn + 1e-7)
        kept = (precision > 0) & (recall > 0)
        precision, recall = precision[kept], recall[kept]
        values = {"Precision": precision, "Recall": recall, "F1": 2 / (1 / precision + 1 / recall)}
        return {name: v.tolist() for name, v in (values | {"Threshold": THRESHOLDS[kept]}).items()}


def make_colormaps(maps: Tensor | np.ndarray, limit: float = 1.0) -> np.ndarray:
    """Colour signed maps: (N, H, W) -> (N, 3, H, W) float64 in 0..1, from blue (-limit and below) over white (0) to
    red (limit and above)."""
    if not limit > 0:
        raise ValueError(f"limit {limit}: expected a number above 0")
    maps = np.asarray(maps, dtype=np.float64)
    scaled = ((maps + limit) / (2 * limit)).clip(0, 1)
    return colormaps["bwr"](scaled)[..., :3].transpose(0, 3, 1, 2)


def device_of(
    gpu_ids: list[int], cpu: bool = False, name: str | None = None, deterministic: bool = False
) -> torch.device:
    """The device called `name`, else those of `gpu_ids` that this machine has, or any, where these are too few; says
    so."""
    if cpu or name:
        return pick_device(name or "auto", cpu=cpu, deterministic=deterministic)
    count, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    ids = list(dict.fromkeys(number for number in gpu_ids if number < count))
    if count and (missing := [number for number in gpu_ids if number >= count]):
        ids = ids if len(ids) >= processes else list(range(count))[:processes]
        note(f"this machine has no GPU {', '.join(map(str, missing))}: using GPU {', '.join(map(str, ids))}")
    return pick_device(gpu_ids=",".join(map(str, ids or gpu_ids)), deterministic=deterministic)
