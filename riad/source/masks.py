"""Disjoint random masks (paper, section 3.1), drawn on the device for a whole batch.

Random numbers are a hash of what a mask is for (seed, epoch, image, cell size, cell) instead of a generator's next
ones: an image's masks do not depend on the batch, the device or an interruption.
"""

import torch
from torch import Tensor

from riad.options import require_cells

_GAMMA, _A, _B = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # as signed 64-bit integers
_HALF = 2**32 - 1


def epoch_keys(seed: int, epoch: int, rows: Tensor) -> Tensor:
    """64 random bits for each training image of `rows` (B,), its numbers, fresh in each epoch; int64 (B,)."""
    return mix(mix(mix(torch.tensor(seed, device=rows.device)) + epoch) + rows)


def content_keys(seed: int, images: Tensor) -> Tensor:
    """64 random bits for each of `images` (B, C, H, W) uint8, made of its pixels: int64 (B,).

    An image is scored with the same masks wherever it lies.
    """
    values = images.flatten(1).long()
    places = torch.arange(values.shape[1], device=images.device) * _GAMMA
    hashes = mix(places + values)
    # Their sum modulo 2^64 by halves: where ONNX Runtime computes it, sums beyond 64 bits do not wrap around.
    low, high = (hashes & _HALF).sum(dim=1), ((hashes >> 32) & _HALF).sum(dim=1)
    return mix(mix(torch.tensor(seed, device=images.device)) + low + (high << 32))


def mix(bits: Tensor) -> Tensor:
    """splitmix64 (Steele et al. 2014): unlike int64 in, random-looking int64 out."""
    bits = bits + _GAMMA
    bits = (bits ^ ((bits >> 30) & (2**34 - 1))) * _A  # torch shifts signs in, splitmix64 zeros
    bits = (bits ^ ((bits >> 27) & (2**37 - 1))) * _B
    return bits ^ ((bits >> 31) & (2**33 - 1))


def disjoint_masks(keys: Tensor, size: tuple[int, int], k: int, n: int) -> Tensor:
    """n masks for each image: (B, n, H, W) float, 0 on hidden cells and 1 elsewhere.

    The ceil(H / k) x ceil(W / k) cells of k x k pixels, cropped to the image, are shuffled and cut into n equal parts,
    the remainder going to the last one; mask i hides part i. Thus every pixel is hidden in exactly one of the n masks.
    keys: (B,), from one of the functions above. Raises UserError where there are fewer cells than parts.
    """
    h, w = -(-size[0] // k), -(-size[1] // k)
    require_cells(size, k, n)
    cells = torch.arange(h * w, device=keys.device)
    shuffled = mix(mix(keys + k)[:, None] + cells * _GAMMA).argsort(dim=1)  # (B, h w)
    part = (cells // (h * w // n)).clamp(max=n - 1).expand_as(shuffled)
    part = torch.empty_like(shuffled).scatter_(1, shuffled, part).view(-1, 1, h, w)
    hidden = part == torch.arange(n, device=keys.device).view(1, n, 1, 1)  # (B, n, h, w)
    hidden = hidden.repeat_interleave(k, dim=2).repeat_interleave(k, dim=3)
    return 1.0 - hidden[:, :, : size[0], : size[1]].float()
