"""The U-Nets of the competitive units, under the authors' parameter names.

Every block halves the image, runs the block inside it, doubles the size again and hands both what it was given and what
it made to the block around it. Two ways of doubling: a transposed convolution (`UnetGenerator`), or nearest-neighbour
upsampling and a 3x3 convolution (`UnetGeneratorImproved`), which leaves no checkerboard pattern.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST_LEVELS = 5  # outermost, three that widen 1 -> 2 -> 4 -> 8 times ngf, innermost


def get_norm_layer(norm: str) -> Callable[[int], nn.Module] | None:
    """The norm's constructor, taking the number of channels: "batch" (affine), "instance" (not affine), both with
    running statistics, or "image" (instance norm by each image's own statistics in evaluation, too; not in the
    original); None for "none"."""
    if norm == "batch":
        return partial(nn.BatchNorm2d, affine=True, track_running_stats=True)
    if norm == "instance":
        return partial(nn.InstanceNorm2d, affine=False, track_running_stats=True)
    if norm == "image":
        return partial(nn.InstanceNorm2d, affine=False, track_running_stats=False)
    return None


class UpsampledConv2d(nn.Conv2d):
    """Nearest upsampling by 2, then a 3x3 convolution with padding 1; large images: as one transposed 4x4 convolution.

    An upsampled row stands for two, so that along each axis the kernel w acts on the small image as the stride-2 kernel
    (w2, w1 + w2, w0 + w1, w0): 16 taps for 4 pixels instead of 36. Making that kernel costs as much as hundreds of
    pixels, which the innermost levels do not have. The parameters are those of the 3x3 convolution.
    """

    worthwhile = 512  # pixels of a batch from which on that kernel is made; measured on two CPU cores

    def __init__(self, in_channels: int, out_channels: int, bias: bool):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', 2H, 2W)."""
        if torch.compiler.is_exporting() or len(x) * x.shape[2] * x.shape[3] < self.worthwhile:
            return super().forward(F.interpolate(x, scale_factor=2.0))
        return F.conv_transpose2d(x, self.folded(), self.bias, stride=2, padding=1)

    def folded(self) -> Tensor:
        """The kernel of the transposed convolution, (C, C', 4, 4)."""
        rows = _fold(self.weight.transpose(0, 1), 2)
        return _fold(rows, 3)


def _fold(w: Tensor, axis: int) -> Tensor:
    w0, w1, w2 = w.unbind(axis)
    return torch.stack((w2, w1 + w2, w0 + w1, w0), axis)


class UnetSkipConnectionBlock(nn.Module):
    """One level of the U-Net around `submodule`, the next smaller one (None: innermost)."""

    def __init__(
        self,
        outer_nc: int,
        inner_nc: int,
        norm_layer: Callable[[int], nn.Module] | None,
        use_bias: bool,
        improved: bool,
        input_nc: int | None = None,
        submodule: nn.Module | None = None,
        outermost: bool = False,
        dropout: bool = False,
    ):
        super().__init__()
        self.outermost = outermost
        down = nn.Conv2d(input_nc or outer_nc, inner_nc, 4, stride=2, padding=1, bias=use_bias)
        widened = inner_nc if submodule is None else 2 * inner_nc  # with what the submodule was given
        if improved:  # the upsampling is part of the convolution; its place stays, for the authors' parameter names
            up = [nn.Identity(), UpsampledConv2d(widened, outer_nc, bias=use_bias)]
        else:
            up = [nn.ConvTranspose2d(widened, outer_nc, 4, stride=2, padding=1, bias=use_bias or outermost)]
        if outermost:
            layers = [down, submodule, nn.ReLU(), *up, nn.Tanh()]
        else:  # without norms, the authors' numbers of the layers close up
            inside = [norm_layer(inner_nc) if norm_layer else None, submodule] if submodule is not None else []
            layers = [nn.LeakyReLU(0.2), down, *inside, nn.ReLU(), *up, norm_layer(outer_nc) if norm_layer else None]
            layers += [nn.Dropout(0.5)] if dropout else []
        self.model = nn.Sequential(*[layer for layer in layers if layer is not None])

    def forward(self, x: Tensor) -> Tensor:
        """(B, input_nc, H, W) -> (B, outer_nc, H, W) for the outermost, else (B, 2 outer_nc, H, W): [x, block(x)]."""
        if self.outermost:
            return self.model(x)
        # The authors' activations work in place: what passes by is the x that the LeakyReLU has changed.
        x = self.model[0](x)
        return torch.cat((x, self.model[1:](x)), dim=1)


class UnetGenerator(nn.Module):
    """U-Net of max(num_downs, 5) levels: images (B, input_nc, H, W) -> (B, output_nc, H, W) in [-1, 1].

    H and W: multiples of 2^levels. `use_dropout` concerns the levels between the innermost and those that widen.
    """

    improved = False

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        num_downs: int,
        ngf: int = 64,
        norm_layer: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
        use_dropout: bool = False,
    ):
        super().__init__()
        self.levels = max(num_downs, FEWEST_LEVELS)
        use_bias = norm_layer is not None and isinstance(norm_layer(1), nn.InstanceNorm2d)
        block = partial(UnetSkipConnectionBlock, norm_layer=norm_layer, use_bias=use_bias, improved=self.improved)
        inside = block(8 * ngf, 8 * ngf)
        for _ in range(num_downs - FEWEST_LEVELS):
            inside = block(8 * ngf, 8 * ngf, submodule=inside, dropout=use_dropout)
        for wide, narrow in ((8, 4), (4, 2), (2, 1)):
            inside = block(narrow * ngf, wide * ngf, submodule=inside)
        self.model = block(output_nc, ngf, input_nc=input_nc, submodule=inside, outermost=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, input_nc, H, W) -> (B, output_nc, H, W)."""
        return self.model(x)


class UnetGeneratorImproved(UnetGenerator):
    """`UnetGenerator` that doubles sizes by nearest upsampling and a 3x3 convolution."""

    improved = True
