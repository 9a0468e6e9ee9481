"""What the three networks are made of."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.runtime import channels_last

FOLD_FROM = 2000  # pixels in a batch; with fewer, preparing the folded kernel takes longer than it saves


class Layer(nn.Module):
    """Convolution, batch norm and LeakyReLU (slope 0: ReLU); `upsample` doubles height and width first.

    (B, channels_in, h, w) to (B, channels_out, h', w'). In eval mode the batch norm is folded into the convolution,
    which then computes channels last: a third faster on a CPU. Training does not: in that layout PyTorch's batch norm
    rounds its statistics ten times as much, which turns the sign, and so the slope, of more activations near 0
    (gradients off by 1e-3 to 1e-2), for a gain of less than 10 %.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        ksize: int,
        stride: int = 1,
        slope: float = 0.0,
        upsample: bool = False,
    ):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, ksize, stride, (ksize - 1) // 2)
        self.bn = nn.BatchNorm2d(channels_out)
        self.slope = slope
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            y = self.bn(self._convolve(x, self.conv.weight, self.conv.bias))
        else:
            scale = self.bn.weight * torch.rsqrt(self.bn.running_var + self.bn.eps)
            bias = self.bn.bias + scale * (self.conv.bias - self.bn.running_mean)
            weight = self.conv.weight * scale[:, None, None, None]
            y = self._convolve(x, weight.contiguous(memory_format=channels_last(x.device)), bias)
        return F.leaky_relu(y, self.slope, inplace=True)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if not self.upsample:
            return F.conv2d(x, weight, bias, self.conv.stride, self.conv.padding)
        if torch.compiler.is_exporting() or len(x) * x.shape[2] * x.shape[3] < FOLD_FROM:
            return F.conv2d(F.interpolate(x, scale_factor=2), weight, bias, padding=self.conv.padding)
        # Nearest x2 and a convolution are one transposed convolution of stride 2, whose kernel is the flipped one
        # summed over 2 x 2 windows: (k + 1)^2 products for each pixel of x instead of 4 k^2.
        kernel = 4 * F.avg_pool2d(weight.flip(2, 3).transpose(0, 1), 2, stride=1, padding=1)  # (C_in, C_out, k+1, k+1)
        return F.conv_transpose2d(x, kernel, bias, stride=2, padding=self.conv.padding)
