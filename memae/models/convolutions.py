"""3D convolutions whose gradients of weights and biases are computed in the fastest way on a CPU.

In channels-last memory, the CPU's forward pass and input gradient are 1.3 to 1.6 times as fast as in the contiguous
layout, but the weight gradient of strided 3D convolutions in float32 takes 2.8 times as long (96 to 128 channels,
16 x 64 x 64). These layers take the better layout for each; the numbers differ by rounding only. In bfloat16, the bias
gradient of a transposed convolution takes nearly as long as the two others together; these layers sum by themselves.
Nor can bfloat16's weight gradient be used where a kernel is longer than what it passes over: oneDNN's is garbage there
(PyTorch 2.15: 3 x 3 x 3 weights on 2 frames); it is computed in float32.
"""

import torch
from torch import Tensor, nn


class Convolution(torch.autograd.Function):
    """torch.convolution, plain or transposed, with the weight gradient in the contiguous layout except in bfloat16."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Conv3d | nn.ConvTranspose3d) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = (
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.transposed,
            layer.output_padding,
            layer.groups,
        )
        ctx.contiguous = x.dtype != torch.bfloat16 or longer_than(x, layer)
        return torch.convolution(x, weight, bias, *ctx.options)

    @staticmethod
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        convolution_backward, outputs = torch.ops.aten.convolution_backward, [grad_y.shape[1]]
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = convolution_backward(grad_y, x, weight, outputs, *ctx.options, [True, False, False])[0]
        tensors = [grad_y, x, weight]
        if ctx.contiguous:
            dtype = torch.promote_types(x.dtype, torch.float32)
            tensors = [tensor.to(dtype).contiguous() for tensor in tensors]
        grad_weight = convolution_backward(*tensors, outputs, *ctx.options, [False, True, False])[1]
        grad_bias = grad_y.sum((0, 2, 3, 4)) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight.to(weight.dtype), grad_bias, None


def longer_than(x: Tensor, layer: nn.Conv3d | nn.ConvTranspose3d) -> bool:
    """Whether the kernel of `layer`, not transposed, is longer than a side of x (B, C, T, H, W)."""
    return not layer.transposed and any(kernel > side for kernel, side in zip(layer.kernel_size, x.shape[2:]))


def convolve(x: Tensor, layer: nn.Conv3d | nn.ConvTranspose3d) -> Tensor:
    """What `layer` makes of x, (B, C', T', H', W'), by `Convolution`, in the precision of autocast on a CPU."""
    tensors = x, layer.weight, layer.bias
    if torch.is_autocast_enabled("cpu"):
        tensors = [None if tensor is None else tensor.to(torch.get_autocast_dtype("cpu")) for tensor in tensors]
    return Convolution.apply(*tensors, layer)


def _applies(x: Tensor, layer: nn.Module) -> bool:
    many = min(layer.in_channels, layer.out_channels) > 3  # with one channel of pixels, nothing is won
    return many and x.device.type == "cpu" and not torch.compiler.is_exporting()


class Conv3d(nn.Conv3d):
    """`nn.Conv3d`, see above."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T', H', W')."""
        return convolve(x, self) if _applies(x, self) else super().forward(x)


class ConvTranspose3d(nn.ConvTranspose3d):
    """`nn.ConvTranspose3d`, see above."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T', H', W')."""
        return convolve(x, self) if _applies(x, self) else super().forward(x)
