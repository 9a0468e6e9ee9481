"""RIAD's network with its masks: what a pass of the training and a scoring compute, after the seed or the paper."""

import math
from argparse import Namespace
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from common import distributed
from common.files import UserError
from common.runtime import autocast
from riad.source.connector import connect
from riad.source.losses import l2_loss, magnitudes, msgms_loss, msgms_map, ssim_loss, ssim_map
from riad.source.masks import content_keys, disjoint_masks, epoch_keys, mix


def learning_rate(mode: int, lr: float, epoch: float) -> float:
    """The rate at `epoch`, a fraction that counts finished training, for --mode_lr.

    0: lr. 1: linear warm-up over 5 epochs, then lr. 2: warm-up, then cosine from lr down to lr / 5 in periods of 20,
    40, 80, ... epochs, until epoch 250; a tenth of the last rate from then on. 3: lr, a tenth of it from epoch 250 on.
    """
    if mode == 0:
        return lr
    if mode == 3:
        return lr if epoch < 250 else lr / 10
    if epoch < 5:
        return lr * epoch / 5
    if mode == 1:
        return lr
    since, period = min(epoch, 250) - 5, 20
    while since >= period:
        since, period = since - period, 2 * period
    low = lr / 5
    rate = low + (lr - low) * (1 + math.cos(math.pi * since / period)) / 2
    return rate if epoch < 250 else rate / 10


class Agent:
    """The network and how the algorithm uses it: masked inputs, losses, scores.

    settings: as `riad.options` gives them; channels: of the images, which come as (B, C, H, W) uint8. Raises UserError
    for --sync_bn without a GPU.
    """

    def __init__(self, settings: Namespace, channels: int, device: torch.device):
        self.paper, self.device, self.precision = settings.algorithm == "paper", device, settings.precision
        self.size, self.smooth = (settings.img_size, settings.img_size), settings.smooth
        self.list_k, self.disjoint_n, self.seed = settings.list_k, settings.disjoint_n, settings.seed
        self.scales = 4 if self.paper else 3  # of the MSGMS
        self.steps_per_batch = 1 if self.paper else self.disjoint_n * len(self.list_k)  # of the optimizer
        self.network = connect(settings.nn, channels, settings.filters, settings.ksize).to(device)
        # Called in place of the network, in eval mode too: it gives all processes the first one's batch statistics.
        self.forward = distributed.parallel(self.network, sync_bn=settings.sync_bn)

    def prepare(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 as the network computes: 0..1 by each image's minimum and maximum, paper: -1..1."""
        x = images.to(self.device, next(self.network.parameters()).dtype)
        if self.paper:
            return (x / 255 - 0.5) / 0.5
        low, high = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
        return (x - low) / (high - low).clamp(min=1)

    def in_unit_range(self, x: Tensor) -> Tensor:
        """What `prepare` has returned, or the network, in 0..1."""
        return x / 2 + 0.5 if self.paper else x

    def masks(self, keys: Tensor, k: int) -> Tensor:
        """The n masks with cells of k x k for each key (B,): (B, n, 1, H, W), 0 on hidden cells."""
        return disjoint_masks(keys, self.size, k, self.disjoint_n)[:, :, None]

    def training_passes(self, images: Tensor, rows: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, masks) of each step of the optimizer on one batch, whose images are numbered `rows` (B,).

        repo: all masked images in image-major order, in slices of B: x (B, C, H, W), masks (B, 1, 1, H, W).
        paper: one cell size and one set of masks for the batch: x (B, C, H, W), masks (B, n, 1, H, W), all B alike.
        """
        x, keys = self.prepare(images), epoch_keys(self.seed, epoch, rows.to(self.device))
        if self.paper:
            k = self.list_k[int(mix(keys[:1])) % len(self.list_k)]
            yield x, self.masks(keys[:1], k).expand(len(x), -1, -1, -1, -1)
            return
        masks = torch.cat([self.masks(keys, k) for k in self.list_k], dim=1)  # (B, M, 1, H, W)
        image_of_each = torch.arange(len(x), device=self.device).repeat_interleave(masks.shape[1])
        for numbers, mask in zip(image_of_each.split(len(x)), masks.flatten(0, 1).split(len(x))):
            yield x[numbers], mask[:, None]

    def inpaint(self, x: Tensor, masks: Tensor) -> Tensor:
        """The network's outputs for `x` (B, C, H, W) under each of its masks (B, n, 1, H, W): (B, n, C, H, W)."""
        return self.forward((x[:, None] * masks).flatten(0, 1)).unflatten(0, (x.shape[0], -1))  # not len(x), as below

    def losses(self, x: Tensor, outputs: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """L2, MSGMS and SSIM loss of the outputs (B, n, C, H, W): repo: of each; paper: of the assembled image."""
        if self.paper:
            y = assemble(outputs, masks)
            msgms = msgms_loss(magnitudes(grey(x), self.scales), magnitudes(grey(y), self.scales))
            return l2_loss(x, y).mean(), msgms, (1 - ssim_map(x, y, value_range=2)).mean()
        x, y = x.repeat_interleave(outputs.shape[1], dim=0), outputs.flatten(0, 1)
        l2, maps = l2_loss(x, y).mean(), msgms_map(magnitudes(x, self.scales), magnitudes(y, self.scales))
        return l2, maps.mean(), ssim_loss(x, y).mean()

    @torch.no_grad()
    def score(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructions (B, C, H, W) in 0..1 and anomaly maps (B, H, W), whose maxima are the images' scores.

        images: (B, C, H, W) uint8. Reconstructions are made of the hidden cells, as the mean over cell sizes.
        Raises UserError where a map is not finite.
        """
        self.network.eval()
        reconstructions, maps = self.maps(images)
        if not maps.isfinite().all():
            raise UserError("the scores are not finite: the network has diverged. Train with a lower --lr, or in fp32")
        return reconstructions, maps

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As `score`, with the network in the mode that it is in, finite or not."""
        x, keys = self.prepare(images), content_keys(self.seed, images.to(self.device))
        reconstructions, maps = torch.zeros_like(x), torch.zeros_like(x[:, :1])
        for k in self.list_k:
            masks = self.masks(keys, k)
            with autocast(self.device, self.precision):
                outputs = self.inpaint(x, masks)
            reconstruction = assemble(outputs, masks)
            reconstructions += reconstruction / len(self.list_k)
            maps += self.map(x, reconstruction[:, None] if self.paper else outputs) / len(self.list_k)
        if self.paper:
            maps = F.avg_pool2d(maps, self.smooth, stride=1, padding=self.smooth // 2, count_include_pad=False)
        return self.in_unit_range(reconstructions), maps[:, 0]

    def map(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Mean over n of the MSGMS maps of x and outputs (B, n, C, H, W), (B, 1, H, W): repo: those of all masks;
        paper: the assembled reconstruction, of which the channels' means are compared."""
        y = outputs.flatten(0, 1)
        if self.paper:
            x, y = grey(x), grey(y)
        g = [g_s.repeat_interleave(outputs.shape[1], dim=0) for g_s in magnitudes(x, self.scales)]
        # Not len(x), which would fix the number of images in an ONNX file.
        return msgms_map(g, magnitudes(y, self.scales)).unflatten(0, (x.shape[0], -1)).mean(dim=1)


def assemble(outputs: Tensor, masks: Tensor) -> Tensor:
    """The reconstruction (paper, section 3.1): of each mask's output (B, n, C, H, W) the hidden cells; (B, C, H, W)."""
    return ((1 - masks) * outputs).sum(dim=1)


def grey(image: Tensor) -> Tensor:
    """Mean over channels, (B, 1, H, W)."""
    return image.mean(dim=1, keepdim=True)
