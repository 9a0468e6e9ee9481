"""Spatial attention of the encoder."""

import torch
from torch import Tensor, nn


class SpatialAttention(nn.Module):
    """a = tanh(conv(h)), one channel for all: (B, C, H, W) -> (h + a, a) with a (B, 1, H, W) in -1..1."""

    def __init__(self, channel: int, kernel: int):
        super().__init__()
        self.attn = nn.Conv2d(channel, 1, kernel, padding=kernel // 2)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.tanh(self.attn(h))
        return h + a, a
