"""The three losses and the anomaly map: multi-scale gradient magnitude similarity (MSGMS), SSIM and L2.

Images are (B, C, H, W); the letters are the paper's (section 3.3).
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

C_GMS = 0.0026  # c of the GMS (Xue et al. 2014)
TINY = 1e-12
WINDOW, SIGMA = 11, 1.5  # SSIM's Gaussian, pixels


def gradient_magnitude(image: Tensor) -> Tensor:
    """g(I) = sqrt((I * h_x)^2 + (I * h_y)^2) of each channel, with Prewitt's h and zero padding; same shape."""
    b, c, h, w = image.shape
    prewitt = (torch.arange(-1, 2, dtype=image.dtype, device=image.device) / 3).expand(3, 3)
    kernels = torch.stack([prewitt, prewitt.T])[:, None]  # (2, 1, 3, 3), made on the image's device: no copy
    gx, gy = F.conv2d(image.reshape(b * c, 1, h, w), kernels, padding=1).unbind(1)
    return torch.sqrt(gx**2 + gy**2 + TINY).view(b, c, h, w)


def magnitudes(image: Tensor, scales: int) -> list[Tensor]:
    """g of the image at `scales` sizes, with 2 x 2 average pooling between them; (B, C, H / 2^s, W / 2^s) each."""
    result = []
    for s in range(scales):
        result.append(gradient_magnitude(image))
        if s < scales - 1:
            image = F.avg_pool2d(image, 2)
    return result


def gms(g_i: Tensor, g_r: Tensor) -> Tensor:
    """GMS(I, I_r) = (2 g(I) g(I_r) + c) / (g(I)^2 + g(I_r)^2 + c), 0..1, 1 where the gradients agree."""
    return (2 * g_i * g_r + C_GMS) / (g_i**2 + g_r**2 + C_GMS + TINY)


def msgms_map(of_image: list[Tensor], of_reconstruction: list[Tensor]) -> Tensor:
    """1 - mean over scales of GMS, each scale bilinear to full size, then mean over channels: (B, 1, H, W) in 0..1.

    Both arguments come from `magnitudes`.
    """
    size = of_image[0].shape[2:]
    maps = [gms(g_i, g_r) for g_i, g_r in zip(of_image, of_reconstruction)]
    total = maps[0] + sum(F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps[1:])
    return (1 - total / len(maps)).mean(dim=1, keepdim=True)


def msgms_loss(of_image: list[Tensor], of_reconstruction: list[Tensor]) -> Tensor:
    """The paper's L_G: mean over scales of the mean of 1 - GMS at the scale's own size; a scalar."""
    return sum((1 - gms(g_i, g_r)).mean() for g_i, g_r in zip(of_image, of_reconstruction)) / len(of_image)


@cache
def _blur(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Band matrix G (size, size): G x is the zero-padded Gaussian filter of a column x.

    Two products filter whole images, G X G^T, in less time than a convolution with one channel.
    """
    offset = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    window = torch.exp(-(offset**2) / (2 * SIGMA**2))
    window /= window.sum()
    distance = torch.arange(size)[None] - torch.arange(size)[:, None] + WINDOW // 2
    inside = (distance >= 0) & (distance < WINDOW)
    return torch.where(inside, window[distance.clamp(0, WINDOW - 1)], 0).to(device, dtype)


def ssim_map(x: Tensor, y: Tensor, value_range: float = 1.0) -> Tensor:
    """SSIM of each pixel (Wang et al. 2004), at most 1; value_range: the largest minus the smallest possible value."""
    rows, columns = (_blur(size, x.dtype, x.device) for size in x.shape[2:])
    stack = torch.stack([x, y, x * x, y * y, x * y])
    mu_x, mu_y, xx, yy, xy = rows @ stack @ columns.T
    c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
    similarity = (2 * mu_x * mu_y + c1) * (2 * (xy - mu_x * mu_y) + c2)
    return similarity / ((mu_x**2 + mu_y**2 + c1) * (xx - mu_x**2 + yy - mu_y**2 + c2))


def ssim_loss(x: Tensor, y: Tensor) -> Tensor:
    """The seed's SSIM loss of each pixel, clamp(1 - SSIM, 0, 1) / 2, for values in 0..1."""
    return (1 - ssim_map(x, y)).clamp(0, 1) / 2


def l2_loss(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of each image, (B,)."""
    return ((x - y) ** 2).mean(dim=(1, 2, 3))
