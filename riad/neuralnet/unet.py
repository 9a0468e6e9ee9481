"""The paper's U-Net (--algorithm paper; section 3.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from riad.neuralnet.layers import Layer


class NeuralNet(nn.Module):
    """Inpaints (B, C, H, W) in -1..1, with hidden cells at 0, to the same shape in -1..1.

    Stages of two convolutions with batch norm and ReLU, the first one of stages 2 to 5 being 4 x 4 with stride 2; the
    way up: transposed convolution 4 x 4 of stride 2, concatenated as (up, skip), two convolutions.
    """

    def __init__(self, channels: int, filters: Sequence[int]):
        super().__init__()
        ins = [channels, *filters[:-1]]
        self.down = nn.ModuleList(
            nn.Sequential(Layer(i, o, 4, stride=2) if s else Layer(i, o, 3), Layer(o, o, 3))
            for s, (i, o) in enumerate(zip(ins, filters))
        )
        upwards = list(zip(filters[:0:-1], filters[-2::-1]))  # (below, here), from the deepest stage
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, here, 4, stride=2, padding=1) for below, here in upwards)
        self.merge = nn.ModuleList(nn.Sequential(Layer(2 * here, here, 3), Layer(here, here, 3)) for _, here in upwards)
        self.out = nn.Conv2d(filters[0], channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skips, dtype = [], x.dtype
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1]):
            x = merge(torch.cat([up(x), skip], dim=1))
        return torch.tanh(self.out(x).to(dtype))
