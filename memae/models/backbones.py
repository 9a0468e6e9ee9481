"""Video backbones that can take the encoder's place: SlowOnly (plan A), ResNet3d-CSN (plan B) and ResNet3d (plan C).

The architectures and parameter names are mmaction2's, so that its checkpoints load where the configuration is the same.
Each turns 16 frames into a code of 2 time steps at 1/32 of the resolution.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memae.models.convolutions import convolve, longer_than
from memae.options.base_options import DEPTHS

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # per stage
STEM_CHANNELS, EXPANSION = 64, 4  # EXPANSION: of a bottleneck's channels in its output
Triple = tuple[int, int, int]
ONE, SPACE, SPACE_TIME = (1, 1, 1), (1, 3, 3), (3, 3, 3)


@dataclass(frozen=True)
class Plan:
    """What distinguishes the backbones. Strides not named here are 2 in space from the second stage on, else 1."""

    stem_kernel: Triple
    stem_stride_t: int
    pool_stride_t: int = 1
    pool2: bool = False  # halve the time after the first stage
    temporal_strides: tuple[int, int, int, int] = (1, 1, 1, 1)  # of the stages
    inflate: tuple[bool, bool, bool, bool] = (True, True, True, True)  # stages that look along time
    channel_separated: bool = False
    bn_eps: float = 1e-5


PLANS = {
    "slowonly": Plan((1, 7, 7), 8, inflate=(False, False, True, True)),
    "csn": Plan((3, 7, 7), 1, temporal_strides=(1, 2, 2, 2), channel_separated=True, bn_eps=1e-3),
    "resnet3d": Plan((3, 7, 7), 2, pool_stride_t=2, pool2=True),
}


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, and ReLU unless relu is False."""

    def __init__(
        self, channels_in: int, channels: int, kernel: Triple, stride: Triple = ONE, *,
        groups: int = 1, eps: float = 1e-5, relu: bool = True,
    ):  # fmt: skip
        super().__init__()
        padding = [(k - 1) // 2 for k in kernel]
        self.conv = nn.Conv3d(channels_in, channels, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm3d(channels, eps=eps)
        self.relu = relu
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T', H', W')."""
        # On a CPU in half precision, PyTorch's layer would have garbage for a gradient, see convolutions.py.
        half = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        x = self.bn(convolve(x, self.conv) if half and longer_than(x, self.conv) else self.conv(x))
        return F.relu_(x) if self.relu else x


class Block(nn.Module):
    """A residual block: two convolutions (depths 18 and 34) or a bottleneck of three (deeper networks)."""

    def __init__(
        self, channels_in: int, width: int, stride: Triple, inflate: bool, bottleneck: bool, plan: Plan, csn_mode: str
    ):
        super().__init__()
        eps, channels = plan.bn_eps, width * (EXPANSION if bottleneck else 1)
        if not bottleneck:
            kernel = SPACE_TIME if inflate else SPACE
            self.conv1 = ConvNorm(channels_in, width, kernel, stride, eps=eps)
            self.conv2 = ConvNorm(width, width, kernel, eps=eps, relu=False)
        elif plan.channel_separated:
            self.conv1 = ConvNorm(channels_in, width, ONE, eps=eps)
            depthwise = ConvNorm(width, width, SPACE_TIME, stride, groups=width, eps=eps)
            mixing = [ConvNorm(width, width, ONE, eps=eps, relu=False)] if csn_mode == "ip" else []
            self.conv2 = nn.Sequential(*mixing, depthwise)
        else:
            self.conv1 = ConvNorm(channels_in, width, (3, 1, 1) if inflate else ONE, eps=eps)
            self.conv2 = ConvNorm(width, width, SPACE, stride, eps=eps)
        self.conv3 = ConvNorm(width, channels, ONE, eps=eps, relu=False) if bottleneck else nn.Identity()
        self.downsample = nn.Identity()
        if stride != ONE or channels_in != channels:
            self.downsample = ConvNorm(channels_in, channels, ONE, stride, eps=eps, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T', H', W'), not below 0."""
        return F.relu_(self.conv3(self.conv2(self.conv1(x))) + self.downsample(x))


class ResNet3d(nn.Module):
    """A residual network over space and time."""

    def __init__(self, plan: Plan, depth: int, in_channels: int = 1, csn_mode: str = "ir"):
        """csn_mode: of channel-separated bottlenecks, "ir" or "ip" (1x1x1 convolution before the depthwise one)."""
        super().__init__()
        self.plan = plan
        self.conv1 = ConvNorm(in_channels, STEM_CHANNELS, plan.stem_kernel, (plan.stem_stride_t, 2, 2), eps=plan.bn_eps)
        bottleneck = depth >= 50
        channels = STEM_CHANNELS
        for stage, blocks in enumerate(BLOCKS[depth]):
            width = STEM_CHANNELS * 2**stage
            step = 1 if stage == 0 else 2
            layers = []
            for number in range(blocks):
                stride = (plan.temporal_strides[stage], step, step) if number == 0 else (1, 1, 1)
                layers.append(Block(channels, width, stride, plan.inflate[stage], bottleneck, plan, csn_mode))
                channels = width * (EXPANSION if bottleneck else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, 16, H, W) -> (B, self.channels, 2, H / 32, W / 32)."""
        x = self.conv1(x)
        x = F.max_pool3d(x, (1, 3, 3), (self.plan.pool_stride_t, 2, 2), (0, 1, 1))
        x = self.layer1(x)
        if self.plan.pool2:
            x = F.max_pool3d(x, (2, 1, 1))
        return self.layer4(self.layer3(self.layer2(x)))


def make_backbone(name: str, depth: int | None = None, in_channels: int = 1) -> ResNet3d:
    """slowonly, csn or resnet3d of one of its `DEPTHS`, None for 18, 152 and 18."""
    return ResNet3d(PLANS[name], depth or DEPTHS[name][0], in_channels)


def from_mmaction(state: Mapping[str, Tensor], in_channels: int) -> dict[str, Tensor]:
    """The backbone's part of an mmaction2 checkpoint's `state_dict`, for frames of `in_channels` channels.

    Takes `backbone.` off the names and leaves `cls_head.` out. A stem for colour frames becomes one for grey frames
    by the sum over its channels: the same output as for a frame whose three channels are all that grey.
    """
    ours = {name.removeprefix("backbone."): value for name, value in state.items() if not name.startswith("cls_head.")}
    stem = ours.get("conv1.conv.weight")
    if stem is not None and stem.dim() == 5 and stem.shape[1] == 3 and in_channels == 1:
        ours["conv1.conv.weight"] = stem.sum(dim=1, keepdim=True)
    return ours
